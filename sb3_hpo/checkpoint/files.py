"""When a checkpoint is written, and how: so that a kill at any moment leaves one that can be read."""

import contextlib
import io
import os
import pickle
import platform
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from hybrid_envs.checks import check_count
from sb3_hpo import ranks
from sb3_hpo.callback_tree import callback_tree
from sb3_hpo.checkpoint.run_state import difference, identity, load_run_state, run_state

FORMAT = 1
"""Of the file; a file of another format is refused."""
PATTERN = "checkpoint_*.pt"
ARRAY = "__ndarray__"
"""Key of the dict by which a file represents a numpy array."""
PLAIN: tuple[Any, ...] = (bool, int, float, str, bytes)


class ExactCheckpointCallback(BaseCallback):
    """
    Saves the whole run between two iterations, and resumes it: if the folder holds a checkpoint when training starts, the run
    goes on from the newest one. A script that is killed and started again unchanged hence ends with the weights of a run that
    was never killed.

        model = HPO("MlpPolicy", env, seed=0)
        model.learn(1_000_000, callback=ExactCheckpointCallback("runs/first"))

    The first checkpoint is written before training; if that fails, training does not start. If a later one fails, there is a
    warning, the checkpoints before it are left as they are, and training goes on.

    :param folder: of one run alone; made if it is not there
    :param every: iterations between checkpoints; one more is written when training ends
    :param keep: so many of the newest checkpoints are kept
    :param verbose: whether a line says where the run is resumed
    :raises TypeError: when training starts, if the algorithm, an environment or a wrapper does not tell all its state
    :raises ValueError: when training starts, if the folder holds another run's checkpoints or none that can be read, or if
        another callback is called before this one
    :raises OSError: when training starts, if the folder cannot be written to
    """

    reads_arrays, idle_at_steps = False, True

    model: PPO

    def __init__(self, folder: str | Path, *, every: int = 10, keep: int = 3, verbose: int = 1):
        super().__init__(verbose)
        self.folder = Path(folder)
        self.every, self.keep = check_count("every", every), check_count("keep", keep)
        self._to_resume: dict[str, Any] | None = None
        self._saved_at: int | None = None
        self._between_iterations = True

    def _init_callback(self) -> None:
        if not isinstance(self.model, PPO) or self.model.use_sde:
            raise TypeError(
                f"exact checkpoints are for HPO, HybridPPO and PPO without use_sde; {type(self.model).__name__} keeps state "
                "that they do not know of"
            )

    def _on_training_start(self) -> None:
        callbacks = list(callback_tree(self.locals["callback"]))
        if callbacks[0] is not self:
            # At a checkpoint, all others have to be either before or after their part of the same moment.
            raise ValueError(
                f"{type(self).__name__} must be the first of the callbacks; {type(callbacks[0]).__name__} is before it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"there is no folder {self.folder} for checkpoints, and it cannot be made: {error}") from error
        self._identity = identity(self.model, self.locals["callback"])
        self._saved_at, self._to_resume, self._between_iterations = None, None, True
        self.model._way_back = (  # type: ignore[attr-defined]
            f"Resumed, with any number of ranks, it goes on from the newest checkpoint in {self.folder}"
        )
        found = ranks.from_main(newest_checkpoint(self.folder) if ranks.is_main() else None)
        if found is None:
            return
        path, content = found
        _require_same_run(path, content, self._identity)
        if ranks.is_main():
            _warn_of_differences(path, content, self.locals["total_timesteps"], str(self.model.device))
        self._to_resume, self._saved_at = content["state"], content["num_timesteps"]
        self._resume()
        if self.verbose and ranks.is_main():
            print(f"Resumed from {path} at {self.model.num_timesteps} of {self.locals['total_timesteps']} steps")

    def _resume(self) -> None:
        load_run_state(self.model, self.locals["callback"], self._to_resume)  # type: ignore[arg-type]
        self.model._num_timesteps_at_start = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        self._between_iterations = False
        iteration = self.model.num_timesteps // (self.model.n_steps * self.model.n_envs)
        if self._saved_at is None or self._to_resume is not None:
            if self._to_resume is not None:
                # Once more: the other callbacks' training start may have drawn random numbers or begun a count.
                self._resume()
                self._to_resume = None
            self._save()
        elif iteration % self.every == 0:
            self._try_to_save()

    def _on_rollout_end(self) -> None:
        self._between_iterations = True

    def _on_training_end(self) -> None:
        if self._saved_at is None or self._to_resume is not None:
            return  # rl_zoo3 announces the end of a run that was refused at its start, too: what is saved is another's
        # If a callback stopped training, it did so in the middle of a rollout.
        with contextlib.suppress(ranks.RankLostError):  # rl_zoo3 announces the end after that too
            (due,) = ranks.any_of(self._between_iterations and self.model.num_timesteps != self._saved_at)
            if due:
                self._try_to_save()

    def _on_step(self) -> bool:
        return True

    def _try_to_save(self) -> None:
        try:
            self._save()
        except OSError as error:
            warnings.warn(f"no checkpoint at {self.model.num_timesteps} steps; those before it remain: {error}", stacklevel=2)

    def _save(self) -> None:
        path = self.folder / f"checkpoint_{self.model.num_timesteps:012d}.pt"
        content = {
            "format": FORMAT,
            "version": version("hybrid-rl-suite"),
            "identity": self._identity,
            "platform": _platform(str(self.model.device)),
            "num_timesteps": self.model.num_timesteps,
            "total_timesteps": self.locals["total_timesteps"],
            "state": run_state(self.model, self.locals["callback"]),
        }
        if ranks.is_main():
            self._write(path, content)
        self._saved_at = self.model.num_timesteps

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        write_checkpoint(path, content)
        # Files of later steps could not be read, else the run would have gone on from them.
        files = sorted(self.folder.glob(PATTERN))
        at = files.index(path)
        for old in (*files[: max(at + 1 - self.keep, 0)], *files[at + 1 :], *self.folder.glob(f".{PATTERN}.tmp")):
            old.unlink()


# ---- files -----------------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """
    Write one file so that, whenever the process or the machine stops, it is there completely or not at all.

    :param content: tensors, arrays and plain data
    :raises TypeError: naming the entry that is anything else
    :raises OSError: if it cannot be written; nothing is left behind then
    """
    buffer = io.BytesIO()
    torch.save(_encode(content, "checkpoint"), buffer)
    write_whole(path, buffer.getbuffer())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """
    Write one file so that, whenever the process or the machine stops, it is there completely or not at all.

    :raises OSError: if it cannot be written; nothing is left behind then
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from error
    if hasattr(os, "O_DIRECTORY"):  # where a folder can be synchronised: the new name is in it
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """
    Read one file. It is data, never code: nothing in it can be executed.

    :return: what was given to :func:`write_checkpoint`
    :raises ValueError: if the file is damaged, or is no checkpoint of this version of the library
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch's own reader does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message explains how to execute the file
        raise DamagedCheckpointError(f"{path} cannot be read: it holds more than tensors and plain data") from error
    except Exception as error:  # damage makes the readers raise anything
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is not a checkpoint of a run")
    ours = {"format": FORMAT, "version": version("hybrid-rl-suite")}
    for name, value in ours.items():
        if content.get(name) != value:
            raise ValueError(f"{path} was written by another version of the library: {name} {content.get(name)}, here {value}")
    return _decode(content)


class DamagedCheckpointError(ValueError):
    """The file was cut off, changed, or never was a torch file."""


def newest_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """
    :param folder: that of an :class:`ExactCheckpointCallback`
    :return: the newest checkpoint that can be read, and its content: ``num_timesteps``, ``total_timesteps``, ``identity``,
        ``state``, ``version``, ``platform``; ``None`` if there are no checkpoints. Every damaged file brings a warning.
    :raises ValueError: if there are some, but all are damaged; or the newest is of another version of the library
    """
    files = sorted(Path(folder).glob(PATTERN), reverse=True)
    for path in files:
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpointError as error:
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
    if files:
        raise ValueError(f"none of the {len(files)} checkpoints in {folder} can be read; move them away to start anew")
    return None


def _require_same_run(path: Path, content: dict[str, Any], current: dict[str, Any]) -> None:
    found = difference(content["identity"], current, "")
    if found is not None:
        where, saved, now = found
        raise ValueError(
            f"{path} is of another run: {where.lstrip('.')} was {saved!r} there and is {now!r} here. Build the model as it "
            "was built then, or use another folder."
        )


def _warn_of_differences(path: Path, content: dict[str, Any], total_timesteps: int, device: str) -> None:
    current = {"total_timesteps": total_timesteps, "platform": _platform(device)}
    found = difference({name: content[name] for name in current}, current, "")
    if found is not None:
        where, saved, now = found
        warnings.warn(
            f"{path}: {where.lstrip('.')} was {saved!r} there and is {now!r} here, so the resumed run may differ from an "
            "unbroken one",
            stacklevel=2,
        )


def _platform(device: str) -> dict[str, Any]:
    """That on which the last bits of a result may depend."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": ranks.count(),
        "device": device,
    }


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        try:
            return {ARRAY: torch.from_numpy(np.array(value))}
        except TypeError as error:
            raise TypeError(f"{where} cannot be saved: {error}") from error
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _encode(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_encode(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    if value is None:
        return None
    for kind in PLAIN:  # of a subclass, such as torch's version, the plain value
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors, arrays and plain data only")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return value[ARRAY].numpy()[()] if value.keys() == {ARRAY} else {key: _decode(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_decode(entry) for entry in value)
    return value
