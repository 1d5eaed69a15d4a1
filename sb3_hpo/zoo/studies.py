"""
Optuna studies that many processes work on: the trial of a killed process is run again, and no more trials than asked for.

A process that runs a trial says so once a minute (Optuna's heartbeat). One that was silent for two minutes counts as dead.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

HEARTBEAT = 60
"""Seconds between two signs of life of a running trial; after twice as many without one its process counts as dead."""
RETRIES = 2
"""How often a trial is run again: one that kills its process, by all the memory it takes, must not kill all of them."""


class JournalFile(JournalStorage, BaseHeartbeat):
    """
    Optuna's journal in a file, with the heartbeat that Optuna has for databases alone.

    A process counts as dead when its sign of life stays the same for so long by the clock of the one that looks: clocks of
    several machines need not agree.

    :param path: of the file
    """

    def __init__(self, path: str):
        super().__init__(JournalFileBackend(path))
        self._seen: dict[int, tuple[float, float]] = {}
        """Of each running trial, its last sign of life, and when it was first seen here."""

    def record_heartbeat(self, trial_id: int) -> None:
        self.set_trial_system_attr(trial_id, "heartbeat", time.time())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now, before, self._seen = time.monotonic(), self._seen, {}
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            if (sign := trial.system_attrs.get("heartbeat")) is not None:
                last, since = before.get(trial._trial_id, (None, now))
                self._seen[trial._trial_id] = (sign, since if sign == last else now)
        return [trial_id for trial_id, (_, since) in self._seen.items() if now - since > 2 * HEARTBEAT]

    def get_heartbeat_interval(self) -> int:
        return HEARTBEAT

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None]:
        return retry()


def retry() -> RetryHeartbeatStaleTrialCallback:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


def open_storage(name: str) -> BaseStorage:
    """
    :param name: a file of Optuna's journal (``*.log``), or the URL of a database
    :return: the storage, in which running trials give signs of life
    :raises OSError: if the file cannot be read and written
    :raises ValueError: if it is no journal, or if the URL is none or its database cannot be opened
    """
    if name.endswith(".log"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        try:
            return JournalFile(name)
        except (ValueError, LookupError, TypeError) as error:  # whatever comes of lines that are not Optuna's
            raise ValueError(f"--storage {name} is no journal of Optuna's: {error}") from error
    attempt = 0
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(name, heartbeat_interval=HEARTBEAT, heartbeat_stale_trial_callback=retry())
        except (SQLAlchemyError, ImportError) as error:
            # Of processes that start together, one makes the tables; the others fail once, and find them at the next attempt.
            attempt += 1
            if attempt == 5 or not isinstance(error, OperationalError | IntegrityError):
                cause = error.__cause__ or error
                raise ValueError(f"--storage {name} is neither a journal file (*.log) nor a database: {cause}") from error
            time.sleep(0.5)


def work_is_left(study: optuna.Study, total: int) -> bool:
    """
    Wait, if all trials are taken, until those of other processes are finished or given back.

    :param total: trials that are asked for
    :return: whether there is one to be run; otherwise so many are finished
    """
    awaited: list[int] = []
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED))
        if len(trials) < total:
            return True
        running = [trial.number for trial in trials if not trial.state.is_finished()]
        if not running:
            return False
        if running != awaited:
            print("Waiting for what becomes of trials that are running:", *running, flush=True)
            awaited = running
        time.sleep(HEARTBEAT / 10)


class StopAtTotal(MaxTrialsCallback):
    """Optuna's callback that ends a study, which here waits first until no trial of another process has to be run again."""

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if not work_is_left(study, self._n_trials):
            study.stop()


def is_needed(trial: optuna.Trial, total: int) -> bool:
    """
    :param trial: that begins
    :param total: trials that are asked for
    :return: whether fewer have begun before it; not so where several processes took the last one at once. They all count
        alike, because the storage has numbered the trials
    """
    trials = trial.study.get_trials(deepcopy=False)
    return sum(other.number < trial.number and other.state != TrialState.FAIL for other in trials) < total
