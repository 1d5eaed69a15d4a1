"""What a policy does, drawn in each problem's own terms with matplotlib (an optional dependency)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from hybrid_envs.checks import to_numpy
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import Choices, PolicyFunction
from hybrid_envs.inventory import HybridInventoryEnv, lot_size
from hybrid_envs.rendering import new_figure
from hybrid_envs.replenishment import StockState
from hybrid_envs.solvers.inventory import SingleItemSS
from hybrid_envs.solvers.lqr import riccati
from hybrid_envs.spaces import HybridAction
from hybrid_envs.switched_lqr import HybridSwitchedLQREnv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIONS = 241
"""Inventory positions on the axis."""
PIXELS = 121
"""States along either side of the map of modes."""
WIDTH, DPI = 5.0, 150
"""In inches, and pixels per inch: TensorBoard shows thumbnails, in which the letters have to be large enough."""
SEED = 0
"""Of the episode that is shown, the same in every figure."""


def replenishment_figure(env: HybridInventoryEnv, policy: PolicyFunction) -> "Figure":
    """
    The probability of ordering, and the level up to which is ordered, against inventory position: for an (s, S) policy a step
    at s, and a horizontal line at S. The lines are of states with the same number of periods' demand of every item on hand,
    and nothing on order; the dots are the orders of one episode from a fixed start, one for each item. Training sees few
    states that are far from the dots, and what a policy would do there says little.

    :param env: the problem
    :param policy: the policy as a function of observations
    :return: the figure; with the exact (s, S) where the problem is a single item whose optimum is known
    """
    params = env.params
    lot = float((lot_size(params) / params.mean_demand).mean())
    position = np.linspace(0.0 if params.lost_sales else -lot, params.lead_time + 1 + 1.5 * lot, POSITIONS)  # in periods
    stock = torch.zeros(POSITIONS, params.lead_time, env.n_items, dtype=env.dtype, device=env.device)
    stock[:, 0] = torch.as_tensor(position, dtype=env.dtype, device=env.device)[:, None] * env.mean_demand
    period = torch.zeros(POSITIONS, dtype=torch.int64, device=env.device)
    probabilities, points = policy(to_numpy(env.observation(StockState(stock, period))))
    order = probabilities[:, 1]
    level = position + (points[:, 1] / params.mean_demand).mean(axis=1)

    observations, choices = greedy_episode(env, policy)
    ordered = choices.probabilities.argmax(axis=1) == 1
    pipeline = observations[ordered, : params.lead_time * env.n_items]  # in periods, too
    ordered_at = pipeline.reshape(-1, params.lead_time, env.n_items).sum(axis=1)
    ordered_to = ordered_at + choices.points[ordered, 1] / params.mean_demand

    unit, unit_name = (params.mean_demand[0], "units") if env.n_items == 1 else (1.0, "periods of mean demand")
    position, level, ordered_at, ordered_to = (unit * values for values in (position, level, ordered_at, ordered_to))

    figure = new_figure(WIDTH, 4.8, DPI)
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


def mode_figure(env: HybridSwitchedLQREnv, policy: PolicyFunction) -> "Figure | None":
    """
    Above, the probabilities of the modes over a plane through the origin, as a mixture of the modes' colours. The plane is
    spanned by the states for which keeping to mode 0 saves most over keeping to mode 1, and the reverse: the extreme
    eigenvectors of P_0 - P_1, with s'P_j s the cost of an episode in mode j alone. Below, one episode from a fixed start, in
    which the likeliest mode is taken: the norm of the state, and the probabilities of the modes.

    :param env: the problem
    :param policy: the policy as a function of observations
    :return: the figure; ``None`` where there is one mode only or the state is a number
    """
    if env.n_regimes < 2 or env.n_dims < 2:
        return None
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullFormatter

    colours = 0.25 + 0.75 * np.array([to_rgb(f"C{mode % 10}") for mode in range(env.n_regimes)])
    side = env.start_limit * np.linspace(-1, 1, PIXELS)
    plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)  # row by row, the first coordinate fastest
    shares = policy((plane @ leading_directions(env)).astype(np.float32)).probabilities
    observations, choices = greedy_episode(env, policy)

    figure = new_figure(WIDTH, 7.2, DPI)
    plane_axes, norm_axes, mode_axes = figure.subplots(3, 1, height_ratios=(5, 1.6, 1.6))
    limits = (-env.start_limit, env.start_limit)
    mixed = (shares @ colours).reshape(PIXELS, PIXELS, 3)
    plane_axes.imshow(mixed, origin="lower", extent=(*limits, *limits), interpolation="bilinear")
    plane_axes.set(
        title="Probability of each mode by state",
        xlabel="state along the best direction of mode 0",
        ylabel="state along the best direction of mode 1",
    )
    patches = [Patch(color=colour, label=f"mode {mode}") for mode, colour in enumerate(colours)]
    plane_axes.legend(handles=patches, loc="upper right", fontsize="small")

    periods = np.arange(env.horizon)
    norms = np.linalg.norm(observations, axis=1)
    norm_axes.plot(periods, norms, color="black", marker=".")
    norm_axes.set(title="One episode, the likeliest mode taken", ylabel="‖state‖", yscale="log")
    norm_axes.set_ylim(min(norms.min() / 2, norms.max() / 20), 2 * norms.max())  # at least a power of ten is labelled
    norm_axes.yaxis.set_minor_formatter(NullFormatter())
    norm_axes.yaxis.get_major_locator().set_params(numticks=6)
    norm_axes.grid(alpha=0.25)
    norm_axes.sharex(mode_axes)
    norm_axes.tick_params(labelbottom=False)
    floor = np.zeros(env.horizon)
    for mode, colour in enumerate(colours):
        mode_axes.bar(periods, choices.probabilities[:, mode], bottom=floor, width=1.0, color=colour)
        floor += choices.probabilities[:, mode]
    mode_axes.set(xlabel="period", ylabel="probability", xlim=(-0.5, env.horizon - 0.5), ylim=(0, 1))
    mode_axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def leading_directions(env: HybridSwitchedLQREnv) -> np.ndarray:
    """
    :return: orthonormal rows, shape ``(2, p)``: where mode 0 saves most over mode 1, and where mode 1 saves most over mode 0;
        the largest entry of each is positive
    """
    params = env.params
    first, second = (riccati(params.A, B, params.Q, params.R, env.horizon)[0][0] for B in params.B[:2])
    directions = np.linalg.eigh(first - second)[1][:, [0, -1]].T
    largest = np.abs(directions).argmax(axis=1)
    return directions * np.sign(directions[[0, 1], largest])[:, None]


def greedy_episode(env: HybridEnv, policy: PolicyFunction) -> tuple[np.ndarray, Choices]:
    """
    One episode in which the likeliest regime is taken; the environment's own is not touched.

    :return: what is observed in each period, shape ``(T, d)``, and the choices there
    """
    generator = torch.Generator(env.device).manual_seed(SEED)
    with torch.no_grad():
        state, noise = env.initial(1, generator), env.sample_noise(1, generator)
        observations, choices = [], []
        for t in range(env.horizon):
            observations.append(to_numpy(env.observation(state)))
            choices.append(policy(observations[-1]))
            regime = choices[-1].probabilities.argmax(axis=1)
            point = torch.as_tensor(choices[-1].points[0, regime], dtype=env.dtype, device=env.device)
            state = env.step_torch(state, HybridAction(torch.as_tensor(regime, device=env.device), point), noise[t]).state
    return np.concatenate(observations), Choices(*(np.concatenate(part) for part in zip(*choices, strict=True)))


def _optimal_policy(env: HybridInventoryEnv) -> SingleItemSS | None:
    try:
        return SingleItemSS.best(env)
    except ValueError:  # its optimum is not known
        return None
