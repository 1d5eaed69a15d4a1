"""Bounds and scales of points that the tests of towers and of policies share."""

import numpy as np

INF = np.inf
BOUNDS = np.array(  # every kind of bound, and another kind for the same coordinate in the other regimes
    [
        [[-INF, INF], [2.0, INF], [-INF, -3.0], [-1.5, 4.0], [0.0, 0.0]],
        [[0.0, 0.0], [-INF, 7.0], [0.1, 0.7], [-INF, INF], [-5.0, INF]],
        [[-1 / 3, 0.7], [-2.0, -2.0], [-INF, INF], [100.0, INF], [-INF, 0.0]],
    ],
    dtype=np.float32,
)
SCALE = np.array([0.5, 1.0, 2.0, 10.0, 3.0], dtype=np.float32)
