"""Hybrid actions in SB3's vectorised environments."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from hybrid_envs.checks import require_choice, require_finite, to_numpy
from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction, box_bounds, factors_of, feasible_actions
from hybrid_envs.vector import HybridVectorEnv
from sb3_hpo import ranks
from sb3_hpo.identity import describe, own_numbers


class SharedSimulator(HybridVectorEnv):
    """
    This rank's share of the scenarios. The starts and the noise of all are drawn by every rank, so that a scenario is the same
    whoever simulates it.

    :param env: as :class:`~hybrid_envs.vector.HybridVectorEnv`'s
    :param n_scenarios: of all ranks together
    :raises ValueError: if they are fewer than ranks
    """

    def __init__(self, env: HybridEnv, n_scenarios: int):
        self.n_scenarios, self.share = n_scenarios, ranks.rows(n_scenarios)
        if n_scenarios < ranks.count():
            raise ValueError(f"{n_scenarios} scenarios cannot be shared by {ranks.count()} ranks: each needs one at least")
        super().__init__(env, self.share.stop - self.share.start)

    def _draw(self) -> tuple[Any, torch.Tensor]:
        state, noise = self.env.sample_scenarios(self.n_scenarios, self.generator)
        # Copies, lest every rank keep the noise of all.
        return type(state)(*(field[self.share].clone() for field in state)), noise[:, self.share].clone()

    def _some(self, done: torch.Tensor) -> bool:
        (some,) = ranks.any_of(bool(done.any()))
        return some

    def state_dict(self) -> dict[str, Any]:
        """
        :return: as :class:`~hybrid_envs.vector.HybridVectorEnv`'s, of all scenarios: whatever the number of ranks that go on
        """
        saved = super().state_dict()
        if saved["state"] is not None:
            for name, field in saved["state"].items():
                (saved["state"][name],) = ranks.gather(self.n_scenarios, field)
            (saved["noise"],) = ranks.gather(self.n_scenarios, saved["noise"], dim=1)
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved["state"] is not None:
            if (found := len(saved["state"]["period"])) != self.n_scenarios:
                raise ValueError(f"{self.env.name}: {found} scenarios were saved, here are {self.n_scenarios}")
            state = {name: field[self.share] for name, field in saved["state"].items()}
            saved = saved | {"state": state, "noise": saved["noise"][:, self.share]}
        super().load_state_dict(saved)


class HybridVecEnv(VecEnv):
    """
    SB3's view of a :class:`~hybrid_envs.vector.HybridVectorEnv`: all scenarios advance in one batched call.

    Episode statistics are reported in ``info["episode"]``, as SB3's Monitor does.

    :param env: the environment whose equations are simulated
    :param num_envs: number of scenarios
    """

    def __init__(self, env: HybridEnv, num_envs: int):
        self.simulator = HybridVectorEnv(env, num_envs)
        self.result: StepResult | None = None
        self._outcome: StepResult | None = None
        self._start = time.time()
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=int)
        super().__init__(num_envs, env.observation_space, env.action_space)

    def share(self) -> None:
        """
        From now on, of several ranks, simulate this one's share, and show the arrays of all scenarios. Every rank has to step
        it. Episodes that were running end.
        """
        if ranks.count() > 1 and not isinstance(self.simulator, SharedSimulator):
            self.simulator = SharedSimulator(self.simulator.env, self.num_envs)

    def reset(self) -> VecEnvObs:
        self.simulator.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0.0, 0
        (obs,) = self.everybody(self.simulator.observation())
        return to_numpy(obs)

    def step_async(self, actions: Any) -> None:
        """
        :param actions: a list of ``(x, b)``, one per scenario, as ``predict`` returns it, checked against the action space;
            or what ``step_torch`` said of actions of this rank's scenarios, whose gradients then flow on
        """
        if isinstance(actions, StepResult):
            self._outcome = actions
            return
        env, mask = self.simulator.env, self.simulator.regime_mask()
        if isinstance(self.simulator, SharedSimulator):
            actions = actions[self.simulator.share]
        masks = [None] * len(actions) if mask is None else mask.cpu().numpy()
        checked = [env.check_action(action, allowed) for action, allowed in zip(actions, masks, strict=True)]
        action = HybridAction(
            torch.as_tensor(np.array([regime for regime, _ in checked]), device=env.device),
            torch.as_tensor(np.stack([point for _, point in checked]), dtype=env.dtype, device=env.device),
        )
        self._outcome = self.simulator.outcome(action)

    def step_wait(self) -> VecEnvStepReturn:
        """
        The step's torch result, before any reset, is left in ``self.result``. It is that of this rank's scenarios, while the
        arrays are of all.

        :raises FloatingPointError: if a state or cost is no longer finite
        """
        name, period = self.simulator.env.name, self.simulator.state.period
        assert self._outcome is not None
        self.result, done = self.simulator.accept(self._outcome)
        require_finite(name, "observation", self.result.observation, period)
        require_finite(name, "reward", self.result.reward, period)
        obs, reward, all_done = self.everybody(self.simulator.observation(), self.result.reward, done)
        rewards, dones = to_numpy(reward), all_done.cpu().numpy()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended := self.count(rewards, dones):
            final, truncated = self.everybody(self.result.observation, self.result.truncated)
            for row, episode in ended.items():
                infos[row] = {
                    "terminal_observation": to_numpy(final[row]),
                    "TimeLimit.truncated": bool(truncated[row]),
                    "episode": episode,
                }
        return to_numpy(obs), rewards, dones, infos

    def everybody(self, *own: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, ...]:
        """
        :param own: tensors of this rank's scenarios, which lie along ``dim``
        :return: of all scenarios
        """
        return ranks.gather(self.num_envs, *own, dim=dim) if isinstance(self.simulator, SharedSimulator) else own

    def accept(self, outcome: StepResult) -> None:
        """
        A step without arrays, checks and statistics, for which a GPU need not be waited for.

        :param outcome: what ``step_torch`` said
        """
        self.result, _ = self.simulator.accept(outcome)

    def count(self, rewards: np.ndarray, dones: np.ndarray) -> dict[int, dict[str, Any]]:
        """
        Count a step into the statistics of the running episodes.

        :param rewards: shape ``(n_envs,)``
        :param dones: which episodes have ended, likewise
        :return: the statistics of those, as SB3's Monitor reports them, by scenario
        """
        self._returns += rewards
        self._lengths += 1
        ended = {
            int(row): {
                "r": round(float(self._returns[row]), 6),
                "l": int(self._lengths[row]),
                "t": round(time.time() - self._start, 6),
            }
            for row in np.flatnonzero(dones)
        }
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return ended

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the running episodes, their statistics and the sources of randomness, as arrays, tensors and plain data
        """
        return {
            "simulator": self.simulator.state_dict(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "seeds": list(self._seeds),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """
        :param saved: what :meth:`state_dict` returned
        :raises ValueError: if it comes from another problem or another number of scenarios
        """
        self.simulator.load_state_dict(saved["simulator"])
        self._returns[:], self._lengths[:], self._seeds = saved["returns"], saved["lengths"], list(saved["seeds"])

    def close(self) -> None:
        self.simulator.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.simulator.env, attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.simulator.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        if method_name == "action_masks" and (mask := self.simulator.regime_mask()) is not None:
            (mask,) = self.everybody(mask)
            return list(mask.cpu().numpy()[self._indices(indices)])
        method = getattr(self.simulator.env, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        # It reports what a Monitor reports, so evaluate_policy may rely on its episode statistics.
        return [wrapper_class is Monitor] * len(self._indices(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs

    def _indices(self, indices: int | Iterable[int] | None) -> list[int]:
        return list(self._get_indices(indices))


class HybridActionWrapper(VecEnvWrapper):
    """
    Turns the packed actions of SB3's rollout, an array of shape ``(n_envs, m + n)``, or ``(n_envs, m + n + ΣJ_f)`` with masks,
    into one ``(x, b)`` per environment, with b clipped to the bounds of its regime as SB3 clips Box actions to the Box. Other
    actions pass unchanged. Rewards are divided by ``reward_unit``, which is 1 until it is set.

    :param venv: any VecEnv whose action space is ``Tuple(Discrete, Box)``
    """

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.reward_unit = 1.0
        self.action_bounds, self.factors = box_bounds(venv.action_space), factors_of(venv.action_space)
        if venv.has_attr("action_bounds"):
            self.action_bounds = venv.get_attr("action_bounds")[0]
        if venv.has_attr("factors"):
            self.factors = venv.get_attr("factors")[0]

    def step_async(self, actions: Any) -> None:
        if isinstance(actions, np.ndarray):
            actions = feasible_actions(torch.from_numpy(actions), self.action_bounds, self.factors)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards / self.reward_unit, dones, infos

    def reset(self) -> VecEnvObs:
        return self.venv.reset()


class Period(NamedTuple):
    """What HPO keeps of one period, or with leading dimension ``n_steps`` of a rollout, seen as the policy sees it."""

    clock: torch.Tensor
    """The periods of the scenarios' episodes, shape ``(n_envs,)``."""
    mask: torch.Tensor | None
    log_prob: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor


class Seen(NamedTuple):
    """What was observed in a rollout, as the policy sees it, and what was done. Nothing carries gradients."""

    observations: torch.Tensor
    """Of the states at the beginning of each period, and of the present ones, shape ``(n_steps + 1, n_envs, d)``."""
    actions: torch.Tensor
    """Packed, with masks if there are some, shape ``(n_steps, n_envs, m + n)`` or ``(n_steps, n_envs, m + n + ΣJ_f)``."""
    final: dict[int, torch.Tensor]
    """Observations by step in which episodes ended, of the states that it led to, before any reset, shape ``(n_envs, d)``."""

    def until(self, step: int) -> "Seen":
        """
        :return: of the steps before this one
        """
        return Seen(self.observations[: step + 1], self.actions[:step], self.final)

    def led_to(self, step: int) -> torch.Tensor:
        """
        :return: of the states that a step led to, before any reset, shape ``(n_envs, d)``
        """
        return self.final.get(step, self.observations[step + 1])


def together(periods: list[Period]) -> Period:
    """
    :return: all of them stacked
    """
    stacked: list[Any] = [None if parts[0] is None else torch.stack(parts) for parts in zip(*periods, strict=True)]
    return Period(*stacked)


class LiveView:
    """
    What HPO sees of the last step with gradients: the simulator's tensors, scaled as VecNormalize scales their numpy copies.

    :param env: the algorithm's VecEnv, with a :class:`HybridVecEnv` at the bottom
    """

    def __init__(self, env: VecEnv):
        base = env.unwrapped
        assert isinstance(base, HybridVecEnv)
        self.base = base
        self.simulator = base.simulator
        self.needs_arrays = env is not base and not (isinstance(env, HybridActionWrapper) and env.venv is base)
        """Whether wrappers look at every step, as VecNormalize does: they know arrays only."""
        self.normalizer = unwrap_vec_normalize(env)

    def observation(self) -> torch.Tensor:
        """
        :return: of the present states, shape ``(n_envs, d)``
        """
        return self.scaled(self.simulator.observation())

    def regime_mask(self) -> torch.Tensor | None:
        """
        :return: which regimes may be taken in the present states, bool, flat, shape ``(n_envs, ΣJ_f)``; ``None`` if the
            environment masks none. Whether one is left is for :meth:`check`
        """
        env = self.simulator.env
        return env.regime_mask(self.simulator.state) if env.masks_regimes else None

    def check(self, rollout: Period, seen: Seen) -> None:
        """
        :param rollout: what the simulator said, period by period
        :param seen: what was observed
        :raises ValueError: naming the environment and the first period in which a state left no regime
        :raises FloatingPointError: naming the environment and the first period in which something was not finite
        """
        name, mask = self.simulator.env.name, rollout.mask
        choice = None if mask is None else torch.stack([self.simulator.env.factors.leaves_a_choice(of) for of in mask])
        # A sum is finite only if all terms are; where it overflows though they are, the loop below finds nothing.
        observed = sum((final.sum() for final in seen.final.values()), seen.observations[1:].sum())
        finite = (observed + rollout.reward.detach().sum()).isfinite()
        if finite if choice is None else finite & choice.all():
            return
        for step, clock in enumerate(rollout.clock):
            if choice is not None:
                require_choice(name, choice[step], clock)
            require_finite(name, "observation", seen.led_to(step), clock)
            require_finite(name, "reward", rollout.reward[step], clock)

    def scaled(self, observation: torch.Tensor) -> torch.Tensor:
        """
        :param observation: as the simulator gives it, shape ``(batch, d)``
        :return: as the policy sees it
        """
        return self.scaling()(observation)

    def scaling(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """
        :return: from observations as the simulator gives them to what the policy sees, by the present statistics
        """
        vec = self.normalizer
        if vec is None or not vec.norm_obs:
            return lambda observation: observation
        assert isinstance(vec.obs_rms, RunningMeanStd)
        device, most = self.simulator.env.device, vec.clip_obs
        mean = torch.as_tensor(vec.obs_rms.mean, device=device)
        std = torch.as_tensor(vec.obs_rms.var + vec.epsilon, device=device).sqrt()
        return lambda observation: ((observation - mean) / std).clamp(-most, most).to(observation.dtype)

    def reward(self, result: StepResult | None = None) -> torch.Tensor:
        """
        :param result: of some step; of the last one unless given
        :return: shape ``(n_envs,)``
        """
        result = self.base.result if result is None else result
        assert result is not None
        reward = result.reward
        vec = self.normalizer
        if vec is None or not vec.norm_reward:
            return reward
        return (reward / math.sqrt(vec.ret_rms.var + vec.epsilon)).clamp(-vec.clip_reward, vec.clip_reward)

    def outcome(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        :return: reward, and whether the episode was terminated or truncated, of the last step
        """
        result = self.base.result
        assert result is not None
        return self.reward(), result.terminated, result.truncated


PLAIN_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, Monitor)
PLAIN_VEC_WRAPPERS = (HybridActionWrapper, VecNormalize, VecMonitor)


def simulated(env: GymEnv | str, n_scenarios: int) -> VecEnv:
    """
    Put a batched simulation in the place of an environment, or of the environments at the bottom of a VecEnv.

    :param env: a HybridEnv, possibly in wrappers that change nothing; its id; or a VecEnv of such environments, possibly in
        VecNormalize and VecMonitor
    :param n_scenarios: how many scenarios to simulate, unless a VecEnv says how many
    :raises TypeError: if the environment has no ``step_torch``
    :raises ValueError: for a wrapper that changes observations, rewards or actions where gradients cannot follow
    """
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, HybridVecEnv):
        return env
    if isinstance(env, VecEnvWrapper):
        if not isinstance(env, PLAIN_VEC_WRAPPERS):
            raise ValueError(
                f"HPO cannot differentiate through {type(env).__name__}; it knows VecNormalize and VecMonitor. "
                "Write the change into the environment's step_torch."
            )
        inner = simulated(env.venv, n_scenarios)
        if inner is env.venv:
            return env
        # A wrapper of its own for the simulation, sharing the statistics of the given one (copy.copy would recurse here).
        wrapper = object.__new__(type(env))
        vars(wrapper).update(vars(env) | {"venv": inner})
        return wrapper
    if isinstance(env, VecEnv):
        instances = {str(_stated(*pair)) for pair in zip(env.get_attr("spec"), env.get_attr("unwrapped"), strict=True)}
        if len(instances) > 1:
            raise ValueError(
                f"HPO simulates one problem, but the VecEnv holds {len(instances)}: {'; '.join(sorted(instances))}"
            )
        n_scenarios = env.num_envs
        # __enter__ returns the environment itself, with its wrappers, from a subprocess too.
        (env,) = env.env_method("__enter__", indices=0)
    return HybridVecEnv(_differentiable(env), n_scenarios)


def _stated(spec: EnvSpec | None, env: gym.Env) -> list[Any]:
    """By what a problem of a VecEnv can be told from the others."""
    made = None if spec is None else [spec.id, describe(dict(spec.kwargs))]
    numbers = own_numbers(env) if isinstance(env, HybridEnv) else None
    return [made, type(env).__name__, describe(getattr(env, "params", None)), numbers]


def _differentiable(env: Any) -> HybridEnv:
    inner = env
    while isinstance(inner, gym.Wrapper):
        if isinstance(env.unwrapped, HybridEnv) and not isinstance(inner, PLAIN_WRAPPERS):
            raise ValueError(
                f"HPO cannot differentiate through the wrapper {type(inner).__name__}. Write the change into the "
                "environment's step_torch, or use HybridPPO."
            )
        inner = inner.env
    if isinstance(inner, gym.vector.VectorEnv):
        raise TypeError(f"Stable-Baselines3 knows no gymnasium VectorEnv: give one environment, and n_scenarios; got {inner}")
    if not isinstance(inner, HybridEnv):
        cure = "Use HybridPPO, which needs no differentiable simulator."
        if not isinstance(getattr(inner, "action_space", None), gym.spaces.Tuple):
            cure = "Its actions are not hybrid either: an algorithm of Stable-Baselines3's own is for such."
        raise TypeError(
            f"HPO backpropagates through step_torch(), which {inner} does not have: it is not a hybrid_envs.HybridEnv. {cure}"
        )
    return inner
