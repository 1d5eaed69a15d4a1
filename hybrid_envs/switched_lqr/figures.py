"""What a policy of the switched regulator does: its map of modes, drawn with matplotlib (an optional dependency)."""

from typing import TYPE_CHECKING

import numpy as np

from hybrid_envs.evaluation import PolicyFunction, greedy_episode
from hybrid_envs.rendering import THUMBNAIL_DPI, THUMBNAIL_WIDTH, new_figure
from hybrid_envs.switched_lqr.env import HybridSwitchedLQREnv
from hybrid_envs.switched_lqr.riccati import riccati

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 121
"""States along either side of the map of modes."""


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

    figure = new_figure(THUMBNAIL_WIDTH, 7.2, THUMBNAIL_DPI)
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
