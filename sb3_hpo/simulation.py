"""Episodes of a policy on given scenarios, with gradients, for any :class:`~hybrid_envs.core.HybridEnv`."""

from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from hybrid_envs.checks import require_allowed, require_finite
from hybrid_envs.core import HybridEnv
from hybrid_envs.spaces import HybridAction, allowed_regimes
from sb3_hpo.distributions import choose, mask_logits


class HybridPolicy(Protocol):
    """What is asked of a policy; :class:`~sb3_hpo.policies.HybridActorCriticPolicy` offers it."""

    components: nn.ModuleDict
    """The networks, among them those of :data:`sb3_hpo.gradients.NETWORKS`, which share no parameter."""

    def regime_logits(self, obs: torch.Tensor, /) -> torch.Tensor:
        """:return: logits of π_φ(· | s), shape ``(batch, J)``"""

    def candidates(self, obs: torch.Tensor, /) -> torch.Tensor:
        """:return: the tower β_κ(s), shape ``(batch, J, n)``"""


class Rollout(NamedTuple):
    """
    Episodes with gradients; every entry has leading dimensions ``(T, batch)``. After an episode has terminated its rewards are
    0, but regimes are drawn on: so the probabilities of all regime sequences still sum to 1. A masked regime has probability 0
    and is never executed: where one is given, the first allowed one is taken in its place.
    """

    states: Any
    observations: torch.Tensor
    log_pi: torch.Tensor
    """log π_φ(j | s_t) of every regime j, shape ``(T, batch, J)``."""
    regimes: torch.Tensor
    rewards: torch.Tensor
    log_probs: torch.Tensor
    """log π(x_t | s_t), or log π(x_t, b_t | s_t) if the points are drawn too."""


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
    :param regimes: regime sequences x, shape ``(T, batch)``; sampled from π_φ unless given
    :param live_score: whether log π(x_t | s_t(κ)) carries the gradient of s_t; without it the cross term is gone
    :param point_std: if given, b is Gaussian around the candidate, detached, executed clipped to its regime's bounds, and its
        log-density is part of ``log_probs``; in units of ``action_scale``
    :param generator: source of what is sampled; torch's global one unless given
    """
    low, high, scale = _point_geometry(env)
    episode = _Episode(env, initial_state)
    states, periods = [], []
    for period, shock in enumerate(noise):
        states.append(episode.state)
        obs, mask = env.observation(episode.state), episode.mask(period)
        log_pi = F.log_softmax(mask_logits(policy.regime_logits(obs if live_score else obs.detach()), mask), dim=1)
        x = regimes[period] if regimes is not None else torch.multinomial(log_pi.detach().exp(), 1, generator=generator)[:, 0]
        log_prob = log_pi.gather(1, x.unsqueeze(1)).squeeze(1)
        executed = allowed_regimes(x, mask)
        b = choose(policy.candidates(obs), executed)
        if point_std is not None:
            standard = torch.randn(b.shape, generator=generator, dtype=b.dtype, device=b.device)
            drawn = (b + point_std * scale * standard).detach()
            log_prob = log_prob + Normal(b, point_std * scale).log_prob(drawn).sum(dim=1)
            b = drawn.clamp(low[executed], high[executed])
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
    *,
    depth: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Try every regime in every state of an episode: branch (t, i, j) starts in s_t of scenario i, takes regime j there and
    follows the policy from then on. All branches of a scenario share its noise and the uniform numbers by which regimes are
    drawn (common random numbers), so that they differ by what j changes and little else. Costs about ``J · T / 2`` episodes
    without gradients, ``J · depth`` if cut.

    :param states: s_0..s_{T-1}, shape ``(T, batch, ...)``, as in :class:`Rollout`
    :param noise: scenarios, shape ``(T, batch, ...)``
    :param depth: periods after which a branch is cut, which biases the result; to the end of the scenario unless given
    :return: sums of rewards, given s_t unbiased for Q(s_t, j), shape ``(T, batch, J)``
    """
    (horizon, batch), n_regimes = noise.shape[:2], env.n_regimes
    every_regime = torch.arange(n_regimes, device=noise.device).repeat(horizon * batch)
    uniform = torch.rand(horizon, batch, generator=generator, dtype=noise.dtype, device=noise.device)
    episode = _Episode(env, repeat_rows(type(states)(*(field.flatten(0, 1) for field in states)), n_regimes))
    totals = noise.new_zeros(horizon * batch * n_regimes)
    for age in range(min(depth or horizon, horizon)):
        rows = (horizon - age) * batch * n_regimes  # rows are in order of t: the youngest branches reach the end first
        episode.keep(rows)
        shock, u = (of_period[age:].flatten(0, 1).repeat_interleave(n_regimes, dim=0) for of_period in (noise, uniform))
        obs, mask = env.observation(episode.state), episode.mask(age)
        cumulative = mask_logits(policy.regime_logits(obs), mask).softmax(dim=1).cumsum(dim=1)
        drawn = (u.unsqueeze(1) > cumulative).sum(dim=1).clamp(max=n_regimes - 1)
        x = allowed_regimes(every_regime if age == 0 else drawn, mask)
        result = env.step_torch(episode.state, HybridAction(x, choose(policy.candidates(obs), x)), shock)
        totals[:rows] += episode.advance(result.state, result.reward, age)
    return totals.view(horizon, batch, n_regimes)


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
    n_regimes, every_regime = env.n_regimes, torch.arange(env.n_regimes, device=noise.device)
    episode = _Episode(env, initial_state)
    rewards = []
    for period, shock in enumerate(noise):
        obs, mask = env.observation(episode.state), episode.mask(period)
        log_pi = F.log_softmax(mask_logits(policy.regime_logits(obs), mask), dim=1)
        gumbel = -torch.empty_like(log_pi).exponential_(generator=generator).log()
        y = F.softmax((log_pi + gumbel) / temperature, dim=1)
        if straight_through:
            y = F.one_hot(y.argmax(dim=1), n_regimes) + (y - y.detach())
        x = allowed_regimes(every_regime.repeat(len(y)), mask)
        candidates = policy.candidates(obs)
        b = candidates.gather(1, x.view(*y.shape, 1).expand_as(candidates))
        action = HybridAction(x, b.flatten(0, 1))
        result = env.step_torch(repeat_rows(episode.state, n_regimes), action, shock.repeat_interleave(n_regimes, dim=0))
        state = type(result.state)(*(_blend(y, field) for field in result.state))
        rewards.append(episode.advance(state, _blend(y, result.reward), period))
    return torch.stack(rewards)


class _Episode:
    """Where a batch of episodes stands. One that has terminated stays in its last state and costs nothing more."""

    def __init__(self, env: HybridEnv, initial_state: Any):
        self.env, self.state, self.alive = env, initial_state, ~env.terminal(initial_state)

    def mask(self, period: int) -> torch.Tensor | None:
        """
        :return: which regimes may be taken, shape ``(batch, J)``, all of them where an episode has terminated; ``None`` if the
            environment masks none
        :raises ValueError: if an episode that goes on is left without a regime
        """
        if not self.env.masks_regimes:
            return None
        mask = self.env.regime_mask(self.state) | ~self.alive.unsqueeze(1)
        require_allowed(self.env.name, mask, period)
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
        self.state = type(state)(*(torch.where(_align(self.alive, new), new, old) for old, new in fields))
        self.alive = self.alive & ~self.env.terminal(self.state)
        return reward


def _align(rows: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """One entry per row, with trailing dimensions to match ``field``."""
    return rows.view(-1, *[1] * (field.dim() - 1))


def _blend(y: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Σ_j y_j field_j, from batch · J rows to batch rows; what is not real-valued, as the clock, is the same for every j."""
    if not field.is_floating_point():
        return field[:: y.shape[1]]
    return (_align(y.flatten(), field) * field).unflatten(0, y.shape).sum(dim=1)


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
    low, high, scale = _point_geometry(env)
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
                x = torch.randint(env.n_regimes, (batch_size,), generator=generator, device=env.device)
                x = allowed_regimes(x, env.regime_mask(state) if env.masks_regimes else None)
                standard = torch.randn(low[x].shape, generator=generator, dtype=env.dtype, device=env.device)
                outcomes = []
                for step_seed in (0, 1):
                    torch.manual_seed(step_seed)
                    result = env.step_torch(state, HybridAction(x, (scale * standard).clamp(low[x], high[x])), shock)
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


def _point_geometry(env: HybridEnv) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lower and upper bounds of b, shape ``(J, n)``, and its typical magnitude, shape ``(n,)``."""
    bounds, scale = (torch.as_tensor(a, dtype=env.dtype, device=env.device) for a in (env.action_bounds, env.action_scale))
    return bounds[..., 0], bounds[..., 1], scale
