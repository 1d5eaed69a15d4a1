import os
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings

from hybrid_envs import HybridAction, HybridEnv, Uniform

settings.register_profile("shared_cores", deadline=None)
settings.load_profile("shared_cores")

ENV_IDS = sorted(
    env_id
    for env_id, spec in gym.registry.items()
    if isinstance(spec.entry_point, type) and issubclass(spec.entry_point, HybridEnv)
)

INSTANCES: list[tuple[str, dict[str, Any]]] = [(env_id, {}) for env_id in ENV_IDS] + [
    ("HybridInventory-v0", {"n_items": 1, "lead_time": 1}),
    ("HybridInventory-v0", {"n_items": 3, "lead_time": 5, "lost_sales": True}),
    ("HybridInventory-v0", {"n_items": 2, "demand": "normal", "horizon": 30}),
    ("HybridInventory-v0", {"demand": np.random.default_rng(0).uniform(0, 20, (50, 40, 2)), "horizon": 40}),
    (
        "HybridDualSourcing-v0",
        {"n_items": 3, "lead_time": 1, "demand": "poisson", "mean_demand": [2.0, 5.0, 9.0], "underage_cost": 20.0},
    ),
    ("HybridMoving-v0", {"n_agents": 3, "max_acceleration": 2.0, "horizon": 30}),
    ("HybridSliding-v0", {"n_agents": 2, "max_acceleration": 2.0, "horizon": 30, "regimes": "own"}),
    (
        "HybridPortfolio-v0",
        {"n_assets": 3, "target": [0.5, 0.3, 0.1], "covariance": np.diag([0.01, 0.04, 0.09]), "proportional_cost": 0.05},
    ),
    ("HybridProcurement-v0", {"n_items": 1, "min_order": 0.0, "truck_capacity": 20.0, "discount_quantities": [20.0]}),
    ("HybridSwitchedLQR-v0", {"n_dims": 1, "n_modes": 1}),
    ("HybridSwitchedLQR-v0", {"n_dims": 5, "n_modes": 3, "horizon": 7}),
    (
        "HybridUnitCommitment-v0",
        {
            "n_generators": 8,
            "commitments": "merit_order",
            "surplus_cost": 0.1,
            "series": np.random.default_rng(0).uniform(20, 60, (24 * 60, 2)) * [2, 1],
            "horizon": 30,
        },
    ),
    ("HybridUnitCommitment-v0", {"n_generators": 4, "commitments": "free"}),
    ("HybridInventory-v0", {"n_items": 3, "minor_fixed_cost": [20.0, 0.0, 50.0]}),
    ("HybridInventory-v0", {"n_items": 2, "history": 3, "lost_sales": True, "censored": True, "zero_share": 0.3}),
    ("HybridInventory-v0", {"n_items": 2, "lost_sales": True, "margin": Uniform(2.0, 5.0)}),
    ("HybridInventory-v0", {"n_items": 2, "mean_demand": Uniform(6.0, 14.0), "fixed_cost": Uniform(50.0, 200.0)}),
    (
        "HybridDualSourcing-v0",
        {"demand": "poisson", "instances": {"mean_demand": [2.0, 9.0], "premium": [5.0, 20.0], "underage_cost": [50.0, 90.0]}},
    ),
    ("HybridDualSourcing-v0", {"n_items": 2, "per_item": True, "regular_fixed_cost": [5.0, 0.0]}),
    ("HybridProcurement-v0", {"n_items": 2, "per_item": True, "mean_demand": [8.0, 12.0]}),
    ("HybridPortfolio-v0", {"n_assets": 3, "fixed_cost": 1e-4, "fixed_cost_per_asset": [1e-4, 0.0, 3e-4]}),
]


def _label(instance: tuple[str, dict[str, Any]]) -> str:
    env_id, kwargs = instance
    return ",".join([env_id, *(f"{k}={'array' if isinstance(v, np.ndarray) else v}" for k, v in kwargs.items())])


@pytest.fixture(autouse=True, scope="session")
def _as_many_torch_threads_as_asked_for() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(autouse=True)
def _registry_left_as_found() -> Iterator[None]:
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


@pytest.fixture(autouse=True)
def _matplotlib_left_as_found() -> Iterator[None]:
    """rl_zoo3's plots set another style for the whole process as soon as they are imported."""
    with matplotlib.rc_context():
        yield


@pytest.fixture(params=ENV_IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    """Every id that hybrid_envs registers."""
    return request.param


@pytest.fixture(params=INSTANCES, ids=_label)
def instance(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every registered id with its defaults, and further instances that take other branches: (id, arguments)."""
    return request.param


@pytest.fixture
def env(instance: tuple[str, dict[str, Any]]) -> HybridEnv:
    """A fresh, unwrapped environment of every instance."""
    env_id, kwargs = instance
    return gym.make(env_id, **kwargs).unwrapped  # type: ignore[return-value]


@pytest.fixture
def draw_action() -> Callable[[HybridEnv, int, torch.Generator], HybridAction]:
    """Draws regimes uniformly and points inside the bounds of each regime, at the environment's typical magnitude."""

    def draw(env: HybridEnv, batch_size: int, generator: torch.Generator) -> HybridAction:
        regime = env.factors.draw(batch_size, generator)
        low, high = map(torch.from_numpy, env.factors.bounds_of(regime.numpy(), env.action_bounds.astype(float)))
        low, high = low.to(env.dtype), high.to(env.dtype)
        reach = torch.tensor(env.action_scale, dtype=env.dtype)
        low_end = torch.where(low.isfinite(), low, torch.where(high.isfinite(), high - reach, -reach))
        high_end = torch.where(high.isfinite(), high, torch.where(low.isfinite(), low + reach, reach))
        share = torch.rand(batch_size, env.action_size, generator=generator, dtype=env.dtype)
        return HybridAction(regime, low_end + share * (high_end - low_end))

    return draw
