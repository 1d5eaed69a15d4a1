"""SB3's callbacks as the tree they form."""

from collections.abc import Iterator

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

__all__ = ["callback_tree", "is_none", "reads_arrays"]

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
