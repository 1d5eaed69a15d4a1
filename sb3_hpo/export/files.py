"""The graph in a file, what stands beside it, and the check that it decides as ``predict`` does."""

import hashlib
import inspect
import io
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces

from hybrid_envs.spaces import split_hybrid_space
from sb3_hpo.checkpoint.files import write_whole
from sb3_hpo.export.decision import DecisionModule
from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.policies import HybridActorCriticPolicy

Decide = Callable[..., tuple[np.ndarray, np.ndarray]]
"""
From the graph's inputs by name, arrays with a leading batch dimension, to the regimes, int64, shape ``(batch,)``, and the
points, shape ``(batch, n)``.
"""
OUTPUTS = ("regime", "point")
CHECKED = 1_000
"""Observations on which an export is compared with ``predict``."""


class Agreement(NamedTuple):
    """How far a graph decides as ``predict`` does."""

    observations: int
    """On which it was asked."""
    regimes_equal: float
    """Share of them on which both chose the same regime."""
    largest_point_difference: float
    """
    Over those observations and all coordinates: the distance in units of the point's typical or actual magnitude, whichever is
    larger.
    """
    largest_distance: float
    """The same in the point's own unit."""


def export_onnx(
    model: HybridPPO, path: str | Path, *, sampled: bool = False, facts: Mapping[str, object] | None = None
) -> Agreement:
    """
    Write the policy as an ONNX graph, for onnxruntime in any language, with a schema (``.json``) and a model card (``.md``) of
    the same name beside it. Needs the extra ``export``.

    :param model: HPO or HybridPPO, with its environment
    :param path: of the file, ``policy.onnx``
    :param sampled: whether decisions are drawn, from uniform numbers that become an input of the graph
    :param facts: further lines of the model card: data, split, figures
    :return: how far it decides as ``predict`` does, where nothing is drawn
    :raises ValueError: if the model has no environment, or observations that cannot be exported
    :raises RuntimeError: if the graph does not decide as ``predict`` does
    """
    module = DecisionModule.of(model, sampled=sampled)
    inputs = module.example()
    with _quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=OUTPUTS,
            dynamic_shapes={name: {0: "batch"} for name in inputs},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:  # where in which file each node was traced
        node.metadata_props.clear()
    content = program.model_proto.SerializeToString()
    return _write(model, module, Path(path), content, load_onnx(content), facts)


def export_torch(
    model: HybridPPO, path: str | Path, *, sampled: bool = False, facts: Mapping[str, object] | None = None
) -> Agreement:
    """
    The same as a program of ``torch.export``, which ``torch.export.load`` reads without this package.

    :param model: as for :func:`export_onnx`
    :param path: of the file, ``policy.pt2``
    :param sampled: likewise
    :param facts: likewise
    :return: likewise
    :raises ValueError: likewise
    :raises RuntimeError: likewise
    """
    module = DecisionModule.of(model, sampled=sampled)
    inputs = module.example()
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.export.export(module, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    content = buffer.getvalue()
    return _write(model, module, Path(path), content, load_torch(content), facts)


def load_onnx(source: str | Path | bytes) -> Decide:
    """
    :param source: what :func:`export_onnx` wrote, or its content
    :return: a function that asks it, by onnxruntime in one thread
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = source if isinstance(source, bytes) else str(source)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def decide(**inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        regime, point = session.run(OUTPUTS, inputs)
        return cast(np.ndarray, regime), cast(np.ndarray, point)

    return decide


def load_torch(source: str | Path | bytes) -> Decide:
    """
    :param source: what :func:`export_torch` wrote, or its content; it must be trusted, as torch may find pickles in it
    :return: a function that asks it
    """
    with _quiet():
        program = torch.export.load(io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes()))
    module = program.module()

    def decide(**inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            regime, point = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return regime.numpy(), point.numpy()

    return decide


def agreement(model: HybridPPO, decide: Decide, observations: np.ndarray, action_masks: np.ndarray | None = None) -> Agreement:
    """
    Compare a graph that draws nothing with ``model.predict(..., deterministic=True)``.

    :param model: with its environment
    :param decide: from :func:`load_onnx` or :func:`load_torch`
    :param observations: raw, as the environment returns them, float32, shape ``(batch, d)``
    :param action_masks: bool, shape ``(batch, J)``, where the environment masks regimes
    """
    normalizer = model.get_vec_normalize_env()
    seen = observations if normalizer is None else normalizer.normalize_obs(observations)
    actions, _ = model.predict(seen, deterministic=True, action_masks=action_masks)
    regimes, points = (np.stack(part) for part in zip(*actions, strict=True))
    masks = {} if action_masks is None else {"action_masks": action_masks}
    return _compare(decide(observation=observations, **masks), (regimes, points), model.policy.action_scale)


def _compare(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], scale: np.ndarray) -> Agreement:
    (regimes, points), (right_regimes, right_points) = found, expected
    same = (regimes == right_regimes).reshape(len(regimes), -1).all(axis=1)
    distance = np.abs(points - right_points)[same]
    relative = distance / np.maximum(scale, np.abs(right_points[same]))
    return Agreement(len(same), float(same.mean()), float(relative.max(initial=0.0)), float(distance.max(initial=0.0)))


def _check(model: HybridPPO, module: DecisionModule, decide: Decide) -> Agreement:
    """
    :return: how far the graph decides as it should, on observations as large as those that the model was made for
    :raises RuntimeError: if it does not
    """
    rng = np.random.default_rng(0)
    assert model.env is not None
    inputs = {name: value.numpy() for name, value in module.example(CHECKED).items()}
    if module.clip_obs is not None:
        mean, std = module.mean.numpy(), module.std.numpy()
    else:
        mean, std = np.zeros(()), np.asarray(_attribute(model, "observation_scale", 1.0))
    for name, value in inputs.items():
        normals = rng.normal(size=value.shape)
        if name == "observation":
            inputs[name] = (mean + std * normals).astype(np.float32)
        elif name == "action_masks":
            mask = torch.from_numpy(normals > 0)
            choice = module.policy.factors.leaves_a_choice(mask).view(len(mask), -1).all(dim=1, keepdim=True)
            inputs[name] = (mask | ~choice).numpy()
        else:
            inputs[name] = (rng.random(value.shape) if name == "uniforms" else normals).astype(np.float32)
    if module.sampled:
        with torch.no_grad():
            regime, point = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        found = _compare(decide(**inputs), (regime.numpy(), point.numpy()), model.policy.action_scale)
    else:
        found = agreement(model, decide, inputs["observation"], inputs.get("action_masks"))
    # Two regimes may be so nearly equally likely that rounding decides.
    if found.regimes_equal < 0.999 or not found.largest_point_difference <= 1e-4:
        raise RuntimeError(f"the exported graph does not decide as predict does: {found}")
    return found


# ---- what stands beside it -------------------------------------------------------------------------------------------


def _write(
    model: HybridPPO,
    module: DecisionModule,
    path: Path,
    content: bytes,
    decide: Decide,
    facts: Mapping[str, object] | None,
) -> Agreement:
    found = _check(model, module, decide)
    schema = _schema(model, module, path.name, content, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    write_whole(path.with_suffix(".json"), (json.dumps(schema, indent=1, allow_nan=False) + "\n").encode())
    write_whole(path.with_suffix(".md"), _card(schema, facts or {}).encode())
    return found


def _attribute(model: HybridPPO, name: str, otherwise: Any = None) -> Any:
    """An attribute of the model's environment, if it has it."""
    assert model.env is not None
    return model.env.get_attr(name)[0] if model.env.has_attr(name) else otherwise


def weights_hash(policy: HybridActorCriticPolicy) -> str:
    """
    :return: the SHA-256 of names and contents of all weights
    """
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """
    :return: of the libraries that made a file
    """
    return {
        "hybrid-rl-suite": version("hybrid-rl-suite"),
        "torch": torch.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "gymnasium": gymnasium.__version__,
    }


def _schema(model: HybridPPO, module: DecisionModule, name: str, content: bytes, found: Agreement) -> dict[str, Any]:
    """All that a program needs to know in order to ask the graph, as plain data."""
    spec = _attribute(model, "spec")
    observation_space, action_space = module.policy.observation_space, module.policy.action_space
    assert isinstance(observation_space, spaces.Box)
    regimes, _ = split_hybrid_space(action_space)
    meaning = _sections(inspect.getdoc(type(_attribute(model, "unwrapped"))) or "")
    details: dict[str, dict[str, Any]] = {
        "observation": {
            "meaning": meaning.get("Observation Space"),
            "low": _plain(observation_space.low),
            "high": _plain(observation_space.high),
            "scale": _plain(_attribute(model, "observation_scale")),
        },
        "action_masks": {"meaning": "which regimes may be taken; at least one in every row"},
        "uniforms": {"meaning": "uniform on [0, 1), one for each decision"},
        "normals": {"meaning": "standard normal, one for each coordinate of the point"},
        "regime": {"meaning": meaning.get("Action Space"), "space": str(regimes)},
        "point": {
            "meaning": meaning.get("Action Space"),
            "bounds": _plain(module.policy.action_bounds),
            "scale": _plain(module.policy.action_scale),
        },
    }
    inputs = module.example()
    with torch.no_grad():
        outputs = dict(zip(OUTPUTS, module(**inputs), strict=True))

    def entries(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        return [
            {"name": key, "dtype": str(value.dtype).removeprefix("torch."), "shape": ["batch", *value.shape[1:]]}
            | details[key]
            for key, value in tensors.items()
        ]

    return {
        "format": 1,
        "graph": name,
        "graph_sha256": hashlib.sha256(content).hexdigest(),
        "weights_sha256": weights_hash(model.policy),
        "environment": spec and {"id": spec.id, "arguments": _plain(dict(spec.kwargs))},
        "algorithm": type(model).__name__,
        "num_timesteps": model.num_timesteps,
        "decision": "drawn" if module.sampled else "most likely regime",
        "observations_normalised_inside": module.clip_obs is not None,
        "inputs": entries(inputs),
        "outputs": entries(outputs),
        "checked": found._asdict(),
        "versions": versions(),
    }


def _sections(docstring: str) -> dict[str, str]:
    """The sections of an environment's docstring by heading, each in one line."""
    parts = re.split(r"(?m)^## (.+)$", docstring)
    return {heading: " ".join(text.split()) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become null; of a large array the shape, of other objects the class."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist()) if value.size <= 10_000 else f"array of shape {value.shape}"
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | None) else type(value).__name__


def _card(schema: dict[str, Any], facts: Mapping[str, object]) -> str:
    """The model card, in Markdown."""
    env = schema["environment"]
    name = env["id"] if env else "an environment without an id"
    found = Agreement(**schema["checked"])
    rows = {
        "environment": f"{name}, {json.dumps(env['arguments'])}" if env else name,
        "algorithm": schema["algorithm"],
        "environment steps trained": f"{schema['num_timesteps']:,}",
        "decision": schema["decision"],
        "weights, SHA-256": schema["weights_sha256"],
        "versions": ", ".join(f"{library} {number}" for library, number in schema["versions"].items()),
        **facts,
    }

    def row(*cells: object) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    lines = [f"# A policy for {name}", "", "| | |", "|---|---|", *(row(*pair) for pair in rows.items())]
    for title in ("inputs", "outputs"):
        lines += ["", f"## {title.capitalize()}", "", "| name | dtype | shape | meaning |", "|---|---|---|---|"]
        for entry in schema[title]:
            shape = ", ".join(map(str, entry["shape"]))
            lines.append(row(entry["name"], entry["dtype"], shape, entry["meaning"] or "not stated"))
    lines += [
        "",
        f"Bounds and scales are in the schema, {Path(schema['graph']).with_suffix('.json')}.",
        "",
        "## Checked",
        "",
        f"On {found.observations:,} random observations the regimes are those of the trained model in",
        f"{found.regimes_equal:.1%} of cases, and the points differ by {found.largest_distance:.1e} at most, or",
        f"{found.largest_point_difference:.1e} of their magnitude.",
        "",
        "## Limits",
        "",
        "The policy is made for the environment above with these arguments. What it does where its observations never were in",
        "training, nobody has checked. It keeps the point within the bounds, and knows no other rule.",
        "",
    ]
    return "\n".join(lines)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about itself and about packages that nobody needs here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")  # it is, for all inputs alike
            yield
    finally:
        logger.setLevel(level)
