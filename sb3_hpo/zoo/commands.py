"""
The console script ``sb3-hpo``: the RL Zoo's own commands, with HPO and HybridPPO among its algorithms.

Nothing of the RL Zoo is copied. Its functions run with a few of their names replaced: the experiment manager, the parser, and
what reads a saved run.
"""

import argparse
import contextlib
import importlib
import os
import random
import runpy
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from sb3_hpo.zoo.replaced import replaced

BUGS = (NameError, AttributeError, LookupError, ArithmeticError)
"""Errors that speak of a mistake in a program, not in what it was given: they keep their traceback."""


def fail(message: object) -> NoReturn:
    """End with one line on stderr and exit code 2."""
    print("sb3-hpo: error:", *str(message).split(), file=sys.stderr)
    sys.exit(2)


NOTHING_TO_PLOT = (
    "there is nothing to plot: no run of this --algo and --env in this folder has as many episodes as --episode-window says"
)
parsed = argparse.Namespace()
"""The command line as rl_zoo3's parser has read it."""
_parse_args = argparse.ArgumentParser.parse_args


def parse_args(self: argparse.ArgumentParser, *args: Any, **options: Any) -> Any:
    """As ``ArgumentParser.parse_args``, with the flags that are ours; checks a few values that rl_zoo3 would not name."""
    self.prog = sys.argv[0]
    for flag, settings in COMMANDS[self.prog.split()[1]].flags.items():
        self.add_argument(flag, **settings)
    values = _parse_args(self, *args, **options)
    if folder := getattr(values, "resume", None):
        if len(sys.argv) > 3 or (sys.argv[1:2] == [f"--resume={folder}"] and len(sys.argv) > 2):
            self.error("--resume stands alone: everything else is as when the run was started")
        values = as_when_started(self, folder)
    elif sys.argv[0].endswith(" train"):
        values = as_one(self, values)
    model = getattr(values, "trained_agent", "")
    if model and not (model.endswith(".zip") and os.path.isfile(model)):
        self.error(f"--trained-agent: there is no model file {model!r} (it must end in .zip)")
    for module in getattr(values, "gym_packages", []):
        importlib.import_module(module)
    if isinstance(getattr(values, "env", None), str):  # of a plot there may be several, of runs
        check_environment(values.env)
    n_timesteps = getattr(values, "n_timesteps", -1)
    if n_timesteps < 1 and n_timesteps != -1:
        self.error(f"--n-timesteps must be at least 1, got {n_timesteps} (-1: the config's)")
    vars(parsed).update(vars(values))
    return values


def check_environment(env_id: str) -> None:
    """
    :raises ValueError: unless the environment is registered, naming the nearest that is
    """
    import gymnasium

    import hybrid_envs.core  # noqa: F401  with it come the registrations of its package
    from sb3_hpo.arguments import check_name

    check_name("an environment of your own needs --gym-packages MODULE; there is no environment", env_id, gymnasium.registry)


def as_when_started(parser: argparse.ArgumentParser, folder: str) -> Any:
    """
    :return: the arguments of a run that is to be resumed
    """
    from sb3_hpo.zoo.manager import saved_command

    values = _parse_args(parser, saved_command(folder))
    values.resume = folder
    return values


def as_one(parser: argparse.ArgumentParser, values: Any) -> Any:
    """
    What several ranks that torchrun has started have to agree on: the seed; and, if torchrun has started them again after one
    was lost, the run that they were at.
    """
    from sb3_hpo import ranks
    from sb3_hpo.zoo.manager import run_begun_by

    if ranks.count() > 1:
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
            begun = ranks.from_main(run_begun_by(sys.argv[1:], Path(values.log_folder, values.algo)))
            if begun is not None:
                return as_when_started(parser, begun)
        if values.seed < 0:
            values.seed = ranks.from_main(random.randrange(2**32 - 1))
    return values


def complain(self: argparse.ArgumentParser, message: str) -> NoReturn:
    """As ``ArgumentParser.error``, in one line, with the nearest flag for one that does not exist."""
    if message.startswith("unrecognized arguments: -"):
        unknown = message.split()[2]
        nearest = get_close_matches(unknown, self._option_string_actions, n=1)
        message = f"unknown flag {unknown}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    fail(f"{message} ({self.prog} --help lists the flags)")


def train() -> None:
    import rl_zoo3.train

    from sb3_hpo import ranks
    from sb3_hpo.zoo.manager import StoreValues, ZooManager

    with ranks.started_by_torchrun(), contextlib.ExitStack() as stack:
        if not ranks.is_main():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        with replaced(rl_zoo3.train, ExperimentManager=ZooManager, StoreDict=StoreValues):
            rl_zoo3.train.train()


def tune() -> None:
    sys.argv.insert(1, "--optimize-hyperparameters")
    train()


def enjoy() -> None:
    import rl_zoo3.enjoy

    with reading_saved_runs(rl_zoo3.enjoy):
        rl_zoo3.enjoy.enjoy()


def record() -> None:
    import rl_zoo3.utils

    with reading_saved_runs(rl_zoo3.utils):
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")


def reading_saved_runs(module: ModuleType) -> contextlib.AbstractContextManager[None]:
    """
    :param module: of rl_zoo3, which is to find and to read saved runs as ours are written
    """
    from sb3_hpo.zoo.manager import StoreValues
    from sb3_hpo.zoo.saved_run import SavedRun

    run = SavedRun()
    return replaced(
        module,
        get_model_path=run.get_model_path,
        create_test_env=run.create_test_env,
        StoreDict=StoreValues,
        ALGOS=run.algos,
    )


def export() -> None:
    from sb3_hpo.zoo.manager import OWN, StoreValues
    from sb3_hpo.zoo.saved_run import SavedRun, evaluation_facts

    parser = argparse.ArgumentParser()
    parser.add_argument("--env", help="environment ID", required=True)
    parser.add_argument("-f", "--folder", help="Log folder", default="logs")
    parser.add_argument("--algo", help="RL Algorithm", default="hpo", choices=list(OWN))
    parser.add_argument("--exp-id", help="Experiment ID (default: 0: latest, -1: no exp folder)", default=0, type=int)
    parser.add_argument("--load-best", action="store_true", help="the best model instead of the last")
    parser.add_argument("--load-checkpoint", type=int, help="the checkpoint of so many timesteps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreValues, default={}, help="arguments of the environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="Additional modules to import")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="of the graph (default: onnx)")
    parser.add_argument("--sampled", action="store_true", help="draw the decision, from uniform numbers given as an input")
    parser.add_argument("-o", "--output", metavar="FILE", help="of the graph (default: beside the model)")
    args = parser.parse_args()

    from sb3_hpo.export import export_onnx, export_torch

    run = SavedRun()
    choice = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    model = run.load(args.env, args.env_kwargs, *choice, folder=args.folder, algo=args.algo, exp_id=args.exp_id)
    write, suffix = (export_onnx, ".onnx") if args.format == "onnx" else (export_torch, ".pt2")
    path = Path(args.output or run.path).with_suffix(suffix)
    found = write(model, path, sampled=args.sampled, facts=evaluation_facts(run.path))
    print(f"Wrote {path}, {path.with_suffix('.json').name} and {path.with_suffix('.md').name}")
    print(
        f"On {found.observations:,} observations: {found.regimes_equal:.1%} of the regimes equal, "
        f"points within {found.largest_point_difference:.1e}"
    )


def backtest() -> None:
    from sb3_hpo.zoo.manager import StoreValues

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", metavar="CSV", required=True, help="sales: one row per period, one column per item")
    parser.add_argument("--costs", metavar="CSV", help="costs: one row per item, a column 'item' and columns of costs")
    parser.add_argument("--dates", metavar="COLUMN", help="column of --data that says when; checked for gaps and repetitions")
    parser.add_argument(
        "--calendar",
        nargs="+",
        action=StoreValues,
        metavar="COLUMN:CYCLE",
        help="columns of --data that are known ahead: the length of a cycle, such as week:52, or promotion:None",
    )
    parser.add_argument("--split", nargs=3, type=float, default=[0.6, 0.2, 0.2], help="shares of training, validation, test")
    parser.add_argument("--env", default="HybridInventory-v0", help="environment ID")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreValues, default={}, help="further arguments of the environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="Additional modules to import")
    parser.add_argument("-n", "--n-timesteps", type=int, default=-1, help="periods to simulate (default -1: the config's)")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreValues, default={}, help="overwrite the config's")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the training: to see that all is well")
    parser.add_argument("-o", "--folder", default="backtest", help="for the report and the policy (default: backtest)")
    args = parser.parse_args()

    from sb3_hpo.backtest import REPORT, run_backtest
    from sb3_hpo.zoo.backtest import make_problem, read_plan

    env = make_problem(args)
    judgement = run_backtest(env, args.folder, read_plan(args, env))
    report = Path(args.folder, REPORT)
    if judgement is None:
        print(f"{report} is there already: the test part is used once")
        return
    for verdict in judgement.verdicts:
        print(f"{verdict.name:30} cost {verdict.cost}, saved {verdict.saving}, met at once {verdict.service:.1%}")
    print(f"{'perfect information':30} cost {judgement.bound:,.4g}")
    print(f"Wrote {report}")


def plot() -> None:
    from matplotlib import pyplot
    from rl_zoo3 import plots

    kinds = {"train": plots.plot_train, "from-file": plots.plot_from_file, "all": plots.all_plots}
    kind = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in kinds else "train"
    show = pyplot.show

    def save_or_show() -> None:
        if not any(axes.has_data() for axes in pyplot.gcf().axes):
            raise ValueError(NOTHING_TO_PLOT)
        if parsed.save:
            pyplot.savefig(parsed.save)
        else:
            show()

    with replaced(pyplot, show=save_or_show):
        kinds[kind]()


class Command(NamedTuple):
    """One subcommand: what runs, what it does, and the flags that it has beyond rl_zoo3's."""

    run: Callable[[], None]
    help: str
    flags: dict[str, dict[str, Any]] = {}  # noqa: RUF012  never written to


ENTRY: dict[str, dict[str, Any]] = {
    "--entry": {"metavar": "NAME", "help": "entry of the config, such as 'paper' (default: that of the environment)"}
}
RESUME: dict[str, dict[str, Any]] = {
    "--checkpoint-freq": {
        "type": int,
        "default": 10,
        "metavar": "N",
        "help": "HPO and HybridPPO: every N iterations, save all that is needed to go on exactly; 0: never (default: 10)",
    },
    "--resume": {
        "metavar": "DIR",
        "help": "go on with the killed run of this folder (LOGS/ALGO/ENV_1), exactly; stands alone",
    },
}
COMMANDS = {
    "train": Command(train, "train an agent, go on with one (-i), or with a killed run (--resume)", ENTRY | RESUME),
    "tune": Command(tune, "search for hyperparameters with Optuna (train --optimize-hyperparameters)", ENTRY),
    "enjoy": Command(enjoy, "watch and score a trained agent"),
    "record": Command(
        record,
        "write a video of a trained agent",
        {"--gym-packages": {"nargs": "+", "default": [], "help": "Additional modules to import, which register environments"}},
    ),
    "export": Command(export, "write a trained agent as an ONNX or torch graph"),
    "backtest": Command(backtest, "from a file of sales to a policy, judged on periods that it never saw, and a report"),
    "plot": Command(
        plot,
        "plot the training rewards of runs (plot train); plot from-file and plot all: rl_zoo3's other plots",
        {"--save": {"metavar": "FILE", "help": "write the figure to this file instead of showing it"}},
    ),
}


def usage() -> str:
    commands = "\n".join(f"  {name:10}{command.help}" for name, command in COMMANDS.items())
    return f"""usage: sb3-hpo COMMAND ...

The RL Zoo with HPO and HybridPPO (--algo hpo, --algo hybrid_ppo).

{commands}

sb3-hpo COMMAND --help lists the flags: rl_zoo3's own, and last those of ours."""


def main(argv: list[str] | None = None) -> None:
    """
    :param argv: the command line after the program's name; that of the process unless given
    :raises SystemExit: with code 2 and one line on stderr, for whatever is wrong with the input
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        fail(f"there is no command {name!r}; there are {', '.join(COMMANDS)}")
    sys.path.append(os.getcwd())  # where --gym-packages finds a module of the user's, as with python -m
    try:
        with (
            replaced(sys, argv=[f"sb3-hpo {name}", *rest]),
            replaced(argparse.ArgumentParser, parse_args=parse_args, error=complain),
        ):
            COMMANDS[name].run()
    except BUGS:
        raise
    except ImportError as error:
        missing = str(error.name).split(".")[0]
        extras = {"rl_zoo3": "zoo", "optuna": "zoo", "plotly": "backtest", "jinja2": "backtest", "tqdm": "progress"}
        extra = "export" if missing.startswith("onnx") else extras.get(missing)
        fail(f"{error}" + (f'; try: pip install "hybrid-rl-suite[{extra}]"' if extra else ""))
    except Exception as error:
        if in_training(error):
            raise
        fail(f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else error)


def in_training(error: Exception) -> bool:
    """
    :return: whether the error was raised while a model learned, where only a traceback says what went wrong; the start of
        training, when callbacks look at what they were given, is before that
    """
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_hpo.hpo import HPO
    from sb3_hpo.ranks import RankLostError

    if isinstance(error, RankLostError):  # which says all there is to say
        return False
    frames = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    learning = {ExperimentManager.learn.__code__, ExperimentManager.objective.__code__, HPO.learn.__code__}
    return bool(frames & learning) and BaseCallback.on_training_start.__code__ not in frames
