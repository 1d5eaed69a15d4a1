"""The part of ``check_hybrid_env`` that looks for jumps: in b, and in what b has done to the state."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from hybrid_envs.core import HybridEnv
from hybrid_envs.probing import (
    Probe,
    choose_rows,
    fail,
    float_outputs,
    inputs_of,
    joined,
    permitted,
    pick,
    reach,
    seeded,
    warn,
    with_input,
)
from hybrid_envs.spaces import HybridAction

LINES = 192
"""How many lines are searched in b, and as many in the state; at least four for each regime."""
INTERVALS = 256
"""Of the grid on a line."""
SUSPECTS = 6
"""How many intervals of a line are looked into for each output: those whose differences stand out most."""
PARTS, ROUNDS = 8, 12
"""A suspect is cut into so many parts, of which the one that stands out is cut again, so many times."""
LEAST = 1e-4
"""The lowest jump that is reported, relative to how much the output varies on the line."""
MARGIN = 1e-6
"""Distance kept from the bounds of b, relative to their interval: a jump at the bound itself has probability zero."""
FAR = 3.0
"""How far b is drawn at most where it is unbounded, in units of its typical magnitude."""
LINES_AT_ONCE = 96


class Lines(NamedTuple):
    """Straight lines through the inputs of ``step_torch``, one a row."""

    start: Probe
    end: Probe

    def rows(self, rows: torch.Tensor) -> "Lines":
        return Lines(*(pick(end, rows) for end in self))

    def at(self, share: torch.Tensor) -> Probe:
        """The inputs at a share of each line, shape ``(rows,)``; what is no floating-point number is that of the start."""
        probe, far = self.start, inputs_of(self.end)
        for name, near in inputs_of(self.start).items():
            weight = share.reshape(-1, *[1] * (near.dim() - 1))
            probe = with_input(probe, name, torch.lerp(near, far[name], weight))  # exact at both ends
        return probe


class Jump(NamedTuple):
    """Between two shares of a line, closer to each other than a policy can tell, one coordinate of an output jumps."""

    output: str
    coordinate: int
    line: int
    left: float
    right: float
    before: float
    after: float


def check_jumps(env: HybridEnv, seed: int) -> None:
    """
    Within a regime no output jumps but those declared in :attr:`~hybrid_envs.core.HybridEnv.jumps`. A jump is where
    differences along a line do not shrink with the step. One of ``terminated`` alone is a warning: problems do end.
    """
    generator = seeded(env, seed)
    episodes = paired_episodes(env, generator)
    names = list(_columns(env, lines_in_b(env, episodes, generator).rows(torch.arange(1)).start))
    unknown = [name for name in env.jumps if name not in names]
    if isinstance(env.jumps, str) or unknown:
        fail(env, "jumps", f"it is {env.jumps!r}", f"give a tuple of names out of {', '.join(map(repr, names))}")
    searched = [name for name in names if name not in env.jumps]
    for lines in (lines_in_b(env, episodes, generator), lines_in_state(env, episodes, generator)):
        found = list(find_jumps(env, lines, searched))
        if found:
            _report(env, lines, min(found, key=lambda jump: searched.index(jump.output)))


def _report(env: HybridEnv, lines: Lines, jump: Jump) -> None:
    line = lines.rows(torch.tensor([jump.line]))
    where, regime = responsible(env, line, jump), line.start.action.regime[0].tolist()
    what = f"jumps by {jump.after - jump.before:.6g}, from {jump.before:.6g} to {jump.after:.6g}, inside regime {regime}, "
    what += f"where {where}, period {int(line.start.state.period)}; gradients do not see it"
    declare = f"if it is meant, declare it in the class: jumps = ({jump.output!r},)"
    if jump.output == "terminated":
        warn(env, "terminated", what, f"end the episode by the clock or by a regime; {declare}")
    else:
        mend = "make each piece a regime of its own: for thresholds in b, hybrid_envs.piecewise does it, see docs/piecewise.md"
        fail(env, jump.output, what, f"{mend}; {declare}")


# ---- lines --------------------------------------------------------------------------------------------------------------


def paired_episodes(env: HybridEnv, generator: torch.Generator) -> list[tuple[Any, Any, torch.Tensor]]:
    """
    Two episodes of a random policy in the same scenarios, with the same regimes and other points: how far apart they are is
    how far b moves the state. Every second row keeps to one regime, which leads to states that a mixture rarely meets. A row
    that has ended stays where it was.

    :return: the two states and the noise, period by period
    """
    rows = max(LINES, 4 * env.n_regimes)
    start, noise = env.sample_scenarios(rows, generator)
    states, levels = [start, start], [_uniform(env, generator, rows, 1) for _ in range(2)]
    row = torch.arange(rows, device=env.device)
    kept = env.factors.draw(rows, generator) if env.factors.many else row // 2 % env.n_regimes
    keeps = (row % 2 == 0).view(-1, *[1] * (kept.dim() - 1))
    met: list[tuple[Any, Any, torch.Tensor]] = []
    for period in range(env.horizon):
        met.append((states[0], states[1], noise[period]))
        regime = kept.where(keeps, env.factors.draw(rows, generator))
        for k, (state, level) in enumerate(zip(states, levels, strict=True)):
            action = _action(env, permitted(env, state, regime), level, generator)
            result = env.step_torch(state, action, noise[period])
            states[k] = choose_rows(result.terminated | result.truncated, state, result.state)
    return met


def lines_in_b(env: HybridEnv, episodes: list[tuple[Any, Any, torch.Tensor]], generator: torch.Generator) -> Lines:
    """In turn: all coordinates from their low to their high ends, one coordinate alone, and between two random points."""
    state, _, noise = _mixed_periods(env, episodes, generator)
    rows = torch.arange(len(noise), device=env.device)
    regime = permitted(env, state, env.factors.spread(len(rows), generator))
    kind = rows // env.n_regimes % 3
    far = FAR ** _uniform(env, generator, len(rows), 1)
    levels = [torch.where(kind == 0, end, _uniform(env, generator, len(rows))).unsqueeze(1) for end in (0.0, 1.0)]
    start, end = (_action(env, regime, level, generator, far) for level in levels)
    low, high = reach(env, regime, far)
    low, high = low + MARGIN * (high - low), high - MARGIN * (high - low)
    movable = (high > low) + _uniform(env, generator, *low.shape)  # a coordinate that can move, if there is one
    alone = (kind == 1).unsqueeze(1) & (movable == movable.amax(1, keepdim=True))
    near = torch.where(alone, low, start.point)
    other = torch.where(alone, high, torch.where((kind == 1).unsqueeze(1), near, end.point))
    lines = Lines(Probe(state, HybridAction(regime, near), noise), Probe(state, HybridAction(regime, other), noise))
    return lines.rows(((near != other).any(1)).nonzero().flatten())


def lines_in_state(env: HybridEnv, episodes: list[tuple[Any, Any, torch.Tensor]], generator: torch.Generator) -> Lines:
    """Between the states that two episodes have come to in the same scenario."""
    start, end, noise = _mixed_periods(env, episodes, generator)
    regime = permitted(env, start, env.factors.spread(len(noise), generator))
    action = _action(env, regime, _uniform(env, generator, len(noise), 1), generator)
    lines = Lines(Probe(start, action, noise), Probe(end, action, noise))
    ends = zip(inputs_of(lines.start).values(), inputs_of(lines.end).values(), strict=True)
    apart = torch.stack([(near != far).reshape(len(near), -1).any(1) for near, far in ends]).any(0)
    return lines.rows(apart.nonzero().flatten())


def _mixed_periods(
    env: HybridEnv, episodes: list[tuple[Any, Any, torch.Tensor]], generator: torch.Generator
) -> tuple[Any, Any, torch.Tensor]:
    """Of each row the two states and the noise of a period of its own."""
    rows = len(episodes[0][2])
    period = torch.randint(len(episodes), (rows,), generator=generator, device=env.device)
    first, second, noise = (joined(list(parts)) for parts in zip(*episodes, strict=True))  # row after row in each period
    at = period * rows + torch.arange(rows, device=env.device)
    return pick(first, at), pick(second, at)._replace(period=pick(first, at).period), pick(noise, at)


def _action(
    env: HybridEnv, regime: torch.Tensor, level: torch.Tensor, generator: torch.Generator, far: float | torch.Tensor = 1.0
) -> HybridAction:
    """Points whose coordinates agree more or less on a level from 0 to 1, so that their sums vary, in any dimension."""
    low, high = reach(env, regime, far)
    agreement = _uniform(env, generator, len(regime), 1)
    share = agreement * level + (1 - agreement) * _uniform(env, generator, *low.shape)
    return HybridAction(regime, low + (MARGIN + (1 - 2 * MARGIN) * share) * (high - low))


def _uniform(env: HybridEnv, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=env.dtype, device=env.device)


# ---- the search ---------------------------------------------------------------------------------------------------------


def find_jumps(env: HybridEnv, lines: Lines, searched: list[str]) -> Iterator[Jump]:
    """
    The intervals of a grid whose differences stand out from their neighbours' are cut into parts again and again, each time
    keeping the part whose difference stands out from the others'. Around a jump it stays as high as it was; elsewhere it goes
    to 0, at a kink and on a steep slope too, since these are lines at last.

    :param searched: the outputs that matter
    """
    for first in range(0, len(lines.start.noise), LINES_AT_ONCE):
        rows = torch.arange(first, min(first + LINES_AT_ONCE, len(lines.start.noise)), device=env.device)
        share = torch.linspace(0, 1, INTERVALS + 1, dtype=env.dtype, device=env.device)
        values = _along(env, lines.rows(rows), share.expand(len(rows), -1))
        for output in searched:
            value = values[output]  # (lines, points, coordinates)
            if not value.shape[2]:  # an empty field of the state
                continue
            known = value.nan_to_num(posinf=0.0, neginf=0.0)
            spread, size = known.amax(1) - known.amin(1), known.abs().amax(1)
            floor = LEAST * spread + 1e-9 * size
            difference = value.diff(dim=1)
            bend = difference.diff(dim=1).abs()
            edge = torch.full_like(bend[:, :1], torch.nan)
            contrast = torch.fmin(torch.cat([edge, bend], dim=1), torch.cat([bend, edge], dim=1))
            relative, coordinate = (contrast / floor.clamp(min=1e-300).unsqueeze(1)).nan_to_num(0.0).max(dim=2)
            height, interval = relative.topk(SUSPECTS, dim=1)
            line, rank = (height > 0.5).nonzero().unbind(1)
            at = interval[line, rank]
            of = coordinate[line, at]
            yield from _cut(env, lines, rows[line], share[at], share[at + 1], output, of, floor[line, of])


def _cut(
    env: HybridEnv,
    lines: Lines,
    line: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    output: str,
    coordinate: torch.Tensor,
    floor: torch.Tensor,
) -> Iterator[Jump]:
    if not len(line):
        return
    suspects = lines.rows(line)
    each = torch.arange(len(line), device=env.device)
    parts = torch.linspace(0, 1, PARTS + 1, dtype=env.dtype, device=env.device)
    heights = []
    for _ in range(ROUNDS):
        share = torch.lerp(left.unsqueeze(1), right.unsqueeze(1), parts)
        value = _along(env, suspects, share)[output][each, :, coordinate]
        difference = value.diff(dim=1).nan_to_num(0.0)
        part = (difference - difference.median(dim=1, keepdim=True).values).abs().argmax(dim=1)
        left, right = share[each, part], share[each, part + 1]
        heights.append(difference[each, part].abs())
    jumps = (heights[-1] > floor) & (heights[-1] > 0.5 * heights[ROUNDS // 2])
    for k in jumps.nonzero().flatten().tolist():
        ends = (float(value[k, part[k]]), float(value[k, part[k] + 1]))
        yield Jump(output, int(coordinate[k]), int(line[k]), float(left[k]), float(right[k]), *ends)


def responsible(env: HybridEnv, line: Lines, jump: Jump) -> str:
    """The coordinates that carry a line over the jump, and their values: without their last little step there is no jump."""
    right, back = (line.at(torch.tensor([share], dtype=env.dtype)) for share in (jump.right, jump.left - 1e-6))
    parts = []
    for name, value in inputs_of(right).items():
        behind = inputs_of(back)[name]
        moving = (value != behind).flatten().nonzero().flatten()
        if not len(moving):
            continue
        tried = value.flatten().repeat(len(moving), 1)
        tried[torch.arange(len(moving)), moving] = behind.flatten()[moving]
        many = pick(right, torch.zeros(len(moving), dtype=torch.int64))
        outputs = _columns(env, with_input(many, name, tried.reshape(-1, *value.shape[1:])))[jump.output][:, jump.coordinate]
        carries = (outputs - jump.before).abs() < (outputs - jump.after).abs()
        entries = [f"{name}{_index(int(i), value)} = {float(value.flatten()[i]):.6g}" for i in moving[carries]]
        parts.extend(entries)
    if not parts:
        parts = [f"{name} = {value.flatten().tolist()}" for name, value in inputs_of(right).items()]
    return ", ".join(parts[:4]) + (f" and so on, {len(parts)} coordinates together" if len(parts) > 4 else "")


def _index(flat: int, value: torch.Tensor) -> str:
    shape = value.shape[1:]
    return str([int(k) for k in torch.unravel_index(torch.tensor(flat), shape)]) if shape else ""


def _along(env: HybridEnv, lines: Lines, share: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every output at these shares, shape ``(lines, points)``, of each line: ``(lines, points, k)``, NaN where masked."""
    each = torch.arange(len(share), device=env.device).repeat_interleave(share.shape[1])
    columns = _columns(env, lines.rows(each).at(share.flatten()))
    return {name: column.unflatten(0, share.shape) for name, column in columns.items()}


def _columns(env: HybridEnv, probe: Probe) -> dict[str, torch.Tensor]:
    result = env.step_torch(*probe)
    columns = {**float_outputs(result), "terminated": result.terminated.to(env.dtype).unsqueeze(1)}
    if env.masks_regimes:
        masked = ~env.factors.permits(probe.action.regime, env.regime_mask(probe.state)).unsqueeze(1)
        columns = {name: column.masked_fill(masked, torch.nan) for name, column in columns.items()}
    return columns
