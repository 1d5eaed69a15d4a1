"""Unit commitment: which generators of a microgrid to run, at what output, and what to do with the battery."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.core import Frame, HybridEnv
from hybrid_envs.factors import NO_FACTOR
from hybrid_envs.rendering import draw_episode
from hybrid_envs.spaces import HybridAction
from hybrid_envs.unit_commitment.microgrid import make_microgrid, regime_units
from hybrid_envs.unit_commitment.net_load import HOURS, generated_net_load, recorded_net_load

FORECAST_HOURS = 6


class UnitCommitmentState(NamedTuple):
    """
    ``on``: the units that ran last period, 0 or 1, and ``held``: hours for which each must still stay as it is, both of shape
    ``(batch, n_generators)``; ``energy``: in the battery, kWh, and ``deviation``: of the last period's net load from its mean,
    in standard deviations, both ``(batch, 1)``.
    """

    on: torch.Tensor
    held: torch.Tensor
    energy: torch.Tensor
    deviation: torch.Tensor
    period: torch.Tensor


class HybridUnitCommitmentEnv(HybridEnv[UnitCommitmentState]):
    """
    ## Description
    Run a microgrid of ``n_generators`` generators and a battery hour by hour, before the hour's demand and renewables are
    seen. A unit that is on costs even when idling, has a minimum output, and is paid for when it starts.

    ## Action Space
    ``Tuple(Discrete(J), Box(n_generators + 1))``: regime x says which units are on, any set of them (J = 2^p, p <= 6), or with
    ``commitments="merit_order"`` the x cheapest per kWh at full output (J = p + 1). With ``commitments="free"`` it is
    ``Tuple(MultiDiscrete([2] * p), Box(n_generators + 1))``, x_i = 1 for unit i on: any set of dozens of units. The point b
    holds each unit's output in kW, in [min_output, max_output] if on and 0 if off, then the battery's charge at the bus,
    negative for discharge, within ±battery_power. Unit i's output answers to x_i, the charge to no unit.

    Free units can be held: one that starts stays on for ``min_up_time`` hours, one that stops stays off for
    ``min_down_time`` hours, that hour included, and the other choice is masked meanwhile. ``min_units_on`` ties the units
    together, so policies draw them one after the other.

    ## Observation Space
    ``Box(-inf, inf, (n_generators + 10,))``: share of the episode gone, sine and cosine of the hour, units that ran last
    period, battery level as a share of its capacity, and forecasts of net load for this hour and the next five, divided by
    the peak of its mean. Where units can be held, ``n_generators`` more: the hours for which each still is.

    ## Dynamics
    Net load is demand less renewables, mean_h + std_h·z' in hour h, where z' = ρz + ξ and only ξ is a surprise; the forecast
    leaves it out. A charge c takes the battery's energy to E' = E + ηc, a discharge (c < 0) to E' = E + c/η, cut to
    [0, E_max]: what the battery cannot take or give does not flow. What is then missing at the bus is shortage, what is left
    over is curtailed.

    ## Rewards
    Minus the hour's cost: Σ_i on_i·(no_load_cost_i + fuel_cost_i·output_i) + start_cost_i if unit i was off and is on,
    shortage_cost per kWh short and surplus_cost per kWh curtailed. Results are quoted as the cost of an episode.

    ## Starting State
    Midnight, all units off and free to start, the battery half full. Energy left at the end of an episode is worth nothing.

    ## Episode End
    Truncated after ``horizon`` periods; never terminated.

    ## Differentiability
    State, observation and reward carry gradients to the state and b. There are kinks where the bus is balanced (shortage on
    one side, surplus on the other), where the battery is full or empty, and where c = 0; there are no jumps: starting,
    idling and minimum output depend on x and the units on alone. Generated net load is continuous, so that the first kink has
    probability zero.

    ## Arguments
    :param n_generators: p
    :param commitments: ``"all"``, ``"merit_order"`` or ``"free"``
    :param min_output: of a unit that is on, kW; 50 % (large units) to 25 % (small units) of ``max_output`` unless given
    :param max_output: kW; the units' sizes fall from 3 to 1 and sum to 1.1 times the peak of mean demand unless given
    :param fuel_cost: per kWh; rising from 0.15 to 0.35 unless given
    :param no_load_cost: per hour on; 0.05 to 0.02 times ``max_output`` unless given
    :param start_cost: per start; 0.4 to 0.1 times ``max_output`` unless given
    :param min_up_time: hours that a unit stays on, a whole number, 1 for no restriction; above 1 for free commitments only
    :param min_down_time: hours that a unit stays off, likewise
    :param min_units_on: in every hour; above 0 for free commitments only
    :param battery_energy: E_max, kWh; half an hour of the peak unless given
    :param battery_power: kW, of charge and discharge at the bus; 20 % of the peak unless given
    :param efficiency: η of charging and of discharging, above 0 and at most 1
    :param shortage_cost: per kWh of unserved load
    :param surplus_cost: per kWh curtailed
    :param peak_demand: of the generated day, kW; 100 unless given
    :param renewable_share: the sun's output at noon, as a share of ``peak_demand``; 0.4 unless given
    :param series: instead of the generated day, the path of a CSV file with columns hour, demand, renewables (one row an hour,
        without gaps), or an array of demand and renewables from midnight on, shape ``(hours, 2)``; scenarios are its days
    :param split: ``"train"``, ``"validation"`` or ``"test"``: days of the first, second or third part of the series alone;
        means, standard deviations and persistence are then those of the first
    :param split_shares: the shares of the parts
    :param horizon: T, hours of an episode
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## Version History
    v0: initial version
    """

    def __init__(
        self,
        n_generators: int = 3,
        *,
        commitments: str = "all",
        min_output: float | np.ndarray | None = None,
        max_output: float | np.ndarray | None = None,
        fuel_cost: float | np.ndarray | None = None,
        no_load_cost: float | np.ndarray | None = None,
        start_cost: float | np.ndarray | None = None,
        min_up_time: int | np.ndarray = 1,
        min_down_time: int | np.ndarray = 1,
        min_units_on: int = 0,
        battery_energy: float | None = None,
        battery_power: float | None = None,
        efficiency: float = 0.95,
        shortage_cost: float = 3.0,
        surplus_cost: float = 0.0,
        peak_demand: float | None = None,
        renewable_share: float | None = None,
        series: str | Path | np.ndarray | None = None,
        split: str | None = None,
        split_shares: Sequence[float] = (0.6, 0.2, 0.2),
        horizon: int = HOURS,
        render_mode: str | None = None,
    ):
        check_count("n_generators", n_generators)
        check_count("horizon", horizon)
        if series is None:
            peak_demand = 100.0 if peak_demand is None else float(check_array("peak_demand", peak_demand, (), above=0.0))
            share = (
                0.4 if renewable_share is None else float(check_array("renewable_share", renewable_share, (), at_least=0.0))
            )
            self.net_load = generated_net_load(peak_demand, share)
            if split is not None:
                raise ValueError(f"split = {split!r} is of series, and there are none")
        else:
            for name, value in (("peak_demand", peak_demand), ("renewable_share", renewable_share)):
                if value is not None:
                    raise ValueError(f"{name} = {value} is for the generated day, not for series")
            self.net_load = recorded_net_load(series, horizon, split, split_shares)
        self.params = make_microgrid(
            n_generators,
            self.net_load.peak,
            min_output=min_output,
            max_output=max_output,
            fuel_cost=fuel_cost,
            no_load_cost=no_load_cost,
            start_cost=start_cost,
            min_up_time=min_up_time,
            min_down_time=min_down_time,
            battery_energy=battery_energy,
            battery_power=battery_power,
            efficiency=efficiency,
            shortage_cost=shortage_cost,
            surplus_cost=surplus_cost,
        )
        units_on = regime_units(commitments, self.params.merit_order)
        free = commitments == "free"
        check_count("min_units_on", min_units_on, minimum=0)
        if min_units_on > n_generators:
            raise ValueError(f"min_units_on = {min_units_on} exceeds n_generators = {n_generators}")
        for name, given, least in (
            ("min_up_time", min_up_time, 1),
            ("min_down_time", min_down_time, 1),
            ("min_units_on", min_units_on, 0),
        ):
            if not free and np.any(np.asarray(given) > least):
                raise ValueError(f"{name} = {given!r} is for commitments = 'free', not for {commitments!r}")
        longest_hold = max(self.params.min_up_time.max(), self.params.min_down_time.max()) - 1
        self.n_held = n_generators if longest_hold else 0
        # What decisions turn on: an hour of charging, and in forecasts a unit more or less, or a surprise; not a day's swing.
        hour_of_power = min(self.params.battery_power / self.params.battery_energy, 1.0)
        unit = (self.params.max_output.mean() + self.net_load.std.mean()) / self.net_load.peak
        scales = [1.0, hour_of_power, unit, max(longest_hold, 1.0)]
        observation_scale = np.repeat(scales, [3 + n_generators, 1, FORECAST_HOURS, self.n_held])
        limits = np.stack([self.params.min_output, self.params.max_output], axis=-1)
        battery = np.tile(self.params.battery_power * np.array([-1.0, 1.0]), (len(units_on), 1, 1))
        super().__init__(
            action_bounds=np.concatenate([units_on[:, :, None] * limits, battery], axis=1),
            observation_size=len(observation_scale),
            horizon=horizon,
            action_scale=np.append(self.params.max_output, self.params.battery_power),
            observation_scale=observation_scale,
            factor_sizes=[2] * n_generators if free else None,
            factor_of=[*range(n_generators), NO_FACTOR] if free else None,
            active_limits=(min_units_on, n_generators) if min_units_on else None,
            render_mode=render_mode,
        )
        self.n_generators, self.commitments = n_generators, commitments
        as_tensor = partial(torch.tensor, dtype=self.dtype)
        self.units_on = as_tensor(units_on)
        self.min_output, self.max_output = as_tensor(self.params.min_output), as_tensor(self.params.max_output)
        self.fuel_cost, self.no_load_cost = as_tensor(self.params.fuel_cost), as_tensor(self.params.no_load_cost)
        self.start_cost = as_tensor(self.params.start_cost)
        self.hold_up, self.hold_down = as_tensor(self.params.min_up_time - 1), as_tensor(self.params.min_down_time - 1)
        self.mean, self.std = as_tensor(self.net_load.mean), as_tensor(self.net_load.std)
        hours = np.arange(HOURS)[:, None] + np.arange(FORECAST_HOURS)
        fade = self.net_load.persistence ** np.arange(1, FORECAST_HOURS + 1)
        self.expected = as_tensor(self.net_load.mean[hours % HOURS] / self.net_load.peak)
        self.carried = as_tensor(fade * self.net_load.std[hours % HOURS] / self.net_load.peak)  # of the last deviation
        angle = 2 * np.pi * np.arange(HOURS) / HOURS
        self.clock = as_tensor(np.stack([np.sin(angle), np.cos(angle)], axis=-1))
        if self.net_load.recorded is not None:
            self.recorded = as_tensor(self.net_load.recorded)

    def initial(self, batch_size: int, generator: torch.Generator) -> UnitCommitmentState:
        zeros = torch.zeros(batch_size, self.n_generators + 2, dtype=self.dtype, device=self.device)
        return UnitCommitmentState(
            on=zeros[:, 2:],
            held=torch.zeros_like(zeros[:, 2:]),
            energy=zeros[:, :1] + self.params.start_energy,
            deviation=zeros[:, 1:2],
            period=torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        )

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        :return: surprises ξ, in standard deviations of net load, shape ``(horizon, batch, 1)``
        """
        if self.net_load.recorded is not None:
            days = torch.randint(len(self.recorded), (batch_size,), generator=generator, device=self.device)
            return self.recorded[days].T.unsqueeze(-1)
        shape = (self.horizon, batch_size, 1)
        return self.net_load.surprise * torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

    def transition(self, state: UnitCommitmentState, action: HybridAction, noise: torch.Tensor) -> UnitCommitmentState:
        energy = state.energy + self._stored_per_kwh(action) * action.point[:, -1:]
        on, held = action.regime.to(self.dtype) if self.factors.many else self.units_on[action.regime], state.held
        if self.n_held:
            started, stopped = on * (1 - state.on), (1 - on) * state.on
            held = (1 - started - stopped) * (held - 1).clamp(min=0) + started * self.hold_up + stopped * self.hold_down
        return UnitCommitmentState(
            on=on,
            held=held,
            energy=energy.clamp(0.0, self.params.battery_energy),
            deviation=self.net_load.persistence * state.deviation + noise,
            period=state.period,
        )

    def reward(
        self, state: UnitCommitmentState, action: HybridAction, noise: torch.Tensor, next_state: UnitCommitmentState
    ) -> torch.Tensor:
        on, hour = next_state.on, state.period % HOURS
        output = on * action.point[:, :-1].clamp(self.min_output, self.max_output)
        charge = (next_state.energy - state.energy) / self._stored_per_kwh(action)
        net_load = self.mean[hour] + self.std[hour] * next_state.deviation[:, 0]
        residual = net_load + charge[:, 0] - output.sum(dim=1)
        shortage = residual.clamp(min=0)
        cost = on @ self.no_load_cost + output @ self.fuel_cost + (on * (1 - state.on)) @ self.start_cost
        return -(cost + self.params.shortage_cost * shortage + self.params.surplus_cost * (shortage - residual))

    def _stored_per_kwh(self, action: HybridAction) -> torch.Tensor:
        """Energy that enters or leaves the battery per kWh at the bus: η when charging, 1/η when discharging."""
        efficiency = self.params.efficiency
        return torch.where(action.point[:, -1:] > 0, efficiency, 1 / efficiency).to(self.dtype)

    def observation(self, state: UnitCommitmentState) -> torch.Tensor:
        hour = state.period % HOURS
        gone = (state.period / self.horizon).to(self.dtype).unsqueeze(1)
        forecast = self.expected[hour] + self.carried[hour] * state.deviation
        level = state.energy / self.params.battery_energy
        return torch.cat([gone, self.clock[hour], state.on, level, forecast, state.held[:, : self.n_held]], dim=1)

    @property
    def masks_regimes(self) -> bool:
        return self.n_held > 0 or type(self).regime_mask is not HybridUnitCommitmentEnv.regime_mask

    def regime_mask(self, state: UnitCommitmentState) -> torch.Tensor:
        """A unit that is held may be taken as it is only."""
        if not self.n_held:
            return super().regime_mask(state)
        on, free = state.on > 0.5, state.held < 0.5
        return torch.stack([free | ~on, free | on], dim=2).flatten(1)

    def regimes_of(self, on: np.ndarray) -> np.ndarray:
        """
        :param on: which units run, 0 or 1, some regime's choice of units, shape ``(batch, n_generators)``
        :return: the regimes, int64, shape ``(batch,)``; of free commitments ``(batch, n_generators)``
        """
        if self.factors.many:
            return on.astype(np.int64)
        return (self.units_on.cpu().numpy() == on[:, None]).all(axis=-1).argmax(axis=-1)

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """Battery level and units on, and the cost of each hour with the commitment marked, of free ones the number on."""
        levels = np.array([float(frame.state.energy) / self.params.battery_energy for frame in frames])
        running = np.array([float(frame.state.on[0].mean()) for frame in frames])
        names = {0: "no unit"}
        if self.factors.many:
            frames = [frame if frame.regime is None else frame._replace(regime=int(np.sum(frame.regime))) for frame in frames]
        for frame in frames:
            if isinstance(frame.regime, int) and frame.regime:
                units = " ".join(str(i) for i in torch.nonzero(frame.state.on[0]).flatten().tolist())
                names[frame.regime] = f"{frame.regime} on" if self.factors.many else f"units {units}"
        return draw_episode(
            frames, np.stack([levels, running], axis=1), "battery level, share of units on", names, self.horizon
        )
