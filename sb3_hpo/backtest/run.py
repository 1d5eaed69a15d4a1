"""All of a backtest: references, training, the choice on validation, the test, and the files that tell of it."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from hybrid_envs.backtest import Backtest, recorded_problem
from hybrid_envs.checks import check_count
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import Policy
from sb3_hpo.backtest.judge import Judgement, judge
from sb3_hpo.backtest.report import write_report
from sb3_hpo.callbacks import PeriodicCallback
from sb3_hpo.checkpoint import ExactCheckpointCallback
from sb3_hpo.checkpoint.files import write_whole
from sb3_hpo.checkpoint.run_state import difference
from sb3_hpo.export import export_onnx
from sb3_hpo.hpo import HPO
from sb3_hpo.identity import describe
from sb3_hpo.safe_files import load_safe, save_safe

SETTINGS, CHECKPOINTS, RESULTS, POLICY = "settings.json", "checkpoints", "results.json", "policy.safetensors"
REPORT = "report.html"
"""The file of a run's folder that a manager reads."""


class Plan(NamedTuple):
    """How to train and choose."""

    hyperparams: Mapping[str, Any]
    """Of :class:`~sb3_hpo.HPO`."""
    n_timesteps: int
    every: int
    """Iterations between two looks at the validation part."""
    seed: int = 0


class ValidationCallback(PeriodicCallback):
    """
    Plays the present policy through the validation part, and keeps the best one in a file.

    :param recorded: the problem
    :param path: of the best policy
    :param every: environment steps between looks
    """

    def __init__(self, recorded: Backtest, path: Path, every: int):
        super().__init__(recorded.env, every)
        self.recorded, self.path = recorded, path
        self.costs: list[float] = []

    def look(self) -> None:
        self.costs.append(mean_cost(self.recorded, self.model, "validation"))
        if self.costs[-1] == min(self.costs):
            save_safe(self.model, self.path)  # type: ignore[arg-type]
        self.logger.record("eval/validation_cost", self.costs[-1])

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the costs so far; the file belongs to the least of them
        """
        return {"costs": list(self.costs)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """
        :param saved: what :meth:`state_dict` returned
        """
        self.costs = list(saved["costs"])


def mean_cost(problem: Backtest, policy: Policy, part: str) -> float:
    """
    :return: of all items per period, mean over the runs
    """
    return float(problem.play(policy, part).cost.sum(axis=2).mean())


def run_backtest(env: gym.Env, folder: str | Path, plan: Plan) -> Judgement | None:
    """
    Fit the references, train HPO, let the validation part choose among the policies of the training and among the references,
    play the chosen ones once through the test part, and write a report. Called again with the same arguments after a kill, it
    goes on where it was.

    :param env: the problem on the training part, made by ``gymnasium.make``
    :param folder: for ``report.html``, ``results.json``, the policy as ``policy.safetensors`` and ``policy.onnx`` with its
        model card, and what is needed to go on
    :param plan: how to train and choose
    :return: ``None`` if the folder holds the report already: the test part is used once
    :raises ValueError: if the environment has no backtest, the folder is another run's, or the data cannot be judged
    """
    problem = recorded_problem(env)
    if problem is None:
        raise ValueError(f"{env.unwrapped} has no backtest: nothing says how its policies are judged on recorded data")
    check_count("every", plan.every)
    folder = Path(folder)
    claim(folder, settings(env, plan))
    if (folder / RESULTS).is_file():
        return None
    begin = time.perf_counter()
    references = choose_references(problem)
    model = HPO(env=env, seed=plan.seed, **plan.hyperparams)
    iteration = model.n_steps * model.n_envs
    validation = ValidationCallback(problem, folder / POLICY, plan.every * iteration)
    checkpoints = ExactCheckpointCallback(folder / CHECKPOINTS, every=plan.every, keep=2)
    model.learn(plan.n_timesteps, callback=[checkpoints, validation], progress_bar=True)
    chosen = load_safe(folder / POLICY, env=env)
    judgement = judge(problem, [("HPO", chosen, min(validation.costs)), *references])
    seconds = time.perf_counter() - begin
    facts = summary(judgement, plan, validation, seconds)
    write_report(folder / REPORT, judgement, chosen, facts, validation.steps, validation.costs)
    export_onnx(chosen, folder / "policy.onnx", facts=in_lines(facts))
    write_whole(folder / RESULTS, (json.dumps(facts, indent=1) + "\n").encode())  # last: with it, all is done
    return judgement


def choose_references(problem: Backtest) -> list[tuple[str, Policy, float]]:
    """
    :return: of each family the policy that validation prefers, and its cost there, the best first
    """
    from tqdm.auto import tqdm

    best: dict[str, tuple[str, Policy, float]] = {}
    for name, policy in tqdm(problem.references(), desc="planners' rules", unit=" rules"):
        cost = mean_cost(problem, policy, "validation")
        if name not in best or cost < best[name][2]:
            best[name] = (name, policy, cost)
    return sorted(best.values(), key=lambda one: one[2])


# ---- what a folder is about ------------------------------------------------------------------------------------------


def settings(env: gym.Env, plan: Plan) -> dict[str, Any]:
    """
    :return: all that a run depends on, as plain data, files by what they hold
    """
    assert env.spec is not None
    arguments = {name: _argument(value) for name, value in env.spec.kwargs.items()}
    training = {"n_timesteps": plan.n_timesteps, "every": plan.every, "seed": plan.seed}
    return {"env": env.spec.id, "arguments": arguments, "training": training, "hyperparams": describe(dict(plan.hyperparams))}


def _argument(value: Any) -> Any:
    if isinstance(value, str | Path) and Path(value).is_file():
        return {"file": str(value), "sha256": hashlib.sha256(Path(value).read_bytes()).hexdigest()}
    return describe(value)


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """
    :raises ValueError: naming what differs, if the folder holds a run with other settings
    """
    path = folder / SETTINGS
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than a backtest; name another folder")
        write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    differing = difference(found, wanted, "")
    if differing is not None:
        where, before, now = differing
        raise ValueError(
            f"{folder} is of another backtest: {where.lstrip('.')} was {before!r} there and is {now!r} here; "
            "name another folder"
        )


# ---- what is told of it ----------------------------------------------------------------------------------------------


def summary(judgement: Judgement, plan: Plan, validation: ValidationCallback, seconds: float) -> dict[str, Any]:
    """
    :return: the figures of the report, as plain data
    """
    problem, policy, reference = judgement.problem, judgement.policy, judgement.reference
    env = problem.env
    assert isinstance(env, HybridEnv)
    split = {part: problem.periods(part) for part in ("train", "validation", "test")}
    return {
        "data": str(env.spec.kwargs["demand"]) if env.spec is not None else "",
        "unit": problem.unit,
        "n_items": len(problem.items),
        "split": {part: {"first": names[0], "last": names[-1], "periods": len(names)} for part, names in split.items()},
        "block": problem.block,
        "steps_chosen": validation.steps[int(np.argmin(validation.costs))],
        "steps": plan.n_timesteps,
        "seed": plan.seed,
        "seconds": round(seconds, 1),
        "bound": judgement.bound,
        "earnings": judgement.earnings,
        "reference": reference.name,
        "saving": reference.saving._asdict(),
        "saving_relative": {end: value / reference.cost.mean for end, value in reference.saving._asdict().items()},
        "above_bound": policy.cost.mean / judgement.bound - 1 if judgement.bound > 0 else None,
        "policies": [
            {
                "name": verdict.name,
                "validation_cost": verdict.validation_cost,
                "cost": verdict.cost._asdict(),
                "saving": verdict.saving._asdict(),
                "service": verdict.service,
                "costs": {kind: float(costs.sum(axis=2).mean()) for kind, costs in verdict.ledger.costs.items()},
                "orders": float((verdict.ledger.ordered.sum(axis=2) > 0).mean()),
                "stock": float(np.maximum(verdict.ledger.on_hand, 0).sum(axis=2).mean()),
            }
            for verdict in judgement.verdicts
        ],
        "items": [
            {
                "item": item,
                "cost": float(policy.ledger.cost[:, :, k].mean()),
                "reference_cost": float(reference.ledger.cost[:, :, k].mean()),
                "saving": saving._asdict(),
                "service": float(policy.ledger.service[k]),
                "reference_service": float(reference.ledger.service[k]),
            }
            for k, (item, saving) in enumerate(zip(problem.items, judgement.saving_of_items(), strict=True))
        ],
    }


def in_lines(facts: dict[str, Any]) -> dict[str, str]:
    """
    :return: what the model card says: data, split, figures and limits
    """
    split, unit = facts["split"], facts["unit"]
    relative = {end: f"{100 * value:.1f}" for end, value in facts["saving_relative"].items()}
    parts = (f"{part} {of['first']} to {of['last']} ({of['periods']} {unit}s)" for part, of in split.items())
    saved = f"{relative['mean']} % (95 % interval {relative['low']} to {relative['high']} %)"
    return {
        "data": f"{facts['data']}, {facts['n_items']} items",
        "split": "; ".join(parts),
        f"cost per {unit} on test": f"{facts['policies'][0]['cost']['mean']:,.6g}",
        f"less than {facts['reference']}": saved,
        "above perfect information": "not known" if facts["above_bound"] is None else f"{100 * facts['above_bound']:.1f} %",
        "demand met at once": f"{100 * facts['policies'][0]['service']:.1f} %",
        "limits": "judged on one stretch of recorded sales; made for these items, costs and lead times",
    }
