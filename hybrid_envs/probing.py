"""What the checks of :func:`~hybrid_envs.checker.check_hybrid_env` are made of: probes, watched calls, and clear failures."""

import pickle
import random
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction


class HybridEnvError(AssertionError):
    """An environment breaks the contract of a HybridEnv; the message says what is wrong, where, and how to mend it."""


class HybridEnvWarning(UserWarning):
    """An environment keeps the contract, but something in it is hardly meant."""


NO_NOISE = "noise has no columns unless sample_noise() draws them"
CURES = {
    "Boolean value of Tensor": "rows differ, so that no `if` can choose for all of them: use torch.where",
    "with size 0": NO_NOISE,
    " (0) ": NO_NOISE,  # of tensors whose sizes do not match
    "call numpy() on Tensor that requires grad": "stay in torch, without numpy: gradients flow through this hook",
}
"""What helps against an error, by a part of its message."""


class Probe(NamedTuple):
    """
    Inputs of ``step_torch`` as a random policy meets them; row i takes regime i modulo J, or the first allowed one. With
    several factors, each regime of each occurs in some row.
    """

    state: Any
    action: HybridAction
    noise: torch.Tensor


def _message(env: HybridEnv, where: str, what: str, mend: str) -> str:
    return f"{env.name}, {where} ({env.dtype} on {env.device}): {what}. To mend it: {mend}."


def fail(env: HybridEnv, where: str, what: str, mend: str) -> NoReturn:
    raise HybridEnvError(_message(env, where, what, mend))


def warn(env: HybridEnv, where: str, what: str, mend: str) -> None:
    warnings.warn(_message(env, where, what, mend), HybridEnvWarning, stacklevel=2)


def seeded(env: HybridEnv, seed: int) -> torch.Generator:
    return torch.Generator(env.device).manual_seed(seed)


def leaves(label: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested NamedTuples, with their dotted names."""
    if isinstance(value, torch.Tensor):
        yield label, value
    elif hasattr(value, "_asdict"):
        for field, item in value._asdict().items():
            yield from leaves(f"{label}.{field}", item)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from leaves(f"{label}[{i}]", item)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether all numbers are equal, NaN to NaN."""
    return torch.equal(left, right) or (
        torch.equal(left.isnan(), right.isnan()) and torch.equal(left.nan_to_num(0.0), right.nan_to_num(0.0))
    )


def call_hook(env: HybridEnv, hook: str, *args: Any, **kwargs: Any) -> Any:
    """Call a hook; it must not raise, write to its arguments, or draw from a global random generator."""
    names = {"figure_of_merit": ["costs"]}.get(hook, ["state", "action", "noise", "next_state"])
    tensors = [leaf for name, arg in zip(names, args, strict=False) for leaf in leaves(name, arg)]
    before = [(tensor.clone(), tensor._version) for _, tensor in tensors]
    rng = _global_rng()
    try:
        result = getattr(env, hook)(*args, **kwargs)
    except Exception as error:
        mend = "create tensors with dtype=self.dtype, device=self.device, and keep constants as tensor attributes of the env"
        if cure := next((cure for symptom, cure in CURES.items() if symptom in str(error)), None):
            mend = cure
        elif (env.dtype, env.device.type) == (torch.float32, "cpu"):
            mend = "its cause is chained to this error"
            if env.factors.many:
                mend += f"; action.regime has shape (batch, {env.factors.n_factors}), a column for each factor"
        raise HybridEnvError(_message(env, f"{hook}()", f"raised {type(error).__name__}: {error}", mend)) from error
    for (name, tensor), (value, version) in zip(tensors, before, strict=True):
        if tensor._version != version or not same(tensor, value):
            fail(env, f"{hook}()", f"writes to its argument {name} in place", "return new tensors: x + 1 instead of x += 1")
    for source, value in _global_rng().items():
        if value != rng[source]:
            mend = "draw in initial() and sample_noise() only, from the generator they are given"
            fail(env, f"{hook}()", f"hidden randomness: it draws from the global generator of {source}", mend)
    return result


def _global_rng() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy.random": pickle.dumps(np.random.get_state()),
        "random": random.getstate(),
    }


def draw(env: HybridEnv, hook: str, batch: int, seed: int) -> Any:
    """What a drawing hook returns, twice the same from the same seed."""
    first, second = (call_hook(env, hook, batch, seeded(env, seed)) for _ in range(2))
    for (name, left), (_, right) in zip(leaves(hook, first), leaves(hook, second), strict=True):
        if not same(left, right):
            mend = "pass generator=generator to every draw, and keep no memory of earlier calls"
            fail(env, f"{hook}()", f"hidden randomness: equal seeds give different values in {name}", mend)
    return first


def require_tensor(
    env: HybridEnv, where: str, value: Any, shape: tuple[int, ...] | None, dtype: torch.dtype | None
) -> torch.Tensor:
    """A tensor of this shape and dtype, on the environment's device; ``None``: any."""
    if not isinstance(value, torch.Tensor):
        fail(env, where, f"a {type(value).__name__}", "return a torch.Tensor")
    if shape is not None and value.shape != shape:
        fail(env, where, f"shape {tuple(value.shape)}", f"return shape {shape}; the first dimension is the batch")
    if (dtype is not None and value.dtype != dtype) or value.device.type != env.device.type:
        mend = f"make it {dtype or value.dtype} on {env.device}: create tensors with dtype=self.dtype, device=self.device"
        fail(env, where, f"{value.dtype} on {value.device}", mend)
    return value


def require_finite(env: HybridEnv, where: str, value: Any, when: str = "", regime: torch.Tensor | None = None) -> None:
    """All tensors in it are finite; ``regime``: the one taken in each row."""
    for name, tensor in leaves("result", value):
        if not tensor.isfinite().all():
            row = int((~tensor.isfinite()).nonzero()[0, 0])
            taken = "" if regime is None else f", regime {regime[row].tolist()}"
            what = f"non-finite {name.removeprefix('result.')} {when} (row {row}{taken})"
            fail(env, where, what, "bound the dynamics, or the actions through action_bounds and action_scale")


def require_equal(env: HybridEnv, where: str, got: Any, expected: Any, mend: str) -> None:
    if not np.allclose(got, expected, rtol=1e-5, atol=1e-6):
        fail(env, where, f"{got}, but step_torch() gives {expected} from the same seed", mend)


def reach(env: HybridEnv, regime: torch.Tensor, far: float | torch.Tensor = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Where to draw b from: the bounds of its regime, and ``far`` times its typical magnitude where there is none."""
    bounds = torch.tensor(env.action_bounds, dtype=env.dtype, device=env.device).expand(len(regime), -1, -1, -1)
    low, high = (env.factors.choose(side, regime) for side in bounds.unbind(-1))
    scale = far * torch.tensor(env.action_scale, dtype=env.dtype, device=env.device)
    return (
        torch.where(low.isfinite(), low, torch.where(high.isfinite(), high - scale, -scale)),
        torch.where(high.isfinite(), high, torch.where(low.isfinite(), low + scale, scale)),
    )


def draw_actions(env: HybridEnv, regime: torch.Tensor, generator: torch.Generator) -> HybridAction:
    low, high = reach(env, regime)
    share = torch.rand(low.shape, generator=generator, dtype=env.dtype, device=env.device)
    return HybridAction(regime, low + (0.05 + 0.9 * share) * (high - low))  # room for finite differences on both sides


def permitted(env: HybridEnv, state: Any, regime: torch.Tensor) -> torch.Tensor:
    """The given regimes where the environment allows them, else its first allowed one; its mask is checked."""
    if not env.masks_regimes:
        return env.factors.repaired(regime, None)
    return env.factors.repaired(regime, checked_mask(env, state))


def checked_mask(env: HybridEnv, state: Any) -> torch.Tensor:
    """``regime_mask`` of a state, flat; its shape is right, and it leaves a choice."""
    factors, mask = env.factors, call_hook(env, "regime_mask", state)
    shape = (len(state.period), factors.total)
    if factors.many and isinstance(mask, torch.Tensor) and mask.shape != shape:
        sizes = " + ".join(map(str, factors.sizes))
        mend = f"return it flat, factor after factor, a column for each regime: shape {shape}, since {sizes} = {factors.total}"
        fail(env, "regime_mask()", f"shape {tuple(mask.shape)}", mend)
    require_tensor(env, "regime_mask()", mask, shape, torch.bool)
    mend = "leave at least one regime wherever the episode goes on; where it ends, say so in terminal()"
    for row, *factor in (~factors.by_factor(mask, False).any(-1)).nonzero().tolist():
        which = f" of factor {factor[0]}" if factor else ""
        fail(env, "regime_mask()", f"allows no regime{which} in period {int(state.period[row])} (row {row})", mend)
    for row, *_ in (~factors.leaves_a_choice(mask)).nonzero().tolist():
        of_factor = factors.by_factor(mask, False)[row]
        can, must = of_factor[:, 1:].any(-1), ~of_factor[:, 0]
        what = f"in period {int(state.period[row])} (row {row}) it lets {int(must.sum())} to {int(can.sum())} factors be in "
        what += f"another regime than 0, but active_limits = {factors.active_limits}"
        mend = "let masks leave a regime that keeps to active_limits, or widen these"
        fail(env, "regime_mask()", f"{what}; factors {_numbers(must)} have to, {_numbers(~can)} cannot", mend)
    return mask


def _numbers(which: torch.Tensor) -> list[int]:
    return which.nonzero().flatten().tolist()


def random_rollout(env: HybridEnv, seed: int, copies: int = 3) -> Iterator[Probe]:
    """
    An episode of a random policy, until all rows have ended; in every period ``copies`` rows take each regime of each factor.
    A row that has ended stays where it was.
    """
    generator, rows = seeded(env, seed), copies * env.n_regimes
    if env.factors.many and rows == env.factors.n_factors:
        rows += 1  # else regimes of shape (batch, m) would broadcast against (batch,)
    regimes = env.factors.spread(rows, generator)
    state, noise = env.sample_scenarios(len(regimes), generator)
    running = torch.ones(len(regimes), dtype=torch.bool, device=env.device)
    for period in range(env.horizon):
        probe = Probe(state, draw_actions(env, permitted(env, state, regimes), generator), noise[period])
        yield probe
        result = env.step_torch(*probe)
        ends = result.terminated | result.truncated
        running = running & ~ends
        if not running.any():
            return
        state = choose_rows(ends, state, result.state)


def random_probes(env: HybridEnv, seed: int, copies: int = 3) -> list[Probe]:
    """The first period of a random policy's episode, one from its middle, and the last."""
    met = list(random_rollout(env, seed, copies))
    return [met[0], met[len(met) // 2], met[-1]]


def check_first_period(env: HybridEnv) -> None:
    """
    What can be asked of an environment before every training: that the hooks of a first period return what they have to.

    :raises HybridEnvError: if they do not
    """
    with torch.no_grad():
        check_period(env, next(random_rollout(env, seed=0)), 0)


def check_period(env: HybridEnv, probe: Probe, period: int) -> None:
    """Hook by hook: shapes, dtypes, finite numbers, the clock and the horizon."""
    batch, where = len(probe.action.regime), f"in period {period}"
    require_tensor(env, f"state.period {where}", probe.state.period, (batch,), torch.int64)
    following = call_hook(env, "transition", *probe)
    if type(following) is not type(probe.state):
        mend = f"return a {type(probe.state).__name__}, for example state._replace(...)"
        fail(env, "transition()", f"returned a {type(following).__name__}", mend)
    for field, old in probe.state._asdict().items():
        new = getattr(following, field)
        if old.numel() and not probe.noise.numel() and not getattr(new, "numel", lambda: 1)():
            fail(env, f"transition(): {field} {where}", f"shape {tuple(new.shape)}", NO_NOISE)
        require_tensor(env, f"transition(): {field} {where}", new, tuple(old.shape), old.dtype)
    following = following._replace(period=probe.state.period + 1)
    size = (batch, *env.observation_space.shape)  # type: ignore[misc]
    observation, reward = call_hook(env, "observation", following), call_hook(env, "reward", *probe, following)
    values = {
        "transition()": following,
        "observation()": require_tensor(env, f"observation() {where}", observation, size, env.dtype),
        "reward()": require_tensor(env, f"reward() {where}", reward, (batch,), env.dtype),
    }
    for hook, value in values.items():
        require_finite(env, hook, value, where, probe.action.regime)
    require_tensor(env, f"terminal() {where}", call_hook(env, "terminal", following), (batch,), torch.bool)
    result = call_hook(env, "step_torch", *probe)
    if not isinstance(result, StepResult):
        fail(env, "step_torch()", f"returned a {type(result).__name__}", "return a StepResult")
    if not torch.equal(result.state.period, following.period):
        must = ", ".join(map(str, sorted(set(following.period.tolist()))))
        fail(env, f"step_torch() {where}", f"period becomes {result.state.period.tolist()}", f"it must become {must}")
    if not torch.equal(result.truncated, (result.state.period >= env.horizon) & ~result.terminated):
        mend = f"truncate after horizon = {env.horizon} periods, not earlier or later, and only what has not terminated"
        fail(env, f"step_torch() {where}", f"truncated is {result.truncated.tolist()}", mend)


def pick(value: Any, rows: torch.Tensor) -> Any:
    """These rows of a tensor, or of all tensors in nested NamedTuples."""
    return value[rows] if isinstance(value, torch.Tensor) else type(value)(*(pick(item, rows) for item in value))


def choose_rows(condition: torch.Tensor, yes: Any, no: Any) -> Any:
    """``yes`` in the rows where the condition holds, else ``no``, in nested NamedTuples too."""
    if isinstance(yes, torch.Tensor):
        return torch.where(condition.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
    return type(yes)(*(choose_rows(condition, *items) for items in zip(yes, no, strict=True)))


def joined(values: list[Any]) -> Any:
    """The rows of all of them in one, in nested NamedTuples too."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    return type(values[0])(*(joined(list(items)) for items in zip(*values, strict=True)))


def keep_row(row: int, mine: Any, theirs: Any) -> Any:
    """``theirs``, but ``mine`` in one row."""
    if isinstance(mine, torch.Tensor):
        return torch.cat([theirs[:row], mine[row : row + 1], theirs[row + 1 :]])
    return type(mine)(*(keep_row(row, a, b) for a, b in zip(mine, theirs, strict=True)))


def inputs_of(probe: Probe) -> dict[str, torch.Tensor]:
    """What gradients are taken in: the floating-point fields of the state, and b."""
    fields = {f"state.{name}": field for name, field in probe.state._asdict().items() if _is_continuous(field)}
    return {**fields, "b": probe.action.point}


def _is_continuous(field: torch.Tensor) -> bool:
    """Whether it holds numbers that can be moved a little; a field may also be there and empty."""
    return field.is_floating_point() and field.numel() > 0


def with_input(probe: Probe, name: str, value: torch.Tensor) -> Probe:
    if name == "b":
        return probe._replace(action=probe.action._replace(point=value))
    return probe._replace(state=probe.state._replace(**{name.removeprefix("state."): value}))


def nudged(probe: Probe, generator: torch.Generator) -> Probe:
    """The same, a little off the kinks that round numbers and empty shelves sit on."""
    for name, value in inputs_of(probe).items():
        if name != "b":
            share = 0.5 + 0.5 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
            probe = with_input(probe, name, value + 1e-3 * share * (1 + value.abs()))
    return probe


def outputs_of(env: HybridEnv, probe: Probe) -> dict[str, torch.Tensor]:
    """What gradients are taken of, each of shape ``(batch, k)``."""
    return float_outputs(call_hook(env, "step_torch", *probe))


def float_outputs(result: StepResult) -> dict[str, torch.Tensor]:
    """The floating-point numbers that a step leads to, each of shape ``(batch, k)``."""
    fields = {f"next state.{name}": f.reshape(len(f), -1) for name, f in result.state._asdict().items() if _is_continuous(f)}
    return {**fields, "observation": result.observation, "reward": result.reward[:, None]}


def coordinate_weights(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Uneven weights of the coordinates of an output, so that one backward pass sees them all."""
    return {name: torch.linspace(0.5, 1.5, value.shape[1], dtype=value.dtype) for name, value in outputs.items()}


def gradients_of(env: HybridEnv, probe: Probe) -> dict[tuple[str, str], torch.Tensor]:
    """The gradient of each weighted output in each input, shape ``(batch, k)``."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs_of(probe).items()}
    for name, leaf in leaves.items():
        probe = with_input(probe, name, leaf)
    outputs = outputs_of(env, probe)
    gradients = {}
    for of, weights in coordinate_weights(outputs).items():
        total = (outputs[of] @ weights).sum()
        # an output may be free of all inputs; whether it should be, the differences tell
        found = torch.autograd.grad(
            total + sum(0.0 * leaf.sum() for leaf in leaves.values()), list(leaves.values()), retain_graph=True
        )
        gradients.update({(of, by): gradient.reshape(len(gradient), -1) for by, gradient in zip(leaves, found, strict=True)})
    return gradients


def located(probe: Probe, by: str, row: int, i: int) -> str:
    shape = inputs_of(probe)[by].shape[1:]
    index = [int(k) for k in np.unravel_index(i, shape)] if shape else []
    return f"{by}{index or ''}, regime {probe.action.regime[row].tolist()}, period {int(probe.state.period[row])}"
