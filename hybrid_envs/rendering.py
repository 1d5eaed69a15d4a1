"""Pictures of an episode, drawn with matplotlib (an optional dependency)."""

from typing import TYPE_CHECKING

import numpy as np
from gymnasium.error import DependencyNotInstalled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hybrid_envs.core import Frame

MAX_LINES = 10
THUMBNAIL_WIDTH, THUMBNAIL_DPI = 5.0, 150
"""Of a policy's figure, in inches and pixels per inch: in the thumbnails of TensorBoard letters have to be large enough."""


def new_figure(width: float, height: float, dpi: float = 100) -> "Figure":
    """
    A figure that pyplot does not know, so that it is freed with its last reference.

    :param width: in inches
    :param height: likewise
    :param dpi: pixels per inch
    :raises gymnasium.error.DependencyNotInstalled: if matplotlib is missing
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyNotInstalled('figures need matplotlib: pip install "hybrid-rl-suite[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def regimes_taken(frames: "list[Frame]") -> np.ndarray:
    """
    :param frames: an episode, starting state first
    :return: the regimes by which its states were reached, shape ``(len(frames),)``, of several factors ``(len(frames), m)``;
        -1 for the starting state
    """
    taken = [np.asarray(frame.regime) for frame in frames[1:]]
    return np.stack([np.full_like(taken[0], -1), *taken]) if taken else np.array([-1])


def by_their_first_factor(frames: "list[Frame]") -> "list[Frame]":
    """
    :param frames: an episode whose first factor says whether any of the others counts, as an order has items on it
    :return: the same with one regime: 1 where it does and another factor is 1, else 0
    """

    def any_chosen(regime: "int | np.ndarray") -> int:
        together, *others = np.asarray(regime).tolist()
        return int(together and any(others))

    return [frame if frame.regime is None else frame._replace(regime=any_chosen(frame.regime)) for frame in frames]


def draw_episode(
    frames: "list[Frame]", series: np.ndarray, label: str, regime_names: dict[int, str], horizon: int
) -> np.ndarray:
    """
    Two panels over time: quantities of the state above, and below the cost of each period, coloured by the regime taken. With
    several factors a line on the lower panel tells how many of them were in each regime.

    :param frames: the episode so far, starting state first
    :param series: one line per column, shape ``(len(frames), lines)``; beyond ten lines, ten of them are drawn with the mean
    :param label: what the lines are
    :param regime_names: the regimes to mark, with their names
    :param horizon: length of the time axis
    :return: RGB, uint8, shape ``(480, 640, 3)``
    :raises gymnasium.error.DependencyNotInstalled: if matplotlib is missing
    """
    figure = new_figure(6.4, 4.8)
    state_axes, cost_axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))

    n_lines = series.shape[1]
    crowded = n_lines > MAX_LINES
    drawn = np.linspace(0, n_lines - 1, min(n_lines, MAX_LINES)).astype(int)
    periods = np.arange(len(frames))
    state_axes.plot(periods, series[:, drawn], linewidth=1, alpha=0.45 if crowded else 0.9)
    if crowded:
        state_axes.plot(periods, series.mean(axis=1), color="black", linewidth=2, label=f"mean of {n_lines}")
    state_axes.set_ylabel(label)

    taken = regimes_taken(frames)
    costs = np.array([frame.cost for frame in frames])
    cost_axes.bar(periods[1:], costs[1:], width=0.9, color="lightgray")
    legend_axes = cost_axes.twinx() if taken.ndim > 1 else cost_axes
    for regime, name in regime_names.items():
        chosen = taken == regime
        colour = f"C{regime % 10}"
        if taken.ndim > 1:
            legend_axes.step(periods[1:], chosen[1:].sum(axis=1), where="mid", color=colour, label=f"{chosen.sum()} × {name}")
            legend_axes.set(ylabel=f"of {taken.shape[1]} factors", ylim=(0, 1.05 * taken.shape[1]))
            continue
        cost_axes.bar(periods[chosen], costs[chosen], width=0.9, color=colour, label=f"{chosen.sum()} × {name}")
        state_axes.vlines(periods[chosen], 0, 0.03, color=colour, transform=state_axes.get_xaxis_transform(), linewidth=3)
    cost_axes.set_xlabel("period")
    cost_axes.set_ylabel("cost")
    cost_axes.set_xlim(-0.5, horizon + 0.5)
    cost_axes.locator_params(axis="x", integer=True)
    if regime_names:
        legend_axes.legend(loc="upper right", fontsize="small")
    if crowded:
        state_axes.legend(loc="upper right", fontsize="small")
    state_axes.set_title(f"period {len(frames) - 1} of {horizon}, cost so far {costs.sum():,.1f}")

    return to_rgb_array(figure)


def draw_paths(
    frames: "list[Frame]", paths: np.ndarray, targets: np.ndarray, radius: float, limit: float, regime_names: dict[int, str]
) -> np.ndarray:
    """
    A square field seen from above: each agent's path from its ring to its disc, its periods coloured by the regime taken, its
    own where agents have one each, and its target as a circle.

    :param frames: the episode so far, starting state first
    :param paths: positions, shape ``(len(frames), agents, 2)``
    :param targets: their centres, shape ``(agents, 2)``
    :param radius: of a target
    :param limit: half the side of the field
    :param regime_names: the regimes to mark, with their names
    :return: RGB, uint8, shape ``(480, 480, 3)``
    :raises gymnasium.error.DependencyNotInstalled: if matplotlib is missing
    """
    figure = new_figure(4.8, 4.8)
    axes = figure.subplots()
    rim = radius * np.exp(1j * np.linspace(0, 2 * np.pi, 60))
    for path, target in zip(np.moveaxis(paths, 1, 0), targets, strict=True):
        axes.fill(target[0] + rim.real, target[1] + rim.imag, color="mistyrose", edgecolor="firebrick")
        axes.plot(*path.T, color="lightgray", linewidth=1)
        axes.plot(*path[0], "o", color="black", fillstyle="none", markersize=7)
        axes.plot(*path[-1], "o", color="black", markersize=7)
    taken = regimes_taken(frames)
    for regime, name in regime_names.items():
        chosen = taken == regime
        marked = paths[chosen].reshape(-1, 2)
        axes.plot(*marked.T, ".", color=f"C{regime % 10}", markersize=4, label=f"{chosen.sum()} × {name}", zorder=3)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    axes.legend(loc="upper right", fontsize="small")
    axes.set_title(f"period {len(frames) - 1}, cost so far {sum(frame.cost for frame in frames):,.3f}")
    return to_rgb_array(figure)


def to_rgb_array(figure: "Figure") -> np.ndarray:
    """
    :return: the figure's pixels, uint8, shape ``(height, width, 3)``
    """
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
