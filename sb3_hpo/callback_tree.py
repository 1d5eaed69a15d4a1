"""SB3's callbacks as the tree they form: what is in it, and how several ranks call it."""

from collections.abc import Callable, Iterator
from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)

from sb3_hpo import ranks

__all__ = ["SharedCallback", "callback_tree", "reads_arrays"]

COUNT_STEPS = (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
"""Those of SB3 that see in a step nothing but that it was one."""
WRITE_OR_EVALUATE = (CheckpointCallback, EvalCallback, ProgressBarCallback)
"""Those of SB3 that one rank calls for all."""
MOMENTS = ("on_training_start", "on_rollout_start", "on_step", "on_rollout_end", "on_training_end")


def callback_tree(callback: BaseCallback) -> Iterator[BaseCallback]:
    """
    :return: the callback and those inside it, in the order in which they are called; lists and progress bars left out
    """
    if not isinstance(callback, CallbackList | ProgressBarCallback):
        yield callback
    children = [*getattr(callback, "callbacks", ())]
    children += [getattr(callback, name, None) for name in ("callback_on_new_best", "callback")]
    for child in children:
        if isinstance(child, BaseCallback):
            yield from callback_tree(child)


def is_none(callback: BaseCallback) -> bool:
    """
    :return: whether it is SB3's stand-in for no callback at all
    """
    return isinstance(callback, ConvertCallback) and callback.callback is None


def reads_arrays(callback: BaseCallback) -> bool:
    """
    Whether a callback, or one inside it, may look for a step's arrays in its ``locals``. All may but those of SB3 and ours
    that only count steps, and those whose class says ``reads_arrays = False`` where it defines ``_on_step``.
    """

    def looks(one: BaseCallback) -> bool:
        if isinstance(one, ConvertCallback):
            return not is_none(one)
        owner = next(kind for kind in type(one).__mro__ if "_on_step" in vars(kind))
        return owner not in COUNT_STEPS and vars(owner).get("reads_arrays", True)

    return any(looks(one) for one in callback_tree(callback))


class SharedCallback(CallbackList):
    """
    The callback of a run that several ranks share. Every rank calls what it holds, but for those callbacks that evaluate, show
    or write files, which rank 0 calls for all: SB3's and those whose class says ``on_rank_0 = True``. If a callback stops
    training on any rank, all stop. Afterwards all ranks have the random numbers of rank 0, whatever was drawn there. No
    message is sent at steps if all callbacks say that nothing happens there, by ``idle_at_steps = True`` in their class.

    :param callback: of this rank
    """

    def __init__(self, callback: BaseCallback):
        super().__init__([callback])
        self.idle = all(is_none(one) or getattr(one, "idle_at_steps", False) for one in callback_tree(callback))
        for one in callback_tree(callback) if not ranks.is_main() else ():
            if isinstance(one, WRITE_OR_EVALUATE) or getattr(one, "on_rank_0", False):
                vars(one).update(dict.fromkeys(MOMENTS, lambda *args: True))

    def _on_all_ranks(self, call: Callable[[], Any]) -> bool:
        before = ranks.random_state(self.model.device)
        stop = call() is False
        moved = not ranks.same_random_state(before, ranks.random_state(self.model.device))
        stops, moves = ranks.any_of(stop, moved)
        if moves:
            ranks.load_random_state(self.model.device, ranks.from_main(ranks.random_state(self.model.device)))
        return not stops

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        ranks.load_random_state(self.model.device, ranks.from_main(ranks.random_state(self.model.device)))
        self._on_all_ranks(lambda: super(SharedCallback, self).on_training_start(locals_, globals_))

    def on_rollout_start(self) -> None:
        self._on_all_ranks(super().on_rollout_start)

    def on_step(self) -> bool:
        return True if self.idle else self._on_all_ranks(super().on_step)

    def on_rollout_end(self) -> None:
        self._on_all_ranks(super().on_rollout_end)

    def on_training_end(self) -> None:
        self._on_all_ranks(super().on_training_end)
