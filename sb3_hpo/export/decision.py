"""What a policy does between the raw observation and the decision, as one module of tensors."""

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from typing_extensions import Self

from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.policies import HybridActorCriticPolicy


class DecisionModule(nn.Module):
    """
    From the raw observation to the regime and the point, as ``predict`` chooses them: VecNormalize's statistics, masks,
    networks, tower and bounds. It draws nothing itself, and holds a copy of the policy on the CPU, so that later training does
    not change it.

    :param policy: for one-dimensional Box observations
    :param normalizer: the VecNormalize through which the policy sees its observations; ``None`` if it sees them as they are
    :param masked: whether the environment masks regimes
    :param sampled: whether the decision is drawn, from numbers that the caller gives, instead of the most likely one
    :raises ValueError: for other observations
    """

    def __init__(
        self,
        policy: HybridActorCriticPolicy,
        normalizer: VecNormalize | None = None,
        *,
        masked: bool = False,
        sampled: bool = False,
    ):
        super().__init__()
        space = policy.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"export knows one-dimensional Box observations, this policy's are {space}")
        with torch.random.fork_rng():  # the copy's first weights are drawn, and then overwritten
            self.policy = type(policy)(**policy._get_constructor_parameters())
        self.policy.load_state_dict({name: value.cpu() for name, value in policy.state_dict().items()})
        self.policy.set_training_mode(False)
        self.masked, self.sampled = masked, sampled
        self.low: torch.Tensor
        self.high: torch.Tensor
        low, high = torch.as_tensor(policy.action_bounds).unbind(-1)
        self.register_buffer("low", low.contiguous())
        self.register_buffer("high", high.contiguous())
        self.clip_obs: float | None = None
        self.mean: torch.Tensor
        self.std: torch.Tensor
        if normalizer is not None and normalizer.norm_obs:
            assert isinstance(normalizer.obs_rms, RunningMeanStd)
            self.clip_obs = float(normalizer.clip_obs)
            # in float64, as VecNormalize computes
            self.register_buffer("mean", torch.as_tensor(np.array(normalizer.obs_rms.mean)))
            self.register_buffer("std", torch.as_tensor(np.sqrt(normalizer.obs_rms.var + normalizer.epsilon)))
        self.eval()

    @classmethod
    def of(cls, model: HybridPPO, *, sampled: bool = False) -> Self:
        """
        :param model: HPO or HybridPPO, with its environment, which says whether observations are normalised and regimes masked
        :param sampled: as the constructor's
        :raises ValueError: if the model has no environment, or observations that cannot be exported
        """
        if model.env is None:
            raise ValueError(
                "the model has no environment, which knows VecNormalize's statistics and whether regimes are masked: "
                "load it with env=..., or call set_env"
            )
        masked = model.env.has_attr("action_masks")
        return cls(model.policy, model.get_vec_normalize_env(), masked=masked, sampled=sampled)

    def example(self, batch_size: int = 3) -> dict[str, torch.Tensor]:
        """
        :return: inputs by name, of the right shapes and dtypes
        """
        factors, action_size = self.policy.factors, self.low.shape[1]
        assert self.policy.observation_space.shape is not None
        inputs = {"observation": torch.zeros(batch_size, *self.policy.observation_space.shape)}
        if self.masked:
            inputs["action_masks"] = torch.ones(batch_size, factors.total, dtype=torch.bool)
        if self.sampled:
            inputs["uniforms"] = torch.full(factors.shape(batch_size), 0.5)
            if self.policy.stochastic_point:
                inputs["normals"] = torch.zeros(batch_size, action_size)
        return inputs

    def forward(
        self,
        observation: torch.Tensor,
        action_masks: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
        normals: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param observation: as the environment returns it, shape ``(batch, d)``
        :param action_masks: which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``; at least one of each factor
        :param uniforms: numbers in [0, 1), shape ``(batch,)`` or ``(batch, m)``: the regime is the inverse of its distribution
            function there; without them it is the most likely one
        :param normals: standard normal numbers, shape ``(batch, n)``, by which the point of HybridPPO's policy varies
        :return: the regimes, int64, shape ``(batch,)`` or ``(batch, m)``, and the points, shape ``(batch, n)``, within the
            bounds of their regimes
        """
        if self.clip_obs is not None:
            scaled = (observation.double() - self.mean) / self.std
            observation = scaled.clamp(-self.clip_obs, self.clip_obs).float()
        distribution = self.policy.get_distribution(observation, action_masks)
        regime = distribution.regimes.mode() if uniforms is None else distribution.regimes.draw_by(uniforms)
        point = distribution.points(regime)
        if normals is not None and distribution.std is not None:
            point = point + distribution.std * normals
        low, high = (self.policy.factors.choose(side.expand(point.shape[0], -1, -1), regime) for side in (self.low, self.high))
        return regime, point.clamp(low, high)
