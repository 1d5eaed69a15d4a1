"""The part of ``check_hybrid_env`` that knows regimes of several factors: their layout, and which factor acts on what."""

from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from hybrid_envs.core import Frame, HybridEnv
from hybrid_envs.factors import NO_FACTOR, RegimeFactors
from hybrid_envs.probing import (
    Probe,
    draw_actions,
    fail,
    gradients_of,
    leaves,
    nudged,
    random_probes,
    random_rollout,
    reach,
    seeded,
    warn,
)
from hybrid_envs.spaces import HybridAction

ROWS = 96
"""Of each of the two probes in which effects are looked for, at least; and eight for each regime."""
ENOUGH = 12
"""Rows that have to agree before something is said of them all."""


def check_layout(env: HybridEnv) -> None:
    """Factors, action space and bounds say the same."""
    mend = "pass factor_sizes, factor_of and action_bounds to super().__init__, and leave what it makes of them as it is"
    factors = env.factors
    if not isinstance(factors, RegimeFactors):
        fail(env, "factors", f"a {type(factors).__name__}", mend)
    multi = isinstance(env.action_space, spaces.Tuple) and isinstance(env.action_space.spaces[0], spaces.MultiDiscrete)
    if multi and not factors.many:
        fail(env, "action_space", f"it is {env.action_space}, but its factors are {factors}", mend)
    if not factors.many:
        return
    sizes = env.action_space.spaces[0].nvec.tolist() if multi else "no MultiDiscrete"  # type: ignore[attr-defined]
    if sizes != list(factors.sizes):
        fail(env, "action_space", f"its regimes are {sizes}, but the factors have the sizes {list(factors.sizes)}", mend)
    try:
        fresh = RegimeFactors(list(factors.sizes), factors.factor_of, factors.active_limits)
    except ValueError as error:
        fail(env, "factors", str(error), mend)
    _, greatest = limits = factors.active_limits or (1, 0)
    if limits[0] == 0 and greatest >= factors.n_factors:
        what = f"{limits} forbids nothing to {factors.n_factors} factors, but policies have to draw them one after the other"
        warn(env, "active_limits", what, "leave it out")
    regime = fresh.spread(fresh.largest, torch.Generator().manual_seed(0)) + 1  # 0 is what a coordinate without factor gets
    shape = (fresh.largest, len(fresh.factor_of), 2)
    if np.shape(env.action_bounds) != shape or len(fresh.factor_of) != env.action_size:
        what = f"of shape {np.shape(env.action_bounds)}, action_size = {env.action_size}, but {factors} wants shape {shape}"
        fail(env, "action_bounds", what, mend)
    stale = (fresh.of_coordinates(regime) != factors.of_coordinates(regime)).any(0).nonzero().flatten().tolist()
    if stale:
        fail(env, f"factor_of[{stale[0]}]", f"changed to {fresh.factor_of[stale[0]]} after __init__", mend)
    _check_filling(env, mend)


def _check_filling(env: HybridEnv, mend: str) -> None:
    """Bounds of regimes that a coordinate does not have are those of regime 0, and no bound is NaN."""
    bounds, factors = env.action_bounds, env.factors
    for i, f in enumerate(factors.factor_of.tolist()):
        size = 1 if f == NO_FACTOR else factors.sizes[f]
        whose = "it has no factor" if f == NO_FACTOR else f"its factor {f} has {size} regimes"
        for j in range(factors.largest):
            got, where = bounds[j, i].tolist(), f"action_bounds[{j}, {i}]"
            if j >= size and got != bounds[0, i].tolist():
                what = f"{got}, but coordinate {i} has no regime {j}, since {whose}"
                fail(env, where, what, f"write NaN there, which becomes the bounds of regime 0; {mend}")
            if np.isnan(got).any() or got[0] > got[1]:
                fail(env, where, f"{got}, of coordinate {i}, whose factor is {f}", f"low must not exceed high; {mend}")


def check_drawing(env: HybridEnv, seed: int) -> None:
    """``draw`` takes frames whose regime is an array."""
    if type(env).draw is HybridEnv.draw:
        return
    frames: list[Frame] = []
    for probe in random_rollout(env, seed, copies=1):
        state = type(probe.state)(*(field[:1] for field in probe.state))
        taken = probe.action.regime[0].cpu().numpy()
        frames.append(Frame(state, taken if frames else None, 0.0))
    try:
        picture = env.draw(frames)
    except DependencyNotInstalled:
        return
    except Exception as error:
        mend = f"the regime of a frame is an array of shape ({env.factors.n_factors},) here; it is None in the first frame"
        fail(env, "draw()", f"raised {type(error).__name__}: {error}", mend)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        what = (
            f"{picture.dtype} of shape {picture.shape}" if isinstance(picture, np.ndarray) else f"a {type(picture).__name__}"
        )
        fail(env, "draw()", what, "return an RGB picture, uint8, shape (height, width, 3)")


def check_factor_effects(env: HybridEnv, seed: int) -> None:
    """
    Every coordinate acts where the bounds of its own factor let it, and with a gradient; it does not wait for another
    factor. Every factor, and every regime of it, changes something.
    """
    copies = max(8, -(-ROWS // env.factors.largest))
    probes = [nudged(probe, seeded(env, seed)) for probe in random_probes(env, seed, copies)]
    _check_coordinates(env, probes, seed)
    _check_regimes(env, probes)


# ---- coordinates ---------------------------------------------------------------------------------------------------------


class Moves(NamedTuple):
    """What happens when one coordinate of b is moved alone; each of shape ``(rows, n)``, but ``regime``."""

    regime: torch.Tensor
    """x, shape ``(rows, m)``."""
    free: torch.Tensor
    """Whether the coordinate is moved within its bounds; else they are a point, and it leaves them."""
    moved: torch.Tensor
    acts: torch.Tensor
    """Whether anything changes."""
    slopes: torch.Tensor
    """Whether some gradient in it is not 0."""


def _moves(env: HybridEnv, probe: Probe, generator: torch.Generator) -> Moves:
    regime = probe.action.regime
    low, high = reach(env, regime)
    within, beyond = (draw_actions(env, x, generator).point for x in (regime, env.factors.spread(len(regime), generator)))
    target = torch.where(high > low, within, beyond)
    acts = torch.zeros_like(target, dtype=torch.bool)
    for i in range(env.action_size):
        point = probe.action.point.clone()
        point[:, i] = target[:, i]
        acts[:, i] = _differs(env, probe, probe._replace(action=HybridAction(regime, point)))
    with torch.enable_grad():
        slopes = torch.stack([g != 0 for (_, by), g in gradients_of(env, probe).items() if by == "b"]).any(0)
    return Moves(regime, high > low, target != probe.action.point, acts, slopes)


def _check_coordinates(env: HybridEnv, probes: list[Probe], seed: int) -> None:
    generator, factors = seeded(env, seed), env.factors
    moves = Moves(*(torch.cat(part) for part in zip(*(_moves(env, probe, generator) for probe in probes), strict=True)))
    own = factors.of_coordinates(moves.regime)
    gates: dict[int, tuple[int, list[int]]] = {}
    for i, f in enumerate(factors.factor_of.tolist()):
        usable = moves.free[:, i] & moves.moved[:, i]
        for j in range(1 if f == NO_FACTOR else factors.sizes[f]):
            here = usable & (own[:, i] == j)
            if moves.acts[here, i].sum() > 0.5 * here.sum() and not moves.slopes[here, i].any():
                where = f"b[{i}] matters" + (f" in regime {j} of its factor {f}" if f != NO_FACTOR else "")
                mend = "a round, floor, sign or comparison has no gradient: use a smooth form, or make the jump a factor"
                fail(env, "step_torch()", f"piecewise constant in b: {where}, but every gradient there is 0", mend)
        acts = moves.acts[usable, i]
        if len(acts) >= ENOUGH and not acts.any():
            what = f"was moved within its bounds {len(acts)} times and changed nothing, whatever the regimes"
            warn(env, f"b[{i}]", what, "leave the coordinate out, or let the dynamics use it")
        for g, size in enumerate(factors.sizes):
            states = _gate(acts, moves.regime[usable, g], size)
            if g != f and states is not None:
                gates.setdefault(i, (g, states))
    _report_gates(env, moves, gates)


def _gate(acts: torch.Tensor, other: torch.Tensor, size: int) -> list[int] | None:
    """The regimes of another factor in which a coordinate always acts, if in all the others it never does."""
    active = []
    for j in range(size):
        rows = acts[other == j]
        if len(rows) < ENOUGH or (rows.any() and not rows.all()):
            return None
        active += [j] if rows.any() else []
    return active if 0 < len(active) < size else None


def _report_gates(env: HybridEnv, moves: Moves, gates: dict[int, tuple[int, list[int]]]) -> None:
    """
    A coordinate that its own factor holds back may wait for another factor as well: a main valve, the order that an item is
    on. One that its own factor does not hold back is odd; and if those of the other factor are as odd, factors have been mixed
    up.
    """
    shut = moves.moved & ~moves.free
    stray = {i for i in gates if not shut[:, i].any() or moves.acts[shut[:, i], i].any()}
    for i, (g, states) in gates.items():
        f = int(env.factors.factor_of[i])
        owner = "has NO_FACTOR" if f == NO_FACTOR else f"answers to factor {f} by factor_of"
        what = f"b[{i}] {owner}, but acts only where factor {g} is in regime {' or '.join(map(str, states))}"
        if f != NO_FACTOR and i in stray and any(env.factors.factor_of[k] == g for k in stray):
            mend = "column f of action.regime is factor f of factor_sizes, and b[i] answers to factor factor_of[i]"
            fail(env, "step_torch()", f"it mixes up the factors: {what}, whose own coordinates wait for others, too", mend)
        if i in stray:
            mend = f"if factor {g} alone decides, give it factor_of[{i}] = {g} and bounds of its own"
            warn(env, f"factor_of[{i}]", what, mend)


# ---- regimes ---------------------------------------------------------------------------------------------------------------


def _check_regimes(env: HybridEnv, probes: list[Probe]) -> None:
    factors = env.factors
    for f, size in enumerate(factors.sizes):
        bounds = env.action_bounds[:, factors.factor_of == f]
        idle = []
        for j in range(1, size):
            tried, changed = 0, bool((bounds[j] != bounds[0]).any())
            for probe in () if changed else probes:
                rests, other = (probe.action.regime.clone() for _ in range(2))
                rests[:, f], other[:, f] = 0, j
                mask = env.regime_mask(probe.state) if env.masks_regimes else None
                both = factors.permits(rests, mask) & factors.permits(other, mask)
                pair = [probe._replace(action=probe.action._replace(regime=x)) for x in (rests, other)]
                tried += int(both.sum())
                changed |= bool((_differs(env, *pair) & both).any())
            idle += [j] if tried >= ENOUGH and not changed else []
        if len(idle) == size - 1:
            warn(env, f"factor {f}", "changes nothing: neither bounds of b nor what follows", "leave it out, or let it matter")
        elif idle:
            what = (
                f"regime {' and '.join(map(str, idle))} does the same as regime 0: neither bounds of b nor what follows differ"
            )
            warn(env, f"factor {f}", what, "leave it out, or let it matter")


def _differs(env: HybridEnv, one: Probe, other: Probe) -> torch.Tensor:
    """Whether anything follows from the one that does not follow from the other, bool, shape ``(batch,)``."""
    pairs = zip(_consequences(env, one), _consequences(env, other), strict=True)
    return torch.stack([(left != right).flatten(1).any(1) for left, right in pairs]).any(0)


def _consequences(env: HybridEnv, probe: Probe) -> list[torch.Tensor]:
    result = env.step_torch(*probe)
    found = [leaf.unsqueeze(1) for _, leaf in leaves("result", result)]
    return [*found, env.regime_mask(result.state)] if env.masks_regimes else found
