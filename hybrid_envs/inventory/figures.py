"""What a replenishment policy does: its (s, S) shape, drawn with matplotlib (an optional dependency)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from hybrid_envs.checks import to_numpy
from hybrid_envs.evaluation import PolicyFunction, greedy_episode
from hybrid_envs.inventory.env import HybridInventoryEnv, lot_size
from hybrid_envs.inventory.policies import SingleItemSS
from hybrid_envs.rendering import THUMBNAIL_DPI, THUMBNAIL_WIDTH, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS = 241
"""Inventory positions on the axis."""


def replenishment_figure(env: HybridInventoryEnv, policy: PolicyFunction) -> "Figure":
    """
    The probability of ordering, and the level up to which is ordered, against inventory position: for an (s, S) policy a step
    at s, and a horizontal line at S. The lines are of states with the same number of periods' demand of every item on hand,
    and nothing on order; the dots are the orders of one episode from a fixed start, one for each item. Training sees few
    states that are far from the dots, and what a policy would do there says little. With minor costs the probability is that
    of the first factor, and the level counts the items that are then likely to be on the order.

    :param env: the problem
    :param policy: the policy as a function of observations
    :return: the figure; with the exact (s, S) where the problem is a single item whose optimum is known
    """
    params = env.params
    lot = float((lot_size(params) / params.mean_demand).mean())
    position = np.linspace(0.0 if params.lost_sales else -lot, params.lead_time + 1 + 1.5 * lot, POSITIONS)  # in periods
    stock = torch.zeros(POSITIONS, params.lead_time, env.n_items, dtype=env.dtype, device=env.device)
    stock[:, 0] = torch.as_tensor(position, dtype=env.dtype, device=env.device)[:, None] * env.mean_demand
    probabilities, points = policy(to_numpy(env.observation(env.standing(stock))))
    order, joins = _likely_orders(env, probabilities)
    level = position + (joins * points[:, 1] / params.mean_demand).mean(axis=1)

    observations, choices = greedy_episode(env, policy)
    probability, joined = _likely_orders(env, choices.probabilities)
    ordered = probability > 0.5
    mean_demand = env.observed_mean_demand(observations[ordered])
    pipeline = observations[ordered, : params.lead_time * env.n_items]  # in periods, too
    ordered_at = pipeline.reshape(-1, params.lead_time, env.n_items).sum(axis=1)
    ordered_to = np.where(joined[ordered], ordered_at + choices.points[ordered, 1] / mean_demand, np.nan)

    in_units = env.n_items == 1 and "mean_demand" not in env.instances.place
    unit, unit_name = (params.mean_demand[0], "units") if in_units else (1.0, "periods of mean demand")
    position, level, ordered_at, ordered_to = (unit * values for values in (position, level, ordered_at, ordered_to))

    figure = new_figure(THUMBNAIL_WIDTH, 4.8, THUMBNAIL_DPI)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 4))
    upper.fill_between(position, order, color="C0", alpha=0.2, linewidth=0)
    upper.plot(position, order, color="C0")
    upper.set(ylabel="order probability", ylim=(-0.03, 1.03), title="When to order, and up to which level")

    likely = order >= 0.5
    lower.plot(position, position, color="0.6", linewidth=1, label="position, without an order")
    lower.plot(position, level, color="C1", linewidth=1, linestyle=":")
    lower.plot(position, np.where(likely, level, np.nan), color="C1", linewidth=2, label="level after an order")
    lower.plot(
        *(ordered_at.ravel(), ordered_to.ravel()), ".", color="C3", markersize=4, alpha=0.4, label="orders of one episode"
    )
    lower.set(xlabel=f"inventory position and level, in {unit_name}", ylabel="order-up-to level", xlim=position[[0, -1]])
    lower.set_ylim(position[0], 1.1 * max(position[-1], level[likely].max(initial=0)))
    if (optimum := _optimal_policy(env)) is not None:
        s, S = optimum.reorder_point, float(optimum.order_up_to[0])
        upper.axvline(s, color="black", linewidth=1, linestyle="--", label=f"optimal s = {s:g}")
        lower.axvline(s, color="black", linewidth=1, linestyle="--")
        lower.axhline(S, color="black", linewidth=1, linestyle="--", label=f"optimal S = {S:g}")
        upper.legend(loc="upper right", fontsize="small")
    lower.legend(loc="lower right", fontsize="small")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    return figure


def _likely_orders(env: HybridInventoryEnv, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of ordering, shape ``(batch,)``, and which items are then likely on it, ``(batch, n_items)``."""
    if env.itemised:
        return probabilities[:, 0, 1], probabilities[:, 1:, 1] > 0.5
    return probabilities[:, 1], np.ones((len(probabilities), env.n_items), dtype=bool)


def _optimal_policy(env: HybridInventoryEnv) -> SingleItemSS | None:
    try:
        return SingleItemSS.best(env)
    except ValueError:  # its optimum is not known
        return None
