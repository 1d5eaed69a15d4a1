"""``check_hybrid_env``: the contract of a :class:`~hybrid_envs.core.HybridEnv`, as a check for environments of one's own."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from hybrid_envs.core import HybridEnv
from hybrid_envs.effects import check_effects
from hybrid_envs.factor_checks import check_drawing, check_factor_effects, check_layout
from hybrid_envs.jumps import check_jumps
from hybrid_envs.probing import (
    HybridEnvError,
    Probe,
    call_hook,
    check_period,
    coordinate_weights,
    draw,
    draw_actions,
    fail,
    gradients_of,
    inputs_of,
    keep_row,
    leaves,
    located,
    nudged,
    outputs_of,
    permitted,
    pick,
    random_probes,
    random_rollout,
    reach,
    require_equal,
    require_finite,
    require_tensor,
    seeded,
    with_input,
)
from hybrid_envs.spaces import HybridAction, hybrid_action_space, split_hybrid_space
from hybrid_envs.vector import HybridVectorEnv

STEP = 1e-6
"""Width of finite differences, relative to the magnitude of what is varied."""
ROUNDING = 1e-13
"""Error of one float64 evaluation of the dynamics, relative to its result."""


def check_hybrid_env(env: gym.Env, *, seed: int = 0, rtol: float = 1e-4) -> None:
    """
    Check that an environment keeps the contract of :class:`~hybrid_envs.core.HybridEnv`: spaces and bounds, shapes and
    dtypes, seeds, purity (no hidden randomness or memory, no in-place writes), independent rows, one episode of ``step``
    against ``step_torch``, gradients against finite differences in every regime, and jumps inside a regime, in b and in the
    state; with several factors, also which of them acts on which coordinate. Most is checked in float32 and float64, and on a
    GPU if there is one. Passing says that no breach was met along random rollouts. A warning names what is allowed but hardly
    meant: a regime that changes nothing, an end of the range of b without effect, an episode's end that jumps.

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
    check_layout(bare)
    placements = [("cpu", torch.float32), ("cpu", torch.float64)]
    if torch.cuda.is_available():
        placements.append(("cuda", torch.float32))
    for device, dtype in placements:
        placed = copy.deepcopy(bare).to(device, dtype)
        for check in CHECKS:
            check(placed, seed)
    check_rows(copy.deepcopy(bare).to("cpu", torch.float64), seed)
    if bare.factors.many:
        check_drawing(copy.deepcopy(bare).to("cpu", torch.float32), seed)
    with torch.enable_grad():
        check_gradients(copy.deepcopy(bare).to("cpu", torch.float64), seed, rtol)
    with torch.no_grad():
        checks = (check_factor_effects, check_jumps) if bare.factors.many else (check_jumps, check_effects)
        for check in checks:
            check(copy.deepcopy(bare).to("cpu", torch.float64), seed)


# ---- what is checked, in this order ------------------------------------------------------------------------------------


def check_attributes(env: HybridEnv) -> None:
    """Tensors are attributes of their own, where ``to()`` finds them."""
    for name, value in vars(env).items():
        if name not in ("_state", "_frames"):  # the running episode, which to() ends
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if isinstance(value, torch.nn.Module) or any(isinstance(item, torch.Tensor) for item in items):
                mend = "to() moves tensor attributes only; keep each tensor as an attribute of its own"
                fail(env, f"self.{name}", f"tensors inside a {type(value).__name__}", mend)


def check_spaces(env: HybridEnv, seed: int) -> None:
    """The Box is the hull of the regimes' bounds, and sizes agree."""
    mend = "pass action_bounds and observation_size to super().__init__, and leave the spaces and sizes to it"
    try:
        hull = hybrid_action_space(env.action_bounds, env.factors)
        split_hybrid_space(env.action_space)
    except (TypeError, ValueError) as error:
        fail(env, "action_space", str(error), mend)
    if env.action_space != hull:
        fail(env, "action_space", f"it is {env.action_space}, but the hull of action_bounds is {hull}", mend)
    if np.shape(env.action_bounds) != (env.n_regimes, env.action_size, 2):
        what = f"n_regimes = {env.n_regimes}, action_size = {env.action_size}, but it has shape {np.shape(env.action_bounds)}"
        fail(env, "action_bounds", what, mend)
    if np.shape(env.action_scale) != (env.action_size,) or not ((env.action_scale > 0) & np.isfinite(env.action_scale)).all():
        fail(env, "action_scale", f"got {env.action_scale}", f"give positive finite numbers of shape ({env.action_size},)")
    if not isinstance(env.observation_space, gym.spaces.Box) or len(env.observation_space.shape) != 1:
        fail(env, "observation_space", f"got {env.observation_space}", mend)


def check_initial(env: HybridEnv, seed: int) -> None:
    """Starting states have a batch dimension, period 0, and no randomness but the generator's."""
    for batch in (1, 4):
        state = draw(env, "initial", batch, seed)
        if "period" not in getattr(state, "_fields", ()):
            fail(
                env, "initial()", f"returned a {type(state).__name__}", "return a NamedTuple of tensors with a field 'period'"
            )
        for field, value in state._asdict().items():
            expected = torch.int64 if field == "period" else env.dtype
            if not isinstance(value, torch.Tensor) or value.is_floating_point() or field == "period":
                require_tensor(env, f"initial(): {field}", value, None if field != "period" else (batch,), expected)
            if value.shape[:1] != (batch,):
                fail(env, f"initial(): {field}", f"shape {tuple(value.shape)}", f"its first dimension is the batch, {batch}")
        if state.period.any():
            fail(env, "initial(): period", f"starts at {int(state.period.max())}", "start the clock at 0")
        require_finite(env, "initial()", state)


def check_noise(env: HybridEnv, seed: int) -> None:
    """Scenarios are drawn whole, with no randomness but the generator's."""
    for batch in (1, 4):
        _require_noise(env, "sample_noise()", draw(env, "sample_noise", batch, seed), batch)
        if type(env).sample_scenarios is not HybridEnv.sample_scenarios:
            state, noise = draw(env, "sample_scenarios", batch, seed)
            template = draw(env, "initial", batch, seed)
            if type(state) is not type(template):
                mend = f"return starting states as initial() does, a {type(template).__name__}, and the noise"
                fail(env, "sample_scenarios()", f"its states are a {type(state).__name__}", mend)
            for field, like in template._asdict().items():
                where = f"sample_scenarios(): {field}"
                require_tensor(env, where, getattr(state, field), tuple(like.shape), like.dtype)
            require_finite(env, "sample_scenarios()", state)
            _require_noise(env, "sample_scenarios()", noise, batch)


def _require_noise(env: HybridEnv, where: str, noise: torch.Tensor, batch: int) -> None:
    require_tensor(env, where, noise, None, env.dtype if getattr(noise, "is_floating_point", bool)() else None)
    if noise.shape[:2] != (env.horizon, batch):
        mend = f"draw whole scenarios, shape (horizon, batch, ...) = ({env.horizon}, {batch}, ...)"
        fail(env, where, f"shape {tuple(noise.shape)}", mend)
    require_finite(env, where, noise)


def check_rollout(env: HybridEnv, seed: int) -> None:
    """Hook by hook: shapes, dtypes, finite numbers, the clock and the horizon along an episode of a random policy."""
    for period, probe in enumerate(random_rollout(env, seed)):
        check_period(env, probe, period)


def check_purity(env: HybridEnv, seed: int) -> None:
    """Each hook gives the same result again, whatever it was asked in between; so does the noise."""
    noise = env.sample_noise(2, seeded(env, seed))
    first, *_, last = ((*probe, env.step_torch(*probe).state) for probe in random_probes(env, seed))
    next_state = slice(3, 4)
    picks = {"observation": next_state, "terminal": next_state, "reward": slice(4), "regime_mask": slice(1)}
    hooks = ("transition", "observation", "terminal", "reward", "regime_mask", "step_torch")
    for hook, (one, other) in product(hooks, ((last, first), (first, last))):
        picked = picks.get(hook, slice(3))
        results = [call_hook(env, hook, *inputs[picked]) for inputs in (one, one, other, one)]
        for again in (results[1], results[3]):
            for (name, left), (_, right) in zip(leaves(hook, results[0]), leaves(hook, again), strict=True):
                if not torch.equal(left, right):
                    mend = "let it depend on its arguments alone: draw randomness in sample_noise(), keep memory in the state"
                    fail(env, f"{hook}()", f"the same inputs give different results in {name}", mend)
    if not torch.equal(noise, env.sample_noise(2, seeded(env, seed))):
        mend = "noise is free of states and actions, so that it can be replayed: put what depends on them in transition()"
        fail(env, "sample_noise()", "the same seed gives another scenario after some steps were taken", mend)


def check_figure_of_merit(env: HybridEnv, seed: int) -> None:
    """One finite number per scenario; :func:`~hybrid_envs.evaluation.evaluate` hands over float64 costs."""
    costs = torch.rand(env.horizon, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    merit = call_hook(env, "figure_of_merit", costs)
    if not isinstance(merit, torch.Tensor) or merit.shape != (3,) or not merit.isfinite().all():
        mend = "reduce costs of shape (horizon, batch) over dim 0 to one finite number per scenario, shape (batch,)"
        fail(env, "figure_of_merit()", f"got {merit}", mend)
    for row in range(3):
        _require_row(
            env,
            "figure_of_merit",
            "its result",
            row,
            merit[row],
            call_hook(env, "figure_of_merit", costs[:, row : row + 1])[0],
            "is another when it is alone in its batch",
        )


def check_episode(env: HybridEnv, seed: int) -> None:
    """``reset`` and ``step`` tell the story of ``step_torch``, twice the same from the same seed; bad actions are refused."""
    mend = "reset() and step() are the base class's: do not override them; write the hooks"
    vector = HybridVectorEnv(env, 1)
    rewards: list[list[float]] = [[], []]
    for attempt in rewards:
        observation, _ = call_hook(env, "reset", seed=seed)
        require_equal(env, "reset(): observation", observation, vector.reset(seed=seed)[0][0], mend)
        generator = seeded(env, seed)
        wanted = env.factors.spread(env.horizon, generator)
        for period in range(env.horizon):
            regimes = permitted(env, vector.state, wanted[period : period + 1])
            action = draw_actions(env, regimes, generator)
            regime, point = regimes[0].tolist(), action.point[0].float().cpu().numpy()
            with torch.no_grad():
                expected, done = vector.advance(HybridAction(regimes, torch.as_tensor(point[None]).to(action.point)))
            got = call_hook(env, "step", (regime, point))
            for name, left, right in zip(
                ("observation", "reward", "terminated", "truncated"), got, expected[1:], strict=False
            ):
                require_equal(env, f"step(): {name} in period {period}, regime {regime}", left, right[0].cpu().numpy(), mend)
            attempt.append(got[1])
            if bool(done):
                break
    if rewards[0] != rewards[1]:
        fail(env, "reset(seed)", "the same seed and actions give other rewards", mend)
    for bad in bad_actions(env):
        env.reset(seed=seed)
        try:
            env.step(bad)
        except ValueError:
            continue
        fail(env, "step()", f"accepts {bad}", "refuse actions outside the action space with ValueError: leave step() as it is")


def bad_actions(env: HybridEnv) -> list[tuple[Any, np.ndarray]]:
    """Regimes that there are not, and a point that is no number."""
    point, nowhere = env.action_space.sample()[1], np.full(env.action_size, np.nan, np.float32)
    if not env.factors.many:
        return [(env.n_regimes, point), (0, nowhere)]
    sizes = np.array(env.factors.sizes)
    regimes = [np.where(np.arange(len(sizes)) == f, sizes, 0) for f in range(len(sizes))]
    if env.factors.active_limits is not None:
        least, greatest = env.factors.active_limits
        regimes += [(np.arange(len(sizes)) < k).astype(np.int64) for k in (least - 1, greatest + 1) if 0 <= k <= len(sizes)]
    return [*((regime, point) for regime in [*regimes, regimes[0][:-1]]), (0 * sizes, nowhere)]


def check_rows(env: HybridEnv, seed: int) -> None:
    """Row i of every result depends on row i of the inputs alone."""
    for probe, other in zip(random_probes(env, seed), random_probes(env, seed + 1), strict=False):
        regime = permitted(env, other.state, other.action.regime.roll(1, dims=0))
        foreign = other._replace(action=other.action._replace(regime=regime))
        for row in (0, len(probe.noise) - 1):
            mixed = Probe(*(keep_row(row, mine, theirs) for mine, theirs in zip(probe, foreign, strict=True)))
            for hook, inputs in (("regime_mask", slice(1)), ("step_torch", slice(3))):
                results = [leaves(hook, getattr(env, hook)(*given[inputs])) for given in (probe, mixed)]
                for (name, left), (_, right) in zip(*results, strict=True):
                    _require_row(env, hook, name, row, left[row], right[row], "changes when the other rows do")
        for row in range(len(probe.noise)):
            alone = Probe(*(pick(of, torch.tensor([row])) for of in probe))
            results = [leaves("step_torch", env.step_torch(*given)) for given in (probe, alone)]
            for (name, left), (_, right) in zip(*results, strict=True):
                _require_row(env, "step_torch", name, row, left[row], right[0], "is another when it is alone in its batch")


def _require_row(
    env: HybridEnv, hook: str, name: str, row: int, one: torch.Tensor, other: torch.Tensor, otherwise: str
) -> None:
    if not torch.allclose(one.double(), other.double(), rtol=1e-8, atol=1e-8):
        mend = "reduce over trailing dimensions only, never over the batch (dim 0), and choose by torch.where, not by .any()"
        fail(env, f"{hook}()", f"row {row} of {name.removeprefix('step_torch.')} {otherwise}", mend)


def check_gradients(env: HybridEnv, seed: int, rtol: float) -> None:
    """Gradients in state and b are finite where a policy comes by, and equal central differences close to it."""
    generator = seeded(env, seed)
    probes = random_probes(env, seed, copies=8)
    for probe in probes:
        for (of, by), gradient in gradients_of(env, probe).items():
            for row, i in (~gradient.isfinite()).nonzero().tolist():
                mend = "keep sqrt, log and division off their poles, also in branches that torch.where drops"
                fail(env, f"gradient of {of}", f"not finite in {located(probe, by, row, i)}", mend)
    sensitive = torch.zeros(env.n_regimes, dtype=torch.bool)
    times, changes = torch.zeros(env.n_regimes), torch.zeros(env.n_regimes)
    for probe in probes:
        near = nudged(probe, generator)
        gradients = gradients_of(env, near)
        _compare(env, near, gradients, rtol)
        if env.factors.many:
            continue  # see check_factor_effects
        slopes = torch.stack([g.abs().amax(1) for (_, by), g in gradients.items() if by == "b"]).amax(0)
        moved = near._replace(action=draw_actions(env, near.action.regime, generator))
        pairs = zip(outputs_of(env, near).values(), outputs_of(env, moved).values(), strict=True)
        differs = torch.stack([(left != right).any(1) for left, right in pairs]).any(0)
        taken = torch.nn.functional.one_hot(near.action.regime, env.n_regimes).bool()
        sensitive |= (taken & (slopes > 0).unsqueeze(1)).any(0)
        times += taken.sum(0)
        changes += (taken & differs.unsqueeze(1)).sum(0)
    for regime in (~sensitive & (changes > 0.5 * times)).nonzero().flatten().tolist():
        mend = "a round, floor, sign or comparison has no gradient: use a smooth form, or make the jump a regime of its own"
        fail(
            env, "step_torch()", f"piecewise constant in b: b matters in regime {regime}, but every gradient in it is 0", mend
        )


def _compare(env: HybridEnv, probe: Probe, gradients: dict[tuple[str, str], torch.Tensor], rtol: float) -> None:
    """Autograd against central differences, all rows at once: they do not depend on each other."""
    low, high = reach(env, probe.action.regime)
    centre = outputs_of(env, probe)
    for by, value in inputs_of(probe).items():
        width = STEP * (high - low if by == "b" else 1 + value.abs()).reshape(len(value), -1)
        for i in range(width.shape[1]):
            step = torch.zeros_like(width)
            step[:, i] = width[:, i]
            ends = [outputs_of(env, with_input(probe, by, value + sign * step.view_as(value))) for sign in (1, -1)]
            for of, weights in coordinate_weights(centre).items():
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
                    fail(env, f"gradient of {of}", f"{found} in {located(probe, by, row, i)}", mend)


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
