"""rl_zoo3's experiment manager, taught HPO and HybridPPO; importing it registers both with rl_zoo3."""

import argparse
import contextlib
import inspect
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import yaml
from gymnasium.envs.registration import load_env_creator
from huggingface_sb3 import EnvironmentName
from optuna.samplers import BaseSampler
from rl_zoo3 import exp_manager
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, StoreDict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from hybrid_envs.checks import check_count
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import policy_figure
from sb3_hpo import ranks
from sb3_hpo.arguments import SCHEDULES, argument_names, check_name, check_policy, make_schedule
from sb3_hpo.callbacks import CostCallback, HParamCallback, PolicyFigureCallback
from sb3_hpo.checkpoint import ExactCheckpointCallback
from sb3_hpo.hpo import HPO
from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.safe_files import save_safe
from sb3_hpo.vec_env import simulated
from sb3_hpo.zoo.replaced import replaced
from sb3_hpo.zoo.search import convert_params, sample_hpo_params, sample_hybrid_ppo_params
from sb3_hpo.zoo.studies import StopAtTotal, is_needed, open_storage, wait_for_work

OWN: dict[str, type[HybridPPO]] = {"hpo": HPO, "hybrid_ppo": HybridPPO}
ALGOS.update(OWN)
HYPERPARAMS_SAMPLER.update({"hpo": sample_hpo_params, "hybrid_ppo": sample_hybrid_ppo_params})
HYPERPARAMS_CONVERTER.update({"hpo": convert_params, "hybrid_ppo": convert_params})

ZOO_KEYS = {"n_envs", "n_timesteps", "normalize", "frame_stack", "callback", "env_wrapper", "vec_env_wrapper"}
ZOO_KEYS |= {"policy_kwargs", "monitor_kwargs", "env_kwargs", "noise_type", "noise_std"}
"""The config keys that rl_zoo3 itself understands; all others go to the algorithm's constructor."""
FLAG_KEYS = {"env": "--env", "seed": "--seed", "device": "--device", "verbose": "--verbose", "tensorboard_log": "-tb"}
"""Constructor arguments that rl_zoo3 fills from the command line, so that a config may not."""
WATCHING: tuple[type[BaseCallback], ...] = (CostCallback, PolicyFigureCallback, HParamCallback)
CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its exact checkpoints, and what else is needed to go on from them."""
PLAIN_FILE = ".safetensors"
"""The suffix of a model of plain data, beside SB3's ``.zip`` of the same name."""


def default_config(algo: str, env_id: str) -> str | None:
    """
    :return: the config that comes with this package; ``None`` where rl_zoo3's own is meant: for its algorithms on
        environments that are not hybrid, and for algorithms of which this package has no config
    """
    config = files("zoo_configs") / f"{algo}.yml"
    return str(config) if config.is_file() and (algo in OWN or _hybrid_class(env_id) is not None) else None


def _hybrid_class(env_id: str) -> type[HybridEnv] | None:
    creator: Any = gym.spec(env_id).entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    return creator if isinstance(creator, type) and issubclass(creator, HybridEnv) else None


def read_entries(path: str) -> dict[str, Any]:
    """
    :param path: a config in RL Zoo's format
    :return: its entries by name
    :raises OSError: if the file cannot be read
    :raises ValueError: if it is not YAML, not plain YAML, or no mapping of names to mappings
    """
    with open(path, encoding="utf-8") as file:
        try:
            entries = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not plain YAML: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must map environment ids to hyperparameters, got {type(entries).__name__}")
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: the entry {name!r} must map names to values, got {entry!r}")
    return entries


def changed(policy_kwargs: Mapping[str, Any] | str | None, drawn: dict[str, Any]) -> dict[str, Any] | str:
    """
    :param policy_kwargs: of an entry; a text is Python, as in RL Zoo's configs
    :param drawn: those that a trial has drawn
    :return: the entry's, in the same form, with the drawn ones in the place of its own
    """
    if isinstance(policy_kwargs, str):
        return f"{{**{policy_kwargs.strip()}, **{drawn!r}}}"
    return {**(policy_kwargs or {}), **drawn}


def check_keys(algo: str, hyperparams: dict[str, Any]) -> None:
    """
    :param algo: a key of rl_zoo3's ``ALGOS``
    :param hyperparams: of a config, before rl_zoo3 takes out its own
    :raises ValueError: for a key that neither rl_zoo3 nor the algorithm knows, naming the nearest that they do
    """
    known = (argument_names(ALGOS[algo]) | set(ZOO_KEYS)) - {"n_scenarios", *FLAG_KEYS}
    for key in hyperparams:
        if key in FLAG_KEYS:
            raise ValueError(f"{key!r} is no hyperparameter of a config; it is set by the flag {FLAG_KEYS[key]}")
        if key == "n_scenarios":
            raise ValueError("in a config the number of scenarios is n_envs, not 'n_scenarios'")
        check_name(f"{algo} knows no hyperparameter", key, known)


def check_env_kwargs(env_id: str, env_kwargs: dict[str, Any]) -> None:
    """
    :param env_id: a registered id
    :param env_kwargs: what its environment is to be made with
    :raises ValueError: for an argument that a hybrid environment does not have, naming the nearest that it has
    """
    env_class = _hybrid_class(env_id)
    if env_class is None:
        return
    known = inspect.signature(env_class).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in env_kwargs:
        check_name(f"{env_id} has no argument", name, known)


def check_model(path: str, algo: str, env: VecEnv) -> None:
    """
    :param path: of a saved model; the file must be trusted, as SB3 keeps pickles in it
    :param algo: that should load it
    :param env: that it should act in
    :raises ValueError: naming the file, if it is not a whole model, or that of another algorithm or environment
    """
    try:
        # Fewer things can fail to unpickle if what loading replaces anyway is left out.
        data, parameters, _ = load_from_zip_file(path, device="cpu", custom_objects={"lr_schedule": None, "clip_range": None})
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged archive, pickle or tensor file raises
        raise ValueError(f"{path} is not a whole model file: {error}") from error
    if not parameters or not data or not {"policy_class", "observation_space", "action_space"} <= set(data):
        raise ValueError(f"{path} is not a whole model file: parameters, policy class or spaces are missing")
    policies = tuple(set(ALGOS[algo].policy_aliases.values()))
    if not issubclass(data["policy_class"], policies):
        raise ValueError(f"{path} is no model of {algo}: its policy is a {data['policy_class'].__name__}")
    check_spaces(path, data, env)


def check_spaces(path: str, saved: Mapping[str, Any], env: VecEnv) -> None:
    """
    :param path: of a saved model
    :param saved: its spaces by name
    :param env: that it should act in
    :raises ValueError: naming the file, if the environment has others
    """
    for name in ("observation_space", "action_space"):
        if saved[name] != getattr(env, name):
            raise ValueError(
                f"{path} was trained on another environment: its {name} is {saved[name]}, this one's {getattr(env, name)}"
            )


def save_beside(model: BaseAlgorithm, zip_path: str | Path) -> None:
    """
    Save a model of ours as plain data too, if it can be; a line says why not.

    :param zip_path: of SB3's file
    """
    if isinstance(model, HybridPPO):
        try:
            save_safe(model, Path(zip_path).with_suffix(PLAIN_FILE))
        except ValueError as error:
            print(f"No plain-data file beside {zip_path}: {error}")


class SaveBeside(BaseCallback):
    """
    Saves the model as plain data whenever it is called.

    :param zip_path: of SB3's file
    """

    reads_arrays, on_rank_0 = False, True

    def __init__(self, zip_path: str | Path):
        super().__init__()
        self.zip_path = zip_path

    def _on_step(self) -> bool:
        save_beside(self.model, self.zip_path)
        return True


class SafeCheckpointCallback(CheckpointCallback):
    """SB3's, which saves the model as plain data too."""

    reads_arrays, on_rank_0 = False, True

    def _on_step(self) -> bool:
        proceed = super()._on_step()
        if self.n_calls % self.save_freq == 0:
            save_beside(self.model, self._checkpoint_path(extension="zip"))
        return proceed


class ZooManager(ExperimentManager):
    """
    rl_zoo3's experiment manager, for all its algorithms and for HPO and HybridPPO.

    - The configs of this package are found, one of their entries can be chosen by name (``args.entry``), and a key that nobody
      knows is refused.
    - HPO trains on one batched simulation of ``n_envs`` scenarios, whose episodes are written to ``0.monitor.csv``
      (``1.monitor.csv`` after a resume).
    - ``config.yml`` and ``args.yml`` are plain YAML.
    - Of several ranks that torchrun has started, the first writes.

    :param args: the parsed command line
    :param algo: a key of rl_zoo3's ``ALGOS``
    :param env_id: a registered id
    :param options: as rl_zoo3's
    """

    def __init__(self, args: argparse.Namespace, algo: str, env_id: str, *rest: Any, **options: Any):
        options["config"] = options["config"] or default_config(algo, env_id)
        super().__init__(args, algo, env_id, *rest, **options)
        if ranks.count() > 1 and (algo not in OWN or self.optimize_hyperparameters):
            raise ValueError("several ranks can train HPO and HybridPPO only, and not tune them")
        self.save_path, self.params_path = ranks.from_main((self.save_path, self.params_path))
        self.entry: str | None = getattr(args, "entry", None)
        self.resumed = getattr(args, "resume", None) is not None
        if self.resumed:
            self.save_path = args.resume
            self.params_path = os.path.join(self.save_path, self.env_name)
        self.differentiable = algo in OWN and _hybrid_class(env_id) is not None
        self.checkpoint_freq = 0
        if self.differentiable and not self.optimize_hyperparameters:
            self.checkpoint_freq = check_count("--checkpoint-freq", args.checkpoint_freq, minimum=0)
        self.checkpoints = Path(self.save_path, CHECKPOINTS)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :raises ValueError: for a config that is not plain YAML, an entry that it does not have, a key that nobody knows, or a
            value that cannot be meant
        """
        name = self.entry or self.env_name.gym_id
        entries = {}
        if self.config.endswith((".yml", ".yaml")):
            entries = read_entries(self.config)
            if name not in entries and (self.entry is not None or not {"default", "atari"} & set(entries)):
                has = ", ".join(map(str, entries))
                raise ValueError(f"Hyperparameters not found: {self.config} has no entry {name!r}; it has {has}")
        elif self.entry is not None:
            raise ValueError(f"--entry chooses from a YAML file; {self.config} is none")
        if self.trial_id is not None:
            self._take_trial(self.trial_id, entries.get(name, entries.get("default", {})))
        env_name = self.env_name
        try:
            self.env_name = EnvironmentName(name)  # under which the config is searched
            hyperparams, saved = super().read_hyperparameters()
        finally:
            self.env_name = env_name
        check_keys(self.algo, hyperparams)
        check_count("n_envs", hyperparams.get("n_envs", 1))
        for key in ("env_kwargs", "monitor_kwargs"):
            if not isinstance(hyperparams.get(key) or {}, Mapping):
                raise ValueError(f"{self.config}: {key} must map names to values, got {hyperparams[key]!r}")
        normalize = hyperparams.get("normalize")
        if isinstance(normalize, str) and not normalize.startswith(("{", "dict(")):
            raise ValueError(f"{self.config}: normalize must be true, false, or VecNormalize's arguments, got {normalize!r}")
        n_timesteps = hyperparams.get("n_timesteps")
        if not isinstance(n_timesteps, int | float) or not 1 <= n_timesteps < math.inf:
            raise ValueError(f"{self.config}: n_timesteps must be a number >= 1, got {n_timesteps!r}")
        for key in SCHEDULES:
            if isinstance(hyperparams.get(key), str):
                try:
                    make_schedule(key, hyperparams[key])
                except ValueError as error:
                    raise ValueError(
                        f"{error}; to YAML, a number without a point, like 3e-4, is text: write 3.0e-4"
                    ) from error
        return hyperparams, saved

    def _take_trial(self, trial_id: int, entry: Mapping[str, Any]) -> None:
        """
        Put what the trial of ``--trial-id`` has drawn in the place of the entry's values, as its study did; the command line
        has the last word. rl_zoo3 would pass over trial 0.

        :raises ValueError: if there is no such trial
        """
        if not (self.storage and self.study_name):
            raise ValueError("--trial-id needs --storage and --study-name")
        check_count("--trial-id", trial_id, minimum=0)
        try:
            drawn = self.load_trial(self.storage, self.study_name, trial_id)
        except LookupError as error:
            where = f"{self.storage} has no study {self.study_name!r} with a trial {trial_id}"
            raise ValueError(f"--trial-id: {where}") from error
        if self.algo in OWN:
            drawn["policy_kwargs"] = changed(entry.get("policy_kwargs"), drawn["policy_kwargs"])
        self.custom_hyperparams, self.trial_id = drawn | (self.custom_hyperparams or {}), None

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        # rl_zoo3 takes any text for "lin_V", whatever stands before the V.
        texts = [key for key in SCHEDULES if isinstance(hyperparams.get(key), str)]
        schedules = {key: make_schedule(key, hyperparams.pop(key)) for key in texts}
        return ExperimentManager._preprocess_schedules(hyperparams) | schedules

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable[..., Any] | None, list[BaseCallback], Callable[..., Any] | None]:
        try:
            processed = super()._preprocess_hyperparams(hyperparams)
        except AttributeError as error:  # a policy, wrapper or callback that its module does not have
            raise ValueError(f"{self.config}: {error}") from error
        check_policy(ALGOS[self.algo], processed[0].get("policy"), processed[0].get("policy_kwargs"))
        if self._eval_env_kwargs_args is None:  # rl_zoo3 would forget the config's
            self.eval_env_kwargs = self.env_kwargs
        return processed

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """A run that does not come to be leaves no folder, which the next command would take for the latest run."""
        was_there = os.path.isdir(self.save_path)
        try:
            return super().setup_experiment()
        except Exception:
            if ranks.is_main() and not was_there:
                shutil.rmtree(self.save_path, ignore_errors=True)
            raise

    def create_log_folder(self) -> None:
        if not self.optimize_hyperparameters:  # a search leaves no run
            super().create_log_folder()
        for folder in (self.tensorboard_log, self.optimization_log_path):
            if folder:  # rl_zoo3 would notice that it cannot write there after training has begun
                os.makedirs(folder, exist_ok=True)

    def create_callbacks(self) -> None:
        """With a TensorBoard log, also what is worth a look there; first of all the checkpoints."""
        if self.tensorboard_log and self.differentiable and not self.optimize_hyperparameters:
            left_out: set[type] = {type(callback) for callback in self.callbacks}
            if policy_figure.dispatch(_hybrid_class(self.env_name.gym_id)) is policy_figure.dispatch(object):
                left_out.add(PolicyFigureCallback)  # there is none
            self.callbacks += [make() for make in WATCHING if make not in left_out]
        super().create_callbacks()
        for i, callback in enumerate(self.callbacks if self.algo in OWN else ()):
            if type(callback) is CheckpointCallback:
                self.callbacks[i] = SafeCheckpointCallback(
                    callback.save_freq, callback.save_path, callback.name_prefix, verbose=callback.verbose
                )
            elif isinstance(callback, EvalCallback) and callback.best_model_save_path and callback.callback_on_new_best:
                beside = SaveBeside(Path(callback.best_model_save_path, "best_model.zip"))
                callback.callback_on_new_best = CallbackList([callback.callback_on_new_best, beside])
        if self.checkpoint_freq:
            self.callbacks.insert(0, ExactCheckpointCallback(self.checkpoints, every=self.checkpoint_freq))

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        For HPO, and for HybridPPO where nothing is asked of single environments, one simulation of ``n_envs`` scenarios stands
        in the place of so many copies, as in the benchmarks. A VecMonitor does the work of their Monitors.
        """
        check_env_kwargs(self.env_name.gym_id, self.eval_env_kwargs if eval_env else self.env_kwargs)
        no_log = no_log or self.optimize_hyperparameters or not ranks.is_main()
        info_keywords = self.monitor_kwargs.get("info_keywords")
        needs_copies = not self.differentiable or self.env_wrapper is not None or bool(info_keywords)
        if needs_copies and not issubclass(ALGOS[self.algo], HPO):
            return super().create_envs(n_envs, eval_env, no_log)
        if info_keywords:
            raise ValueError(f"monitor_kwargs: HPO's simulation has no info_keywords, got {info_keywords}")
        make_copies = self.vec_env_class
        parts = len(list(Path(self.save_path).glob("*.monitor.csv")))  # a resumed run begins another file
        log = None if eval_env or no_log else os.path.join(self.save_path, str(parts))

        def simulate(env_fns: list[Callable[[], gym.Env]], **options: Any) -> VecEnv:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The environment is already wrapped with a `Monitor`")
                return VecMonitor(simulated(env_fns[0](), len(env_fns)), log)

        try:
            self.vec_env_class = simulate  # type: ignore[assignment]  # rl_zoo3 only calls it
            return super().create_envs(n_envs, eval_env, no_log=True)
        finally:
            self.vec_env_class = make_copies

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        check_model(self.trained_agent, self.algo, env)
        return super()._load_pretrained_agent(hyperparams, env)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """With what ``--resume`` needs: the command line, its random seed, and the config as it is now."""
        if self.resumed or not ranks.is_main():
            return
        super()._save_config(saved_hyperparams)
        if self.checkpoint_freq:
            self.checkpoints.mkdir()
            entry = {self.entry or self.env_name.gym_id: dict(saved_hyperparams)}
            (self.checkpoints / "config.yml").write_text(yaml.dump(entry, Dumper=PlainDumper), encoding="utf-8")
            command = [*sys.argv[1:], "--seed", str(self.seed)]
            (self.checkpoints / "command.json").write_text(json.dumps(command) + "\n", encoding="utf-8")
        for name, content in (("config.yml", saved_hyperparams), ("args.yml", vars(self.args))):
            Path(self.params_path, name).write_text(yaml.dump(dict(content), Dumper=PlainDumper), encoding="utf-8")

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        if not ranks.is_main():
            return
        super().save_trained_model(model)
        save_beside(model, Path(self.save_path, f"{self.env_name}.zip"))

    def hyperparameters_optimization(self) -> None:
        """
        What a trial draws for the policy is put on the entry's ``policy_kwargs``, not in their place. Where the study is
        stored, other processes can work on it too, and be killed.
        """
        samplers = {**HYPERPARAMS_SAMPLER, **({self.algo: self._draw} if self.algo in OWN else {})}
        create = optuna.create_study
        storage = None if self.storage is None else open_storage(self.storage)

        def create_study(*, sampler: BaseSampler, **options: Any) -> optuna.Study:
            sampler.reseed_rng()  # or processes with the same --seed, one that was started again too, would draw the same
            study = create(sampler=sampler, **options | {"storage": storage})
            if self.max_total_trials is not None:
                wait_for_work(study, self.max_total_trials)  # rl_zoo3 would count the trial of a dead process and go
            return study

        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(exp_manager, HYPERPARAMS_SAMPLER=samplers))
            if storage is not None:
                stack.enter_context(replaced(optuna, create_study=create_study))
                stack.enter_context(replaced(exp_manager, MaxTrialsCallback=StopAtTotal))
            super().hyperparameters_optimization()

    def _draw(self, *args: Any) -> dict[str, Any]:
        """A trial's hyperparameters; ``args`` are those of rl_zoo3's samplers."""
        drawn = HYPERPARAMS_SAMPLER[self.algo](*args)
        return drawn | {"policy_kwargs": changed(self._hyperparams.get("policy_kwargs"), drawn["policy_kwargs"])}

    def objective(self, trial: optuna.Trial) -> float:
        """:return: NaN, with which Optuna counts the trial as failed, if there are enough without it"""
        if self.max_total_trials is not None and not is_needed(trial, self.max_total_trials):
            print(f"Trial {trial.number} is not run: others have taken the last of {self.max_total_trials}")
            return math.nan
        try:
            return super().objective(trial)
        except FloatingPointError as error:  # how HPO says that the sampled hyperparameters diverge
            raise optuna.TrialPruned(str(error)) from error


def saved_command(folder: str) -> list[str]:
    """
    :param folder: of a run
    :return: the arguments with which it was started, its random seed and the config of that moment among them
    :raises ValueError: if there is nothing to resume in it
    """
    file = Path(folder, CHECKPOINTS, "command.json")
    try:
        command = [str(argument) for argument in json.loads(file.read_text(encoding="utf-8"))]
        return [*command, "--conf-file", str(file.with_name("config.yml"))]
    except FileNotFoundError:
        raise ValueError(f"--resume: there is no run with checkpoints in {folder!r} ({file} is missing)") from None
    except ValueError as error:
        raise ValueError(f"--resume: {file} cannot be read: {error}") from error


def run_begun_by(command: list[str], folder: Path) -> str | None:
    """
    :param command: the arguments of this process
    :param folder: of an algorithm's runs
    :return: the newest run that was started with them, as by torchrun before it starts them again; ``None`` if there is none
    """
    files = sorted(folder.glob(f"*/{CHECKPOINTS}/command.json"), key=os.path.getmtime, reverse=True)
    begun = (file for file in files if json.loads(file.read_text(encoding="utf-8"))[: len(command)] == command)
    return next((str(file.parents[1]) for file in begun), None)


class StoreValues(StoreDict):
    """rl_zoo3's ``NAME:VALUE ...`` with VALUE in Python, saying which one is none."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        for value in values:
            try:
                super().__call__(parser, argparse.Namespace(), [value], option_string)
            except Exception as error:  # VALUE is code, which can raise anything
                name, colon, text = value.partition(":")
                hint = f"; text is quoted: \"{name}:'{text}'\"" if isinstance(error, NameError) else ""
                hint = hint if colon else f"; write {value.replace('=', ':', 1)}" if "=" in value else ""
                parser.error(f"{option_string}: {value!r} is not NAME:VALUE with VALUE in Python ({error}){hint}")
        super().__call__(parser, namespace, values, option_string)


class PlainDumper(yaml.SafeDumper):
    """Writes what a command line can hold without Python's tags: arrays as lists, classes by their names."""


PlainDumper.add_multi_representer(dict, PlainDumper.represent_dict)
PlainDumper.add_multi_representer(np.ndarray, lambda dumper, value: dumper.represent_data(value.tolist()))
PlainDumper.add_multi_representer(np.generic, lambda dumper, value: dumper.represent_data(value.item()))
PlainDumper.add_multi_representer(type, lambda dumper, value: dumper.represent_str(f"{value.__module__}.{value.__qualname__}"))
