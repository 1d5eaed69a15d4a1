"""``check_hybrid_env``: the contract of a :class:`~hybrid_envs.core.HybridEnv`, as a check for environments of one's own."""

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch

from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction, hybrid_action_space, split_hybrid_space
from hybrid_envs.vector import HybridVectorEnv

STEP = 1e-6
"""Width of finite differences, relative to the magnitude of what is varied."""
ROUNDING = 1e-13
"""Error of one float64 evaluation of the dynamics, relative to its result."""


class HybridEnvError(AssertionError):
    """An environment breaks the contract of a HybridEnv; the message says what is wrong, where, and how to mend it."""


class Probe(NamedTuple):
    """Inputs of ``step_torch`` as a random policy meets them; row i takes regime i modulo J."""

    state: Any
    action: HybridAction
    noise: torch.Tensor


def check_hybrid_env(env: gym.Env, *, seed: int = 0, rtol: float = 1e-4) -> None:
    """
    Check that an environment keeps the contract of :class:`~hybrid_envs.core.HybridEnv`: spaces and bounds, shapes and
    dtypes, seeds, purity (no hidden randomness or memory, no in-place writes), independent rows, one episode of ``step``
    against ``step_torch``, and gradients against finite differences in every regime. All but the gradients are checked in
    float32 and float64, and on a GPU if there is one. Passing says that no breach was met along two random rollouts.

    :param env: the environment, possibly wrapped; copies of it are checked, and it stays as it is
    :param seed: of the states, actions and scenarios it is checked with
    :param rtol: by how much gradients may differ from finite differences, relatively
    :raises HybridEnvError: at the first breach, saying what is wrong, where, and how to mend it
    """
    bare = env.unwrapped
    if not isinstance(bare, HybridEnv):
        raise HybridEnvError(f"{type(bare).__name__} is not a HybridEnv: derive it from hybrid_envs.HybridEnv")
    if not hasattr(bare, "_generator"):
        raise HybridEnvError(f"{type(bare).__name__} is not set up: call super().__init__(...) in its __init__")
    check_attributes(bare)
    placements = [("cpu", torch.float32), ("cpu", torch.float64)]
    if torch.cuda.is_available():
        placements.append(("cuda", torch.float32))
    for device, dtype in placements:
        placed = copy.deepcopy(bare).to(device, dtype)
        for check in CHECKS:
            check(placed, seed)
    check_rows(copy.deepcopy(bare).to("cpu", torch.float64), seed)
    with torch.enable_grad():
        check_gradients(copy.deepcopy(bare).to("cpu", torch.float64), seed, rtol)


# ---- what is checked, in this order ------------------------------------------------------------------------------------


def check_attributes(env: HybridEnv) -> None:
    """Tensors are attributes of their own, where ``to()`` finds them."""
    for name, value in vars(env).items():
        if name not in ("_state", "_frames"):  # the running episode, which to() ends
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if isinstance(value, torch.nn.Module) or any(isinstance(item, torch.Tensor) for item in items):
                mend = "to() moves tensor attributes only; keep each tensor as an attribute of its own"
                _fail(env, f"self.{name}", f"tensors inside a {type(value).__name__}", mend)


def check_spaces(env: HybridEnv, seed: int) -> None:
    """The Box is the hull of the regimes' bounds, and sizes agree."""
    mend = "pass action_bounds and observation_size to super().__init__, and leave the spaces and sizes to it"
    try:
        hull = hybrid_action_space(env.action_bounds)
        split_hybrid_space(env.action_space)
    except (TypeError, ValueError) as error:
        _fail(env, "action_space", str(error), mend)
    if env.action_space != hull:
        _fail(env, "action_space", f"it is {env.action_space}, but the hull of action_bounds is {hull}", mend)
    if np.shape(env.action_bounds) != (env.n_regimes, env.action_size, 2):
        what = f"n_regimes = {env.n_regimes}, action_size = {env.action_size}, but it has shape {np.shape(env.action_bounds)}"
        _fail(env, "action_bounds", what, mend)
    if np.shape(env.action_scale) != (env.action_size,) or not ((env.action_scale > 0) & np.isfinite(env.action_scale)).all():
        _fail(env, "action_scale", f"got {env.action_scale}", f"give positive finite numbers of shape ({env.action_size},)")
    if not isinstance(env.observation_space, gym.spaces.Box) or len(env.observation_space.shape) != 1:
        _fail(env, "observation_space", f"got {env.observation_space}", mend)


def check_initial(env: HybridEnv, seed: int) -> None:
    """Starting states have a batch dimension, period 0, and no randomness but the generator's."""
    for batch in (1, 4):
        state = _draw(env, "initial", batch, seed)
        if "period" not in getattr(state, "_fields", ()):
            _fail(
                env, "initial()", f"returned a {type(state).__name__}", "return a NamedTuple of tensors with a field 'period'"
            )
        for field, value in state._asdict().items():
            expected = torch.int64 if field == "period" else env.dtype
            if not isinstance(value, torch.Tensor) or value.is_floating_point() or field == "period":
                _require(env, f"initial(): {field}", value, None if field != "period" else (batch,), expected)
            if value.shape[:1] != (batch,):
                _fail(env, f"initial(): {field}", f"shape {tuple(value.shape)}", f"its first dimension is the batch, {batch}")
        if state.period.any():
            _fail(env, "initial(): period", f"starts at {int(state.period.max())}", "start the clock at 0")
        _require_finite(env, "initial()", state, "")


def check_noise(env: HybridEnv, seed: int) -> None:
    """Scenarios are drawn whole, with no randomness but the generator's."""
    for batch in (1, 4):
        noise = _draw(env, "sample_noise", batch, seed)
        _require(env, "sample_noise()", noise, None, env.dtype if getattr(noise, "is_floating_point", bool)() else None)
        if noise.shape[:2] != (env.horizon, batch):
            mend = f"draw whole scenarios, shape (horizon, batch, ...) = ({env.horizon}, {batch}, ...)"
            _fail(env, "sample_noise()", f"shape {tuple(noise.shape)}", mend)
        _require_finite(env, "sample_noise()", noise, "")


def check_rollout(env: HybridEnv, seed: int) -> None:
    """Hook by hook: shapes, dtypes, finite numbers, the clock and the horizon along an episode of a random policy."""
    for period, probe in enumerate(_rollout(env, seed)):
        batch, where = len(probe.action.regime), f"in period {period}"
        following = _call(env, "transition", *probe)
        if type(following) is not type(probe.state):
            mend = f"return a {type(probe.state).__name__}, for example state._replace(...)"
            _fail(env, "transition()", f"returned a {type(following).__name__}", mend)
        for field, old in probe.state._asdict().items():
            _require(env, f"transition(): {field} {where}", getattr(following, field), tuple(old.shape), old.dtype)
        following = following._replace(period=probe.state.period + 1)
        size = (batch, *env.observation_space.shape)  # type: ignore[misc]
        values = {
            "transition()": following,
            "observation()": _require(env, f"observation() {where}", _call(env, "observation", following), size, env.dtype),
            "reward()": _require(env, f"reward() {where}", _call(env, "reward", *probe, following), (batch,), env.dtype),
        }
        for hook, value in values.items():
            _require_finite(env, hook, value, where)
        _require(env, f"terminal() {where}", _call(env, "terminal", following), (batch,), torch.bool)
        result = _call(env, "step_torch", *probe)
        if not isinstance(result, StepResult):
            _fail(env, "step_torch()", f"returned a {type(result).__name__}", "return a StepResult")
        if not (result.state.period == period + 1).all():
            _fail(
                env, f"step_torch() {where}", f"period becomes {result.state.period.tolist()}", f"it must become {period + 1}"
            )
        if not torch.equal(result.truncated, (result.state.period >= env.horizon) & ~result.terminated):
            mend = f"truncate after horizon = {env.horizon} periods, not earlier or later, and only what has not terminated"
            _fail(env, f"step_torch() {where}", f"truncated is {result.truncated.tolist()}", mend)


def check_purity(env: HybridEnv, seed: int) -> None:
    """Each hook gives the same result again, whatever it was asked in between; so does the noise."""
    noise = env.sample_noise(2, _generator(env, seed))
    first, other = ((*probe, env.step_torch(*probe).state) for probe in _probes(env, seed))
    for hook in ("transition", "observation", "terminal", "reward", "step_torch"):
        picked = {"observation": slice(3, 4), "terminal": slice(3, 4), "reward": slice(4)}.get(hook, slice(3))
        results = [_call(env, hook, *inputs[picked]) for inputs in (first, first, other, first)]
        for again in (results[1], results[3]):
            for (name, left), (_, right) in zip(_leaves(hook, results[0]), _leaves(hook, again), strict=True):
                if not torch.equal(left, right):
                    mend = "let it depend on its arguments alone: draw randomness in sample_noise(), keep memory in the state"
                    _fail(env, f"{hook}()", f"the same inputs give different results in {name}", mend)
    if not torch.equal(noise, env.sample_noise(2, _generator(env, seed))):
        mend = "noise is free of states and actions, so that it can be replayed: put what depends on them in transition()"
        _fail(env, "sample_noise()", "the same seed gives another scenario after some steps were taken", mend)


def check_figure_of_merit(env: HybridEnv, seed: int) -> None:
    """One finite number per scenario; :func:`~hybrid_envs.evaluation.evaluate` hands over float64 costs."""
    costs = torch.rand(env.horizon, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    merit = _call(env, "figure_of_merit", costs)
    if not isinstance(merit, torch.Tensor) or merit.shape != (3,) or not merit.isfinite().all():
        mend = "reduce costs of shape (horizon, batch) over dim 0 to one finite number per scenario, shape (batch,)"
        _fail(env, "figure_of_merit()", f"got {merit}", mend)


def check_episode(env: HybridEnv, seed: int) -> None:
    """``reset`` and ``step`` tell the story of ``step_torch``, twice the same from the same seed; bad actions are refused."""
    mend = "reset() and step() are the base class's: do not override them; write the hooks"
    vector = HybridVectorEnv(env, 1)
    rewards: list[list[float]] = [[], []]
    for attempt in rewards:
        observation, _ = _call(env, "reset", seed=seed)
        _agree(env, "reset(): observation", observation, vector.reset(seed=seed)[0][0], mend)
        generator = _generator(env, seed)
        for period in range(env.horizon):
            regimes = torch.tensor([period % env.n_regimes], device=env.device)
            action = _actions(env, regimes, generator)
            regime, point = int(regimes), action.point[0].float().cpu().numpy()
            with torch.no_grad():
                expected, done = vector.advance(HybridAction(regimes, torch.as_tensor(point[None]).to(action.point)))
            got = _call(env, "step", (regime, point))
            for name, left, right in zip(
                ("observation", "reward", "terminated", "truncated"), got, expected[1:], strict=False
            ):
                _agree(env, f"step(): {name} in period {period}, regime {regime}", left, right[0].cpu().numpy(), mend)
            attempt.append(got[1])
            if bool(done):
                break
    if rewards[0] != rewards[1]:
        _fail(env, "reset(seed)", "the same seed and actions give other rewards", mend)
    for bad in ((env.n_regimes, env.action_space.sample()[1]), (0, np.full(env.action_size, np.nan, np.float32))):
        env.reset(seed=seed)
        try:
            env.step(bad)
        except ValueError:
            continue
        _fail(
            env, "step()", f"accepts {bad}", "refuse actions outside the action space with ValueError: leave step() as it is"
        )


def check_rows(env: HybridEnv, seed: int) -> None:
    """Row i of every result depends on row i of the inputs alone."""
    for probe, other in zip(_probes(env, seed), _probes(env, seed + 1), strict=False):
        expected = env.step_torch(*probe)
        foreign = other._replace(action=other.action._replace(regime=other.action.regime.roll(1)))
        for row in (0, len(probe.noise) - 1):
            mixed = [_keep_row(row, mine, theirs) for mine, theirs in zip(probe, foreign, strict=True)]
            for (name, left), (_, right) in zip(
                _leaves("result", expected), _leaves("result", env.step_torch(*mixed)), strict=True
            ):
                if not torch.allclose(left[row].double(), right[row].double(), rtol=1e-8, atol=1e-8):
                    what = f"row {row} of {name.removeprefix('result.')} changes when the other rows do"
                    _fail(env, "step_torch()", what, "reduce over trailing dimensions only, never over the batch (dim 0)")


def check_gradients(env: HybridEnv, seed: int, rtol: float) -> None:
    """Gradients in state and b are finite where a policy comes by, and equal central differences close to it."""
    generator = _generator(env, seed)
    probes = _probes(env, seed, copies=8)
    for probe in probes:
        for (of, by), gradient in _gradients(env, probe).items():
            for row, i in (~gradient.isfinite()).nonzero().tolist():
                mend = "keep sqrt, log and division off their poles, also in branches that torch.where drops"
                _fail(env, f"gradient of {of}", f"not finite in {_at(probe, by, row, i)}", mend)
    sensitive = torch.zeros(env.n_regimes, dtype=torch.bool)
    changed = torch.zeros(env.n_regimes, len(probes[0].noise) // env.n_regimes * len(probes))
    for k, probe in enumerate(probes):
        near = _nudged(probe, generator)
        gradients = _gradients(env, near)
        _compare(env, near, gradients, rtol)
        slopes = torch.stack([g.abs().amax(1) for (_, by), g in gradients.items() if by == "b"]).amax(0)
        moved = near._replace(action=_actions(env, near.action.regime, generator))
        pairs = zip(_outputs(env, near).values(), _outputs(env, moved).values(), strict=True)
        differs = torch.stack([(left != right).any(1) for left, right in pairs]).any(0)
        sensitive |= (slopes > 0).view(-1, env.n_regimes).any(0)
        changed[:, k :: len(probes)] = differs.view(-1, env.n_regimes).T.float()
    for regime in (~sensitive & (changed.mean(1) > 0.5)).nonzero().flatten().tolist():
        mend = "a round, floor, sign or comparison has no gradient: use a smooth form, or make the jump a regime of its own"
        _fail(
            env, "step_torch()", f"piecewise constant in b: b matters in regime {regime}, but every gradient in it is 0", mend
        )


def _compare(env: HybridEnv, probe: Probe, gradients: dict[tuple[str, str], torch.Tensor], rtol: float) -> None:
    """Autograd against central differences, all rows at once: they do not depend on each other."""
    low, high = _reach(env, probe.action.regime)
    centre = _outputs(env, probe)
    for by, value in _inputs(probe).items():
        width = STEP * (high - low if by == "b" else 1 + value.abs()).flatten(1)
        for i in range(width.shape[1]):
            step = torch.zeros_like(width)
            step[:, i] = width[:, i]
            ends = [_outputs(env, _with(probe, by, value + sign * step.view_as(value))) for sign in (1, -1)]
            for of, weights in _weights(centre).items():
                right, left = ((ends[0][of] - centre[of]) @ weights, (centre[of] - ends[1][of]) @ weights)
                # a coordinate whose bounds coincide cannot move; where the two sides disagree there is a kink
                rounding = ROUNDING * (1 + (centre[of].abs() @ weights))
                usable = (width[:, i] > 0) & ((right - left).abs() <= 1e-2 * (right.abs() + left.abs()) + rounding)
                slope = (right + left) / (2 * width[:, i])
                gradient = gradients[of, by][:, i]
                wrong = usable & ((gradient - slope).abs() > rtol * (slope.abs() + gradient.abs()) + rounding / width[:, i])
                if wrong.any():
                    row = int(wrong.nonzero()[0])
                    found = f"autograd gives {float(gradient[row]):.6g}, finite differences {float(slope[row]):.6g}"
                    cut = "something cuts the graph: look for detach(), .item(), numpy, torch.no_grad(), torch.tensor(...)"
                    mend = "look for straight-through tricks, a partial detach() or a custom backward"
                    mend = cut if gradient[row] == 0 else mend
                    _fail(env, f"gradient of {of}", f"{found} in {_at(probe, by, row, i)}", mend)


CHECKS: list[Callable[[HybridEnv, int], None]] = [
    check_spaces,
    check_initial,
    check_noise,
    check_rollout,
    check_purity,
    check_figure_of_merit,
    check_episode,
]
"""What is checked for every device and dtype; each relies on the ones before it."""


# ---- what the checks are made of ---------------------------------------------------------------------------------------


def _message(env: HybridEnv, where: str, what: str, mend: str) -> str:
    return f"{env.name}, {where} ({env.dtype} on {env.device}): {what}. To mend it: {mend}."


def _fail(env: HybridEnv, where: str, what: str, mend: str) -> NoReturn:
    raise HybridEnvError(_message(env, where, what, mend))


def _generator(env: HybridEnv, seed: int) -> torch.Generator:
    return torch.Generator(env.device).manual_seed(seed)


def _leaves(label: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested NamedTuples, with their dotted names."""
    if isinstance(value, torch.Tensor):
        yield label, value
    elif hasattr(value, "_asdict"):
        for field, item in value._asdict().items():
            yield from _leaves(f"{label}.{field}", item)


def _call(env: HybridEnv, hook: str, *args: Any, **kwargs: Any) -> Any:
    """Call a hook; it must not raise, write to its arguments, or draw from a global random generator."""
    names = {"figure_of_merit": ["costs"]}.get(hook, ["state", "action", "noise", "next_state"])
    tensors = [leaf for name, arg in zip(names, args, strict=False) for leaf in _leaves(name, arg)]
    before = [(tensor.clone(), tensor._version) for _, tensor in tensors]
    rng = _global_rng()
    try:
        result = getattr(env, hook)(*args, **kwargs)
    except Exception as error:
        mend = "create tensors with dtype=self.dtype, device=self.device, and keep constants as tensor attributes of the env"
        if (env.dtype, env.device.type) == (torch.float32, "cpu"):
            mend = "its cause is chained to this error"
        raise HybridEnvError(_message(env, f"{hook}()", f"raised {type(error).__name__}: {error}", mend)) from error
    for (name, tensor), (value, version) in zip(tensors, before, strict=True):
        if tensor._version != version or not torch.equal(tensor, value):
            _fail(env, f"{hook}()", f"writes to its argument {name} in place", "return new tensors: x + 1 instead of x += 1")
    for source, value in _global_rng().items():
        if value != rng[source]:
            mend = "draw in initial() and sample_noise() only, from the generator they are given"
            _fail(env, f"{hook}()", f"hidden randomness: it draws from the global generator of {source}", mend)
    return result


def _global_rng() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy.random": pickle.dumps(np.random.get_state()),
        "random": random.getstate(),
    }


def _draw(env: HybridEnv, hook: str, batch: int, seed: int) -> Any:
    """What a drawing hook returns, twice the same from the same seed."""
    first, second = (_call(env, hook, batch, _generator(env, seed)) for _ in range(2))
    for (name, left), (_, right) in zip(_leaves(hook, first), _leaves(hook, second), strict=True):
        if not torch.equal(left, right):
            mend = "pass generator=generator to every draw, and keep no memory of earlier calls"
            _fail(env, f"{hook}()", f"hidden randomness: equal seeds give different values in {name}", mend)
    return first


def _require(env: HybridEnv, where: str, value: Any, shape: tuple[int, ...] | None, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor of this shape and dtype, on the environment's device; ``None``: any."""
    if not isinstance(value, torch.Tensor):
        _fail(env, where, f"a {type(value).__name__}", "return a torch.Tensor")
    if shape is not None and value.shape != shape:
        _fail(env, where, f"shape {tuple(value.shape)}", f"return shape {shape}; the first dimension is the batch")
    if (dtype is not None and value.dtype != dtype) or value.device.type != env.device.type:
        mend = f"make it {dtype or value.dtype} on {env.device}: create tensors with dtype=self.dtype, device=self.device"
        _fail(env, where, f"{value.dtype} on {value.device}", mend)
    return value


def _require_finite(env: HybridEnv, where: str, value: Any, when: str) -> None:
    for name, tensor in _leaves("result", value):
        if not tensor.isfinite().all():
            row = int((~tensor.isfinite()).nonzero()[0, 0])
            what = f"non-finite {name.removeprefix('result.')} {when} (row {row}, regime {row % env.n_regimes})"
            _fail(env, where, what, "bound the dynamics, or the actions through action_bounds and action_scale")


def _agree(env: HybridEnv, where: str, got: Any, expected: Any, mend: str) -> None:
    if not np.allclose(got, expected, rtol=1e-5, atol=1e-6):
        _fail(env, where, f"{got}, but step_torch() gives {expected} from the same seed", mend)


def _reach(env: HybridEnv, regime: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where to draw b from: the bounds of its regime, and its typical magnitude where there is none."""
    low, high = torch.tensor(env.action_bounds, dtype=env.dtype, device=env.device)[regime].unbind(-1)
    scale = torch.tensor(env.action_scale, dtype=env.dtype, device=env.device)
    return (
        torch.where(low.isfinite(), low, torch.where(high.isfinite(), high - scale, -scale)),
        torch.where(high.isfinite(), high, torch.where(low.isfinite(), low + scale, scale)),
    )


def _actions(env: HybridEnv, regime: torch.Tensor, generator: torch.Generator) -> HybridAction:
    low, high = _reach(env, regime)
    share = torch.rand(low.shape, generator=generator, dtype=env.dtype, device=env.device)
    return HybridAction(regime, low + (0.05 + 0.9 * share) * (high - low))  # room for finite differences on both sides


def _rollout(env: HybridEnv, seed: int, copies: int = 3) -> Iterator[Probe]:
    """An episode of a random policy, up to the first end; in every period ``copies`` rows take each regime."""
    generator = _generator(env, seed)
    regime = torch.arange(env.n_regimes, device=env.device).repeat(copies)
    state, noise = env.initial(len(regime), generator), env.sample_noise(len(regime), generator)
    for period in range(env.horizon):
        probe = Probe(state, _actions(env, regime, generator), noise[period])
        yield probe
        result = env.step_torch(*probe)
        state = result.state
        if (result.terminated | result.truncated).any():
            return


def _probes(env: HybridEnv, seed: int, copies: int = 3) -> list[Probe]:
    """The first period of a random policy, and one from the middle of its episode."""
    met = list(_rollout(env, seed, copies))
    return [met[0], met[len(met) // 2]]


def _keep_row(row: int, mine: Any, theirs: Any) -> Any:
    """``theirs``, but ``mine`` in one row."""
    if isinstance(mine, torch.Tensor):
        return torch.cat([theirs[:row], mine[row : row + 1], theirs[row + 1 :]])
    return type(mine)(*(_keep_row(row, a, b) for a, b in zip(mine, theirs, strict=True)))


def _inputs(probe: Probe) -> dict[str, torch.Tensor]:
    """What gradients are taken in: the floating-point fields of the state, and b."""
    fields = {f"state.{name}": field for name, field in probe.state._asdict().items() if field.is_floating_point()}
    return {**fields, "b": probe.action.point}


def _with(probe: Probe, name: str, value: torch.Tensor) -> Probe:
    if name == "b":
        return probe._replace(action=probe.action._replace(point=value))
    return probe._replace(state=probe.state._replace(**{name.removeprefix("state."): value}))


def _nudged(probe: Probe, generator: torch.Generator) -> Probe:
    """The same, a little off the kinks that round numbers and empty shelves sit on."""
    for name, value in _inputs(probe).items():
        if name != "b":
            share = 0.5 + 0.5 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
            probe = _with(probe, name, value + 1e-3 * share * (1 + value.abs()))
    return probe


def _outputs(env: HybridEnv, probe: Probe) -> dict[str, torch.Tensor]:
    """What gradients are taken of, each of shape ``(batch, k)``."""
    result = env.step_torch(*probe)
    fields = {f"next state.{name}": f.flatten(1) for name, f in result.state._asdict().items() if f.is_floating_point()}
    return {**fields, "observation": result.observation, "reward": result.reward[:, None]}


def _weights(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Uneven weights of the coordinates of an output, so that one backward pass sees them all."""
    return {name: torch.linspace(0.5, 1.5, value.shape[1], dtype=value.dtype) for name, value in outputs.items()}


def _gradients(env: HybridEnv, probe: Probe) -> dict[tuple[str, str], torch.Tensor]:
    """The gradient of each weighted output in each input, shape ``(batch, k)``."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in _inputs(probe).items()}
    for name, leaf in leaves.items():
        probe = _with(probe, name, leaf)
    outputs = _outputs(env, probe)
    gradients = {}
    for of, weights in _weights(outputs).items():
        total = (outputs[of] @ weights).sum()
        # an output may be free of all inputs; whether it should be, the differences tell
        found = torch.autograd.grad(
            total + sum(0.0 * leaf.sum() for leaf in leaves.values()), list(leaves.values()), retain_graph=True
        )
        gradients.update({(of, by): gradient.flatten(1) for by, gradient in zip(leaves, found, strict=True)})
    return gradients


def _at(probe: Probe, by: str, row: int, i: int) -> str:
    shape = _inputs(probe)[by].shape[1:]
    index = [int(k) for k in np.unravel_index(i, shape)] if shape else []
    return f"{by}{index or ''}, regime {int(probe.action.regime[row])}, period {int(probe.state.period[row])}"
