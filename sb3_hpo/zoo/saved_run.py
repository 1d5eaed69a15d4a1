"""What ``enjoy``, ``record`` and ``export`` read: the folder of a run, and the models in it."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.safe_files import load_normalizer, load_safe
from sb3_hpo.zoo.manager import OWN, PLAIN_FILE, check_env_kwargs, check_model, check_spaces


class SavedRun:
    """
    The run folder that ``enjoy``, ``record`` and ``export`` look at, checked before rl_zoo3 reads it: its methods stand in for
    the functions of rl_zoo3 of the same names, which are called in this order, and :attr:`algos` for its table of algorithms.
    A model of plain data is preferred to SB3's file of the same name, and so are its statistics to VecNormalize's pickle.
    """

    def __init__(self) -> None:
        self.algos: dict[str, Any] = {**ALGOS, **{name: PreferringPlain(algorithm) for name, algorithm in OWN.items()}}

    def get_model_path(
        self, exp_id: int, folder: str, algo: str, env_name: EnvironmentName, *rest: Any
    ) -> tuple[str, str, str]:
        """
        :raises ValueError: for a run folder whose YAML holds more than plain data, which rl_zoo3
            would run
        :raises FileNotFoundError: if HPO or HybridPPO has no such run
        """
        try:
            prefix, self.path, run_folder = get_model_path(exp_id, folder, algo, env_name, *rest)
        except (AssertionError, ValueError) as error:
            if algo in OWN:  # other algorithms' models are then looked for on rl_zoo3's hub
                where = f"in --folder {folder}"
                if models := sorted(Path(folder, algo).glob(f"{env_name}_*/{env_name}.zip"), key=os.path.getmtime):
                    where += f"; the newest run with a model is --exp-id {models[-1].parent.name.rpartition('_')[2]}"
                raise FileNotFoundError(f"{error} ({where})") from error
            raise
        self.algo = algo
        beside = str(Path(self.path).with_suffix(PLAIN_FILE))
        if algo in OWN and os.path.isfile(beside):
            self.path = beside
        for name in ("config.yml", "args.yml"):
            require_plain(Path(run_folder, env_name, name))
        return prefix, self.path, run_folder

    def create_test_env(self, *args: Any, **options: Any) -> VecEnv:
        """
        :raises ValueError: if the model cannot act in the environment
        """
        # record_video.py would forget the config's
        options["env_kwargs"] = options["hyperparams"].get("env_kwargs", {}) | options["env_kwargs"]
        check_env_kwargs(args[0], options["env_kwargs"])
        if not self.path.endswith(PLAIN_FILE):
            env = create_test_env(*args, **options)
            check_model(self.path, self.algo, env)
            return env
        options["hyperparams"] = options["hyperparams"] | {"normalize": False}  # or the pickle would be read
        env = load_normalizer(self.path, create_test_env(*args, **options))
        if (normalizer := unwrap_vec_normalize(env)) is not None:
            normalizer.training = normalizer.norm_reward = False
        check_spaces(self.path, vars(load_safe(self.path, algorithm=OWN[self.algo], device="cpu")), env)
        return env

    def load(self, env_id: str, env_kwargs: dict[str, Any], *choice: Any, folder: str, algo: str, exp_id: int) -> HybridPPO:
        """
        The model with its environment, for ``export``.

        :param env_kwargs: beyond those of the run
        :param choice: of the model in the run, as rl_zoo3's ``get_model_path`` takes it
        """
        name = EnvironmentName(env_id)
        _, path, run_folder = self.get_model_path(exp_id, folder, algo, name, *choice)
        settings = Path(run_folder, name)
        hyperparams, stats_path = get_saved_hyperparams(str(settings), test_mode=True)
        arguments = hyperparams.pop("env_kwargs", None) or {}
        if (file := settings / "args.yml").is_file():
            arguments = yaml.load(file.read_text(encoding="utf-8"), Loader=PlainLoader)["env_kwargs"] or arguments
        env = self.create_test_env(
            env_id,
            stats_path=stats_path,
            should_render=False,
            hyperparams=hyperparams,
            env_kwargs={**arguments, **env_kwargs},
        )
        return self.algos[algo].load(path, env=env, device="cpu")


class PreferringPlain:
    """
    An algorithm as ``enjoy`` and ``record`` use it, which loads both kinds of files.

    :param algorithm: HPO or HybridPPO
    """

    def __init__(self, algorithm: type[HybridPPO]):
        self.algorithm = algorithm

    def load(self, path: str, env: VecEnv | None = None, *, custom_objects: Any = None, **options: Any) -> HybridPPO:
        """
        :param custom_objects: what rl_zoo3 puts in the place of pickles; a file of plain data has none
        """
        with warnings.catch_warnings():  # of minibatches of the one environment here, on which nobody learns
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            if path.endswith(PLAIN_FILE):
                return load_safe(path, env, algorithm=self.algorithm, **options)
            return self.algorithm.load(path, env=env, custom_objects=custom_objects, **options)


def evaluation_facts(path: str) -> dict[str, str]:
    """
    :param path: of a model in a run folder
    :return: what a model card says of the evaluations during training, if there were some
    """
    file = Path(path).with_name("evaluations.npz")
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as evaluations:
        steps, rewards = evaluations["timesteps"], evaluations["results"]
    best, episodes = int(rewards.mean(axis=1).argmax()), rewards.shape[1]
    return {
        f"reward at {steps[i]:,} steps, {when}": f"{rewards[i].mean():.6g} ± {rewards[i].std():.2g} over {episodes} episodes"
        for i, when in ((best, "the best evaluation in training"), (len(steps) - 1, "the last"))
    }


def require_plain(path: Path) -> None:
    """
    :param path: a YAML file, or none
    :raises ValueError: if reading it could do more than make plain data
    """
    if path.is_file():
        try:
            yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not plain YAML, and reading it might run code: {error}") from error


class PlainLoader(yaml.SafeLoader):
    """A safe loader that also knows the ordered mappings which rl_zoo3 itself writes."""


PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: loader.construct_sequence(node, deep=True),
)
PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node, deep=True))
