"""Sales as they might have been: the level of the season times what sales were to it, drawn anew in blocks of periods."""

import numpy as np

BLOCK = 8
"""Periods that stay together, so that what sold well last week is likely to sell well this week."""
RIDGE, NEWTON_STEPS = 1e-2, 30


def seasonal_level(sales: np.ndarray, calendar: np.ndarray) -> np.ndarray:
    """
    Expected sales by what is known of a period: a Poisson regression of each item, log E D = β0 + β·calendar. Without a
    calendar it is the mean.

    :param sales: shape ``(periods, items)``
    :param calendar: shape ``(periods, c)``
    :return: shape ``(periods, items)``, positive
    """
    spread = calendar.std(axis=0)
    moving = calendar[:, spread > 0]
    known = np.column_stack([np.ones(len(sales)), (moving - moving.mean(axis=0)) / spread[spread > 0]])
    weights = np.zeros((sales.shape[1], known.shape[1]))
    weights[:, 0] = np.log(np.maximum(sales.mean(axis=0), 1e-3))
    penalty = RIDGE * np.eye(known.shape[1])
    for _ in range(NEWTON_STEPS):
        level = np.exp(np.clip(weights @ known.T, -20, 20))  # (items, periods)
        slope = (sales.T - level) @ known - RIDGE * (weights * (np.arange(known.shape[1]) > 0))
        curvature = np.einsum("it,tk,tl->ikl", level, known, known) + penalty
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        weights += np.clip(step, -1, 1)
    return np.exp(np.clip(weights @ known.T, -20, 20)).T


def resample(sales: np.ndarray, calendar: np.ndarray, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """
    Each window is in its season, and its sales are the level of the season times the ratios of other periods to theirs. These
    come in blocks of consecutive periods, of each item by itself. Of a few years a policy would learn by heart which week
    sold what; of resampled sales it learns the season and the spread about it.

    :param sales: shape ``(periods, items)``
    :param calendar: what is known of each period, shape ``(periods, c)``
    :param rows: the periods of each window, shape ``(windows, length)``
    :param seed: of the blocks
    :return: shape ``(windows, length, items)``
    """
    n_periods, n_items = sales.shape
    level = seasonal_level(sales, calendar)
    n_windows, length = rows.shape
    rng = np.random.default_rng(seed)
    first = rng.integers(n_periods, size=(n_windows, length // BLOCK + 2, n_items))
    place = np.arange(length)[:, None] + rng.integers(BLOCK, size=(n_windows, 1, 1))  # blocks begin anywhere in a window
    block = np.broadcast_to(place // BLOCK, (n_windows, length, n_items))
    drawn = (np.take_along_axis(first, block, axis=1) + place % BLOCK) % n_periods
    return level[rows] * (sales / level)[drawn, np.arange(n_items)]
