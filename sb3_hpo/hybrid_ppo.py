"""PPO on ``Tuple(Discrete, Box)`` actions: the model-free baseline."""

import math
from collections import defaultdict
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, is_vecenv_wrapped, unwrap_vec_normalize
from typing_extensions import Self

from hybrid_envs.spaces import packed_size
from sb3_hpo.arguments import check_arguments, check_choice, check_policy, check_spelling, make_schedule
from sb3_hpo.buffers import HybridDictRolloutBuffer, HybridRolloutBuffer
from sb3_hpo.distributions import mask_tensor
from sb3_hpo.policies import HybridActorCriticPolicy, HybridMultiInputPolicy
from sb3_hpo.shared_ppo import SharedPPO
from sb3_hpo.vec_env import HybridActionWrapper, HybridVecEnv

UNIT_FLOOR = 1e-6
"""Standard deviation of returns, relative to the largest, below which it is rounding."""
RETURNS_SMOOTHING = 0.3
"""Weight of the newest rollout in the running mean and variance of returns."""


class TupleActions(OnPolicyAlgorithm):
    """PPO's constructor names the action spaces it accepts; standing between PPO and its base, this names Tuple instead."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs | {"supported_action_spaces": (spaces.Tuple,)})


class HybridPPO(SharedPPO, TupleActions):
    """
    Proximal Policy Optimization with hybrid actions, on any Gymnasium environment whose action space is
    ``Tuple(Discrete, Box)`` or ``Tuple(MultiDiscrete, Box)``; the environment need not be differentiable. The regime is
    categorical, factor by factor, the point Gaussian around the regime's candidate. Both are learned by the score function.

    An environment with an ``action_masks()`` method (sb3_contrib's convention) says there, before every step, which regimes
    may be taken, bool, shape ``(J,)``, of several factors ``(ΣJ_f,)``; no other is drawn, and the update sees the masks of the
    moment.

    Everything else is SB3's PPO, its arguments included.

    :param policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment, its id, or a VecEnv
    :param learning_rate: a number, a schedule, or ``"lin_3e-4"`` for a linear decay to 0
    :param continuous_learning_rate: of the continuous network and the standard deviation of b, likewise; that of the discrete
        network unless given
    :param value_learning_rate: of the value network, likewise
    :param ent_coef: entropy coefficient, likewise
    :param temperature: what the regimes' logits are divided by, likewise, or ``"hold_V"`` for one that falls from V to a tenth
        of it in the second half of training (:class:`~sb3_hpo.arguments.HeldSchedule`). The lower it is, the more surely the
        likeliest regime is drawn, so that training ends with the policy that is left when the likeliest is always taken
    :param value_beyond_horizon: whether the value network judges what would follow an episode that stops at its horizon, as in
        SB3. With False nothing follows: where costs grow without limit under a policy that has not learned yet, the value of
        what follows is larger than all that was seen, and wrong
    :param point_std: standard deviation of b, in units of ``action_scale``, likewise, or ``"exp_V"`` for one that falls from V
        to a tenth of it (:class:`~sb3_hpo.arguments.GeometricSchedule`); learned unless given
    :param normalize_reward: whether values are standardised by the mean and the standard deviation of the last few rollouts'
        returns. VecNormalize's unit is that of all returns since training began: where the first policies' are a thousand
        times as large as the last ones', values learn nothing in it
    :param clip_networks: whether ``max_grad_norm`` bounds the gradient of each of the three networks, which share no
        parameter, as in HPO; else that of all together, as in SB3: there errors of the value network make steps of the policy
        shorter
    :param ratio: what PPO's probability ratio is of, and so what is clipped: the whole action (``"joint"``), or each of its
        components apart (``"component"``: a factor of the regime, or the coordinates of b that answer to one). Then the losses
        and the KL divergence are means over components. Unless given, ``"component"`` with several factors, else ``"joint"``
    :param ppo_kwargs: the arguments of :class:`stable_baselines3.PPO`
    :raises TypeError: if the action space is not hybrid
    :raises ValueError: naming an argument outside what :data:`sb3_hpo.arguments.ALLOWED` allows
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": HybridActorCriticPolicy,
        "MultiInputPolicy": HybridMultiInputPolicy,
    }
    policy: HybridActorCriticPolicy
    stochastic_point: ClassVar[bool] = True
    """Whether the algorithm explores with a Gaussian point; its policy has to do as it does."""
    horizon_values: ClassVar[tuple[Any, ...]] = (True, False)
    """What ``value_beyond_horizon`` may be."""
    scheduled: ClassVar[tuple[str, ...]] = ("ent_coef", "temperature")
    """Arguments that are kept as schedules, in attributes of their names and ``_schedule``."""
    running_estimates: ClassVar[tuple[str, ...]] = ("reward_scale",)
    """What changes in training beside SB3's own counters; checkpoints keep it."""

    def __init__(
        self,
        policy: str | type[HybridActorCriticPolicy],
        env: GymEnv | str,
        *,
        learning_rate: float | str | Schedule = 3e-4,
        continuous_learning_rate: float | str | Schedule | None = None,
        value_learning_rate: float | str | Schedule | None = None,
        ent_coef: float | str | Schedule = 0.0,
        temperature: float | str | Schedule = 1.0,
        point_std: float | str | Schedule | None = None,
        value_beyond_horizon: bool | Literal["bounded"] = True,
        normalize_reward: bool = False,
        clip_networks: bool = False,
        ratio: Literal["joint", "component"] | None = None,
        **ppo_kwargs: Any,
    ):
        own = {"ratio": ratio, "normalize_reward": normalize_reward, "clip_networks": clip_networks}
        check_spelling(type(self), ppo_kwargs)
        check_arguments(ppo_kwargs | own)
        check_policy(type(self), policy, ppo_kwargs.get("policy_kwargs"))
        check_choice("value_beyond_horizon", value_beyond_horizon, self.horizon_values)
        self.ratio = ratio
        self.normalize_reward = normalize_reward
        self.point_std_schedule = self._make_std_schedule(point_std)
        self.value_beyond_horizon = value_beyond_horizon
        self.component_learning_rates = schedules({"continuous": continuous_learning_rate, "value": value_learning_rate})
        self.ent_coef_schedule = make_schedule("ent_coef", ent_coef)
        self.temperature_schedule = make_schedule("temperature", temperature)
        learning_rate = make_schedule("learning_rate", learning_rate)
        ppo_kwargs |= clip_schedules(ppo_kwargs)
        super().__init__(policy, env, learning_rate=learning_rate, ent_coef=self.ent_coef_schedule(1.0), **ppo_kwargs)
        self._limit_gradients(self.max_grad_norm, clip_networks)

    @classmethod
    def _make_std_schedule(cls, point_std: float | str | Schedule | None) -> FloatSchedule | None:
        if point_std is None:
            return None
        if not cls.stochastic_point:
            raise ValueError(f"point_std must be None: {cls.__name__}'s point has no density, got {point_std!r}")
        return make_schedule("point_std", point_std)

    def _limit_gradients(self, max_grad_norm: float, clip_networks: bool) -> None:
        if not (clip_networks or self.stochastic_point):
            raise ValueError(
                f"clip_networks must be True: {type(self).__name__}'s networks take steps apart, got {clip_networks}"
            )
        self.clip_networks = clip_networks
        self.component_max_grad_norm = max_grad_norm if clip_networks else math.inf
        self.max_grad_norm = math.inf if clip_networks else max_grad_norm

    @property
    def norm_limit(self) -> float:
        """``max_grad_norm`` as it was given."""
        return min(self.max_grad_norm, self.component_max_grad_norm)

    @property
    def reward_scale(self) -> float:
        """The unit of rewards and values, kept beside the value network's learning rate, so that it goes with parameters."""
        unit: float = self._value_group().get("reward_scale", 1.0)
        return unit

    @reward_scale.setter
    def reward_scale(self, unit: float) -> None:
        self._value_group()["reward_scale"] = unit

    def _value_group(self) -> dict[str, Any]:
        return next(group for group in self.policy.optimizer.param_groups if group["name"] == "value")

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.vector.VectorEnv):
            cure = "give one environment, or sb3_hpo.vec_env.HybridVecEnv(env, n) for n scenarios of a HybridEnv side by side"
            raise TypeError(f"Stable-Baselines3 knows no gymnasium VectorEnv: {cure}; got {env}")
        env = PPO._wrap_env(env, verbose, monitor_wrapper)
        if isinstance(env.unwrapped, HybridVecEnv):
            env.unwrapped.share()
        return env if is_vecenv_wrapped(env, HybridActionWrapper) else HybridActionWrapper(env)

    def get_env(self) -> VecEnv | None:
        # As it was given: EvalCallback compares its wrappers with those of the evaluation environment.
        return self.env.venv if isinstance(self.env, HybridActionWrapper) else self.env

    def _setup_model(self) -> None:
        if getattr(self.policy_class, "stochastic_point", None) is not self.stochastic_point:
            kind = "Gaussian" if self.stochastic_point else "deterministic"
            raise ValueError(
                f"{type(self).__name__} needs a hybrid policy with a {kind} point, not {self.policy_class.__name__}; "
                "is this the file of another algorithm?"
            )
        if self.rollout_buffer_class is None:
            dict_obs = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = HybridDictRolloutBuffer if dict_obs else HybridRolloutBuffer
        if self.env is not None:
            self.policy_kwargs = geometry(self.env) | self.policy_kwargs
        super()._setup_model()
        if self.env is not None:
            self._check_factors(self.env)
        self.policy.by_component = self.policy.factors.many if self.ratio is None else self.ratio == "component"
        if isinstance(self.rollout_buffer, HybridRolloutBuffer):
            self.rollout_buffer.n_components = self.policy.n_components
            self.rollout_buffer.reset()
        self._gradient_norms: dict[str, list[float]] = defaultdict(list)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        assert self.env is not None
        self._check_factors(self.env)

    def _check_factors(self, env: VecEnv) -> None:
        """
        :raises ValueError: if the environment's factors bound other coordinates of b than the policy's do, or otherwise
        """
        if env.has_attr("factors") and (factors := env.get_attr("factors")[0]) != self.policy.factors:
            raise ValueError(f"the model was made for {self.policy.factors!r}, but the environment has {factors!r}")
        if env.has_attr("action_bounds") and (bounds := env.get_attr("action_bounds")[0]) is not None:
            made_for, bounds = self.policy.action_bounds, np.asarray(bounds, dtype=np.float32)
            if not np.array_equal(made_for, bounds, equal_nan=True):
                raise ValueError(f"action_bounds: the model's are {made_for.tolist()}, the environment's {bounds.tolist()}")

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        masked = env.has_attr("action_masks")
        rollout_buffer.action_dim = packed_size(self.action_space, masked)  # its arrays are made anew for every rollout
        self._set_spread()
        assert isinstance(env, HybridActionWrapper)
        env.reward_unit = self.reward_scale

        def ask_for_masks(policy: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            masks = np.stack(env.env_method("action_masks"))
            return args, kwargs | {"action_masks": mask_tensor(masks, env.num_envs, policy.factors, self.device)}

        # SB3 calls self.policy(obs) once a step. The hook adds the masks to that call, as long as the rollout lasts; so SB3's
        # rollout need not be written anew, and the policy remains a function of its arguments.
        with self.policy.register_forward_pre_hook(ask_for_masks, with_kwargs=True) if masked else nullcontext():
            goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if goes_on and self.normalize_reward:
            self._standardise(rollout_buffer)
        return goes_on

    def _set_spread(self) -> None:
        """Of regimes and of points, as it is scheduled."""
        self.policy.set_temperature(self.temperature_schedule(self._current_progress_remaining))
        if self.point_std_schedule is not None:
            self.policy.fix_std(self.point_std_schedule(self._current_progress_remaining))

    def _standardise(self, rollout_buffer: RolloutBuffer) -> None:
        """
        Let the value network's output be added to the mean of returns, with their standard deviation as the unit of it and of
        rewards; both over the last few rollouts. Its weights stay as they are, so that where costs fall to a thousandth while
        a policy gets better, the differences that it sees between states do, too. To preserve its function (PopArt, van
        Hasselt et al. 2016) it would have to unlearn those, at the pace of its learning rate.
        """
        value, returns = self.policy.component("value"), rollout_buffer.returns
        if returns.std() <= UNIT_FLOOR * np.abs(returns).max():
            return  # all are the same: no unit, as before the first reward of a sparse problem
        newest = 1.0 if self.reward_scale == 1.0 else RETURNS_SMOOTHING  # 1: there is no unit yet
        mean = float(value.mean) + newest * (float(returns.mean()) - float(value.mean))
        std = math.sqrt(1 - newest + newest * float(returns.var())) + 1e-8
        value.mean.fill_(mean / std)
        for name in ("rewards", "values", "returns", "advantages"):
            setattr(rollout_buffer, name, getattr(rollout_buffer, name) / std)
        self.reward_scale *= std

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self.value_beyond_horizon is False:
            # Here SB3 has stepped, and next it would add the value of what follows the episodes that are said to be cut short.
            for info in infos:
                info.pop("TimeLimit.truncated", None)

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.policy.optimizer.param_groups:
            if group["name"] in self.component_learning_rates:
                group["lr"] = self.component_learning_rates[group["name"]](self._current_progress_remaining)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        As the policy's :meth:`~sb3_hpo.policies.HybridActorCriticPolicy.predict`.
        """
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, *args: Any, **kwargs: Any) -> Self:
        check_spelling(cls, kwargs)
        check_arguments(kwargs)
        kwargs |= clip_schedules(kwargs)
        # SB3 writes the arguments given here into attributes of their names; these two are, or are derived from, schedules.
        if "learning_rate" in kwargs:
            kwargs["learning_rate"] = make_schedule("learning_rate", kwargs["learning_rate"])
        if "point_std" in kwargs:
            kwargs["point_std_schedule"] = cls._make_std_schedule(kwargs.pop("point_std"))
        for name in cls.scheduled:
            if name in kwargs:
                kwargs[f"{name}_schedule"] = make_schedule(name, kwargs.pop(name))
        if "value_beyond_horizon" in kwargs:
            check_choice("value_beyond_horizon", kwargs["value_beyond_horizon"], cls.horizon_values)
        own_rates = [name for name in ("continuous", "value") if f"{name}_learning_rate" in kwargs]
        given = {name: kwargs.pop(f"{name}_learning_rate") for name in own_rates}
        replaced = schedules(given)
        limit, apart = kwargs.pop("max_grad_norm", None), kwargs.pop("clip_networks", None)
        model = super().load(path, env, *args, **kwargs)
        model._limit_gradients(model.norm_limit if limit is None else limit, model.clip_networks if apart is None else apart)
        kept = {name: rate for name, rate in model.component_learning_rates.items() if name not in given}
        model.component_learning_rates = kept | replaced
        return model

    def train(self) -> None:
        self.ent_coef = self.ent_coef_schedule(self._current_progress_remaining)
        super().train()
        for name, norms in self._gradient_norms.items():
            self.logger.record(f"train/grad_norm/{name}", np.mean(norms))
        self._gradient_norms.clear()

    def _clip_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.clip_networks:
            super()._clip_gradients(optimizer)
            return
        for group in optimizer.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            total = torch.nn.utils.get_total_norm(gradients)
            norm = float(total)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient of the {group['name']} network has norm {norm} at {self.num_timesteps} steps"
                )
            if norm > self.component_max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(group["params"], self.component_max_grad_norm, total)
            if norm > 0:
                self._gradient_norms[group["name"]].append(norm)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_gradient_norms"]


def clip_schedules(given: dict[str, Any]) -> dict[str, FloatSchedule]:
    """
    :param given: arguments of PPO
    :return: those of its clip ranges that are written as text, as schedules
    """
    texts = [name for name in ("clip_range", "clip_range_vf") if isinstance(given.get(name), str)]
    return {name: make_schedule(name, given[name]) for name in texts}


def schedules(rates: dict[str, Any]) -> dict[str, FloatSchedule]:
    """
    :param rates: learning rates by component
    :return: their schedules, of those that are given
    """
    return {name: make_schedule(f"{name}_learning_rate", rate) for name, rate in rates.items() if rate is not None}


def geometry(env: VecEnv) -> dict[str, Any]:
    """
    :return: the policy arguments on factors, bounds and scales, as far as the environment states them
    """
    names = ["action_bounds", "action_scale"]
    normalizer = unwrap_vec_normalize(env)
    if normalizer is None or not normalizer.norm_obs:  # VecNormalize scales observations itself
        names.append("observation_scale")
    stated = {name: env.get_attr(name)[0] for name in names if env.has_attr(name)}
    if env.has_attr("factors") and (factors := env.get_attr("factors")[0]).many:
        stated |= {"factor_of": factors.factor_of, "active_limits": factors.active_limits}
    return stated
