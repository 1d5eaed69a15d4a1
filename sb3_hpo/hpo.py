"""Hybrid Policy Optimization: mixed gradients through a differentiable simulator."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from hybrid_envs.checks import check_count, to_numpy
from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction, append_mask, pack, packed_size
from sb3_hpo import ranks
from sb3_hpo.arguments import check_arguments, make_schedule
from sb3_hpo.buffers import HybridRolloutBuffer
from sb3_hpo.callback_tree import reads_arrays
from sb3_hpo.credit import Decision, counterfactual_baseline, joined
from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.losses import pathwise_loss, score_loss
from sb3_hpo.policies import DeterministicPointPolicy
from sb3_hpo.vec_env import LiveView, Period, Seen, simulated, together

DEFAULT_ITERATIONS = 200
DIAGNOSTICS_INTERVAL = 10
"""Every so many iterations the cross term is measured on its own, at the price of two more backward passes."""
ROWS_AT_ONCE = 2**13
"""Of observations that are valued: a large network's layers on all of a long rollout would take more memory than its graph."""
CROSS_SMOOTHING = 0.2
"""Weight of the newest measurement in the running means behind ``cross_term="auto"``."""


class Act(NamedTuple):
    """What the policy does in the present states, and what it leads to, with gradients."""

    x: torch.Tensor
    b: torch.Tensor
    log_prob: torch.Tensor
    """log π(x | s), of several factors each."""
    outcome: StepResult
    context: torch.Tensor
    """What b depends on beside x: the candidates, or the observation."""
    redrawn: torch.Tensor
    """x drawn once more, where credit is counterfactual."""


class Simulated(NamedTuple):
    """What is kept of a rollout, period by period."""

    periods: list[Period]
    seen: Seen
    live: list[torch.Tensor]
    """What was observed, with gradients, if the value network judges every state on the way."""
    decisions: list[Decision]
    """What was decided, if credit is counterfactual."""


class LiveRollout(NamedTuple):
    """What the mixed gradient needs of a rollout, all with gradients; rewards and value in the same unit."""

    rewards: torch.Tensor
    """Shape ``(n_steps, n_envs)``."""
    values: torch.Tensor
    """
    Of the states that the periods led to, 0 where the episode has ended: of all, shape ``(n_steps, n_envs)``, or if λ = 1 of
    the last alone, ``(1, n_envs)``.
    """
    log_probs: torch.Tensor
    """Of the sampled regimes, shape ``(n_steps, n_envs)``; of several factors ``(n_steps, n_envs, m)``."""


class HPO(HybridPPO):
    """
    Hybrid Policy Optimization (Alvo, Russo, Kanoria 2026, arXiv 2605.14297) for differentiable environments.

    Each iteration simulates ``n_scenarios`` scenarios for ``n_steps`` periods with live gradients. Then the continuous network
    β_κ takes one step along the mixed gradient: the pathwise derivative of the costs with the regimes held fixed, plus the
    cross term, the score function of later regimes seen through the states that b leads to. The discrete network and the
    value network learn by PPO on the same data.

    What the defaults are worth on every problem is in docs/baselines.md, what each choice is worth in docs/ablations.md; the
    paper's own settings are the entry ``paper`` of ``zoo_configs/hpo.yml``.

    :param policy: ``"MlpPolicy"`` or a policy class
    :param env: a :class:`~hybrid_envs.core.HybridEnv`, its id, or a VecEnv of such environments
    :param n_scenarios: scenarios simulated side by side; a VecEnv has its own number
    :param n_steps: periods per iteration; the environment's horizon unless given. What follows a shorter rollout is judged by
        the value network, with gradients to the last state
    :param value_beyond_horizon: whether the value network judges, for the regimes, what would follow an episode that stops at
        its horizon, as in SB3. The last state is learned from in no iteration; with activations that do not saturate its value
        may feed on itself. ``"bounded"`` lets it be no worse, and no better, than what the rollout has seen, repeated for
        ever. With False nothing follows, for regimes as for points: of use where all is settled long before the horizon
    :param cross_term: whether the mixed gradient keeps its cross term; without it, it is biased but less noisy; ``"auto"``
        weighs it by the share of signal measured in it, so that it fades out once it is mostly noise
    :param pathwise_weight: weight of the pathwise term against the cross term; the estimator is unbiased at 1
    :param pathwise_lambda: λ of the return that the points maximise, as ``gae_lambda`` is that of the regimes': with 1 costs
        count as far as the rollout reaches; below 1 the value network, with gradients, judges every state on the way, the one
        k periods on with weight (1 - λ) λ^k. That is smooth where costs jump in the state, and as biased as the network is
        wrong
    :param point_noise: standard deviation of the Gaussian noise that is added to the tower's raw outputs while scenarios are
        simulated; a number, a schedule, ``"lin_V"`` or ``"early_V"``. Gradients pass through the sum, so that the estimator
        remains unbiased, for the noisy policy. For problems whose costs jump in the state, which no derivative sees
    :param credit: with several factors, whether each is judged by the advantage of the whole regime (``"joint"``), or against
        its own counterfactual baseline (``"counterfactual"``), for which every factor is drawn anew and simulated for one
        period. Unless given, ``"counterfactual"`` where factors are independent
    :param normalize_reward: whether values are standardised by the mean and the standard deviation of the last few rollouts'
        returns
    :param gradient_checkpointing: whether to keep of each period no more than its states, and to compute it again on the way
        back (``torch.utils.checkpoint``): less memory for more time, and the same gradient. How much less is a matter of the
        memory allocator, too (docs/suite.md)
    :param learning_rate: of the discrete network; a number, a schedule, or ``"lin_V"`` for a linear decay from V to 0
    :param continuous_learning_rate: of the continuous network, likewise, or ``"late_V"`` for points that wait for the regimes
        (:class:`~sb3_hpo.arguments.LateSchedule`); ``None`` for that of the discrete network
    :param value_learning_rate: of the value network, likewise
    :param batch_size: PPO minibatch; a quarter of the iteration's data unless given
    :param max_grad_norm: gradients are clipped to this norm, separately for each of the three networks
    :param ent_coef: entropy coefficient, a float, a schedule, ``"lin_V"``, ``"quad_V"``, which falls with the square of what
        is left of training, or ``"early_V"``, which is 0 in its second half
    :param ppo_kwargs: the arguments of :class:`stable_baselines3.PPO`
    :raises TypeError: if the environment has no ``step_torch``; HybridPPO needs none
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": DeterministicPointPolicy}
    policy: DeterministicPointPolicy
    stochastic_point = False
    horizon_values = (True, False, "bounded")
    scheduled = (*HybridPPO.scheduled, "point_noise")
    running_estimates = ("cross_weight", "cross_signal", "cross_power", "reward_scale")

    def __init__(
        self,
        policy: str | type[DeterministicPointPolicy],
        env: GymEnv | str,
        *,
        n_scenarios: int = 64,
        n_steps: int | None = None,
        value_beyond_horizon: bool | Literal["bounded"] = True,
        cross_term: bool | Literal["auto"] = True,
        pathwise_weight: float = 1.0,
        pathwise_lambda: float = 1.0,
        point_noise: float | str | Schedule = 0.0,
        credit: Literal["joint", "counterfactual"] | None = None,
        normalize_reward: bool = True,
        gradient_checkpointing: bool = False,
        learning_rate: float | str | Schedule = "lin_2e-3",
        continuous_learning_rate: float | str | Schedule | None = "lin_2e-3",
        value_learning_rate: float | str | Schedule | None = None,
        batch_size: int | None = None,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.96,
        clip_range: float | Schedule = 0.15,
        ent_coef: float | str | Schedule = "quad_0.2",
        vf_coef: float = 0.15,
        max_grad_norm: float = 0.5,
        target_kl: float | None = 0.015,
        **ppo_kwargs: Any,
    ):
        own: dict[str, Any] = {"n_scenarios": n_scenarios, "pathwise_weight": pathwise_weight, "credit": credit}
        own |= {"cross_term": cross_term, "pathwise_lambda": pathwise_lambda}
        own |= {"gradient_checkpointing": gradient_checkpointing}
        check_arguments(own)
        if env is not None:
            env = simulated(env, n_scenarios)
            n_scenarios = env.num_envs
            n_steps = env.get_attr("horizon")[0] if n_steps is None else check_count("n_steps", n_steps)
            batch_size = (
                max(2, math.ceil(n_steps * n_scenarios / 4))
                if batch_size is None
                else check_count("batch_size", batch_size, 2)
            )
        self.n_scenarios = n_scenarios
        self.cross_term = cross_term
        self.cross_weight, self.cross_signal, self.cross_power = 1.0, 0.0, 0.0
        self.pathwise_weight = pathwise_weight
        self.pathwise_lambda = pathwise_lambda
        self.credit = credit
        self.point_noise_schedule = make_schedule("point_noise", point_noise)
        self.gradient_checkpointing = gradient_checkpointing
        super().__init__(
            policy,
            env,
            n_steps=n_steps or 1,
            learning_rate=learning_rate,
            continuous_learning_rate=continuous_learning_rate,
            value_learning_rate=value_learning_rate,
            value_beyond_horizon=value_beyond_horizon,
            normalize_reward=normalize_reward,
            batch_size=batch_size or 64,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            target_kl=target_kl,
            **{"clip_networks": True} | ppo_kwargs,
        )

    def _setup_model(self) -> None:
        if self.env is not None:
            LiveView(self.env).simulator.to(self.device)
        super()._setup_model()
        self.counterfactual = self._credits_factors()
        self._live: LiveRollout | None = None

    def _credits_factors(self) -> bool:
        """
        :return: whether factors are judged against counterfactual baselines
        :raises ValueError: if they should be, and cannot
        """
        independent = self.policy.factors.many and self.policy.coupling is None and self.policy.factors.active_limits is None
        possible = independent and self.policy.by_component
        if self.credit == "counterfactual" and not possible:
            raise ValueError(
                "credit = 'counterfactual' needs a regime of several independent factors and ratio = 'component'; here are "
                f"{self.policy.factors!r}, autoregressive = {self.policy.autoregressive}, ratio = {self.ratio!r}"
            )
        return possible and self.credit != "joint"

    def train(self) -> None:
        """
        Algorithm 2 of the paper, given the rollout: the continuous network takes one full-batch step along the mixed gradient;
        then the discrete network and the value network take PPO epochs on minibatches of detached samples.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._mixed_gradient_step()
        super().train()

    def _mixed_gradient_step(self) -> None:
        """One step of κ along Theorem 1's gradient: the pathwise term plus, through live states, the cross term."""
        assert self._live is not None
        advantages = torch.as_tensor(self.rollout_buffer.advantages, device=self.device)
        if advantages.dim() < self._live.log_probs.dim():
            advantages = advantages.unsqueeze(2)  # one for all factors
        scale = advantages.new_tensor(1.0)
        if self.normalize_advantage:
            advantages = advantages - advantages.mean()
            scale = advantages.std() + 1e-8
        # Both terms are divided by the same number: with different ones their sum would be the gradient of nothing.
        pathwise = self.pathwise_weight * pathwise_loss(self._live.rewards, self._live.values, self.pathwise_lambda) / scale

        kappa = list(self.policy.component("continuous").parameters())
        self.policy.optimizer.zero_grad()
        if not self.cross_term:
            pathwise.backward(inputs=kappa)
        elif self._iteration % DIAGNOSTICS_INTERVAL:
            cross = score_loss(self._live.log_probs, advantages / scale)
            (pathwise + self.cross_weight * cross).backward(inputs=kappa)
        else:
            # The same gradient in several passes, to see the second term on its own; but for points that are projected from
            # beyond their bounds, where each pass on its own is let through if it leads back inside.
            self._measure_cross_term(kappa, self._live.log_probs, advantages / scale)
            pathwise.backward(inputs=kappa)
        self.policy.optimizer.step()
        self._live = None  # frees the graph
        self.logger.record("train/pathwise_loss", pathwise.item())

    def _measure_cross_term(self, kappa: list[torch.nn.Parameter], log_probs: torch.Tensor, advantages: torch.Tensor) -> None:
        """
        Put the weighted cross term into κ's gradient, and measure it: what the two halves of the scenarios agree on is signal,
        E ĝ_1·ĝ_2 = ‖g‖², and the rest of E ‖ĝ‖² is noise. The automatic weight is the signal's share, by which shrinking an
        unbiased estimate minimises its mean squared error.
        """
        # In a rollout of one period no regime depends on κ: unused, and zero.
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        cut = self.n_envs // 2
        own = []
        for rows in (slice(None, cut), slice(cut, None)):
            share = len(range(self.n_envs)[rows]) / self.n_envs
            loss = share * score_loss(log_probs[:, rows], advantages[:, rows]) if share else 0.0 * log_probs.sum()
            own.append(parameters_to_vector(torch.autograd.grad(loss, kappa, **options)))
        halves = ranks.total(torch.stack(own))
        gradient = halves[0] + halves[1]
        self.cross_signal += CROSS_SMOOTHING * (4 * float(halves[0] @ halves[1]) - self.cross_signal)
        self.cross_power += CROSS_SMOOTHING * (float(gradient @ gradient) - self.cross_power)
        self.logger.record("train/cross_term_norm", float(gradient.norm()))
        if self.cross_term == "auto":
            self.cross_weight = min(max(self.cross_signal / (self.cross_power + 1e-30), 0.0), 1.0)
            self.logger.record("train/cross_term_weight", self.cross_weight)
        for parameter, part in zip(kappa, (own[0] + own[1]).split([p.numel() for p in kappa]), strict=True):
            parameter.grad = self.cross_weight * part.view_as(parameter)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Simulate all scenarios with live gradients, and fill the buffer with what PPO needs of them.

        :return: whether training goes on; ``False`` if the callback stopped it
        """
        assert isinstance(rollout_buffer, HybridRolloutBuffer)
        self.policy.set_training_mode(False)
        view = LiveView(env)
        rollout_buffer.action_dim = packed_size(self.action_space, view.simulator.env.masks_regimes)
        rollout_buffer.reset()
        callback.on_rollout_start()
        view.simulator.detach()
        self._set_spread()
        by_arrays = view.needs_arrays or reads_arrays(callback)
        rollout, goes_on = self._simulate(env, view, callback, rollout_buffer, n_rollout_steps, by_arrays)
        self._take_in(view, rollout_buffer if goes_on else None, rollout, by_arrays)
        if not goes_on:
            return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _take_in(
        self,
        view: LiveView,
        rollout_buffer: HybridRolloutBuffer | None,
        rollout: Simulated,
        by_arrays: bool,
    ) -> None:
        """
        Check what was simulated, and make the buffer and the live rollout of it.

        :param rollout_buffer: ``None`` if the rollout was stopped
        :param rollout: its lists are cleared, since a long rollout is large, and need not be there twice
        """
        own, (observations, actions, final) = together(rollout.periods), rollout.seen
        rollout.periods.clear()
        view.check(own, rollout.seen)
        following = torch.stack([*rollout.live, view.observation()])
        rollout.live.clear()
        ends = torch.zeros_like(own.reward.detach())  # values of the last states of episodes
        if final:
            last = [of_step[own.truncated[step]] for step, of_step in final.items()]
            ends[own.truncated] = self._values(torch.cat(last)).to(ends.dtype)

        # So far scenario by scenario, each on one rank; from here on every rank has all of them.
        rewards, log_probs, done, truncated, ends, values, observations, actions = view.base.everybody(
            own.reward,
            own.log_prob,
            own.terminated | own.truncated,
            own.truncated,
            ends,
            # The last ones apart: how many rows a product has decides its last digits, and figures were made like this.
            torch.cat([self._values(observations[:-1]), self._values(observations[-1:])]),
            observations,
            actions,
            dim=1,
        )
        starts = torch.cat([torch.as_tensor(self._last_episode_starts, device=self.device).unsqueeze(0), done])
        dones = done.cpu().numpy()
        self._last_obs, self._last_episode_starts = to_numpy(observations[-1]), dones[-1]
        if not by_arrays:
            for of_step, ended in zip(to_numpy(rewards), dones, strict=True):
                self._update_info_buffer([{"episode": episode} for episode in view.base.count(of_step, ended).values()])
        if rollout_buffer is None:
            return

        joint = self.policy.factors.many and not self.policy.by_component
        rollout_buffer.fill(
            observations=observations[:-1],
            actions=actions,
            rewards=rewards,
            episode_starts=starts[:-1],
            values=values[:-1],
            log_probs=log_probs.sum(dim=2) if joint else log_probs,
        )
        self.logger.record("rollout/cost_per_period", -float(rollout_buffer.rewards.mean()))
        rollout_buffer.rewards = rollout_buffer.rewards / self.reward_scale  # those of the graph share its memory
        beyond = self._value_range(rollout_buffer.rewards)
        rollout_buffer.rewards[truncated.cpu().numpy()] += self.gamma * ends[truncated].clamp(*beyond).cpu().numpy()
        rollout_buffer.compute_returns_and_advantage(values[-1], dones[-1])
        if self.counterfactual:
            baselines = self._baselines(view, rollout.decisions, beyond)
            rollout.decisions.clear()
            rollout_buffer.advantages = rollout_buffer.returns[..., None] - baselines
        if self.normalize_reward:
            self._standardise(rollout_buffer)
        # An episode that goes on behind the rollout is valued there, for b as it is for x in the advantages; in the same unit
        # as the rewards.
        values = self.policy.predict_values(following.flatten(0, 1)).view(following.shape[:2])
        (values,) = view.base.everybody(values, dim=1)
        self._live = LiveRollout(rewards / self.reward_scale, values.where(~done[-len(values) :], 0.0), log_probs)

    def _simulate(
        self,
        env: VecEnv,
        view: LiveView,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        by_arrays: bool,
    ) -> tuple[Simulated, bool]:
        """
        All scenarios, period by period, in tensors. Unless ``by_arrays``, nothing waits for them.

        :param by_arrays: whether every step goes through the VecEnv, for wrappers and callbacks that look at its arrays
        :return: what happened; whether training goes on
        """
        present = view.simulator.observation()
        seen = Seen(
            present.new_empty(n_rollout_steps + 1, *present.shape),
            present.new_empty(n_rollout_steps, len(present), rollout_buffer.action_dim),
            {},
        )
        rollout = Simulated([], seen, [], [])
        noise_std = self.point_noise_schedule(self._current_progress_remaining)
        for step in range(n_rollout_steps):
            state, noise = view.simulator.state, view.simulator.present_noise()
            scaled, mask = view.scaling(), view.regime_mask()
            obs = scaled(view.simulator.observation())
            if self.pathwise_lambda < 1 and step > 0:
                rollout.live.append(obs)
            act = partial(self._act, view.simulator.env, state, noise, scaled, mask, noise_std)
            done: Act = checkpoint(act, use_reentrant=False) if self.gradient_checkpointing else act(obs)
            seen.observations[step] = obs.detach()
            seen.actions[step] = append_mask(pack(done.x, done.b.detach()), mask)
            if self.counterfactual:
                rollout.decisions.append(Decision(*view.simulator.present(), done.x, done.context.detach(), done.redrawn))
            if by_arrays:
                new_obs, rewards, dones, infos = env.step(done.outcome)  # type: ignore[arg-type]
            else:
                view.base.accept(done.outcome)
            if view.simulator.restarted:
                seen.final[step] = view.scaled(done.outcome.observation).detach()
            rollout.periods.append(Period(state.period, mask, done.log_prob, *view.outcome()))
            view.simulator.discount_gradient(self.gamma * self.pathwise_lambda)

            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not (goes_on := callback.on_step()):
                break
            if by_arrays:
                self._update_info_buffer(infos, dones)
                self._last_obs = new_obs  # type: ignore[assignment]
        taken = len(rollout.periods)
        seen.observations[taken] = view.observation().detach()
        return rollout._replace(seen=seen.until(taken)), goes_on

    def _act(
        self,
        env: HybridEnv,
        state: Any,
        noise: torch.Tensor,
        scaled: Callable[[torch.Tensor], torch.Tensor],
        mask: torch.Tensor | None,
        noise_std: float,
        obs: torch.Tensor | None = None,
    ) -> Act:
        """
        The differentiable part of a period: a function of the states, the noise and the source of random numbers, that changes
        nothing, so that it can be computed again.

        :param scaled: from what the environment shows to what the policy sees
        :param obs: what the policy sees, if that is known already
        """
        obs = scaled(env.observation(state)) if obs is None else obs
        regimes = self.policy.regimes(obs if self.cross_term else obs.detach(), mask)
        with ranks.sharing(self.n_envs):
            x = regimes.sample()
            candidates = self.policy.candidates(obs, noise_std, x)
            redrawn = regimes.sample() if self.counterfactual else x
        b = self.policy.factors.choose(candidates, x)
        context = obs if self.policy.conditioned else candidates
        return Act(x, b, regimes.log_prob(x), env.step_torch(state, HybridAction(x, b), noise), context, redrawn)

    def _baselines(self, view: LiveView, decisions: list[Decision], beyond: tuple[float, float]) -> np.ndarray:
        """
        :param beyond: bounds of values beyond the horizon
        :return: B_f, see :func:`~sb3_hpo.credit.counterfactual_baseline`, shape ``(n_steps, n_envs, m)``
        """

        def outcome_value(result: StepResult) -> torch.Tensor:
            following = self.policy.predict_values(view.scaled(result.observation)).flatten()
            following = torch.where(result.truncated, following.clamp(*beyond), following)
            return view.reward(result) / self.reward_scale + self.gamma * following.where(~result.terminated, 0.0)

        point_of = self.policy.points if self.policy.conditioned else self.policy.factors.choose
        baseline = counterfactual_baseline(view.simulator.env, joined(decisions), point_of, outcome_value)
        (baselines,) = view.base.everybody(baseline.view(len(decisions), view.simulator.num_envs, -1), dim=1)
        return baselines.cpu().numpy()

    def _value_range(self, rewards: np.ndarray) -> tuple[float, float]:
        """
        :param rewards: of a rollout, shape ``(n_steps, n_envs)``
        :return: the bounds of values beyond the horizon
        """
        if self.value_beyond_horizon == "bounded":
            return future_range(rewards, self.gamma)
        return (-math.inf, math.inf) if self.value_beyond_horizon else (0.0, 0.0)

    def _values(self, observations: torch.Tensor) -> torch.Tensor:
        """
        :param observations: shape ``(..., d)``
        :return: v, shape ``(...)``
        """
        with torch.no_grad():
            parts = observations.flatten(0, -2).split(ROWS_AT_ONCE)
            return torch.cat([self.policy.predict_values(part) for part in parts]).view(observations.shape[:-1])

    @property
    def _iteration(self) -> int:
        return self.num_timesteps // (self.n_steps * self.n_envs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_live"]

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "HPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        As in SB3.

        :param total_timesteps: environment steps over all scenarios; 200 iterations unless given
        """
        if total_timesteps is None:
            total_timesteps = DEFAULT_ITERATIONS * self.n_steps * self.n_envs
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(simulated(env, self.n_envs), force_reset)

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, *args: Any, **kwargs: Any) -> Self:
        data, _, _ = load_from_zip_file(path, custom_objects=kwargs.get("custom_objects"))
        assert data is not None
        if env is not None and not isinstance(env, VecEnv):
            env = simulated(env, check_count("n_scenarios", kwargs.get("n_scenarios", data["n_envs"])))
        elif "n_scenarios" in kwargs:
            raise ValueError(f"n_scenarios = {kwargs['n_scenarios']}: goes with one environment, of which it says how many")
        return super().load(path, env, *args, **kwargs)


def future_range(rewards: np.ndarray, gamma: float) -> tuple[float, float]:
    """
    What a rollout says on how bad and how good the future can be: its least and greatest discounted sum of rewards, from any
    period to its end, the empty sum among them, repeated for ever.

    :param rewards: shape ``(n_steps, n_envs)``
    :return: lower and upper bound of values, infinite without discount
    """
    future, low, high = np.zeros_like(rewards[0]), 0.0, 0.0
    for reward in rewards[::-1]:
        future = reward + gamma * future
        low, high = min(low, float(future.min())), max(high, float(future.max()))
    once = 1 - gamma ** len(rewards)  # the share of the first n_steps periods in what goes on for ever
    return (low / once, high / once) if once > 0 else (-math.inf, math.inf)
