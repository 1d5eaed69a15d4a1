"""``sb3-hpo tune`` by many processes: what is killed is run again, and a study ends with exactly the trials asked for."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState

from sb3_hpo import HPO
from sb3_hpo.zoo import main, studies
from sb3_hpo.zoo.studies import is_needed, open_storage, wait_for_work

pytestmark = [
    pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with Study.optimize"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
ROOT = Path(__file__).parent.parent.parent
ID = "HybridInventory-v0"
STORAGES = ["study.log", "sqlite:///study.db"]
ENTRY = {
    "policy": "MlpPolicy",
    "n_envs": 4,
    "n_timesteps": 40,
    "env_kwargs": {"n_items": 1, "horizon": 5},
    "policy_kwargs": {"net_arch": [8]},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where processes have a config and share studies, and are dead after four seconds without a sign of life."""
    (tmp_path / "own.yml").write_text(yaml.safe_dump({ID: ENTRY}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "HEARTBEAT", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has the memory of OpenMP's threads but not the threads
    yield tmp_path
    torch.set_num_threads(threads)


def command(storage: str, total: int, *more: str) -> list[str]:
    """The same seed for every process, to see that they do not draw the same."""
    return [
        *("tune", "--algo", "hpo", "--env", ID, "--conf-file", "own.yml", "-f", "logs", "--no-optim-plots", "--seed", "5"),
        *("--storage", storage, "--study-name", "shared", "--max-total-trials", str(total), "--sampler", "random", *more),
    ]


def tune(storage: str, total: int, killed: bool = False) -> None:
    """
    Work on the study.

    :param killed: by SIGKILL in the midst of its first trial, between simulation and update
    """
    if killed:
        HPO.train = die  # type: ignore[method-assign]
    main(command(storage, total))


def die(self: HPO) -> None:
    Path("begun").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def start(storage: str, total: int, killed: bool = False) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=tune, args=(storage, total, killed))
    process.start()
    return process


def trials_of(storage: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="shared", storage=open_storage(storage)).trials


def check(trials: list[FrozenTrial], total: int) -> None:
    """So many trials are finished, all different, none is left; one was killed and run again with the same parameters."""
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(finished) == total
    assert len(finished) + len(failed) == len(trials)
    assert len({tuple(trial.params.values()) for trial in finished}) == total
    (killed,) = (trial for trial in failed if trial.params)  # others were one too many, and have not begun
    (again,) = (trial for trial in finished if trial.system_attrs.get("failed_trial") == killed.number)
    assert again.params == killed.params
    assert len(again.params) == 10


@pytest.mark.parametrize("storage", STORAGES)
def test_of_four_processes_one_is_killed_and_the_others_run_its_trial_again(storage: str, folder: Path) -> None:
    processes = [start(storage, total=6, killed=True)]
    while not Path("begun").exists():  # or the others might have done it all
        assert processes[0].is_alive() or Path("begun").exists()
        time.sleep(0.1)
    processes += [start(storage, total=6) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    check(trials_of(storage), total=6)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_process_started_again_after_all_were_killed_finishes_the_study(storage: str, folder: Path) -> None:
    process = start(storage, total=1, killed=True)
    process.join()
    assert [trial.state for trial in trials_of(storage)] == [TrialState.RUNNING]
    tune(storage, total=1)
    check(trials_of(storage), total=1)
    tune(storage, total=1)  # nothing is left to be done
    assert len(trials_of(storage)) == 2


def test_a_trial_too_many_is_not_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(command("study.log", 1, "--n-jobs", "2"))
    assert Counter(trial.state.name for trial in trials_of("study.log")) == {"COMPLETE": 1, "FAIL": 1}
    assert "Trial 1 is not run: others have taken the last of 1" in capfd.readouterr().out


def test_of_trials_that_begin_at_once_those_with_the_lowest_numbers_are_run() -> None:
    study = optuna.create_study()
    trials = [study.ask() for _ in range(4)]
    assert [is_needed(trial, 2) for trial in trials] == [True, True, False, False]
    for trial in (trials[3], trials[2], trials[0]):
        study.tell(trial, state=TrialState.FAIL)
    assert is_needed(study.ask(), 2)
    assert not is_needed(study.ask(), 2)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_process_is_dead_when_its_last_sign_of_life_was_long_ago_or_never_came(
    storage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_storage(storage)
    assert isinstance(opened, studies.SignsOfLife)
    study = optuna.create_study(study_name="shared", storage=opened)
    silent, dead, alive = (study.ask()._trial_id for _ in range(3))
    opened.record_heartbeat(dead)
    clock = time.monotonic()
    stale = []
    for second in range(6):
        opened.record_heartbeat(alive)
        monkeypatch.setattr(studies.time, "monotonic", lambda second=second: clock + second)
        stale.append(opened._get_stale_trial_ids(study._study_id))
    assert stale == [[], [], [], [], [], [silent, dead]]


def test_a_trial_that_kills_every_process_is_given_up_after_two_repetitions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(study_name="shared", storage=open_storage("study.log"))
    clock = time.monotonic()
    for second in range(0, 20, 5):
        study.ask().suggest_float("x", 0, 1)
        for later in (0, 4.5):
            monkeypatch.setattr(studies.time, "monotonic", lambda now=clock + second + later: now)
            optuna.storages.fail_stale_trials(study)
    assert [trial.system_attrs.get("retry_history") for trial in study.trials] == [None, [0], [0, 1], None, [3]]
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4 + ["WAITING"]
    assert len({trial.params["x"] for trial in study.trials}) == 2


def test_two_processes_that_want_the_same_waiting_trial_of_sqlite_do_not_both_get_it(folder: Path) -> None:
    """The second has to wait from its first read on, until the first one has written."""
    study = optuna.create_study(study_name="shared", storage=open_storage(STORAGES[1]))
    study.enqueue_trial({})
    writer = sqlite3.connect("study.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor() as pool:
        second = pool.submit(study.ask)
        time.sleep(0.5)
        assert not second.done()
        writer.execute("UPDATE trials SET state = 'RUNNING'")
        writer.execute("COMMIT")
        assert second.result().number == 1


def test_no_new_trial_is_begun_in_place_of_one_that_is_about_to_be_queued_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process fails the trial of a dead one, and queues it only after this one has looked."""
    study = optuna.create_study(study_name="shared", storage=open_storage("study.log"))
    trial, steps = study.ask(), []

    def sleep(seconds: float) -> None:
        steps.append(study.trials[-1].state)
        if len(steps) == 1:
            study.tell(trial, state=TrialState.FAIL)
        elif len(steps) == 2:
            study.enqueue_trial({})

    monkeypatch.setattr(studies.time, "sleep", sleep)
    assert wait_for_work(study, 1)
    assert steps == [TrialState.RUNNING, TrialState.FAIL]
    assert study.trials[-1].state == TrialState.WAITING


@pytest.mark.parametrize(
    ("storage", "named"),
    [
        ("spoilt.log", "spoilt.log is no journal of Optuna's"),
        ("sqlite:///spoilt.db", "file is not a database"),
        ("sqlite:///nowhere/study.db", "unable to open database file"),
        ("oracle+nothing://host/db", "nothing"),
        ("nonsense", "no journal file (*.log) or database that can be opened"),
        (".log", None),
    ],
)
def test_a_bad_storage_is_named_in_one_line(
    storage: str, named: str | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "spoilt.log").write_text("step 1\nstep 2\n")
    (folder / "spoilt.db").write_text("step 1\nstep 2\n" * 100)
    (folder / ".log").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(command(storage, 1))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sb3-hpo: error: ")
    assert storage in line
    assert named is None or named in line


@pytest.mark.slow
def test_four_commands_with_their_own_interpreters_survive_a_kill_with_the_usual_heartbeat(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "sb3_hpo.zoo", *command("study.log", 8, "-n", "2000")]
    processes = [subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)]
    while len(trials := trials_of("study.log") if Path("study.log").exists() else []) < 4 or len(trials[0].params) < 10:
        time.sleep(0.1)
    os.kill(processes[0].pid, signal.SIGKILL)
    assert [process.wait() for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    check(trials_of("study.log"), total=8)
