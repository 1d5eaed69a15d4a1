"""The part of ``check_hybrid_env`` that warns of choices that change nothing: a regime, or an end of the range of b."""

from typing import Any

import torch

from hybrid_envs.core import HybridEnv
from hybrid_envs.probing import Probe, float_outputs, joined, pick, random_rollout, reach, seeded, warn
from hybrid_envs.spaces import HybridAction

STATES = 32
"""In how many states of a random policy a choice has to change nothing."""
END = 0.05
"""The part of b's range at either end that is tried first, and the least that is reported."""
ROUNDING = 1e-12
"""Differences below it, relative to the numbers compared, are none."""


def check_effects(env: HybridEnv, seed: int) -> None:
    """No regime does in every state what another one does with the same b, and each end of b's range changes something."""
    state, noise = _states_met(env, seed)
    _check_regimes(env, seed, state, noise)
    for regime in range(env.n_regimes):
        _check_range(env, seed, regime, state, noise)


def _states_met(env: HybridEnv, seed: int) -> tuple[Any, torch.Tensor]:
    met = list(random_rollout(env, seed))
    state, noise = joined([probe.state for probe in met]), joined([probe.noise for probe in met])
    rows = torch.randint(len(noise), (STATES,), generator=seeded(env, seed), device=env.device)
    return pick(state, rows), noise[rows]


def _check_regimes(env: HybridEnv, seed: int, state: Any, noise: torch.Tensor) -> None:
    low, high = reach(env, torch.arange(env.n_regimes, device=env.device))
    for regime in range(env.n_regimes):
        for other in range(env.n_regimes):
            within = bool(((low[regime] >= low[other]) & (high[regime] <= high[other])).all())
            alike = bool(((low[regime] == low[other]) & (high[regime] == high[other])).all())
            if not within or regime == other or (alike and regime < other):  # of two that are alike, the later one
                continue
            generator = seeded(env, seed)
            share = torch.rand(STATES, env.action_size, generator=generator, dtype=env.dtype, device=env.device)
            point = low[regime] + share * (high[regime] - low[regime])
            probes = [Probe(state, HybridAction(torch.full_like(state.period, x), point), noise) for x in (regime, other)]
            common = _allowed(env, state, regime) & _allowed(env, state, other)
            if common.any() and not _apart(*(_results(env, probe) for probe in probes))[common].any():
                what = f"regime {regime} changes nothing: with every b that it may take, regime {other} does the same"
                warn(env, "step_torch()", what, "use action.regime in transition() or reward(), or leave the regime out")


def _check_range(env: HybridEnv, seed: int, regime: int, state: Any, noise: torch.Tensor) -> None:
    allowed = _allowed(env, state, regime).nonzero().flatten()
    if not len(allowed):
        return
    state, noise, n = pick(state, allowed), noise[allowed], env.action_size
    taken = torch.full((len(noise),), regime, device=env.device)
    low, high = reach(env, taken)
    others = torch.rand(low.shape, generator=seeded(env, seed), dtype=env.dtype, device=env.device)

    def at(coordinates: torch.Tensor, share: float) -> torch.Tensor:
        """Results where one coordinate of b is at a share of its range, shape ``(coordinates, states, k)``."""
        moved = torch.nn.functional.one_hot(coordinates, n).bool().repeat_interleave(len(noise), 0)
        again = torch.arange(len(noise), device=env.device).repeat(len(coordinates))
        shares = torch.where(moved, share, others[again])
        point = low[again] + shares * (high - low)[again]
        probe = Probe(pick(state, again), HybridAction(taken[again], point), noise[again])
        return _results(env, probe).unflatten(0, (-1, len(noise)))

    every = torch.arange(n, device=env.device)
    bottom, top = at(every, 0.0), at(every, 1.0)
    matters = _apart(bottom, top).any(1)
    for end, inner, name in ((bottom, END, "lowest"), (top, 1 - END, "highest")):
        for i in (matters & ~_apart(end, at(every, inner)).any(1)).nonzero().flatten().tolist():
            outer = float(round(inner))
            active, flat = 1 - outer, inner
            for _ in range(20):  # where it begins to matter in some state
                middle = (active + flat) / 2
                if _apart(end[i], at(every[i : i + 1], middle)[0]).any():
                    active = middle
                else:
                    flat = middle
            ends = [float(torch.lerp(low[0, i], high[0, i], share)) for share in sorted((flat, outer))]
            where = f"from {ends[0]:.4g} to {ends[1]:.4g}"
            what = f"the {name} part of the range of b[{i}] has no effect in regime {regime}, {where}"
            warn(env, "step_torch()", what, "a clamp is tighter than the bounds: give the true ones as action_bounds")


def _allowed(env: HybridEnv, state: Any, regime: int) -> torch.Tensor:
    return env.regime_mask(state)[:, regime] if env.masks_regimes else torch.ones_like(state.period, dtype=torch.bool)


def _results(env: HybridEnv, probe: Probe) -> torch.Tensor:
    """All numbers that a step leads to, side by side, shape ``(batch, k)``."""
    result = env.step_torch(*probe)
    kept = [field.reshape(len(field), -1).to(env.dtype) for field in result.state if not field.is_floating_point()]
    return torch.cat([*float_outputs(result).values(), *kept, result.terminated.unsqueeze(1).to(env.dtype)], dim=1)


def _apart(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Whether two results differ, without the last dimension."""
    return ((left - right).abs() > ROUNDING * (1 + left.abs())).any(-1)
