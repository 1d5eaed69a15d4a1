"""Search at decision time: what a trained policy would do, unless the simulator knows better."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.type_aliases import Schedule

from hybrid_envs.checks import check_count, check_switch, to_numpy
from hybrid_envs.core import HybridEnv
from hybrid_envs.spaces import HybridAction
from sb3_hpo.arguments import make_schedule
from sb3_hpo.hpo import HPO
from sb3_hpo.simulation import Episode, align_rows, point_geometry, points, regime_distribution, repeat_mask, repeat_rows

__all__ = ["Lookahead"]

ROWS_AT_ONCE = 2**14
"""Of simulated futures."""
STEP = 0.03
"""Of the points' refinement at first, in units of ``action_scale``; it falls to 0."""
REMEMBERED, LESSON_ROWS, LESSON_STEPS = 10, 1_000, 60
"""Of teaching: rounds that are learned from, the present one and those before it; states in a step; steps in a round."""
EXPLORE = 0.1
"""The entropy's weight at first: what the policy is sure of, it would not learn to do otherwise."""
STRAY = 0.05
"""How often, in every other round, a regime is drawn: what is learned holds a little beside the policy's own path too."""


class Lookahead:
    """
    A trained policy that looks ahead before it acts. Every regime, or with several factors every change of one of them, is
    tried as the next one, with the point that the policy has for it, and the policy is followed from there, for ``depth``
    periods and in the same ``n_scenarios`` futures; behind them its value network judges. The best one is taken. Then the
    points of the periods to come are moved together along the simulator's gradient, the regimes held fixed, and the first of
    them is carried out.

    What is not better than the policy's own decision by more than one standard error over the futures, is not done.

    :param model: a trained HPO model
    :param env: the environment in which :meth:`predict` decides, possibly in Gymnasium's wrappers: it looks there for the
        present state, which an observation does not tell. The future's noise is drawn anew, not read from the environment
    :param depth: periods to look ahead; to the end of the episode unless given
    :param n_scenarios: futures to average over; 1 is enough where nothing is random
    :param refinements: steps along the gradient; 0 to leave the points as they are
    :param regimes: whether other regimes than the policy's are tried
    :param time_limit: seconds for one decision, or batch of them; refinement stops there. Then results depend on the machine
    :param seed: of the futures
    :raises TypeError: if the model is not HPO's, or the environment is no HybridEnv
    :raises ValueError: naming the argument, its value and what is allowed
    """

    def __init__(
        self,
        model: HPO,
        env: gym.Env,
        *,
        depth: int | None = None,
        n_scenarios: int = 16,
        refinements: int = 20,
        regimes: bool = True,
        time_limit: float | None = None,
        seed: int = 0,
    ):
        problem = env.unwrapped
        if not isinstance(model, HPO):
            raise TypeError(f"Lookahead needs a model of HPO, whose value network it trusts, not {type(model).__name__}")
        if not isinstance(problem, HybridEnv):
            raise TypeError(f"Lookahead simulates with step_torch(), which {problem} does not have: it is no HybridEnv")
        if problem.factors != model.policy.factors or problem.observation_space != model.observation_space:
            raise ValueError(f"env = {problem.name} is not what the model was trained on: its actions or observations differ")
        if model.get_vec_normalize_env() is not None:
            raise ValueError("Lookahead reads states of the environment itself: train the model without VecNormalize")
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit = {time_limit}: must be above 0, or None")
        self.model, self.env = model, problem
        self.depth = problem.horizon if depth is None else check_count("depth", depth)
        self.n_scenarios = check_count("n_scenarios", n_scenarios)
        self.refinements = check_count("refinements", refinements, 0)
        self.regimes = check_switch("regimes", regimes)
        self.time_limit = time_limit
        self.generator = torch.Generator(problem.device).manual_seed(check_count("seed", seed, 0))

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        Stable-Baselines3's ``predict``, for the present state of ``env``.

        :param observation: of that state, shape ``(d,)``
        :return: the action ``(x, b)`` and the unchanged ``state``
        :raises ValueError: if the observation is not that of the environment's present state
        """
        present = self.env.present_state
        if present is None or not np.array_equal(to_numpy(self.env.observation(present)[0]), observation):
            raise ValueError(f"Lookahead decides in the present state of its {self.env.name}; this is no observation of it")
        regime, point = self.decide(present)
        x = regime[0].cpu().numpy() if self.env.factors.many else int(regime[0])
        return (x, to_numpy(point[0])), state

    def decide(self, state: Any) -> HybridAction:
        """
        :param state: of the environment's NamedTuple type, leading dimension ``batch``
        :return: x, shape ``(batch,)`` or ``(batch, m)``, and b, shape ``(batch, n)``
        """
        deadline = time.perf_counter() + (self.time_limit or np.inf)
        parts = self._with_futures(state, self.env.factors.n_deviations)
        decisions = [self._decide(part, noise, deadline) for part, noise in parts]
        return HybridAction(*(torch.cat(parts) for parts in zip(*decisions, strict=True)))

    def teach(self, rounds: int = 20, n_episodes: int = 64, learning_rate: float | str | Schedule = "lin_1e-3") -> None:
        """
        Teach the model what the search finds: its discrete network is trained to choose, in the states that it comes by, the
        regimes that return most when the policy goes on from there (expert iteration, Anthony et al. 2017; here with the
        return of every alternative, so that a regime that is almost as good costs almost nothing). Each round plays new
        episodes, and learns from those of the last few rounds. In each, the futures are the episode's own noise.

        The points are left as they are; ``model.learn()`` goes on with both.

        :param rounds: of playing and learning
        :param n_episodes: of each round
        :param learning_rate: of Adam; a number, a schedule, or such as ``"lin_1e-3"``, falling to 0
        :raises ValueError: naming the argument, its value and what is allowed
        """
        check_count("n_episodes", n_episodes)

        def loss_of(lessons: tuple[torch.Tensor, ...], remaining: float) -> Callable[..., torch.Tensor]:
            scale = lessons[-1].abs().mean() + 1e-8

            def loss(obs: torch.Tensor, mask: torch.Tensor, regime: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
                policy = regime_distribution(self.env, self.model.policy, obs, mask).given(regime)
                expected = (policy.probs * gains).flatten(1).sum(dim=1)
                return -expected.mean() / scale - EXPLORE * remaining * policy.entropy().mean()

            return loss

        self._learn("discrete", rounds, learning_rate, lambda k: self._lesson(n_episodes, STRAY if k % 2 else 0.0), loss_of)

    def teach_points(self, rounds: int = 20, n_episodes: int = 64, learning_rate: float | str | Schedule = "lin_3e-3") -> None:
        """
        Teach the model the points that refinement finds: along new episodes, the points of all periods are moved together
        along the simulator's gradient, ``refinements`` steps far, and the continuous network is trained to choose what is
        better by least squares, in the states that it leads to. A step of ``model.learn()`` goes down the same gradient, but
        one step for all states: where curvatures differ much between them, examples of what is best are learned much faster.

        With noise, a shift of a point is common to all ``n_scenarios`` futures of a starting state, so that it is no reply to
        what only one of them has in store.

        :param rounds: of refining and learning; what was found in the last few is learned from
        :param n_episodes: starting states of each round
        :param learning_rate: of Adam; a number, a schedule, or such as ``"lin_1e-3"``, falling to 0
        :raises ValueError: naming the argument, its value and what is allowed; if ``refinements`` is 0
        """
        check_count("n_episodes", n_episodes)
        if not self.refinements:
            raise ValueError("refinements = 0: there are no better points to teach")
        *_, scale = point_geometry(self.env, 1)

        def loss(obs: torch.Tensor, regime: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
            return ((points(self.env, self.model.policy, obs, regime) - point) / scale).square().sum(dim=1).mean()

        self._learn("continuous", rounds, learning_rate, lambda k: self._example(n_episodes), lambda *_: loss)

    def _learn(
        self,
        network: str,
        rounds: int,
        learning_rate: float | str | Schedule,
        lesson: Callable[[int], tuple[torch.Tensor, ...]],
        loss_of: Callable[[tuple[torch.Tensor, ...], float], Callable[..., torch.Tensor]],
    ) -> None:
        """
        In each round, learn from its lesson and those before it that are remembered.

        :param network: the component that learns
        :param lesson: of a round, tensors with a row for each state
        :param loss_of: from all lessons remembered, and the share of rounds that remain, to the loss of some of their rows
        """
        rate = make_schedule("learning_rate", learning_rate)
        optimizer = torch.optim.Adam(self.model.policy.component(network).parameters(), lr=rate(1.0))
        remembered: deque[tuple[torch.Tensor, ...]] = deque(maxlen=REMEMBERED)
        for k in range(check_count("rounds", rounds)):
            remaining = 1 - k / rounds
            optimizer.param_groups[0]["lr"] = rate(remaining)
            remembered.append(lesson(k))
            lessons = tuple(torch.cat(parts) for parts in zip(*remembered, strict=True))
            loss = loss_of(lessons, remaining)
            for _ in range(LESSON_STEPS):
                rows = torch.randint(len(lessons[0]), (LESSON_ROWS,), generator=self.generator, device=lessons[0].device)
                optimizer.zero_grad()
                loss(*(part[rows] for part in lessons)).backward()
                optimizer.step()

    def _example(self, n_episodes: int) -> tuple[torch.Tensor, ...]:
        """
        :return: the observations along episodes with refined points, their regimes, and the points
        """
        start, _ = self.env.sample_scenarios(n_episodes, self.generator)
        found: list[tuple[torch.Tensor, ...]] = []
        for part, noise in self._with_futures(start, 1):
            with torch.no_grad():
                regime, _ = self._likeliest(part)
            shift = self._shift(part, regime, noise, np.inf)
            with torch.no_grad():
                self._returns(part, regime, noise, 1, shift, found)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _with_futures(self, state: Any, n_tried: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """
        :param n_tried: regimes that are tried in each state
        :return: the states, so many at a time as are simulated at once, and the noise of their futures, drawn anew, shape
            ``(T, batch, n_scenarios, ...)``
        """
        batch = len(state.period)
        again = torch.arange(batch, device=self.env.device).repeat_interleave(self.n_scenarios)
        noise = self.env.sample_futures(type(state)(*(field[again] for field in state)), self.generator)
        noise = noise.unflatten(1, (batch, self.n_scenarios))
        for rows in torch.arange(batch, device=self.env.device).split(max(1, ROWS_AT_ONCE // (n_tried * self.n_scenarios))):
            yield type(state)(*(field[rows] for field in state)), noise[:, rows]

    def _likeliest(self, state: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        :return: the policy's likeliest regimes, and which may be taken, flat; ``None`` where all may
        """
        mask = self.env.regime_mask(state) if self.env.masks_regimes else None
        return regime_distribution(self.env, self.model.policy, self.env.observation(state), mask).mode(), mask

    @torch.no_grad()
    def _lesson(self, n_episodes: int, stray: float) -> tuple[torch.Tensor, ...]:
        """
        Play some episodes, and try every regime in the states on the way.

        :param stray: how often the regime is drawn from the policy, instead of its likeliest
        :return: observations; masks of regimes, flat; the likeliest regimes; how much more each regime returns, or of several
            factors each regime of each, shape ``(batch, J)`` or ``(batch, m, J)``
        """
        env, policy = self.env, self.model.policy
        start, noise = env.sample_scenarios(n_episodes, self.generator)
        episode, found = Episode(env, start), []
        size = max(1, ROWS_AT_ONCE // env.factors.n_deviations)
        for age in range(env.horizon):
            if not episode.alive.any():
                break
            state, mask = episode.state, episode.mask(age)
            obs = env.observation(state)
            regimes = regime_distribution(env, policy, obs, mask)
            own = regimes.mode()
            gains = []
            for rows in episode.alive.nonzero().flatten().split(size):
                of_rows = type(state)(*(field[rows] for field in state))
                gains.append(self._tried(of_rows, noise[:, rows].unsqueeze(2))[1][:, :, 0])
            alive = episode.alive
            allowed = torch.ones(len(obs), env.factors.total, dtype=torch.bool, device=env.device) if mask is None else mask
            by_regime = env.factors.of_deviations(torch.cat(gains), own[alive])
            found.append((obs[alive], allowed[alive], own[alive], by_regime))
            strays = torch.rand(n_episodes, generator=self.generator, device=env.device) < stray
            x = torch.where(align_rows(strays, own), regimes.sample(self.generator), own)
            result = env.step_torch(state, HybridAction(x, points(env, policy, obs, x)), noise[age])
            episode.advance(result.state, result.reward, age)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _decide(self, state: Any, noise: torch.Tensor, deadline: float) -> HybridAction:
        """
        :param noise: of the futures of each state, shape ``(T, batch, n_scenarios, ...)``
        """
        env = self.env
        with torch.no_grad():
            if self.regimes:
                tried, gains = self._tried(state, noise)
                best = self._gain(gains).argmax(dim=1)
                regime = tried[torch.arange(len(tried), device=env.device), best]
            else:
                regime, _ = self._likeliest(state)
            point = points(env, self.model.policy, env.observation(state), regime)
        if self.refinements:
            point = self._moved(point, regime, self._shift(state, regime, noise, deadline)[:, 0])
        return HybridAction(regime, point)

    def _tried(self, state: Any, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param noise: of the futures of each state, shape ``(T, batch, n_scenarios, ...)``
        :return: regimes, shape ``(batch, D)`` or ``(batch, D, m)``, the policy's own first, which also stands for those that
            are not allowed; how much more each returns than that, shape ``(batch, D, n_scenarios)``
        """
        env = self.env
        likeliest, mask = self._likeliest(state)
        tried = env.factors.deviations(likeliest)
        n_tried = tried.shape[1]
        first = tried.flatten(0, 1)
        allowed = align_rows(env.factors.permits(first, repeat_mask(mask, n_tried)), first)
        first = torch.where(allowed, first, likeliest.repeat_interleave(n_tried, dim=0))
        returns = self._returns(repeat_rows(state, n_tried), first, noise, n_tried)
        return first.view_as(tried), returns - returns[:, :1]

    def _gain(self, difference: torch.Tensor) -> torch.Tensor:
        """
        :param difference: of returns, in the same futures, shape ``(batch, ..., n_scenarios)``
        :return: its mean less one standard error, shape ``(batch, ...)``
        """
        mean = difference.mean(dim=-1)
        return mean if self.n_scenarios == 1 else mean - difference.std(dim=-1) / self.n_scenarios**0.5

    def _shift(self, state: Any, regime: torch.Tensor, noise: torch.Tensor, deadline: float) -> torch.Tensor:
        """
        :return: by how much refinement moves the points of all periods, in units of ``action_scale``; not at all where that
            gains nothing; shape ``(batch, depth, n)``
        """
        env, batch = self.env, len(state.period)
        shift = torch.zeros(batch, self.depth, env.action_size, dtype=env.dtype, device=env.device, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=STEP)
        best, best_gain, own = torch.zeros_like(shift), torch.zeros(batch, dtype=env.dtype, device=env.device), None
        for step in range(self.refinements + 1):
            returns = self._returns(state, regime, noise, 1, shift)[:, 0]  # (batch, n_scenarios)
            own = returns.detach() if own is None else own
            gain = self._gain(returns.detach() - own)
            better = gain > best_gain
            best_gain = torch.where(better, gain, best_gain)
            best = torch.where(align_rows(better, best), shift.detach(), best)
            if step == self.refinements or time.perf_counter() > deadline:
                break
            if not returns.requires_grad:  # what is ordered now arrives when all is over
                break
            optimizer.param_groups[0]["lr"] = STEP * (1 - step / self.refinements)
            optimizer.zero_grad()
            (-returns.mean(dim=1).sum()).backward(inputs=[shift])
            optimizer.step()
        return best

    def _moved(self, point: torch.Tensor, regime: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """b, moved by so many ``action_scale``, within the bounds of its regime."""
        low, high, scale = point_geometry(self.env, len(point))
        choose = self.env.factors.choose
        return torch.clamp(point + scale * shift, choose(low, regime), choose(high, regime))

    def _returns(
        self,
        state: Any,
        first: torch.Tensor,
        noise: torch.Tensor,
        n_tried: int,
        shift: torch.Tensor | None = None,
        trace: list[tuple[torch.Tensor, ...]] | None = None,
    ) -> torch.Tensor:
        """
        :param state: leading dimension ``batch * n_tried``
        :param first: the regimes of the first period, as many; the policy's likeliest follow
        :param noise: shape ``(T, batch, n_scenarios, ...)``
        :param shift: of the points of each period, shape ``(batch * n_tried, depth, n)``, in units of ``action_scale``
        :param trace: takes the observations, x and b of each period, of the episodes that go on
        :return: discounted sums of rewards and the value behind them, shape ``(batch, n_tried, n_scenarios)``
        """
        env, policy, gamma, count = self.env, self.model.policy, self.model.gamma, noise.shape[2]
        futures = noise.unsqueeze(2).expand(-1, -1, n_tried, *noise.shape[2:]).flatten(1, 3)
        rows = torch.arange(futures.shape[1], device=env.device)
        episode = Episode(env, repeat_rows(state, count))
        x, total, factor = first.repeat_interleave(count, dim=0), noise.new_zeros(len(rows)), 1.0
        for age in range(self.depth):
            period = episode.state.period
            going = period < env.horizon
            if not going.any():
                break
            obs, mask = env.observation(episode.state), episode.mask(age)
            if age:
                x = regime_distribution(env, policy, obs, mask).mode()
            b = points(env, policy, obs, x)
            if shift is not None:
                b = self._moved(b, x, shift[:, age].repeat_interleave(count, dim=0))
            if trace is not None:
                alive = going & episode.alive
                trace.append((obs[alive], x[alive], b[alive]))
            result = env.step_torch(episode.state, HybridAction(x, b), futures[period.clamp(max=env.horizon - 1), rows])
            total = total + torch.where(going, factor * episode.advance(result.state, result.reward, age), 0.0)
            factor *= gamma
        going = episode.alive & (episode.state.period < env.horizon)
        if going.any():
            value = policy.predict_values(env.observation(episode.state)).flatten()
            total = total + torch.where(going, factor * self.model.reward_scale * value, 0.0)
        return total.view(-1, n_tried, count)
