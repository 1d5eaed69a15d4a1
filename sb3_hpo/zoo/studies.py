"""
Optuna studies that many processes work on: the trial of a killed process is run again, and no more trials than asked for.

A process that runs a trial says so once a minute (Optuna's heartbeat). One that was silent for two minutes counts as dead.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

HEARTBEAT = 60
"""Seconds between two signs of life of a running trial; after twice as many without one its process counts as dead."""
RETRIES = 2
"""How often a trial is run again: one that kills its process, by all the memory it takes, must not kill all of them."""


class SignsOfLife(BaseHeartbeat):
    """
    Optuna's heartbeat for any of its storages; what comes with it is for databases alone, and never gives back a trial whose
    process was killed before the first beat.

    A process counts as dead when its last sign of life stays the same for so long by the clock of the one that looks: clocks
    of several machines need not agree.
    """

    seen: dict[int, tuple[float | None, float]] = {}  # noqa: RUF012  never written to
    """Of each running trial, its last sign of life, and when it was first seen here."""

    def record_heartbeat(self: Any, trial_id: int) -> None:
        self.set_trial_system_attr(trial_id, "heartbeat", time.time())

    def _get_stale_trial_ids(self: Any, study_id: int) -> list[int]:
        seen, now = {}, time.monotonic()
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            sign = trial.system_attrs.get("heartbeat")
            last, since = self.seen.get(trial._trial_id, (sign, now))
            seen[trial._trial_id] = (sign, since if sign == last else now)
        self.seen = seen
        return [trial_id for trial_id, (_, since) in seen.items() if now - since > 2 * HEARTBEAT]

    def get_heartbeat_interval(self) -> int:
        return HEARTBEAT

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


class Journal(SignsOfLife, JournalStorage):
    """Optuna's journal, with signs of life."""


class Database(SignsOfLife, RDBStorage):
    """Optuna's database, with signs of life."""


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
            return Journal(JournalFileBackend(name))
        except (ValueError, LookupError, TypeError) as error:  # whatever comes of lines that are not Optuna's
            raise ValueError(f"--storage {name} is no journal of Optuna's: {error}") from error
    attempt = 0
    while True:
        try:
            storage = Database(name)
            if storage.engine.name == "sqlite":
                lock_from_the_first_read(storage.engine)
            return storage
        except (SQLAlchemyError, ImportError) as error:
            # Of processes that start together, one makes the tables; the others fail once, and find them at the next attempt.
            attempt += 1
            if attempt == 5 or not isinstance(error, OperationalError | IntegrityError):
                cause = error.__cause__ or error
                raise ValueError(
                    f"--storage {name} is no journal file (*.log) or database that can be opened: {cause}"
                ) from error
            time.sleep(0.5)


def lock_from_the_first_read(engine: Engine) -> None:
    """SQLite locks from the first write on: two processes could both read that a trial waits to be run, and both run it."""

    def leave_beginning_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 60000")  # milliseconds to wait for the lock

    event.listen(engine, "connect", leave_beginning_to_us)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # of the connections before this


def wait_for_work(study: optuna.Study, total: int) -> bool:
    """
    Wait, if all trials are taken, until one is given back or all are finished.

    :param total: trials that are asked for
    :return: whether one is to be run; if not, so many are finished
    """
    awaited: list[int] = []
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        queued = any(trial.state == TrialState.WAITING for trial in trials)
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        finished = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        if finished >= total:
            return False
        if len(running) + finished >= total:
            if running != awaited:
                print("Waiting for what becomes of trials that are running:", *running, flush=True)
            awaited = running
        elif queued or not awaited:
            return True
        else:
            awaited = []  # Optuna fails the trial of a dead process first, and then queues it: look again before a new one
        time.sleep(HEARTBEAT / 10)


class StopAtTotal(MaxTrialsCallback):
    """Optuna's callback that ends a study, which here waits first until no trial of another process has to be run again."""

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if not wait_for_work(study, self._n_trials):
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
