"""The numbers of a microgrid: its generators, which of them run in each regime, and its battery."""

from dataclasses import dataclass

import numpy as np

from hybrid_envs.checks import check_array

MAX_REGIMES = 64


@dataclass(frozen=True)
class Microgrid:
    """The numbers of one instance; arrays have shape ``(n_generators,)``, powers are in kW, energies in kWh."""

    min_output: np.ndarray
    max_output: np.ndarray
    fuel_cost: np.ndarray
    """Per kWh."""
    no_load_cost: np.ndarray
    """Per hour on."""
    start_cost: np.ndarray
    min_up_time: np.ndarray
    """Hours."""
    min_down_time: np.ndarray
    """Hours."""
    battery_energy: float
    battery_power: float
    efficiency: float
    """Of charging, and again of discharging."""
    shortage_cost: float
    """Per kWh."""
    surplus_cost: float
    """Per kWh."""

    @property
    def merit_order(self) -> np.ndarray:
        """The generators by their cost of a kWh at full output, cheapest first."""
        return np.argsort(self.fuel_cost + self.no_load_cost / self.max_output, kind="stable")

    @property
    def start_energy(self) -> float:
        """What the battery holds at the start of an episode."""
        return self.battery_energy / 2


def reference_microgrid(n_generators: int, peak: float) -> dict[str, float | np.ndarray]:
    """
    The instance in use where no other numbers are given: from one large, cheap, sluggish unit to small, dear, quick ones.

    :param n_generators: p
    :param peak: of the mean net load, kW
    :return: the values of a :class:`Microgrid` by name
    """
    size = np.linspace(3, 1, n_generators)
    max_output = 1.1 * peak * size / size.sum()
    return {
        "min_output": np.linspace(0.5, 0.25, n_generators) * max_output,
        "max_output": max_output,
        "fuel_cost": np.linspace(0.15, 0.35, n_generators),
        "no_load_cost": np.linspace(0.05, 0.02, n_generators) * max_output,
        "start_cost": np.linspace(0.4, 0.1, n_generators) * max_output,
        "min_up_time": 1.0,
        "min_down_time": 1.0,
        "battery_energy": 0.5 * peak,
        "battery_power": 0.2 * peak,
        "efficiency": 0.95,
        "shortage_cost": 3.0,
        "surplus_cost": 0.0,
    }


def make_microgrid(n_generators: int, peak: float, **given: float | np.ndarray | None) -> Microgrid:
    """
    :param n_generators: p
    :param peak: of the mean net load, kW
    :param given: values of a :class:`Microgrid` by name; the reference instance's where ``None``
    :raises ValueError: naming the argument, its value and what is allowed
    """
    values = reference_microgrid(n_generators, peak)
    if given["max_output"] is not None:
        max_output = check_array("max_output", given["max_output"], (n_generators,), above=0.0)
        shares = {name: values[name] / values["max_output"] for name in ("min_output", "no_load_cost", "start_cost")}
        values |= {name: share * max_output for name, share in shares.items()}
    values |= {name: value for name, value in given.items() if value is not None}
    positive = ("max_output", "battery_energy", "battery_power", "efficiency", "shortage_cost")
    checked = {}
    for name, value in values.items():
        shape = () if name.startswith(("battery", "efficiency", "shortage", "surplus")) else (n_generators,)
        limit = {"above": 0.0} if name in positive else {"at_least": 1.0 if name.endswith("time") else 0.0}
        checked[name] = check_array(name, value, shape, **limit) if shape else float(check_array(name, value, (), **limit))
    grid = Microgrid(**checked)  # type: ignore[arg-type]
    crossed = np.flatnonzero(grid.min_output > grid.max_output)
    if crossed.size:
        i = crossed[0]
        raise ValueError(f"min_output[{i}] = {grid.min_output[i]} exceeds max_output[{i}] = {grid.max_output[i]}")
    for name, hours in (("min_up_time", grid.min_up_time), ("min_down_time", grid.min_down_time)):
        broken = np.flatnonzero(hours % 1)
        if broken.size:
            raise ValueError(f"{name}[{broken[0]}] = {hours[broken[0]]}: must be a whole number of hours")
    if grid.efficiency > 1:
        raise ValueError(f"efficiency = {grid.efficiency}: must be > 0 and <= 1")
    return grid


def regime_units(commitments: str, merit_order: np.ndarray) -> np.ndarray:
    """
    Which units each regime runs.

    :param commitments: ``"all"``: bit i of the regime says whether unit i is on; ``"merit_order"``: regime k runs the first k
        units of the merit order; ``"free"``: each unit has a regime of its own, 1 if it is on
    :param merit_order: the units, cheapest first, shape ``(p,)``
    :return: 1 where on, shape ``(J, p)``
    :raises ValueError: for other commitments, and for more than 64 regimes of ``"all"``
    """
    n_generators = len(merit_order)
    if commitments == "merit_order":
        return (np.argsort(merit_order) < np.arange(n_generators + 1)[:, None]).astype(np.float64)
    if commitments == "free":
        return np.array([np.zeros(n_generators), np.ones(n_generators)])
    if commitments != "all":
        raise ValueError(f"commitments must be 'all', 'merit_order' or 'free', got {commitments!r}")
    if 2**n_generators > MAX_REGIMES:
        raise ValueError(
            f"n_generators = {n_generators} with commitments = 'all' makes 2^{n_generators} regimes; at most {MAX_REGIMES} "
            "are allowed; commitments = 'free' gives each unit a choice of its own, 'merit_order' makes one regime more than "
            "there are generators"
        )
    return (np.arange(2**n_generators)[:, None] >> np.arange(n_generators) & 1).astype(np.float64)
