"""The evaluation of any policy, what reference policies share, and what is known of a problem: its reference, its picture."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import singledispatch
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch

from hybrid_envs.checks import check_count, to_numpy
from hybrid_envs.core import HybridEnv
from hybrid_envs.spaces import HybridAction
from hybrid_envs.vector import HybridVectorEnv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPISODE_SEED = 0
"""Of the episode that a figure shows, the same in every figure."""


class Policy(Protocol):
    """
    Anything with Stable-Baselines3's ``predict``: a trained model as well as a reference policy. One that decides by more than
    what is observed of a state has ``decide`` too, from a batch of states to their :class:`~hybrid_envs.spaces.HybridAction`.
    """

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]: ...


class Choices(NamedTuple):
    """What a policy weighs up at each of a batch of observations: more than the one action that ``predict`` returns."""

    probabilities: np.ndarray
    """Of each regime, shape ``(batch, J)``; of several factors ``(batch, m, J)``, 0 where a factor has no regime j."""
    points: np.ndarray
    """The b it would choose in each regime, or coordinate by coordinate in each regime of its factor, ``(batch, J, n)``."""


PolicyFunction = Callable[[np.ndarray], Choices]
"""From the environment's own (unscaled) observations, float32, shape ``(batch, d)``, to :class:`Choices`."""


@singledispatch
def reference_policy(env: gym.Env) -> Any:
    """
    The best policy known for an instance. What a problem of one's own is measured against is said by one decorator:

        @reference_policy.register
        def base_stock(env: NewsvendorEnv) -> BaseStock: ...

    :param env: the problem
    :return: a policy with Stable-Baselines3's ``predict``; ``None`` where none is known
    """
    return None if env.unwrapped is env else reference_policy(env.unwrapped)


@singledispatch
def policy_figure(env: gym.Env, policy: PolicyFunction) -> "Figure | None":
    """
    A picture, in the problem's own terms, of what a policy does. Training shows it in TensorBoard as the policy learns, so it
    should take a second at most. ``@policy_figure.register`` gives a problem of one's own its picture, as with
    :func:`reference_policy`.

    :param env: the problem
    :param policy: the policy as a function of observations
    :return: a figure of matplotlib's; ``None`` where there is none
    """
    return None if env.unwrapped is env else policy_figure(env.unwrapped, policy)


class ReferencePolicy(ABC):
    """A policy known in closed form or computed by a solver: what a learned policy is measured against."""

    cost: float = float("nan")
    """Its figure of merit as its solver states it; NaN where the solver states none."""
    half_width: float = 0.0
    """Half width of the 95 % confidence interval of ``cost``; 0 where ``cost`` is exact."""

    def state_cost(self, costs: np.ndarray) -> None:
        """
        State ``cost`` and ``half_width`` as simulation estimates them.

        :param costs: of independent scenarios, shape ``(n,)``
        """
        self.cost, self.half_width = float(costs.mean()), float(1.96 * costs.std() / math.sqrt(len(costs)))

    @abstractmethod
    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param observation: shape ``(batch, d)``
        :param period: periods since the start of each row's episode, int64, shape ``(batch,)``
        :return: regimes, int64, shape ``(batch,)`` or ``(batch, m)``, and points, shape ``(batch, n)``
        """

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """
        Stable-Baselines3's ``predict``. As with its recurrent policies, the returned state has to be handed back at the next
        call: it holds the clock, which observations do not.

        :param observation: shape ``(d,)``, or ``(batch, d)``
        :param state: what the previous call returned, ``None`` at the start of all episodes
        :param episode_start: bool, shape ``(batch,)``: rows in which an episode starts with this observation
        :param deterministic: reference policies always are
        :param action_masks: not needed: a reference policy knows what its problem allows
        :return: the action ``(x, b)``, or a list of them for batched observations, and the new state
        """
        batch = np.atleast_2d(observation)
        period = np.zeros(len(batch), dtype=np.int64) if state is None else state[0]
        if episode_start is not None:
            period = np.where(episode_start, 0, period)
        regimes, points = self.act(batch, period)
        of_row = regimes.tolist() if regimes.ndim == 1 else list(regimes)
        actions = list(zip(of_row, points.astype(np.float32), strict=True))
        return (actions[0] if np.ndim(observation) == 1 else actions), (period + 1,)


def evaluate(env: gym.Env, policy: Policy, n_scenarios: int, seed: int) -> np.ndarray:
    """
    The cost of a policy on fresh scenarios, each one episode long. Equal seeds give equal scenarios, so that policies can be
    compared on common random numbers. If the environment masks regimes, ``predict`` is handed ``action_masks``, bool, shape
    ``(n_scenarios, J)``, as sb3_contrib does it.

    :param env: the environment, possibly wrapped: its wrappers are left out, and its own episode is not touched
    :param policy: anything with Stable-Baselines3's ``predict``
    :param n_scenarios: number of scenarios
    :param seed: of the scenarios
    :return: :meth:`HybridEnv.figure_of_merit` of each scenario, float64, shape ``(n_scenarios,)``
    :raises TypeError: if the environment is no HybridEnv, or the policy no policy
    """
    return _bare(env).figure_of_merit(episode_costs(env, policy, n_scenarios, seed)).numpy()


def success_rate(env: gym.Env, policy: Policy, n_scenarios: int, seed: int) -> float | None:
    """
    As :func:`evaluate`, on the same scenarios.

    :return: the share of episodes that reached the goal, by :meth:`HybridEnv.success`; ``None`` where there is no goal
    """
    reached = _bare(env).success(episode_costs(env, policy, n_scenarios, seed))
    return None if reached is None else float(reached.double().mean())


def _bare(env: gym.Env) -> HybridEnv:
    """What has scenarios to evaluate a policy on."""
    bare = getattr(env, "unwrapped", env)
    if not isinstance(bare, HybridEnv):
        raise TypeError(f"env must be a HybridEnv, whose scenarios can be played side by side, got a {type(bare).__name__}")
    return bare


def episode_costs(env: gym.Env, policy: Policy, n_scenarios: int, seed: int) -> torch.Tensor:
    """
    As :func:`evaluate`, on the same scenarios.

    :return: the cost of each period, 0 after an episode's end, float64, shape ``(horizon, n_scenarios)``
    """
    env = _bare(env)
    if not (hasattr(policy, "predict") or hasattr(policy, "decide")):
        raise TypeError(f"policy must have predict(), as a model has, or decide(), got {policy!r}")
    if isinstance(space := getattr(policy, "action_space", env.action_space), gym.spaces.Box):
        raise TypeError(f"the policy's actions are not hybrid but out of {space}: use Stable-Baselines3's evaluate_policy")
    scenarios = HybridVectorEnv(env, check_count("n_scenarios", n_scenarios))
    observation, _ = scenarios.reset(seed=seed)
    state, episode_start = None, np.ones(n_scenarios, dtype=bool)
    alive = np.ones(n_scenarios, dtype=bool)  # what follows the end of an episode is another scenario
    costs = np.zeros((env.horizon, n_scenarios))
    for t in range(env.horizon):
        if hasattr(policy, "decide"):
            regimes, points = (of.cpu().numpy() for of in policy.decide(scenarios.state))
        else:
            mask = scenarios.regime_mask()
            masks: dict[str, Any] = {} if mask is None else {"action_masks": mask.cpu().numpy()}
            actions, state = policy.predict(observation, state=state, episode_start=episode_start, deterministic=True, **masks)
            regimes, points = (np.stack(part) for part in zip(*actions, strict=True))
        observation, reward, terminated, truncated, _ = scenarios.step((regimes, points))
        costs[t] = np.where(alive, -reward, 0.0)
        episode_start = terminated | truncated
        alive &= ~episode_start
        if not alive.any():
            break
    return torch.from_numpy(costs)


def greedy_episode(env: HybridEnv, policy: PolicyFunction) -> tuple[np.ndarray, Choices]:
    """
    One episode in which the likeliest regime is taken, or if that is not allowed, one near it; the environment's own is not
    touched.

    :return: what is observed in each period, shape ``(T, d)``, and the choices there
    """
    generator = torch.Generator(env.device).manual_seed(EPISODE_SEED)
    with torch.no_grad():
        state, noise = env.sample_scenarios(1, generator)
        observations, choices = [], []
        for t in range(env.horizon):
            observations.append(to_numpy(env.observation(state)))
            choices.append(policy(observations[-1]))
            likeliest = torch.as_tensor(choices[-1].probabilities.argmax(axis=-1), device=env.device)
            regime = env.factors.repaired(likeliest, env.regime_mask(state) if env.masks_regimes else None)
            points = torch.as_tensor(choices[-1].points, dtype=env.dtype, device=env.device)
            state = env.step_torch(state, HybridAction(regime, env.factors.choose(points, regime)), noise[t]).state
    return np.concatenate(observations), Choices(*(np.concatenate(part) for part in zip(*choices, strict=True)))
