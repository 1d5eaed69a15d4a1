"""Rebalancing: the optimum of one asset by dynamic programming on a grid, and a tuned no-trade band for any number."""

import math

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from hybrid_envs.checks import check_array
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.portfolio.env import BASIS_POINTS, HybridPortfolioEnv, weight_volatility
from hybrid_envs.search import Rule, search

STEPS_PER_DEVIATION = 10  # of the grid: rounding returns to it adds 1/1200 to their variance
REACH = 25  # standard deviations of a period's return from the target to either end of the grid
TAIL = 8  # standard deviations beyond which returns are cut off
TOLERANCE = 1e-7  # of the long-run cost, relative
MAX_ITERATIONS = 1000
SEARCH_ROWS = 2**8  # scenarios behind each candidate of the band search, times assets
TEST_SCENARIOS = 2**10
WIDEST_BAND = 20.0  # of the search, in typical deviations after one period
WIDEST_SLACK = 6.0  # in standard deviations of the change of the weight in a period
WIDEST_REACH = 12.0
NARROWEST = 1e-2  # cost of trading an asset, relative to the dearest, below which its reach narrows no further


class RebalancingOptimum(ReferencePolicy):
    """
    One asset: dynamic programming over log(w / (1 - w)), in which a return is a step, whatever the weight. Weights before and
    after a trade, and returns, are rounded to a grid of 501 points, 10 to a standard deviation of the return, 25 of these to
    either side of the target. Relative value iteration minimises the long-run cost per period. Its bounds, the least and the
    largest of (T V - V)(y), enclose the optimum on the grid (Odoni 1969), and it ends once they are within 1e-7 of each
    other; that is the certificate. The grid itself is not covered by it.

    :param env: the problem
    :raises ValueError: for several assets, and for costs so high that there is no reason to leave the ends of the grid
    """

    def __init__(self, env: HybridPortfolioEnv):
        params = env.params
        if env.n_assets != 1:
            raise ValueError(f"RebalancingOptimum: n_assets = {env.n_assets}; it is for one risky asset")
        self.target = float(params.target[0])
        variance = float(params.covariance[0, 0])
        self.step = math.sqrt(variance) / STEPS_PER_DEVIATION
        half = REACH * STEPS_PER_DEVIATION
        self.weights = expit(logit(self.target) + self.step * np.arange(-half, half + 1))
        drift = variance * (self.target - 0.5)
        tail = TAIL * STEPS_PER_DEVIATION + math.ceil(abs(drift) / self.step)
        edges = (self.step * (np.arange(-tail, tail + 2) - 0.5) - drift) / math.sqrt(variance)
        law = np.diff(norm.cdf(edges))
        self.law = law / law.sum()
        self.shortfall = BASIS_POINTS * 0.5 * variance * (self.weights - self.target) ** 2
        self.per_asset = env.per_asset
        fixed_cost = params.fixed_cost + float(params.asset_fixed_cost[0])
        turnover = np.abs(self.weights[:, None] - self.weights)  # from the row's weight to the column's
        self.trade = -BASIS_POINTS * np.log1p(-fixed_cost - params.proportional_cost[0] * turnover)
        solution = self._iterate()
        if solution is None:
            raise ValueError(
                f"RebalancingOptimum: fixed_cost = {fixed_cost} and proportional_cost = {params.proportional_cost[0]} "
                f"are too high: rebalancing does not pay at both ends of the grid, the weights {self.weights[0]:.3g} and "
                f"{self.weights[-1]:.3g}"
            )
        self.cost, self.rebalances, self.goal = solution

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = np.clip(observation[:, 0].astype(np.float64) + self.target, self.weights[0], self.weights[-1])
        index = np.rint((logit(weight) - logit(self.weights[0])) / self.step).astype(np.int64)
        return as_action(self.per_asset, self.rebalances[index][:, None], self.weights[self.goal[index]][:, None])

    def _iterate(self) -> tuple[float, np.ndarray, np.ndarray] | None:
        """
        The cost per period, where to rebalance, and to which point of the grid, the last two of shape ``(grid,)``. Without
        rebalancing at both ends weights would wander for ever and their values too: ``None``.
        """
        tail = len(self.law) // 2
        value = np.zeros(len(self.weights))
        for _ in range(MAX_ITERATIONS):
            # the cost of beginning the period with these weights after trading; returns past an end stay there
            outlook = self.shortfall + np.convolve(np.pad(value, tail, mode="edge"), self.law[::-1], mode="valid")
            choices = self.trade + outlook
            goal = choices.argmin(axis=1)
            traded = choices[np.arange(len(goal)), goal]
            change = np.minimum(outlook, traded) - value
            if change.max() - change.min() <= TOLERANCE * change.max():
                rebalances = traded < outlook
                return (float(change.max() + change.min()) / 2, rebalances, goal) if rebalances[[0, -1]].all() else None
            value += change - change[len(change) // 2]
        return None


class NoTradeBand(ReferencePolicy):
    """
    Rebalance once the deviation from the target weights, √((w - w*)'Σ(w - w*)), exceeds ``band``. Then each asset is traded
    towards its target until it is ``slack`` standard deviations of its weight's change in a period away; assets that are
    closer stay as they are. With fixed costs per asset these are not traded, nor are those within ``reach``, which are not
    worth their fixed cost. With a band of 0 every asset is by itself.

    :param env: the problem
    :param band: at least 0
    :param slack: at least 0; at 0 all assets are traded to their targets
    :param reach: at least 0, in the unit of ``slack``, scalar or shape ``(n_assets,)``; no less than the slack counts, and
        without fixed costs per asset no more
    :raises ValueError: naming the parameter, if its value is not allowed
    """

    def __init__(self, env: HybridPortfolioEnv, band: float, slack: float, reach: float | np.ndarray = 0.0):
        self.env = env
        self.band = float(check_array("band", band, (), at_least=0.0))
        self.slack = float(check_array("slack", slack, (), at_least=0.0))
        self.reach = check_array("reach", reach, (env.n_assets,), at_least=0.0)

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return banded(self.env, observation.astype(np.float64), self.band, self.slack, self.reach)

    @classmethod
    def best(cls, env: HybridPortfolioEnv, seed: int = 0) -> "NoTradeBand":
        """
        The best found by differential evolution on common scenarios, with reaches in proportion to the fourth root of what
        trading the asset costs, as for small fixed costs (Morton and Pliska 1995); ``cost`` is estimated on other scenarios.

        :param seed: of the search and its scenarios
        """
        volatility = weight_volatility(env.params)
        typical = math.sqrt(volatility @ np.diag(np.diag(env.params.covariance)) @ volatility)
        own = env.params.asset_fixed_cost
        widest_reach = WIDEST_REACH * np.maximum(own / max(own.max(), 1e-12), NARROWEST) ** 0.25

        def numbers(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            reach = shares[..., 2:].sum(axis=-1, keepdims=True) * widest_reach  # 0, the empty sum, where no asset has its cost
            return WIDEST_BAND * typical * shares[..., 0], WIDEST_SLACK * shares[..., 1], reach

        def rules(shares: np.ndarray) -> Rule:
            band, slack, reach = numbers(shares)
            return lambda state: banded(env, env.observation(state).double().cpu().numpy(), band, slack, reach)

        n_numbers = 3 if env.per_asset else 2
        best = search(env, rules, n_numbers, max(SEARCH_ROWS // env.n_assets, 32), iterations=16, seed=seed)
        band, slack, reach = numbers(best)
        policy = cls(env, float(band), float(slack), reach)
        policy.state_cost(evaluate(env, policy, TEST_SCENARIOS, seed + 1))
        return policy


def best_rebalancing(env: HybridPortfolioEnv) -> ReferencePolicy:
    """
    :param env: the problem
    :return: the optimum where :class:`RebalancingOptimum` solves the problem, else a tuned :class:`NoTradeBand`
    """
    try:
        return RebalancingOptimum(env)
    except ValueError:
        return NoTradeBand.best(env)


def banded(
    env: HybridPortfolioEnv,
    deviation: np.ndarray,
    band: float | np.ndarray,
    slack: float | np.ndarray,
    reach: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    The rule of :class:`NoTradeBand`.

    :param env: the problem
    :param deviation: w - w*, shape ``(batch, n_assets)``
    :param band: shared by the batch, or one for each row
    :param slack: likewise
    :param reach: likewise, with a last dimension of 1 or one entry for each asset
    :return: regimes and points
    """
    params, volatility = env.params, weight_volatility(env.params)
    far = np.sqrt(((deviation @ params.covariance) * deviation).sum(axis=1)) > band
    left = np.reshape(slack, (-1, 1)) * volatility
    untouched = np.maximum(left, reach * volatility)
    trades = far[:, None] & ((np.abs(deviation) > untouched) | (not env.per_asset))
    return as_action(env.per_asset, trades, params.target + np.clip(deviation, -left, left))


def as_action(per_asset: bool, trades: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param per_asset: whether each asset has a factor of its own
    :param trades: which assets are traded, bool, shape ``(batch, n_assets)``
    :param goal: to which weights, those of assets not traded being the present ones, same shape
    :return: regimes, shape ``(batch, 1 + n_assets)`` or ``(batch,)``, and points, shape ``(batch, n_assets)``
    """
    goal = np.maximum(goal, 0.0)  # weights of 0 may be rounded below it
    due = np.any(trades, axis=1)
    if per_asset:
        return np.column_stack([due, trades]).astype(np.int64), trades * goal
    return due.astype(np.int64), due[:, None] * goal
