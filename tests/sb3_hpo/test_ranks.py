"""N processes that share a run end with the weights of one."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.utils import parameters_to_vector

from sb3_hpo import HPO, HybridPPO
from sb3_hpo.checkpoint import newest_checkpoint
from tests.sb3_hpo.sharing import (
    RUNS,
    Ends,
    Finished,
    all_finished,
    checkpointed,
    drifting,
    on_ranks,
    stopped,
    unseeded,
    watched,
    zoo,
)

ALL = pytest.mark.slow
CASES = [
    pytest.param(3, True, 4, 1e-12),
    *(pytest.param(n, double, 20, 1e-12 if double else 1e-5, marks=ALL) for n in (2, 3, 4) for double in (True, False)),
]
"""Ranks, whether in float64, iterations, and how near the weights are."""


@cache
def runs(n_ranks: int, double: bool, iterations: int) -> list[dict[str, Finished]]:
    return on_ranks(n_ranks, all_finished, iterations, double=double)


@pytest.mark.parametrize(("n_ranks", "double", "iterations", "tolerance"), CASES)
@pytest.mark.parametrize("name", RUNS)
def test_ranks_end_with_the_weights_of_one_process(
    name: str, n_ranks: int, double: bool, iterations: int, tolerance: float
) -> None:
    (one,) = (of_rank[name] for of_rank in runs(1, double, iterations))
    several = [of_rank[name] for of_rank in runs(n_ranks, double, iterations)]
    for it in several:
        assert np.linalg.norm(it.weights - one.weights) <= tolerance * np.linalg.norm(one.weights)
        assert np.array_equal(it.weights, several[0].weights)
        assert (it.steps, it.updates, it.stopped) == (one.steps, one.updates, one.stopped)
        assert it.statistics == pytest.approx(one.statistics, rel=1e3 * tolerance)
        assert np.array(it.episodes) == pytest.approx(np.array(one.episodes), rel=1e3 * tolerance)
    assert len(one.episodes) > 5


@pytest.mark.parametrize("name", ["HPO, inventory", "HybridPPO, inventory"])
def test_a_kl_stop_bites_in_these_runs(name: str) -> None:
    (one,) = runs(1, True, 4)
    assert one[name].stopped > 0


@pytest.mark.parametrize("name", ["HPO, kiln", "HybridPPO, brewery"])
def test_a_callback_that_stops_one_rank_stops_all(name: str) -> None:
    (one,) = on_ranks(1, stopped, name, 0)
    assert one[0] < RUNS[name]().n_steps * 7 * 3
    assert on_ranks(2, stopped, name, 1) == [one, one]


def test_one_rank_evaluates_logs_and_writes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    (one,), two = (on_ranks(n, watched, str(folder)) for n, folder in zip((1, 2), folders, strict=True))
    for weights in two:  # though the evaluations of rank 0 draw random numbers
        assert weights == pytest.approx(one, rel=1e-4, abs=1e-6)
    written = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in folders]
    assert len(written[0]) == len(written[1]) == 5, written
    assert [path for path in written[0] if "tfevents" not in path] == [path for path in written[1] if "tfevents" not in path]
    rewards = [np.load(folder / "evaluations.npz")["results"] for folder in folders]
    assert rewards[0].shape == (7, 2)
    assert rewards[1] == pytest.approx(rewards[0], rel=1e-4)


def test_without_a_seed_the_ranks_agree_on_one() -> None:
    assert np.array_equal(*on_ranks(2, unseeded))


def test_ranks_that_have_drifted_apart_end_the_run() -> None:
    for message in on_ranks(2, drifting):
        assert message.startswith("RuntimeError: the ranks have drifted apart")


def test_fewer_scenarios_than_ranks_are_refused() -> None:
    for message in on_ranks(8, stopped, "HPO, kiln", 0):
        assert message == "ValueError: 7 scenarios cannot be shared by 8 ranks: each needs one at least"


@pytest.mark.parametrize("name", ["HPO, inventory", "HPO, purse", "HybridPPO, inventory"])
def test_a_run_is_resumed_by_another_number_of_ranks(name: str, tmp_path: Path) -> None:
    (unbroken,) = on_ranks(1, checkpointed, name, str(tmp_path / "unbroken"), double=True)
    step = RUNS[name]().n_steps * RUNS[name]().n_envs
    folder = str(tmp_path / "broken")
    for n_ranks, iteration in ((2, 3), (3, 5)):
        on_ranks(n_ranks, checkpointed, name, folder, 8, Ends(0, iteration * step), double=True)
        newest = newest_checkpoint(folder)
        assert newest is not None and newest[1]["num_timesteps"] == (iteration - 1) * step
    (resumed,) = on_ranks(1, checkpointed, name, folder, double=True)
    assert np.linalg.norm(resumed - unbroken) <= 1e-12 * np.linalg.norm(unbroken)


def killed_and_resumed(rank: int, seconds: float, folder: Path) -> None:
    run = ("HPO, inventory", str(folder / "killed"), 20)
    killed = on_ranks(2, checkpointed, *run, Ends(rank, seconds=seconds), double=True)
    assert killed[rank] is None
    message = killed[1 - rank]
    assert message.startswith(f"RankLostError: rank {1 - rank} of 2 has lost another, which has ended or does not answer;")
    assert message.endswith(f"it goes on from the newest checkpoint in {folder / 'killed'}")
    (unbroken,) = on_ranks(1, checkpointed, "HPO, inventory", str(folder / "unbroken"), 20, double=True)
    for resumed in on_ranks(2, checkpointed, *run, double=True):
        assert np.linalg.norm(resumed - unbroken) <= 1e-12 * np.linalg.norm(unbroken)


def test_a_killed_rank_ends_the_run_which_then_resumes(tmp_path: Path) -> None:
    killed_and_resumed(1, 0.4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ranks_killed_at_random_moments_end_the_run_which_then_resumes(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    killed_and_resumed(chance.randrange(2), chance.uniform(0.0, 1.0), tmp_path)


# ---- the command line ------------------------------------------------------------------------------------------------

ID = "HybridInventory-v0"
ARGUMENTS = ["--env", ID, "--env-kwargs", "n_items:2", "horizon:5", "--eval-freq", "20", "--checkpoint-freq", "2"]
SETTINGS = {
    "hpo": ["n_envs:5", "normalize:True", "policy_kwargs:dict(net_arch=[8])"],
    "hybrid_ppo": ["n_envs:3", "n_steps:5", "batch_size:5", "n_epochs:2", "policy_kwargs:dict(net_arch=[8])"],
}


def final_weights(folder: Path, algo: str) -> np.ndarray:
    model = {"hpo": HPO, "hybrid_ppo": HybridPPO}[algo].load(folder / "logs" / algo / f"{ID}_1" / f"{ID}.zip")
    return parameters_to_vector(model.policy.parameters()).detach().numpy()


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / "logs").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def imported() -> None:
    """What takes long to import, before processes are forked from this one."""
    importlib.import_module("rl_zoo3.train")
    importlib.import_module("sb3_hpo.zoo.manager")


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("algo", ["hpo", pytest.param("hybrid_ppo", marks=pytest.mark.slow)])
def test_the_zoo_trains_one_run_in_one_folder(algo: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    arguments = [*ARGUMENTS, "-n", "100", "-params", *SETTINGS[algo]]
    for n_ranks, folder in zip((1, 2), folders, strict=True):
        results = on_ranks(n_ranks, zoo, str(folder), algo, *arguments, "--seed", "1")
        assert results == [None] * n_ranks
    one, two = (final_weights(folder, algo) for folder in folders)
    assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    assert contents(folders[0]) == contents(folders[1])


@pytest.mark.usefixtures("imported")
def test_the_zoo_draws_one_seed_for_all_ranks_and_neither_tunes_nor_trains_other_algorithms(tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "-n", "25", "-params", *SETTINGS["hpo"]]
    assert on_ranks(2, zoo, str(tmp_path / "seed"), "hpo", *arguments) == [None, None]
    for more in (("ppo", *ARGUMENTS), ("hpo", *ARGUMENTS, "--optimize-hyperparameters")):
        assert on_ranks(2, zoo, str(tmp_path / "other"), *more) == ["SystemExit: 2"] * 2


@pytest.mark.slow
def test_torchrun_starts_a_run_again_whose_rank_was_killed(tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "-n", "1000", "--seed", "1", "-params", *SETTINGS["hpo"]]
    on_ranks(1, zoo, str(tmp_path / "one"), "hpo", *arguments)
    folder = tmp_path / "two"
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*launcher, "-m", "sb3_hpo.zoo", "train", "--algo", "hpo", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    torchrun = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    for _ in range(600):
        if list(folder.rglob("checkpoint_000000000100.pt")):
            break
        time.sleep(0.1)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, errors = torchrun.communicate(timeout=300)
    assert torchrun.returncode == 0, errors
    assert "Resumed from" in output
    assert final_weights(folder, "hpo") == pytest.approx(final_weights(tmp_path / "one", "hpo"), rel=1e-3, abs=1e-4)
