"""Runs that several ranks share, and the processes in which they do; a module of its own, which torchrun's workers import."""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

SECONDS = 60.0
"""After which no test waits any longer."""


def in_double_precision() -> None:
    """Of this process: networks and what they see. SB3 says float32 by name when it shows a network an observation."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def _work(rank: int, n_ranks: int, store: str, double: bool, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if double:
        in_double_precision()
    if n_ranks > 1:
        timeout = timedelta(seconds=SECONDS)
        dist.init_process_group("gloo", init_method=f"file://{store}/meet", rank=rank, world_size=n_ranks, timeout=timeout)
    try:
        result = run(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    torch.save(result, f"{store}/{rank}.pt")
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # without the goodbyes of a group that may have lost a member


def on_ranks(n_ranks: int, run: Callable[..., Any], *arguments: Any, double: bool = False) -> list[Any]:
    """
    :param run: a function of this or another module that can be imported
    :param double: whether to compute in float64
    :return: what it returned, rank by rank; of an exception its name and message
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as store:
        workers = [
            context.Process(target=_work, args=(rank, n_ranks, store, double, run, arguments)) for rank in range(n_ranks)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SECONDS)
            worker.kill()
        files = [Path(store, f"{rank}.pt") for rank in range(n_ranks)]
        return [torch.load(file, weights_only=False) if file.is_file() else None for file in files]


def weights(model: Any) -> np.ndarray:
    """
    :return: all of them, and the buffers among which is PopArt's, in one vector
    """
    return torch.cat([value.flatten().double() for value in model.policy.state_dict().values()]).numpy()
