"""Portfolio rebalancing: let the weights drift with the market, or pay to bring them back, and to where."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count, check_definite
from hybrid_envs.core import Frame, HybridEnv, settled_mean
from hybrid_envs.rendering import by_their_first_factor, draw_episode
from hybrid_envs.spaces import HybridAction

HOLD, REBALANCE = 0, 1
BASIS_POINTS = 1e4
TYPICAL_PERIODS = 9
"""Periods between two trades for which observations are scaled."""


@dataclass(frozen=True)
class PortfolioParams:
    """The numbers of one instance; arrays have shape ``(n_assets,)``, the covariance ``(n_assets, n_assets)``."""

    target: np.ndarray
    covariance: np.ndarray
    fixed_cost: float
    proportional_cost: np.ndarray
    fixed_cost_per_asset: np.ndarray | None
    """``None`` where all assets are traded or none."""

    @property
    def asset_fixed_cost(self) -> np.ndarray:
        """What an asset adds to the fixed cost of a trade, 0 where all are traded or none; shape ``(n_assets,)``."""
        return np.zeros_like(self.target) if self.fixed_cost_per_asset is None else self.fixed_cost_per_asset


def reference_instance(n_assets: int) -> tuple[np.ndarray, np.ndarray]:
    """
    60 % of wealth in risky assets, whose weights differ by up to a factor of three; volatility 0.15 per period on average,
    twice as much for some as for others; every correlation is 0.3, as with one common factor.

    :return: target weights, shape ``(n_assets,)``, and covariance, shape ``(n_assets, n_assets)``
    """
    rng = np.random.default_rng(0)
    size, risk = rng.uniform(0.5, 1.5, n_assets), rng.uniform(2 / 3, 4 / 3, n_assets)
    volatility = 0.15 * risk / risk.mean()
    correlation = np.where(np.eye(n_assets, dtype=bool), 1.0, 0.3)
    return 0.6 * size / size.sum(), correlation * np.outer(volatility, volatility)


class PortfolioState(NamedTuple):
    """``weight`` is the share of wealth in each risky asset, the rest being cash, shape ``(batch, n_assets)``."""

    weight: torch.Tensor
    period: torch.Tensor


class HybridPortfolioEnv(HybridEnv[PortfolioState]):
    """
    ## Description
    Wealth is spread over risky assets and cash. Without costs one would hold the weights w* of fastest growth (Kelly, Merton
    with logarithmic utility) at all times. Returns drive the weights away from them, and trading costs a fixed share of wealth
    each time, and in proportion to what is traded. The question of each period is whether to rebalance, and to which weights.

    ## Action Space
    ``Tuple(Discrete(2), Box(0, inf, (n_assets,)))``: regime 0 holds (and bounds b to 0), regime 1 rebalances all assets to the
    weights v = b / max(1, Σ_i b_i). Weights are never negative and never add up to more than 1, whatever b is; every
    such portfolio can be reached, by b = v.

    With ``fixed_cost_per_asset`` it is ``Tuple(MultiDiscrete([2] * (n_assets + 1)), Box)``: the first factor is whether to
    trade at all, and factor i + 1 whether asset i is traded, if anything is; b_i answers to it. The first factor alone would
    not be needed. It is what coordinates the assets, since K is paid once for all of them, as in joint replenishment. Assets
    that are not traded keep their weights w_i, and those that are share what is left: v_i = b_i / max(1, Σ b / ρ) with
    ρ = 1 - Σ w over the assets not traded, and Σ b over those traded.

    ## Observation Space
    ``Box(-inf, inf, (n_assets,))``: the weights' deviations w - w*. It holds no clock.

    ## Dynamics
    With v the weights after trading (w where one holds) and r the logarithmic returns in excess of cash,

        w'_i = v_i exp(r_i) / (1 - Σ_j v_j + Σ_j v_j exp(r_j)),  r normal with mean Σw* - diag(Σ)/2 and covariance Σ

    so that w* is the portfolio of fastest growth. Returns are independent over time. Costs are paid from all holdings alike,
    which leaves the weights as they are; wealth itself scales out.

    ## Rewards
    Minus the growth lost in the period, in basis points (1e-4 of logarithmic wealth):

        ½ (v - w*)'Σ(v - w*)  -  log(1 - K - Σ_i c_i |v_i - w_i|)   (the logarithm only where one rebalances)

    K is paid if any asset is traded; with ``fixed_cost_per_asset`` so is K_i for each that is. The first term is how much less
    the weights v grow than w* in expectation. It is exact in continuous time; here it is charged for a whole period at the
    weights with which that begins. The expectation takes the place of the realised return, whose noise would be many times as
    large. Results are quoted by :meth:`figure_of_merit`: basis points lost per period, the first 16 periods left out.

    ## Starting State
    w = w*.

    ## Episode End
    Truncated after ``horizon`` periods; never terminated.

    ## Differentiability
    State, observation and reward carry gradients to w and b. There are kinks where b adds up to 1 and where the trade in an
    asset changes sign, and no jumps: the fixed cost depends on x alone. The second kink matters: in a good policy many assets
    are best left untouched by a trade, which is to stand on it.

    ## Arguments
    The defaults are those of a quarter: an asset moves by 15 % (30 % a year); 2 basis points of wealth per rebalancing, and 10
    of what is traded.

    :param n_assets: p
    :param target: w*, scalar or ``(n_assets,)``, positive, of sum below 1; the reference instance's unless given
    :param covariance: Σ of a period's logarithmic returns, ``(n_assets, n_assets)``, symmetric positive definite; the
        reference instance's unless given
    :param fixed_cost: K, the share of wealth paid per rebalancing
    :param proportional_cost: c, the share paid of what is bought or sold, scalar or ``(n_assets,)``
    :param fixed_cost_per_asset: K_i, the share of wealth paid for each asset traded, beside K, scalar or ``(n_assets,)``;
        unless given all assets are traded or none
    :param horizon: T, periods of an episode
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## References
    Problem: Morton and Pliska (1995), Mathematical Finance 5(4), fixed costs; Davis and Norman (1990), Mathematics of
    Operations Research 15(4), proportional costs; Korn (1998), Finance and Stochastics 2(2), both. The instance is this
    suite's own.

    ## Version History
    v0: initial version
    """

    def __init__(
        self,
        n_assets: int = 1,
        *,
        target: float | np.ndarray | None = None,
        covariance: np.ndarray | None = None,
        fixed_cost: float = 2e-4,
        proportional_cost: float | np.ndarray = 1e-3,
        fixed_cost_per_asset: float | np.ndarray | None = None,
        horizon: int = 100,
        render_mode: str | None = None,
    ):
        self.n_assets = check_count("n_assets", n_assets)
        reference_target, reference_covariance = reference_instance(n_assets)
        shape = (n_assets,)
        self.params = params = PortfolioParams(
            target=check_array("target", reference_target if target is None else target, shape, above=0.0),
            covariance=check_definite("covariance", reference_covariance if covariance is None else covariance, n_assets),
            fixed_cost=float(check_array("fixed_cost", fixed_cost, (), at_least=0.0)),
            proportional_cost=check_array("proportional_cost", proportional_cost, shape, at_least=0.0),
            fixed_cost_per_asset=(
                None
                if fixed_cost_per_asset is None
                else check_array("fixed_cost_per_asset", fixed_cost_per_asset, shape, at_least=0.0)
            ),
        )
        self.per_asset = fixed_cost_per_asset is not None
        invested = params.target.sum()
        if invested >= 1:
            raise ValueError(f"target adds up to {invested:.6g}: must be < 1, the rest is cash and nothing can be borrowed")
        dearest = params.fixed_cost + params.asset_fixed_cost.sum() + 2 * params.proportional_cost.max()
        if dearest >= 1:
            summed = "fixed_cost + Σ fixed_cost_per_asset" if self.per_asset else "fixed_cost"
            raise ValueError(
                f"{summed} + 2 * proportional_cost = {dearest:.6g}: must be < 1, or one rebalancing could cost all wealth"
            )
        super().__init__(
            action_bounds=np.array([[[0.0, 0.0]] * n_assets, [[0.0, np.inf]] * n_assets]),
            factor_sizes=[2] * (n_assets + 1) if self.per_asset else None,
            factor_of=np.arange(1, n_assets + 1) if self.per_asset else None,
            observation_size=n_assets,
            horizon=horizon,
            action_scale=params.target,
            observation_scale=np.sqrt(TYPICAL_PERIODS) * weight_volatility(params),
            render_mode=render_mode,
        )
        self.target = torch.tensor(params.target, dtype=self.dtype)
        self.covariance = torch.tensor(params.covariance, dtype=self.dtype)
        self.mean_return = torch.tensor(params.covariance @ params.target - np.diag(params.covariance) / 2, dtype=self.dtype)
        self.factor = torch.tensor(np.linalg.cholesky(params.covariance), dtype=self.dtype)
        self.proportional_cost = torch.tensor(params.proportional_cost, dtype=self.dtype)
        self.asset_fixed_cost = torch.tensor(params.asset_fixed_cost, dtype=self.dtype)

    def initial(self, batch_size: int, generator: torch.Generator) -> PortfolioState:
        period = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return PortfolioState(self.target.repeat(batch_size, 1), period)

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        :return: logarithmic returns r in excess of cash, shape ``(horizon, batch, n_assets)``
        """
        shape = (self.horizon, batch_size, self.n_assets)
        standard = torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.mean_return + standard @ self.factor.T

    def transition(self, state: PortfolioState, action: HybridAction, noise: torch.Tensor) -> PortfolioState:
        held = self._held(state, action)
        gains = held * noise.expm1()
        return PortfolioState((held + gains) / (1 + gains.sum(dim=1, keepdim=True)), state.period)

    def reward(
        self, state: PortfolioState, action: HybridAction, noise: torch.Tensor, next_state: PortfolioState
    ) -> torch.Tensor:
        held = self._held(state, action)
        deviation = held - self.target
        shortfall = 0.5 * (deviation @ self.covariance * deviation).sum(dim=1)
        traded = self._traded(action)
        fixed = self.params.fixed_cost * traded.any(dim=1)
        if self.per_asset:
            fixed = fixed + traded.to(self.dtype) @ self.asset_fixed_cost
        paid = fixed + (held - state.weight).abs() @ self.proportional_cost
        return -BASIS_POINTS * (shortfall - torch.log1p(-paid))

    def observation(self, state: PortfolioState) -> torch.Tensor:
        return state.weight - self.target

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        """Growth lost per period in basis points, without the first 16 periods if the episode is longer."""
        return settled_mean(costs)

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """The weight of each asset, and the growth lost in each period with the rebalancings marked."""
        weights = np.stack([frame.state.weight[0].cpu().numpy() for frame in frames])
        if self.per_asset:
            frames = by_their_first_factor(frames)
        return draw_episode(frames, weights, "share of wealth", {REBALANCE: "rebalanced"}, self.horizon)

    def _held(self, state: PortfolioState, action: HybridAction) -> torch.Tensor:
        """The weights v after trading, shape ``(batch, n_assets)``."""
        traded = self._traded(action)
        if not self.per_asset:
            rebalanced = action.point / action.point.sum(dim=1, keepdim=True).clamp(min=1)
            return torch.where(traded, rebalanced, state.weight)
        asked = torch.where(traded, action.point, 0.0)
        room = (1 - torch.where(traded, 0.0, state.weight).sum(dim=1, keepdim=True)).clamp(min=0)
        total = asked.sum(dim=1, keepdim=True)
        too_much = (total - room).clamp(min=0) / total.clamp(min=torch.finfo(self.dtype).tiny)  # 0 where nothing is asked for
        return torch.where(traded, asked * (1 - too_much), state.weight)

    def _traded(self, action: HybridAction) -> torch.Tensor:
        """Whether all assets are traded, bool, shape ``(batch, 1)``; or which of them, shape ``(batch, n_assets)``."""
        chosen = action.regime == REBALANCE
        return chosen[:, :1] & chosen[:, 1:] if self.per_asset else chosen[:, None]


def weight_volatility(params: PortfolioParams) -> np.ndarray:
    """
    :return: standard deviation of the change in each weight over a period that begins at the target, to first order: the
        weight w_i moves by w_i (r_i - Σ_j w_j r_j); shape ``(n_assets,)``
    """
    against_rest = np.eye(len(params.target)) - params.target
    return params.target * np.sqrt(np.einsum("ij,jk,ik->i", against_rest, params.covariance, against_rest))
