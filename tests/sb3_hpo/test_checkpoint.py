"""The files: complete or not there, never code, refused when they are of something else, and killed at any moment."""

import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_hpo.checkpoint.files
from hybrid_envs.wrappers import FlatActionWrapper
from sb3_hpo.checkpoint import ExactCheckpointCallback, newest_checkpoint, read_checkpoint, write_checkpoint
from sb3_hpo.vec_env import HybridVecEnv
from tests.sb3_hpo.environments import PurseEnv
from tests.sb3_hpo.runs import SMALL, Killed, Troubled, hpo, hpo_normalized, hybrid_ppo, inventory, same_weights, train

ROOT = Path(__file__).parent.parent.parent
STEP = 6 * 7
"""Environment steps of an iteration."""


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) // STEP for path in folder.glob("checkpoint_*.pt"))


# ---- the file --------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    content = {
        "format": 1,
        "version": "0.1.0",
        "array": np.arange(3, dtype=np.uint32),
        "number": np.float32(0.1),
        "tuple": (1, None, [2.5, "x"], {3: True}),
        "huge": 2**127,
        "strided": torch.arange(6.0).view(2, 3).t(),
    }
    path = tmp_path / "checkpoint_1.pt"
    write_checkpoint(path, content)
    found = read_checkpoint(path)
    assert found["array"].dtype == np.uint32
    assert type(found["number"]) is np.float32
    assert found["number"] == np.float32(0.1)
    assert {name: found[name] for name in ("tuple", "huge")} == {name: content[name] for name in ("tuple", "huge")}
    assert found["strided"].stride() == (1, 3)  # the order of additions depends on it
    assert torch.load(path, weights_only=True)["huge"] == 2**127


@pytest.mark.parametrize(("value", "named"), [(object(), "object"), ({1, 2}, "set"), (np.array(["a"]), "str")])
def test_objects_are_not_saved_but_named(value: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"checkpoint\['part'\]\[1\].*{named}"):
        write_checkpoint(tmp_path / "checkpoint_1.pt", {"part": [0, value]})
    assert not list(tmp_path.iterdir())


def test_a_file_with_code_in_it_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"format": 1, "state": Bomb()}, tmp_path / "checkpoint_1.pt")
    with pytest.raises(ValueError, match=r"checkpoint_1.pt cannot be read: it holds more than tensors and plain data"):
        read_checkpoint(tmp_path / "checkpoint_1.pt")
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists(), "the bomb was none"


def test_no_truncation_and_no_flipped_byte_is_ever_resumed_from(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_1.pt"
    content = {"format": 1, "version": "0.1.0", "weights": torch.randn(40, 40), "lr": 0.001, "state": {"n": [1, 2, 3]}}
    write_checkpoint(path, content)
    whole, rng = path.read_bytes(), random.Random(0)

    def outcome(damaged: bytes) -> str:
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            return "refused"
        same = torch.equal(found.pop("weights"), content["weights"])
        assert same and found == {name: content[name] for name in found}
        return "harmless"  # padding between the entries of the archive

    lengths = [*range(0, 200, 10), *(rng.randrange(len(whole)) for _ in range(50)), len(whole) - 1]
    assert {outcome(whole[:length]) for length in lengths} == {"refused"}
    flipped = []
    for _ in range(400):
        position, changed = rng.randrange(len(whole)), bytearray(whole)
        changed[position] ^= 1 << rng.randrange(8)
        flipped.append(outcome(bytes(changed)))
    assert flipped.count("refused") > 300


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept_and_what_a_killed_run_left_is_cleaned_away(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(hpo(), tmp_path, every=2, keep=2, kill_at=7.5)
    assert steps(tmp_path) == [4, 6]
    (tmp_path / ".checkpoint_000000000336.pt.tmp").write_bytes(b"half")
    train(hpo(), tmp_path, every=5, keep=3)
    assert steps(tmp_path) == [6, 10, 12]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(damage: str, tmp_path: Path) -> None:
    unbroken = train(hpo(), tmp_path / "unbroken")
    with pytest.raises(Killed):
        train(hpo(), tmp_path / "killed", kill_at=7.5)
    newest = tmp_path / "killed" / f"checkpoint_{6 * STEP:012d}.pt"
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(byte ^ 16 for byte in content[middle : middle + 4096])
    newest.write_bytes({"truncated": content[: len(content) // 3], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match=f"{newest.name} cannot be read: .*; going back to the checkpoint before it"):
        resumed = train(hpo(), tmp_path / "killed", every=5)
    assert same_weights(unbroken, resumed)
    assert steps(tmp_path / "killed") == [5, 10, 12], "the damaged file is gone, and no good one for its sake"


def test_if_all_checkpoints_are_damaged_the_folder_is_named_and_nothing_is_trained(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(hpo(), tmp_path, kill_at=5.5)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    model = hpo()
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match=f"none of the 3 checkpoints in {tmp_path} can be read"),
    ):
        train(model, tmp_path)
    assert model.num_timesteps == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_to_stops_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = hpo()
    with pytest.raises(OSError, match=rf"{tmp_path}/file/run"):
        train(model, tmp_path / "file" / "run")
    assert model.num_timesteps == 0


def test_the_recipe_of_the_documentation_starts_and_resumes(tmp_path, monkeypatch, capsys) -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    recipe = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(recipe, first := {})
    assert capsys.readouterr().out == ""
    exec(recipe, second := {})
    assert "Resumed from runs/first/checkpoint_000000003200.pt at 3200 of 3200 steps" in capsys.readouterr().out
    assert same_weights(first["model"], second["model"])


# ---- another run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hybrid_ppo(make_vec_env(inventory, 6)), "algorithm was 'HPO' there and is 'HybridPPO' here"),
        (lambda: hpo(PurseEnv()), "env.instances.*HybridInventory-v0.*PurseEnv"),
        (
            lambda: hpo(gym.make("HybridInventory-v0", fixed_cost=3.0, **SMALL)),
            "spec.fixed_cost was None there and is 3.0 here",
        ),
        (lambda: hpo(n_scenarios=5), "n_envs was 6 there and is 5 here"),
        (lambda: hpo(VecNormalize(HybridVecEnv(inventory().unwrapped, 6))), "env.wrappers"),
        (lambda: hpo(seed=1), "settings.seed was 0 there and is 1 here"),
        (lambda: hpo(gamma=0.5), "settings.gamma was 0.99 there and is 0.5 here"),
        (lambda: hpo(learning_rate="lin_1e-3"), r"settings.learning_rate\[0\] was 0.002 there and is 0.001 here"),
        (lambda: hpo(policy_kwargs={"net_arch": [9]}), r"net_arch\[0\] was 8 there and is 9 here"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_with_both_values(
    build: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(hpo(), tmp_path, kill_at=2.5)
    model = build()
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=rf"checkpoint_0+84.pt is of another run: .*{message}"):
        train(model, tmp_path)
    assert model.num_timesteps == 0
    assert all(torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize(("name", "value"), [("version", "0.0.1"), ("format", 0)])
def test_the_checkpoint_of_another_version_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(hpo(), tmp_path, kill_at=2.5)
    path, content = newest_checkpoint(tmp_path)
    write_checkpoint(path, content | {name: value})
    with pytest.raises(ValueError, match=f"{path.name} was written by another version of the library: {name} {value}, here"):
        train(hpo(), tmp_path)


def test_other_callbacks_are_refused_and_so_is_one_before_the_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(hpo(), tmp_path, kill_at=2.5)
    with pytest.raises(ValueError, match=r"callbacks was .*Troubled.* there and is .*StopTrainingOnMaxEpisodes"):
        train(hpo(), tmp_path, callbacks=(StopTrainingOnMaxEpisodes(5),))
    callbacks = CallbackList([CallbackList([Troubled()]), ExactCheckpointCallback(tmp_path / "other")])
    with pytest.raises(ValueError, match="must be the first of the callbacks; Troubled is before it"):
        hpo().learn(STEP, callback=callbacks)


def test_a_longer_run_and_other_threads_are_allowed_with_a_warning(tmp_path: Path) -> None:
    train(hpo(), tmp_path, iterations=4)
    with pytest.warns(UserWarning, match=f"total_timesteps was {4 * STEP} there and is {6 * STEP} here"):
        model = train(hpo(), tmp_path, iterations=6)
    assert model.num_timesteps == 6 * STEP
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"platform.threads was {threads} there and is {threads + 1} here"):
            train(hpo(), tmp_path, iterations=6)
    finally:
        torch.set_num_threads(threads)


def test_algorithms_with_other_state_are_refused(tmp_path: Path) -> None:
    model = A2C("MlpPolicy", FlatActionWrapper(inventory()))
    with pytest.raises(TypeError, match="A2C"):
        model.learn(10, callback=ExactCheckpointCallback(tmp_path))


@pytest.mark.parametrize("name", ["every", "keep"])
def test_counts_are_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        ExactCheckpointCallback(tmp_path, **{name: 0})


# ---- killed, and without room: in processes of their own -------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A forked process has the memory of OpenMP's threads but not the threads: with more than one it would wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def forked(work: Callable[[], None]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finish(work: Callable[[], None]) -> int:
    process = forked(work)
    process.join()
    return process.exitcode


@pytest.mark.usefixtures("one_thread")
def test_killed_between_writing_and_renaming_the_checkpoint_before_it_is_whole(tmp_path: Path) -> None:
    unbroken = train(hpo_normalized(), tmp_path / "unbroken")
    rename = os.replace

    def killed() -> None:
        def replace(source: Path, target: Path) -> None:
            if str(target).endswith(f"{6 * STEP}.pt"):
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        sb3_hpo.checkpoint.files.os.replace = replace
        train(hpo_normalized(), tmp_path / "killed")

    assert finish(killed) == -signal.SIGKILL
    assert steps(tmp_path / "killed") == [0, 2, 4]
    assert len(list((tmp_path / "killed").glob(".*.tmp"))) == 1
    assert same_weights(unbroken, train(hpo_normalized(), tmp_path / "killed"))
    assert not list((tmp_path / "killed").glob(".*.tmp"))


@pytest.mark.usefixtures("one_thread")
def test_killed_at_random_moments_the_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    iterations, killed, rng = 60, tmp_path / "killed", random.Random(0)
    unbroken = train(hpo_normalized(), tmp_path / "unbroken", iterations=iterations)
    reached = [0]
    while len(reached) < 9 and reached[-1] < 0.8 * iterations:
        process = forked(lambda: train(hpo_normalized(), killed, iterations=iterations, every=1))
        ahead = reached[-1] + rng.randrange(4)
        while process.is_alive() and max(steps(killed), default=-1) < ahead:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        reached.append(max(steps(killed), default=0))
    assert len(set(reached)) >= 4
    assert same_weights(unbroken, train(hpo_normalized(), killed, iterations=iterations, every=1))


class FullDisk(BaseCallback):
    """From the sixth iteration on, no file can be longer than 1,000 bytes."""

    def _on_rollout_end(self) -> None:
        if self.num_timesteps == 5 * STEP:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    def _on_step(self) -> bool:
        return True


@pytest.mark.usefixtures("one_thread")
def test_without_room_for_a_checkpoint_those_before_remain_and_training_goes_on(tmp_path: Path) -> None:
    def trained() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = train(hpo(), tmp_path / "full", callbacks=(FullDisk(),))
        messages = [str(warning.message) for warning in caught]
        assert model.num_timesteps == 12 * STEP
        for iteration in (6, 8, 10, 12):
            assert sum(f"no checkpoint at {iteration * STEP} steps" in message for message in messages) == 1

    assert finish(trained) == 0
    assert steps(tmp_path / "full") == [0, 2, 4]
    assert len(list((tmp_path / "full").iterdir())) == 3, "nothing half-written is left"

    class RoomAgain(FullDisk):
        def _on_rollout_end(self) -> None:
            pass

    RoomAgain.__name__ = "FullDisk"
    unbroken = train(hpo(), tmp_path / "unbroken", callbacks=(RoomAgain(),))
    assert same_weights(unbroken, train(hpo(), tmp_path / "full", callbacks=(RoomAgain(),)))


@pytest.mark.usefixtures("one_thread")
def test_without_room_at_the_start_training_does_not_begin(tmp_path: Path) -> None:
    def refused() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        model = hpo()
        with pytest.raises(OSError, match=r"checkpoint_0+.pt cannot be written"):
            train(model, tmp_path)
        assert model.num_timesteps == 0

    assert finish(refused) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_twenty_sigkills_of_a_process_leave_no_trace_in_the_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.checkpoint", "kills", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("while a checkpoint was written") >= 8
    unbroken, killed = (newest_checkpoint(tmp_path / name)[1]["state"] for name in ("unbroken", "killed"))
    assert unbroken["policy"].keys() == killed["policy"].keys()
    assert all(torch.equal(unbroken["policy"][name], killed["policy"][name]) for name in killed["policy"])


@pytest.mark.slow
def test_the_overhead_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.checkpoint", "overhead", "--iterations", "4", "--every", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "3 checkpoints of" in result.stdout
