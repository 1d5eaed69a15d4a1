"""Procurement: dynamic programming on the order of one item, and on the total of several, a bound and a policy for these."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import minimum_filter1d
from scipy.stats import poisson

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.inventory.single_item import single_items
from hybrid_envs.procurement.env import HybridProcurementEnv, ProcurementProblem

SUPPLY = ("min_order", "unit_prices", "discount_quantities", "truck_capacity", "truck_cost", "max_trucks", "lead_time")
"""Arguments of the problem that are the supplier's."""
DAMPING = 0.5
"""Share of the old values kept in an iteration: large orders make the chain all but periodic."""
MAX_ITERATIONS = 20_000
TAIL = 1e-12


def obstacle(env: HybridProcurementEnv) -> str | None:
    """
    :return: what keeps dynamic programming from solving the problem, ``None`` if nothing does
    """
    params = env.problem.warehouse.params
    for name in env.problem.warehouse.instances.place:
        return f"{name} differs from scenario to scenario; it is for one instance"
    if env.problem.warehouse.demand != "poisson":
        return f"demand = {env.problem.warehouse.demand!r}; it must be 'poisson'"
    for jump in env.problem.thresholds:
        if not jump.value.is_integer():
            return f"the cost jumps at an order of {jump.value}; it must be a whole number"
    for name, cost in (("holding_cost", params.holding_cost), ("underage_cost", params.underage_cost)):
        if not (cost > 0).all():
            return f"{name}[{np.argmin(cost)}] = {cost.min()}; it must be > 0"
    return None


def require(env: HybridProcurementEnv) -> None:
    """
    :raises ValueError: naming what keeps :class:`TotalOrders` from solving the problem
    """
    if env.problem.per_item:
        raise ValueError("TotalOrders: per_item = True; the orders of ItemOrders are those of each item")
    if reason := obstacle(env):
        raise ValueError(f"TotalOrders: {reason}")


class Cell(NamedTuple):
    """The orders of one regime, in whole units."""

    regime: int
    low: int
    high: int | None
    """``None`` where unbounded."""
    price: float
    """Per unit."""
    freight: float


class Solution(NamedTuple):
    """The optimum of the total on a grid of total inventory positions before the order."""

    positions: np.ndarray
    """Consecutive integers."""
    orders: np.ndarray
    """The best total order at each; 0 for none."""
    lower: float
    """The least cost per period on the grid is at least this ..."""
    upper: float
    """... and the policy's is at most this."""


class TotalOrders(ReferencePolicy):
    """
    Order the total that is optimal if stock could be moved between the items for free in every period, and share it out so
    that the expected holding and underage cost of the ``cover`` periods from a lead time ahead is least, as if nothing were
    ordered meanwhile.

    For one item there is nothing to share out: the policy is the optimum in the long run and ``cost`` its cost. For more
    items ``lower_bound`` is a bound that no policy's long-run cost falls below, since free movement can only help.

    Whole units are no restriction where jumps and demand are whole: given when to order in which regime and which side of each
    kink stocks are on, the expected cost is linear in the cumulative orders, under constraints on them and their differences
    only; such a constraint matrix is totally unimodular, and so some optimum is whole.

    :param env: the problem, with Poisson demand, jumps at whole numbers of units, and costs h and u above 0
    :param positions: total inventory positions, consecutive integers; positions outside are treated as the nearest
    :param orders: the total to order at each, 0 or in the interval of a regime; same shape
    :param cover: periods
    :raises ValueError: naming the argument, if its value is not allowed
    """

    lower_bound: float = float("nan")
    """Per item and period; equals ``cost`` for one item, up to the tolerance of the solver."""

    def __init__(self, env: HybridProcurementEnv, positions: np.ndarray, orders: np.ndarray, cover: int = 1):
        require(env)
        self.positions = check_array("positions", positions, np.shape(positions))
        self.orders = check_array("orders", orders, self.positions.shape, at_least=0.0)
        self.mean_demand = env.problem.warehouse.params.mean_demand
        self.lead_time = env.problem.warehouse.params.lead_time
        cells = cells_of(env.problem, env.action_bounds)
        self.regimes = np.zeros(len(self.orders), dtype=np.int64)
        for cell in cells:
            self.regimes[(self.orders >= cell.low) & (self.orders <= (cell.high or np.inf))] = cell.regime
        stray = np.flatnonzero((self.orders > 0) & (self.regimes == 0))
        if len(stray):
            raise ValueError(f"orders[{stray[0]}] = {self.orders[stray[0]]} is refused: it is below {cells[0].low}")
        self.cover = check_count("cover", cover)
        low, steps = shared_costs(env.problem, self.positions[[0, -1]], cover)[1:]
        paths = np.zeros((len(steps) + 1, len(low)), dtype=np.int32)
        paths[np.arange(1, len(steps) + 1), steps] = 1
        self.levels = low + paths.cumsum(axis=0)  # the best levels of the items, by their total

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = len(self.mean_demand)
        scaled = observation[:, : self.lead_time * p].astype(np.float64).reshape(-1, self.lead_time, p)
        position = np.round(scaled.sum(axis=1) * self.mean_demand)
        index = np.clip(position.sum(axis=1) - self.positions[0], 0, len(self.positions) - 1).astype(np.int64)
        total = self.orders[index]
        if p == 1:
            return self.regimes[index], total[:, None]
        return self.regimes[index], np.column_stack([total, self.shares(position, total)])

    def shares(self, position: np.ndarray, total: np.ndarray) -> np.ndarray:
        """
        Raise the lowest levels first, measured along the path of best levels; ``levels`` grows by one unit of one item at a
        time, so that some point of the path uses up the total exactly.

        :param position: of the items, whole, shape ``(batch, n_items)``
        :param total: to be shared out, shape ``(batch,)``
        :return: shares of the items, shape ``(batch, n_items)``, summing to 1 where the total is positive
        """
        first, last = np.zeros(len(total), dtype=np.int64), np.full(len(total), len(self.levels) - 1)
        while (first < last).any():
            middle = (first + last) // 2
            enough = np.maximum(self.levels[middle] - position, 0).sum(axis=1) >= total
            first, last = np.where(enough, first, middle + 1), np.where(enough, middle, last)
        quantities = np.maximum(self.levels[np.minimum(first, len(self.levels) - 1)] - position, 0)
        return quantities / np.maximum(quantities.sum(axis=1, keepdims=True), 1)

    @classmethod
    def best(cls, env: HybridProcurementEnv, n_scenarios: int = 256, seed: int = 0) -> "TotalOrders":
        """
        For more than one item ``cover`` is the best by simulation on common scenarios, and ``cost`` the mean over these.

        :param n_scenarios: of the simulation
        :param seed: of the scenarios
        :raises ValueError: naming what keeps it from solving the problem
        """
        solution = solve(env)
        tried: list[TotalOrders] = []
        while len(tried) < 2 or tried[-1].cost < tried[-2].cost:  # until a longer cover does worse
            policy = cls(env, solution.positions, solution.orders, cover=len(tried) + 1)
            policy.cost, policy.lower_bound = solution.upper, solution.lower / env.n_items
            if env.n_items == 1:
                return policy
            policy.state_cost(evaluate(env, policy, n_scenarios, seed))
            tried.append(policy)
        return tried[-2]


class ItemOrders(ReferencePolicy):
    """
    The optimum in the long run where each item has a supplier of its own: that of each item alone, by :class:`TotalOrders`.
    ``cost`` and ``lower_bound`` are the means of the items' own, and agree as these do.

    :param env: the problem, with ``per_item``, and else as :class:`TotalOrders` wants it
    :raises ValueError: naming what keeps it from solving the problem
    """

    def __init__(self, env: HybridProcurementEnv):
        if not env.problem.per_item:
            raise ValueError("ItemOrders: per_item = False; the items share an order, which is TotalOrders'")
        if reason := obstacle(env):
            raise ValueError(f"ItemOrders: {reason}")
        params = env.problem.warehouse.params
        self.lead_time = params.lead_time
        numbers = np.stack([params.mean_demand, params.holding_cost, params.underage_cost], axis=1)
        kinds, kind_of = np.unique(numbers, axis=0, return_inverse=True)  # items that are alike share one
        solved = [TotalOrders.best(single_item(env, *kind)) for kind in kinds.tolist()]
        self.items = [solved[kind] for kind in kind_of.ravel()]
        self.cost = float(np.mean([item.cost for item in self.items]))
        self.lower_bound = float(np.mean([item.lower_bound for item in self.items]))

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = len(self.items)
        stock = observation[:, : self.lead_time * p].reshape(-1, self.lead_time, p)
        orders = [item.act(stock[:, :, i], period) for i, item in enumerate(self.items)]
        regimes, quantities = zip(*orders, strict=True)
        return np.stack(regimes, axis=1), np.concatenate(quantities, axis=1)


def single_item(
    env: HybridProcurementEnv, mean_demand: float, holding_cost: float, underage_cost: float
) -> HybridProcurementEnv:
    """
    :param env: a problem whose items have suppliers of their own
    :return: that of one item with these numbers
    """
    supply: dict[str, Any] = {name: value for name, value in env.params.items() if name in SUPPLY}
    return HybridProcurementEnv(1, mean_demand=mean_demand, holding_cost=holding_cost, underage_cost=underage_cost, **supply)


def cells_of(problem: ProcurementProblem, action_bounds: np.ndarray) -> list[Cell]:
    """
    :param action_bounds: of the hybrid environment, shape ``(J, n, 2)``
    :return: the regimes that order, with their prices; those without a whole number of units are left out
    """
    cells = []
    for regime, (low, high) in enumerate(action_bounds[1:, 0].astype(np.float64), start=1):
        least, most = int(np.ceil(low)), None if np.isinf(high) else int(np.floor(high))
        if most is None or least <= most:
            price = problem.list_price - float(problem.discounts[problem.breaks <= least].double().sum())
            trucks = 1 + int((problem.loads < least).sum())
            cells.append(Cell(regime, least, most, price, problem.truck_cost * trucks))
    return cells


def shared_costs(problem: ProcurementProblem, ends: np.ndarray, cover: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    The least expected holding and underage cost, in the ``cover`` periods from a lead time ahead, of a total inventory
    position shared out at will. The items' costs are convex, so each further unit goes where it is worth most.

    :param ends: least and largest total position
    :param cover: periods
    :return: costs at the least and each following position; the items' levels at the least, shape ``(n_items,)``; and the item
        that each further unit goes to
    """
    items = single_items(problem.warehouse)
    lead_time = problem.warehouse.params.lead_time
    # far enough for one item to make up for all others, which want to be between nothing and twice what they may be asked for
    low = math.floor(ends[0] - 2 * problem.warehouse.params.mean_demand.sum() * (lead_time + cover))
    levels = np.arange(low, int(ends[1]) + 1)
    costs = [
        np.sum([item.period_cost(item.demand_over(lead_time + k), levels) for k in range(1, cover + 1)], axis=0)
        for item in items
    ]
    slopes = np.diff(costs, axis=1)
    order = np.argsort(slopes, axis=None, kind="stable")
    owner = order // slopes.shape[1]
    total = np.sum(costs, axis=0)[0] + np.concatenate([[0.0], slopes.flat[order].cumsum()])
    first, last = (int(end) - len(items) * low for end in ends)
    start = low + np.bincount(owner[:first], minlength=len(items))
    return total[first : last + 1], start, owner[first:last]


def solve(env: HybridProcurementEnv, tolerance: float = 1e-7) -> Solution:
    """
    Relative value iteration for the average cost on a grid of total positions. Whatever the values V, the least and the
    largest of (T V - V)(x) over the grid enclose the optimum on it (Odoni 1969), which is the certificate: iteration ends once
    they agree. Demand that would lead out of the grid below leads to its lowest position. The grid is widened until its ends
    do not matter: until no order reaches the upper end, and no demand the lower one from where nothing is ordered.

    :param env: the problem
    :param tolerance: relative difference of the bounds
    :raises ValueError: naming what keeps it from solving the problem
    :raises RuntimeError: if the bounds do not agree after 20,000 iterations
    """
    require(env)
    params, cells = env.problem.warehouse.params, cells_of(env.problem, env.action_bounds)
    mean = float(params.mean_demand.sum())
    centre, span = mean * (params.lead_time + 1), 10 * mean + 2 * max(cell.low for cell in cells)
    while True:
        positions = np.arange(round(centre - span), round(centre + span) + 1)
        solution = _iterate(env.problem, cells, positions, tolerance)
        orders = solution.orders > 0
        if (
            orders.any()
            and (positions + solution.orders)[orders].max() < positions[-1]
            and positions[~orders].min() - poisson.isf(TAIL, mean) > positions[0]
        ):
            return solution
        span *= 2


def _iterate(problem: ProcurementProblem, cells: list[Cell], positions: np.ndarray, tolerance: float) -> Solution:
    mean = float(problem.warehouse.params.mean_demand.sum())
    demand = poisson.pmf(np.arange(poisson.isf(TAIL, mean) + 1), mean)
    demand /= demand.sum()
    stock = shared_costs(problem, positions[[0, -1]])[0]

    def ahead(values: np.ndarray) -> np.ndarray:
        """Cost of the present period and value of the next, by the position after the order."""
        below = np.full(len(demand) - 1, values[0])
        return stock + np.convolve(np.concatenate([below, values]), demand, mode="valid")

    values = np.zeros(len(positions))
    for _ in range(MAX_ITERATIONS):
        later = ahead(values)
        ordered = [
            cell.freight + _window_minimum(later + cell.price * positions, cell.low, cell.high) - cell.price * positions
            for cell in cells
        ]
        gain = np.minimum.reduce([later, *ordered]) - values
        lower, upper = float(gain.min()), float(gain.max())
        if upper - lower <= tolerance * upper:
            break
        values = values + (1 - DAMPING) * (gain - lower)
    else:
        raise RuntimeError(f"value iteration: bounds {lower} and {upper} after {MAX_ITERATIONS} iterations")

    spent = np.full(len(positions), np.inf)  # by the size of the order; nothing for none, and no size that is refused
    spent[0] = 0.0
    for cell in cells:
        sizes = np.arange(len(spent))[cell.low : None if cell.high is None else cell.high + 1]
        spent[sizes] = cell.freight + cell.price * sizes
    orders = np.array([np.argmin(spent[: len(spent) - i] + later[i:]) for i in range(len(positions))])
    return Solution(positions, orders, lower, upper)


def _window_minimum(values: np.ndarray, low: int, high: int | None) -> np.ndarray:
    """min over low <= k <= high of values[i + k], infinite where that leaves the array."""
    n = len(values)
    padded = np.concatenate([values, np.full(n, np.inf)])
    if high is None or high >= n:
        least = np.minimum.accumulate(padded[::-1])[::-1]
    else:
        width = high - low + 1
        least = np.roll(minimum_filter1d(padded, width, mode="constant", cval=np.inf), -(width // 2))
    return least[np.minimum(np.arange(n) + low, 2 * n - 1)]


def best_known(env: HybridProcurementEnv) -> ReferencePolicy | None:
    """
    :return: dynamic programming on the order, of each item or in total: the optimum of one item, and of several with suppliers
        of their own; none for other demand than Poisson and broken units
    """
    if obstacle(env):
        return None
    return ItemOrders(env) if env.problem.per_item else TotalOrders.best(env)
