"""SB3's PPO, whose run several ranks may share (docs/many_processes.md)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from typing_extensions import Self

from sb3_hpo import ranks
from sb3_hpo.callback_tree import callback_tree, is_none

__all__ = ["SharedCallback", "SharedPPO"]

MOMENTS = ("on_training_start", "on_rollout_start", "on_step", "on_rollout_end", "on_training_end")


class SharedCallback(CallbackList):
    """
    The callback of a run that several ranks share. Every rank calls what it holds, but for those callbacks that evaluate or
    write files, which rank 0 calls for all: SB3's and those whose class says ``on_rank_0 = True``. If a callback stops
    training on any rank, all stop. Afterwards all ranks have the random numbers of rank 0, whatever was drawn there. No
    message is sent at steps if all callbacks say that nothing happens there, by ``idle_at_steps = True`` in their class.

    :param callback: of this rank
    """

    def __init__(self, callback: BaseCallback):
        super().__init__([callback])
        self.idle = all(is_none(one) or getattr(one, "idle_at_steps", False) for one in callback_tree(callback))
        for one in callback_tree(callback) if not ranks.is_main() else ():
            if isinstance(one, CheckpointCallback | EvalCallback) or getattr(one, "on_rank_0", False):
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
        return super().on_step() if self.idle else self._on_all_ranks(super().on_step)

    def on_rollout_end(self) -> None:
        self._on_all_ranks(super().on_rollout_end)

    def on_training_end(self) -> None:
        self._on_all_ranks(super().on_training_end)


class SharedPPO(PPO):
    """
    PPO that takes, of several ranks, the same steps on all of them. Rank 0 alone logs and saves. How a policy shares the
    evaluation of a minibatch is its own matter (:func:`~sb3_hpo.ranks.in_shares`). One process notices nothing of it.
    """

    def _setup_model(self) -> None:
        if self.seed is None and ranks.count() > 1:
            self.seed = ranks.from_main(int(np.random.randint(2**31)))  # ranks draw the same random numbers
        super()._setup_model()
        self.policy.optimizer.register_step_pre_hook(self._before_step)
        self._way_back = "There are no checkpoints to go on from (ExactCheckpointCallback)"

    def train(self) -> None:
        if ranks.count() == 1:
            super().train()
            return
        ranks.require_agreement(self.policy.parameters(), self.rollout_buffer.rewards)
        # SB3 would clip what is but this rank's part of a gradient.
        self._norm_limit, self.max_grad_norm = self.max_grad_norm, math.inf
        try:
            super().train()
        finally:
            self.max_grad_norm = self._norm_limit

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Of the optimizer: every rank takes the same step, along the sum of all ranks' gradients."""
        ranks.add_gradients(optimizer)
        self._clip_gradients(optimizer)

    def _clip_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if ranks.count() > 1:  # else SB3 has clipped them
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self._norm_limit)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "HybridPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        As in SB3.

        :raises RankLostError: if of several ranks another ends; where there are checkpoints, it says how to go on
        """
        try:
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except ranks.RankLostError as error:
            raise ranks.RankLostError(f"{error}; training ends at {self.num_timesteps} steps. {self._way_back}") from error

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if not ranks.is_main():
            self.verbose, self.tensorboard_log = 0, None
        total_timesteps, callback = super()._setup_learn(*args, **kwargs)
        if not ranks.is_main():
            self.logger.output_formats.clear()  # of a logger that was given
        return total_timesteps, callback

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        initialised = super()._init_callback(callback, progress_bar and ranks.is_main())
        if ranks.count() == 1:
            return initialised
        shared = SharedCallback(initialised)
        shared.model = self
        return shared

    def save(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's; of several ranks, the first writes."""
        if ranks.is_main():
            super().save(*args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_norm_limit", "_way_back"]
