"""Episodes of a policy on given scenarios, with gradients, for any :class:`~hybrid_envs.core.HybridEnv`."""

from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from hybrid_envs.checks import check_count, require_choice, require_finite
from hybrid_envs.core import HybridEnv
from hybrid_envs.spaces import HybridAction
from sb3_hpo.distributions import Coupling, RegimeDistribution


class HybridPolicy(Protocol):
    """What is asked of a policy; :class:`~sb3_hpo.policies.HybridActorCriticPolicy` offers it."""

    components: nn.ModuleDict
    """The networks, among them those of :data:`sb3_hpo.gradients.NETWORKS`, which share no parameter."""

    def regime_logits(self, obs: torch.Tensor, /) -> torch.Tensor:
        """:return: logits of π_φ(· | s), flat, shape ``(batch, ΣJ_f)``"""

    def candidates(self, obs: torch.Tensor, /) -> torch.Tensor:
        """:return: the tower β_κ(s), shape ``(batch, J, n)``"""


class Rollout(NamedTuple):
    """
    Episodes with gradients; every entry has leading dimensions ``(T, batch)``. After an episode has terminated its rewards are
    0, but regimes are drawn on: so the probabilities of all regime sequences still sum to 1. A masked regime has probability 0
    and is never executed: where one is given, the first allowed one is taken in its place. So is, if it has to be, one that
    keeps to ``active_limits``.
    """

    states: Any
    observations: torch.Tensor
    log_pi: torch.Tensor
    """
    log π_φ(j | s_t) of every regime j, shape ``(T, batch, J)``; of several factors log π_f(j | s_t), given the choices before
    it where factors are coupled, ``(T, batch, m, J)``.
    """
    regimes: torch.Tensor
    rewards: torch.Tensor
    log_probs: torch.Tensor
    """log π(x_t | s_t), or log π(x_t, b_t | s_t) if the points are drawn too."""

    @property
    def factor_log_probs(self) -> torch.Tensor:
        """log π_f(x_{t,f} | s_t), shape ``(T, batch, m)``; of a Discrete m = 1."""
        log_pi = self.log_pi if self.log_pi.dim() == 4 else self.log_pi.unsqueeze(2)
        return log_pi.gather(3, self.regimes.view(*log_pi.shape[:3], 1)).squeeze(3)


def simulate(
    env: HybridEnv,
    policy: HybridPolicy,
    initial_state: Any,
    noise: torch.Tensor,
    *,
    regimes: torch.Tensor | None = None,
    live_score: bool = True,
    point_std: float | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """
    Play the policy on given scenarios with live gradients: s_t is a function of κ.

    :param initial_state: s_0, leading dimension ``batch``
    :param noise: scenarios ξ, shape ``(T, batch, ...)``
    :param regimes: regime sequences x, shape ``(T, batch)`` or ``(T, batch, m)``; sampled from π_φ unless given
    :param live_score: whether log π(x_t | s_t(κ)) carries the gradient of s_t; without it the cross term is gone
    :param point_std: if given, b is Gaussian around the candidate, detached, executed clipped to its regime's bounds, and its
        log-density is part of ``log_probs``; in units of ``action_scale``
    :param generator: source of what is sampled; torch's global one unless given
    """
    low, high, scale = point_geometry(env, len(initial_state.period))
    episode = Episode(env, initial_state)
    states, periods = [], []
    for period, shock in enumerate(noise):
        states.append(episode.state)
        obs, mask = env.observation(episode.state), episode.mask(period)
        distribution = regime_distribution(env, policy, obs if live_score else obs.detach(), mask)
        x = regimes[period] if regimes is not None else distribution.sample(generator)
        given = distribution.given(x)
        log_pi, log_prob = given.logits, given.log_prob(x)
        log_prob = log_prob.sum(dim=1) if env.factors.many else log_prob
        executed = env.factors.repaired(x, mask)
        b = points(env, policy, obs, executed)
        if point_std is not None:
            standard = torch.randn(b.shape, generator=generator, dtype=b.dtype, device=b.device)
            drawn = (b + point_std * scale * standard).detach()
            log_prob = log_prob + Normal(b, point_std * scale).log_prob(drawn).sum(dim=1)
            b = drawn.clamp(env.factors.choose(low, executed), env.factors.choose(high, executed))
        result = env.step_torch(episode.state, HybridAction(executed, b), shock)
        reward = episode.advance(result.state, result.reward, period)
        periods.append((obs, log_pi, x, reward, log_prob))
    stacked = type(initial_state)(*map(torch.stack, zip(*states, strict=True)))
    return Rollout(stacked, *map(torch.stack, zip(*periods, strict=True)))


@torch.no_grad()
def branched_returns(
    env: HybridEnv,
    policy: HybridPolicy,
    states: Any,
    noise: torch.Tensor,
    regimes: torch.Tensor | None = None,
    *,
    depth: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Try every regime in every state of an episode: branch (t, i, j) starts in s_t of scenario i, takes regime j there and
    follows the policy from then on. Of several factors one is changed at a time: branch (t, i, f, j) takes x_t of scenario i
    with x_f replaced by j. All branches of a scenario share its noise and the uniform numbers by which regimes are
    drawn (common random numbers), so that they differ by what j changes and little else. Costs about ``D · T / 2`` episodes
    without gradients with D = 1 + Σ(J_f - 1), ``D · depth`` if cut.

    :param states: s_0..s_{T-1}, shape ``(T, batch, ...)``, as in :class:`Rollout`
    :param noise: scenarios, shape ``(T, batch, ...)``
    :param regimes: x_0..x_{T-1}, shape ``(T, batch, m)``; of a Discrete they do not matter
    :param depth: periods after which a branch is cut, which biases the result; to the end of the scenario unless given
    :return: sums of rewards, given s_t (and the other factors' choices) unbiased for Q, shape ``(T, batch, J)`` or
        ``(T, batch, m, J)``
    """
    horizon, batch = noise.shape[:2]
    factors = env.factors
    if regimes is None:
        if factors.many:
            raise ValueError(f"{env.name}: branches change one factor of a regime at a time; say which regimes were taken")
        regimes = torch.zeros(horizon, batch, dtype=torch.int64, device=noise.device)
    taken = regimes.flatten(0, 1)
    first = factors.deviations(taken)  # (T · batch, D)
    n_branches = first.shape[1]
    uniform = torch.rand(factors.shape(horizon, batch), generator=generator, dtype=noise.dtype, device=noise.device)
    episode = Episode(env, repeat_rows(type(states)(*(field.flatten(0, 1) for field in states)), n_branches))
    totals = noise.new_zeros(horizon * batch * n_branches)
    for age in range(horizon if depth is None else min(check_count("depth", depth), horizon)):
        rows = (horizon - age) * batch * n_branches  # rows are in order of t: the youngest branches reach the end first
        episode.keep(rows)
        shock, u = (of_period[age:].flatten(0, 1).repeat_interleave(n_branches, dim=0) for of_period in (noise, uniform))
        obs, mask = env.observation(episode.state), episode.mask(age)
        drawn = regime_distribution(env, policy, obs, mask).draw_by(u)
        x = factors.allowed(first.flatten(0, 1) if age == 0 else drawn, mask)
        result = env.step_torch(episode.state, HybridAction(x, points(env, policy, obs, x)), shock)
        totals[:rows] += episode.advance(result.state, result.reward, age)
    values = factors.of_deviations(totals.view(horizon * batch, n_branches), taken)
    return values.unflatten(0, (horizon, batch))


def simulate_relaxed(
    env: HybridEnv,
    policy: HybridPolicy,
    initial_state: Any,
    noise: torch.Tensor,
    *,
    temperature: float,
    straight_through: bool,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Episodes of a relaxed problem (Gumbel-softmax: Jang, Gu, Poole 2017). In each period the weights
    y = softmax((log π_φ(· | s) + Gumbel noise) / τ) blend what *every* regime would lead to:

    s' = Σ_j y_j f(s, j, b^j, ξ),    r = Σ_j y_j r(s, j, b^j, ξ)

    With ``straight_through`` the forward pass takes the one-hot argmax of y, an exact sample of π_φ in the true problem, and
    only the backward pass blends. Both are biased: the first differentiates another problem, the second mixes the two.

    :return: rewards with gradients to φ and κ, shape ``(T, batch)``
    """
    every = env.factors.every(noise.device)  # all regimes; of several factors their product, which has to be small
    n_regimes = len(every)
    episode = Episode(env, initial_state)
    rewards = []
    for period, shock in enumerate(noise):
        obs, mask = env.observation(episode.state), episode.mask(period)
        log_pi = regime_distribution(env, policy, obs, mask).given(every[:1].expand(env.factors.shape(len(obs)))).logits
        gumbel = -torch.empty_like(log_pi).exponential_(generator=generator).log()
        of_factor = F.softmax((log_pi + gumbel) / temperature, dim=-1)
        if straight_through:
            of_factor = F.one_hot(of_factor.argmax(dim=-1), of_factor.shape[-1]) + (of_factor - of_factor.detach())
        y = _of_product(of_factor, every) if env.factors.many else of_factor
        x = env.factors.allowed(every.repeat(len(y), *[1] * (every.dim() - 1)), repeat_mask(mask, n_regimes))
        action = HybridAction(x, points(env, policy, obs.repeat_interleave(n_regimes, dim=0), x))
        result = env.step_torch(repeat_rows(episode.state, n_regimes), action, shock.repeat_interleave(n_regimes, dim=0))
        state = type(result.state)(*(_blend(y, field) for field in result.state))
        rewards.append(episode.advance(state, _blend(y, result.reward), period))
    return torch.stack(rewards)


def _of_product(of_factor: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
    """Weights of all regimes from those of their factors: ``(batch, m, J)`` and ``(ΠJ_f, m)`` to ``(batch, ΠJ_f)``."""
    return of_factor[:, torch.arange(every.shape[1], device=every.device), every].prod(dim=2)


def repeat_mask(mask: torch.Tensor | None, count: int) -> torch.Tensor | None:
    return None if mask is None else mask.repeat_interleave(count, dim=0)


def points(env: HybridEnv, policy: HybridPolicy, obs: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
    """
    :param regime: x, shape ``(batch,)`` or ``(batch, m)``
    :return: b, shape ``(batch, n)``: the candidates of x, or what a policy whose points see the whole regime makes of it
    """
    if getattr(policy, "conditioned", False):
        return policy.points(obs, regime)  # type: ignore[attr-defined]
    return env.factors.choose(policy.candidates(obs), regime)


def regime_distribution(
    env: HybridEnv, policy: HybridPolicy, obs: torch.Tensor, mask: torch.Tensor | None
) -> RegimeDistribution:
    """
    :param mask: which regimes may be taken, flat, shape ``(batch, ΣJ_f)``; all of them if ``None``
    :return: π_φ(· | s)
    """
    coupling: Coupling | None = getattr(policy, "coupling", None)
    return RegimeDistribution(policy.regime_logits(obs), env.factors, mask, coupling)


class Episode:
    """Where a batch of episodes stands. One that has terminated stays in its last state and costs nothing more."""

    def __init__(self, env: HybridEnv, initial_state: Any):
        self.env, self.state, self.alive = env, initial_state, ~env.terminal(initial_state)

    def mask(self, period: int) -> torch.Tensor | None:
        """
        :return: which regimes may be taken, flat, shape ``(batch, ΣJ_f)``, all of them where an episode has terminated;
            ``None`` if the environment masks none
        :raises ValueError: if an episode that goes on is left without a regime
        """
        if not self.env.masks_regimes:
            return None
        mask = self.env.regime_mask(self.state) | ~self.alive.unsqueeze(1)
        require_choice(self.env.name, self.env.factors.leaves_a_choice(mask), period)
        return mask

    def keep(self, rows: int) -> None:
        """Go on with the first so many episodes."""
        self.state = type(self.state)(*(field[:rows] for field in self.state))
        self.alive = self.alive[:rows]

    def advance(self, state: Any, reward: torch.Tensor, period: int) -> torch.Tensor:
        """
        :return: the reward of the episodes that were still alive, and 0 elsewhere
        """
        reward = torch.where(self.alive, reward, 0.0)
        require_finite(self.env.name, "reward", reward, period)
        fields = zip(self.state, state, strict=True)
        self.state = type(state)(*(torch.where(align_rows(self.alive, new), new, old) for old, new in fields))
        self.alive = self.alive & ~self.env.terminal(self.state)
        return reward


def align_rows(rows: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """One entry per row, with trailing dimensions to match ``field``."""
    return rows.view(-1, *[1] * (field.dim() - 1))


def _blend(y: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Σ_j y_j field_j, from batch · J rows to batch rows; what is not real-valued, as the clock, is the same for every j."""
    if not field.is_floating_point():
        return field[:: y.shape[1]]
    return (align_rows(y.flatten(), field) * field).unflatten(0, y.shape).sum(dim=1)


def repeat_rows(state: Any, count: int) -> Any:
    """
    :return: the state with every row ``count`` times in succession
    """
    return type(state)(*(field.repeat_interleave(count, dim=0) for field in state))


# ---- the condition behind them ---------------------------------------------------------------------------------------

_checked: WeakSet[HybridEnv] = WeakSet()


def require_exogenous_noise(env: HybridEnv, batch_size: int = 4) -> None:
    """
    Replay one scenario against different actions, and every step of it twice. Pathwise derivatives hold the scenario fixed
    while actions change; a scenario that actions can change, or a step with randomness of its own, makes them wrong. Each
    environment is replayed once, and remembered.

    :param batch_size: number of scenarios to replay
    :raises ValueError: naming the environment and what gave it away
    """
    if env in _checked:
        return
    low, high, scale = point_geometry(env, batch_size)
    scenarios: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad(), torch.random.fork_rng():
        for action_seed in range(3):
            generator = torch.Generator(env.device).manual_seed(0)
            state, noise = env.initial(batch_size, generator), env.sample_noise(batch_size, generator)
            scenarios.append((*state, noise))
            if not _same(scenarios[0], scenarios[-1]):
                raise ValueError(
                    f"{env.name}: the scenario drawn from one seed differs after other actions were taken; the mixed gradient "
                    "needs noise that depends on neither states nor actions"
                )
            generator.manual_seed(action_seed)
            for period, shock in enumerate(noise):
                mask = env.regime_mask(state) if env.masks_regimes else None
                x = env.factors.allowed(env.factors.draw(batch_size, generator), mask)
                least, most = env.factors.choose(low, x), env.factors.choose(high, x)
                standard = torch.randn(least.shape, generator=generator, dtype=env.dtype, device=env.device)
                outcomes = []
                for step_seed in (0, 1):
                    torch.manual_seed(step_seed)
                    result = env.step_torch(state, HybridAction(x, (scale * standard).clamp(least, most)), shock)
                    outcomes.append((*result.state, result.reward))
                if not _same(*outcomes):
                    raise ValueError(
                        f"{env.name}: period {period}, replayed with the same state, action and noise, came out differently; "
                        "the mixed gradient needs all randomness to come from sample_noise()"
                    )
                state = result.state
    _checked.add(env)


def _same(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, equal_nan=True) for a, b in zip(left, right, strict=True))


def point_geometry(env: HybridEnv, batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lower and upper bounds of b, shape ``(batch, J, n)``, and its typical magnitude, shape ``(n,)``."""
    bounds, scale = (torch.as_tensor(a, dtype=env.dtype, device=env.device) for a in (env.action_bounds, env.action_scale))
    low, high = bounds.expand(batch_size, -1, -1, -1).unbind(-1)
    return low, high, scale
