"""
Several processes that compute what one would: torch.distributed, and who does what.

What is computed for each scenario is computed by one rank and gathered in the scenarios' order; from there on the code is that
of one process. A gathered tensor carries gradients to the rank's own rows, so that the gradient of one process is the sum of
the ranks'. Random numbers are drawn for everybody by every rank. Without a process group there is one rank, for which all of
this is the identity.
"""

import importlib
import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

__all__ = ["RankLostError", "count", "is_main", "started_by_torchrun"]

POSSIBLE = dist.is_available()
Evaluation = TypeVar("Evaluation", bound=Callable[..., tuple[torch.Tensor, ...]])


class RankLostError(RuntimeError):
    """Another rank has ended, or does not answer any more."""


@contextmanager
def started_by_torchrun() -> Iterator[None]:
    """For the time of a ``with`` block, one of the processes that torchrun has started; nothing unless it has."""
    if not POSSIBLE or not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # Imported later, its functions would keep the group as a default argument, and its threads would outlive the interpreter.
    importlib.import_module("torch.distributed.nn")
    store, rank, n_ranks = next(dist.rendezvous("env://"))
    # The store may outlive a restart, and with it the addresses of processes that are gone.
    attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=n_ranks)
    yield
    # All together; not after an error, when there may be nobody to say goodbye to.
    dist.barrier()
    dist.destroy_process_group()


def count() -> int:
    """
    :return: N, the number of ranks
    """
    return dist.get_world_size() if POSSIBLE and dist.is_initialized() else 1


def is_main() -> bool:
    """
    :return: whether this is the rank that logs, evaluates and writes files
    """
    return count() == 1 or dist.get_rank() == 0


def rows(batch_size: int, rank: int | None = None) -> slice:
    """
    :param rank: this one unless given
    :return: its share of a batch, one row more or less than that of any other
    """
    rank = (dist.get_rank() if count() > 1 else 0) if rank is None else rank
    return slice(batch_size * rank // count(), batch_size * (rank + 1) // count())


def gather(batch_size: int, *own: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, ...]:
    """
    :param batch_size: of all ranks together
    :param own: this rank's :func:`rows` of so many batches
    :param dim: along which the rows lie
    :return: everybody's, with gradients to one's own; they come by one message
    """
    if count() == 1:
        return own
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in own])
    leading = [tensor.detach().movedim(dim, 0) for tensor in own]
    widths = [tensor.shape[1:].numel() for tensor in leading]
    flat = [tensor.reshape(len(tensor), width).to(dtype) for tensor, width in zip(leading, widths, strict=True)]
    sizes = [len(range(batch_size)[rows(batch_size, rank)]) for rank in range(count())]
    sent = F.pad(torch.cat(flat, dim=1), (0, 0, 0, max(sizes) - len(flat[0])))  # all messages have the same length
    received = [torch.empty_like(sent) for _ in sizes]
    with _talking():
        dist.all_gather(received, sent)
    of_ranks = [part[:size].split(widths, dim=1) for part, size in zip(received, sizes, strict=True)]

    def together(i: int) -> torch.Tensor:
        shape = leading[i].shape[1:]
        parts = [part[i].to(own[i].dtype).reshape(len(part[i]), *shape).movedim(0, dim) for part in of_ranks]
        parts[dist.get_rank()] = own[i]
        return torch.cat(parts, dim)

    return tuple(map(together, range(len(own))))


def total(own: torch.Tensor) -> torch.Tensor:
    """
    :return: the sum over ranks, the same on all of them to the last bit
    """
    if count() == 1:
        return own
    summed = own.clone()
    with _talking():
        dist.all_reduce(summed)
    return summed


def add_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Put the sum over ranks in the place of every gradient, by one message."""
    if count() > 1:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        summed = total(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, summed.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def require_agreement(parameters: Iterable[torch.Tensor], rewards: np.ndarray) -> None:
    """
    :param parameters: of the networks
    :param rewards: of a rollout, of all scenarios
    :raises RuntimeError: unless all ranks have the same, to the last bit
    """
    with torch.no_grad():
        sums = [float(sum(parameter.double().sum() for parameter in parameters)), float(rewards.sum(dtype=np.float64))]
    everybodys = gather(count(), torch.tensor([sums], dtype=torch.float64))[0]
    if not all(torch.equal(of_rank, everybodys[0]) for of_rank in everybodys):
        raise RuntimeError(
            f"the ranks have drifted apart: the sums of their weights and of the rewards they see are {everybodys.tolist()}. "
            "Has a callback changed the networks on one rank only, or does an environment depend on more than its seed?"
        )


def any_of(*flags: bool) -> list[bool]:
    """
    :return: of each flag, whether it is set on any rank
    """
    return list(flags) if count() == 1 else total(torch.tensor(flags, dtype=torch.int64)).bool().tolist()


def from_main(value: Any) -> Any:
    """
    :param value: plain data
    :return: that of rank 0
    """
    if count() == 1:
        return value
    message = [value]
    with _talking():
        dist.broadcast_object_list(message)
    return message[0]


def in_shares(function: Evaluation) -> Evaluation:
    """
    Decorates a method of a module from batches, which all ranks have, to batches: in training each rank evaluates its share of
    the rows.

    :param function: of tensors, or dicts of tensors
    """

    def share(batch: Any, own: slice) -> Any:
        return {key: of_key[own] for key, of_key in batch.items()} if isinstance(batch, dict) else batch[own]

    @wraps(function)
    def shared(self: Any, *batches: Any) -> tuple[torch.Tensor, ...]:
        if count() == 1 or not self.training:  # rank 0 may evaluate alone
            return function(self, *batches)
        batch_size = len(batches[-1])
        return gather(batch_size, *function(self, *(share(batch, rows(batch_size)) for batch in batches)))

    return cast(Evaluation, shared)


# ---- random numbers --------------------------------------------------------------------------------------------------

_everybody: int | None = None
"""The size of the batch that ranks draw random numbers for together; ``None`` while each draws for itself."""


@contextmanager
def sharing(batch_size: int) -> Iterator[None]:
    """In this block, batches are this rank's :func:`rows` of a larger one, and random numbers are drawn for all of that."""
    global _everybody
    _everybody = batch_size
    try:
        yield
    finally:
        _everybody = None


def drawn(shape: torch.Size, draw: Callable[[torch.Size], torch.Tensor]) -> torch.Tensor:
    """
    :param shape: of a batch
    :param draw: random numbers of a shape
    :return: random numbers of the batch: while ranks are :func:`sharing` one, this rank's rows of everybody's
    """
    if _everybody is None or count() == 1:
        return draw(shape)
    return draw(torch.Size([_everybody, *shape[1:]]))[rows(_everybody)]


def random_state(device: torch.device) -> dict[str, Any]:
    """
    :return: the states of the global generators: Python's, numpy's and torch's
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def load_random_state(device: torch.device, saved: dict[str, Any]) -> None:
    random.setstate(saved["python"])
    np.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"], device)


def same_random_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """
    :return: whether the same numbers are drawn from both
    """
    return pickle.dumps(one) == pickle.dumps(other)


# ---- when a rank is lost ---------------------------------------------------------------------------------------------


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        message = f"rank {dist.get_rank()} of {count()} has lost another, which has ended or does not answer"
        raise RankLostError(message) from error
