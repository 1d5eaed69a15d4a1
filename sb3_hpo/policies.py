"""Actor-critic policies for hybrid actions: three networks that share no parameter."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.optim import Adam

from hybrid_envs.checks import check_count, require_finite_observation
from hybrid_envs.spaces import append_mask, box_bounds, factors_of, feasible_actions, split_hybrid_space, split_mask, unpack
from sb3_hpo.distributions import Coupling, HybridDistribution, RegimeDistribution, mask_tensor
from sb3_hpo.networks import LAW_SPREAD, Component, Tower
from sb3_hpo.optimizers import MuonAdam
from sb3_hpo.ranks import drawn, in_shares

__all__ = ["DeterministicPointPolicy", "HybridActorCriticPolicy", "HybridMultiInputPolicy"]

COMPONENTS = ("discrete", "continuous", "value")
LINEAR = "linear"
"""What ``muon`` calls the linear paths alone."""


class HybridActorCriticPolicy(ActorCriticPolicy):
    """
    Policy for hybrid actions, with separate networks for the regime's logits (``discrete``), the tower of candidate points
    (``continuous``) and the value (``value``). Of a regime with several factors, each has its own logits and each coordinate
    of b one candidate per regime of its factor: ΣJ_f outputs, not ΠJ_f. The point is drawn from a Gaussian around the chosen
    candidate, with a learned state-independent standard deviation in units of ``action_scale``.

    :param observation_space: observation space
    :param action_space: ``Tuple(Discrete, Box)`` or ``Tuple(MultiDiscrete, Box)``
    :param lr_schedule: learning-rate schedule
    :param action_bounds: per-regime bounds, shape ``(J, n, 2)``; the Box's for every regime unless given
    :param action_scale: typical magnitude of b, shape ``(n,)``; 1 unless given
    :param observation_scale: typical magnitude of Box observations, shape ``(d,)``; the networks see observations divided by
        it; 1 unless given
    :param factor_of: which factor of the regime bounds each coordinate of b, see
        :class:`~hybrid_envs.factors.RegimeFactors`; none unless given
    :param active_limits: likewise; the least and the greatest number of factors in another regime than 0
    :param autoregressive: whether the logits of each factor depend on the choices before it; with independent factors some
        policies cannot be expressed, such as "either unit, but not both"
    :param points_see_regime: whether each coordinate of b depends on the choices of all factors, x being an input of the
        continuous network, and not of its own factor alone: as a unit's output depends on which others run. With a Discrete
        every regime has candidates of its own anyway
    :param net_arch: hidden layers of every network, or a dict with ``discrete``, ``continuous`` and ``value``; two layers of
        128 units unless given
    :param linear_path: the networks that have a linear path from features to output beside their hidden layers; none unless
        given, in HPO's policy the continuous one
    :param quadratic_path: the networks that have a :class:`~sb3_hpo.networks.QuadraticPath` beside their hidden layers; none
        unless given. Of use to ``discrete`` and ``value`` where costs are quadratic and the state has many dimensions
    :param linear_laws: with more than one, linear paths mix so many (:class:`~sb3_hpo.networks.LawMixture`)
    :param linear_gain: by how much linear paths are multiplied; 1 unless given. A weight of theirs moves by no more than the
        sum of all learning rates, where many units of a hidden layer move together: with a gain it needs fewer steps
    :param softplus_beta: how sharp the corner is where points bounded on one side leave their bound
        (:class:`~sb3_hpo.networks.Tower`); 1 unless given, in HPO's policy 4
    :param project_points: whether points are projected onto their bounds, instead of squashed by sigmoid and softplus, which
        leave no gradient to those that were driven to an end of their range (:class:`~sb3_hpo.networks.Tower`)
    :param muon: what Muon moves, not Adam (:class:`~sb3_hpo.optimizers.MuonAdam`): all matrices of the networks that are
        named, or, by the name ``linear``, those of linear paths alone; nothing unless given. Of use where points are a matter
        of many dimensions
    :param log_std_init: initial logarithm of the standard deviation of b
    :param kwargs: SB3's ``ActorCriticPolicy`` arguments
    :raises ValueError: for network names other than these three, less than one law, and Muon beside an optimizer other than
        Adam, or for linear paths where there are none
    """

    stochastic_point = True
    default_linear_path: tuple[str, ...] = ()
    default_softplus_beta = 1.0

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        action_bounds: np.ndarray | None = None,
        action_scale: np.ndarray | None = None,
        observation_scale: np.ndarray | None = None,
        factor_of: np.ndarray | None = None,
        active_limits: tuple[int, int] | None = None,
        autoregressive: bool = False,
        points_see_regime: bool = False,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        linear_path: Sequence[str] | None = None,
        quadratic_path: Sequence[str] = (),
        linear_laws: int = 1,
        linear_gain: float = 1.0,
        softplus_beta: float | None = None,
        project_points: bool = False,
        muon: Sequence[str] = (),
        log_std_init: float = 0.0,
        **kwargs: Any,
    ):
        _, box = split_hybrid_space(action_space)
        action_bounds = box_bounds(action_space) if action_bounds is None else action_bounds
        self.action_bounds = np.asarray(action_bounds, dtype=np.float32)
        self.action_scale = np.ones(box.shape, np.float32) if action_scale is None else np.asarray(action_scale, np.float32)
        self.observation_scale = observation_scale
        self.factors = factors_of(action_space, factor_of, active_limits)
        if autoregressive and not self.factors.many:
            raise ValueError("autoregressive = True is for the factors of a MultiDiscrete; this action space has a Discrete")
        self.autoregressive, self.points_see_regime = autoregressive, points_see_regime
        self.conditioned = points_see_regime and self.factors.many
        self.by_component = False
        net_arch = [128, 128] if net_arch is None else net_arch
        if isinstance(net_arch, dict) and set(net_arch) != set(COMPONENTS):
            raise ValueError(f"net_arch must be a list or a dict with keys {COMPONENTS}, got keys {tuple(net_arch)}")
        linear_path = self.default_linear_path if linear_path is None else linear_path
        for argument, names in {"linear_path": linear_path, "quadratic_path": quadratic_path, "muon": muon}.items():
            known = (*COMPONENTS, LINEAR) if argument == "muon" else COMPONENTS
            if not isinstance(names, list | tuple) or not set(names) <= set(known):
                raise ValueError(f"{argument} must be a list of some of {known}, got {names!r}")
        if LINEAR in muon and not linear_path:
            raise ValueError(f"muon = {muon!r}, but no network has a linear path: linear_path = {linear_path!r}")
        self.linear_path, self.quadratic_path, self.muon = tuple(linear_path), tuple(quadratic_path), tuple(muon)
        self.linear_laws = check_count("linear_laws", linear_laws)
        self.linear_gain, self.project_points = linear_gain, project_points
        self.softplus_beta = self.default_softplus_beta if softplus_beta is None else softplus_beta
        # SB3 knows no Tuple: it is shown the Box, and what it builds from that is overridden here.
        super().__init__(observation_space, box, lr_schedule, net_arch=net_arch, log_std_init=log_std_init, **kwargs)
        self.action_space = action_space

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = HybridDistribution(self.factors)
        n_regimes, action_size = self.action_bounds.shape[:2]
        sizes = {"discrete": self.factors.total, "continuous": n_regimes * action_size, "value": 1}
        # Gains of orthogonal initialisation: √2 inside, 0.01 for policy outputs, 1 for the value.
        gains = {"discrete": 0.01, "continuous": 0.01, "value": 1.0}
        self.components = nn.ModuleDict()
        for name in COMPONENTS:
            hidden = self.net_arch[name] if isinstance(self.net_arch, dict) else self.net_arch
            component = Component(
                self.make_features_extractor(),
                sizes[name],
                hidden,
                self.activation_fn,
                linear_path=name in self.linear_path,
                quadratic_path=name in self.quadratic_path,
                further_inputs=self.factors.total if self.conditioned and name == "continuous" else 0,
                n_laws=self.linear_laws,
                linear_gain=self.linear_gain,
            )
            if self.ortho_init:
                component.apply(partial(self.init_weights, gain=np.sqrt(2)))
                for layer in component.output_layers():
                    self.init_weights(layer, gain=gains[name])
                if component.quadratic is not None:  # begins as almost nothing, in the value too
                    self.init_weights(component.quadratic.output, gain=0.01)
            if component.mixture is not None:  # laws that are alike would learn alike
                nn.init.normal_(component.mixture.laws.weight, std=LAW_SPREAD)
            self.components[name] = component
        self.tower = Tower(self.action_bounds, self.action_scale, self.softplus_beta, self.project_points)
        self.coupling = Coupling(self.factors) if self.autoregressive else None
        self.std_unit: torch.Tensor
        self.obs_unit: torch.Tensor
        self.register_buffer("obs_unit", torch.as_tensor(1.0 if self.observation_scale is None else self.observation_scale))
        if self.stochastic_point:
            self.log_std = nn.Parameter(torch.full((action_size,), float(self.log_std_init)))
            self.register_buffer("std_unit", torch.as_tensor(self.action_scale))
        if self.muon and self.optimizer_class is not Adam:
            raise ValueError(
                f"muon = {self.muon} needs optimizer_class = torch.optim.Adam, got {self.optimizer_class.__name__}"
            )
        # One kernel for all parameters, unless another way is asked for.
        way = {"foreach", "fused", "differentiable"} & set(self.optimizer_kwargs)
        fused = {"fused": True} if issubclass(self.optimizer_class, Adam) and not way else {}
        options: dict[str, Any] = fused | self.optimizer_kwargs
        groups = self._parameter_groups()
        kind: Any = partial(MuonAdam, matrices=self._matrices(groups)) if self.muon else self.optimizer_class
        self.optimizer = kind(groups, lr=lr_schedule(1), **options)

    def _matrices(self, groups: list[dict[str, Any]]) -> list[nn.Parameter]:
        """What Muon moves, of the optimizer's groups."""
        matrices = [p for group in groups if group["name"] in self.muon for p in group["params"] if p.dim() == 2]
        paths = [self.component(name).linear for name in COMPONENTS] if LINEAR in self.muon else []
        return [*matrices, *(path.weight for path in paths if path is not None)]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """One optimizer group per network, named as in ``COMPONENTS``."""
        parameters = {name: list(self.components[name].parameters()) for name in COMPONENTS}
        if self.coupling is not None:
            parameters["discrete"].append(self.coupling.weight)
        if self.stochastic_point:
            parameters["continuous"].append(self.log_std)
        return [{"name": name, "params": parameters[name]} for name in COMPONENTS]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for sde_only in ("use_sde", "squash_output", "full_std", "use_expln"):
            data.pop(sde_only)
        units = ("action_bounds", "action_scale", "observation_scale")
        networks = ("autoregressive", "points_see_regime", "linear_path", "quadratic_path", "muon")
        numbers = ("linear_laws", "linear_gain", "softplus_beta", "project_points")
        factors = {"factor_of": self.factors.factor_of, "active_limits": self.factors.active_limits}
        return data | {name: getattr(self, name) for name in (*units, *networks, *numbers)} | factors

    @property
    def n_components(self) -> int | None:
        """How many log-probabilities an action has if its components are told apart; ``None`` if it has one for all."""
        blocks = len(np.unique(self.factors.factor_of)) if self.stochastic_point else 0
        apart = self.by_component and (self.factors.many or self.stochastic_point)
        return self.factors.n_factors + blocks if apart else None

    @torch.no_grad()
    def fix_std(self, std: float) -> None:
        """
        :param std: standard deviation of b, in units of ``action_scale``, which from now on is not learned
        """
        self.log_std.requires_grad_(False).fill_(math.log(std))

    @torch.no_grad()
    def set_temperature(self, temperature: float) -> None:
        """
        :param temperature: what the regimes' logits are divided by from now on. The likeliest regime stays the likeliest
        """
        std = self.component("discrete").std
        before = std.clone()
        std.fill_(1 / temperature)
        # It is added behind the network. Nothing changes, to the last bit, where the std does not.
        if self.coupling is not None:
            self.coupling.weight.mul_(std / before)

    # ---- the three functions of the state ----------------------------------------------------------------------------

    def component(self, name: str) -> Component:
        """
        :param name: one of ``COMPONENTS``
        """
        return cast(Component, self.components[name])

    def _evaluate(self, name: str, obs: PyTorchObs, *further: torch.Tensor) -> torch.Tensor:
        component = self.component(name)
        if isinstance(obs, torch.Tensor):
            obs = obs / self.obs_unit
        features = super(ActorCriticPolicy, self).extract_features(obs, component.extractor)
        return component(torch.cat([features, *further], dim=1) if further else features)

    def regime_logits(self, obs: PyTorchObs) -> torch.Tensor:
        """
        :return: logits of π_φ(· | s), shape ``(batch, J)``; of several factors flat, ``(batch, ΣJ_f)``, without their coupling
        """
        return self._evaluate("discrete", obs)

    def regimes(self, obs: PyTorchObs, action_masks: torch.Tensor | None = None) -> RegimeDistribution:
        """
        :param action_masks: which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``; all of them unless given
        :return: π_φ(· | s)
        """
        return RegimeDistribution(self.regime_logits(obs), self.factors, action_masks, self.coupling)

    def candidates(self, obs: PyTorchObs, noise_std: float = 0.0, regime: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param regime: x, which matters where points see the regime; the likeliest one unless given
        :param noise_std: standard deviation of Gaussian noise in front of the tower, behind which every point is feasible
        :return: the tower β_κ(s), one feasible point per regime, shape ``(batch, J, n)``; of several factors, entry (j, i) is
            coordinate i in regime j of its factor
        """
        if self.conditioned:
            regime = self.regimes(obs).mode() if regime is None else regime
            z = self._evaluate("continuous", obs, self.factors.one_hot(regime))
        else:
            z = self._evaluate("continuous", obs)
        if noise_std:
            z = z + noise_std * drawn(z.shape, partial(torch.randn, dtype=z.dtype, device=z.device))
        return self.tower(z)

    def points(self, obs: PyTorchObs, regime: torch.Tensor, noise_std: float = 0.0) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :param noise_std: as for :meth:`candidates`
        :return: b, shape ``(batch, n)``
        """
        return self.factors.choose(self.candidates(obs, noise_std, regime), regime)

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """
        :return: v(s), shape ``(batch, 1)``
        """
        return self._evaluate("value", obs)

    # ---- SB3's interface ---------------------------------------------------------------------------------------------

    def get_distribution(self, obs: PyTorchObs, action_masks: torch.Tensor | None = None) -> HybridDistribution:
        """
        :param action_masks: which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``; all of them unless given
        """
        std = self.log_std.exp() * self.std_unit if self.stochastic_point else None
        distribution = HybridDistribution(self.factors, self.by_component)
        points = partial(self.points, obs) if self.conditioned else self.candidates(obs)
        return distribution.proba_distribution(self.regime_logits(obs), points, std, action_masks, self.coupling)

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        :param action_masks: which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``; all of them unless given
        :return: packed actions ``(batch, m + n)``, or ``(batch, m + n + ΣJ_f)`` with masks, values ``(batch, 1)`` and
            log-probabilities ``(batch,)``, ``(batch, K)`` if components are told apart
        """
        distribution = self.get_distribution(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return append_mask(actions, action_masks), self.predict_values(obs), log_prob

    @in_shares
    def evaluate_actions(self, obs: PyTorchObs, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        :param actions: packed, shape ``(batch, m + n)``, or ``(batch, m + n + ΣJ_f)`` with the masks they were chosen under
        :return: values ``(batch, 1)``, log-probabilities and entropies, ``(batch,)``, or ``(batch, K)`` if components are told
            apart
        """
        actions, mask = split_mask(actions, self.action_bounds.shape[1], self.factors.n_factors)
        distribution = self.get_distribution(obs, mask)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy(actions)

    def predict(  # type: ignore[override]
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[tuple[int, np.ndarray] | list[tuple[int, np.ndarray]], tuple[np.ndarray, ...] | None]:
        """
        As in SB3, with hybrid actions; as in sb3_contrib, with masks.

        :param action_masks: which regimes may be taken, shape ``(ΣJ_f,)``, or ``(batch, ΣJ_f)``; all of them unless given
        :return: one ``(x, b)`` for a single observation, a list of them for a batch, and the unchanged ``state``
        :raises ValueError: if a mask has another shape or allows no regime, or a number of the observation is not finite
        """
        self.set_training_mode(False)
        obs, is_batch = self.obs_to_tensor(observation)
        require_finite_observation(obs)
        with torch.no_grad():
            mask = None
            if action_masks is not None:
                batch_size = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
                mask = mask_tensor(action_masks, batch_size, self.factors, self.device)
            packed = self.get_distribution(obs, mask).get_actions(deterministic=deterministic)
            actions = feasible_actions(packed, self.action_bounds, self.factors)
        return (actions if is_batch else actions[0]), state


class HybridMultiInputPolicy(HybridActorCriticPolicy):
    """The same for Dict observations, with SB3's ``CombinedExtractor`` in front of each network."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class DeterministicPointPolicy(HybridActorCriticPolicy):
    """HPO's policy: b is the chosen candidate itself, without exploration noise."""

    stochastic_point = False
    # Base-stock levels and linear-quadratic control are linear in the state. Exploration noise, too, would pass along a
    # linear path undamped, so that the Gaussian policy has none.
    default_linear_path = ("continuous",)
    # Orders as (S - stock)⁺ have a corner. Whether a Gaussian around them gains by it was not tried.
    default_softplus_beta = 4.0

    @in_shares
    def evaluate_actions(self, obs: PyTorchObs, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # The point has no density, so the tower need not be evaluated.
        actions, mask = split_mask(actions, self.action_bounds.shape[1], self.factors.n_factors)
        regime = unpack(actions, self.factors).regime
        given = self.regimes(obs, mask).given(regime)
        log_prob, entropy = given.log_prob(regime), given.entropy()
        if self.factors.many and not self.by_component:
            log_prob, entropy = log_prob.sum(dim=1), entropy.sum(dim=1)
        return self.predict_values(obs), log_prob, entropy
