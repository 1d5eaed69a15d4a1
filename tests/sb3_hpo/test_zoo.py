"""``sb3-hpo``: the RL Zoo's commands with HPO, run as a user runs them, and what it says when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import optuna
import pytest
import torch
import yaml
from matplotlib import image, pyplot
from rl_zoo3 import exp_manager
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.utils import parameters_to_vector

from sb3_hpo import HPO, HybridPPO
from sb3_hpo.export import load_onnx, load_torch
from sb3_hpo.safe_files import load_safe, save_safe
from sb3_hpo.zoo.commands import COMMANDS, main
from sb3_hpo.zoo.manager import OWN, check_keys, default_config, read_entries
from sb3_hpo.zoo.search import convert_params, sample_hpo_params, sample_hybrid_ppo_params

ROOT = Path(__file__).parent.parent.parent
ID = "HybridInventory-v0"
SMALL = {"n_items": 2, "horizon": 5}
CONFIG = {
    ID: {
        "policy": "MlpPolicy",
        "n_envs": 4,
        "n_timesteps": 40,
        "env_kwargs": SMALL,
        "policy_kwargs": {"net_arch": [8]},
        "learning_rate": "lin_3e-4",
    }
}
CONFIG["normalised"] = CONFIG[ID] | {"normalize": True}


def start(*arguments, cwd, **options):
    """A process of its own, as the shell would start it, in a folder that is not the project's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "sb3_hpo.zoo", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def run(*arguments, cwd):
    process = start(*arguments, cwd=cwd)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where one training run was, with a config of its own and most of the flags that leave something behind."""
    path = tmp_path_factory.mktemp("zoo")
    (path / "own.yml").write_text(yaml.safe_dump(CONFIG))
    code, output, errors = run(
        *("train", "--algo", "hpo", "--env", ID, "--conf-file", "own.yml", "--seed", 3, "-tb", "tensorboard"),
        *("--eval-freq", 20, "--save-freq", 20, "--progress", "-params", "gamma:0.9", "ent_coef:'lin_0.02'"),
        cwd=path,
    )
    assert code == 0, errors
    (path / "output").write_text(output)
    return path


@pytest.fixture
def saved(folder, tmp_path):
    """A copy of that folder, to be spoilt."""
    shutil.copytree(folder / "logs", tmp_path / "logs")
    shutil.copy(folder / "own.yml", tmp_path)
    return tmp_path


@pytest.fixture
def saved_zips(saved):
    """The same without models of plain data, which would be preferred."""
    for path in (saved / "logs").rglob("*.safetensors"):
        path.unlink()
    return saved


# ---- train -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_files_of_the_rl_zoo(folder):
    run_folder = folder / "logs" / "hpo" / f"{ID}_1"
    names = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
    assert names == {
        *("0.monitor.csv", "evaluations.npz"),
        *(
            f"{name}.{suffix}"
            for name in ("best_model", ID, "rl_model_20_steps", "rl_model_40_steps")
            for suffix in ("zip", "safetensors")
        ),
        *(f"{ID}/{name}" for name in ("args.yml", "config.yml", "command.txt")),
        *(f"checkpoints/{name}" for name in ("command.json", "config.yml")),
        *(f"checkpoints/checkpoint_{steps:012d}.pt" for steps in (0, 40)),
    }
    assert np.load(run_folder / "evaluations.npz")["timesteps"].tolist() == [20, 40]
    assert np.load(run_folder / "evaluations.npz")["ep_lengths"].tolist() == [[5] * 5] * 2  # the config's env_kwargs, too
    assert "40/40" in (folder / "output").read_text()  # the progress bar


def test_the_config_is_read_overridden_and_saved_as_plain_yaml(folder):
    run_folder = folder / "logs" / "hpo" / f"{ID}_1" / ID
    expected = CONFIG[ID] | {"gamma": 0.9, "ent_coef": "lin_0.02"}
    assert yaml.safe_load((run_folder / "config.yml").read_text()) == expected
    args = yaml.safe_load((run_folder / "args.yml").read_text())
    assert (args["algo"], args["env"], args["seed"], args["hyperparams"]["gamma"]) == ("hpo", ID, 3, 0.9)
    model = HPO.load(folder / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip")
    assert model.gamma == 0.9
    assert model.lr_schedule(0.5) == pytest.approx(3e-4 / 2)


def test_episodes_of_all_scenarios_are_in_the_monitor_file_and_scalars_in_tensorboard(folder):
    episodes = load_results(str(folder / "logs" / "hpo" / f"{ID}_1"))
    assert episodes.l.tolist() == [5] * 8
    events = EventAccumulator(str(folder / "tensorboard" / ID / "HPO_1")).Reload()
    means = [scalar.value for scalar in events.Scalars("rollout/ep_rew_mean")]
    np.testing.assert_allclose(means, [episodes.r[:4].mean(), episodes.r.mean()], rtol=1e-5)


def test_training_goes_on_from_a_model_with_the_rates_that_are_given(folder, tmp_path):
    model = folder / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip"
    main(
        [
            *("train", "--algo", "hpo", "--env", ID, "--conf-file", str(folder / "own.yml"), "--eval-freq", "-1"),
            *("-i", str(model), "-f", str(tmp_path), "--verbose", "0"),
            *("-params", "learning_rate:0.0", "continuous_learning_rate:0.0"),
        ]
    )
    before, after = (HPO.load(path).policy for path in (model, tmp_path / "hpo" / f"{ID}_1" / f"{ID}.zip"))
    for name in ("discrete", "continuous"):
        old, new = (parameters_to_vector(policy.component(name).parameters()) for policy in (before, after))
        assert torch.equal(old, new)


def test_a_schedule_decays_as_its_text_says(tmp_path):
    arguments = ("train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_items:1", "horizon:2", "-n", "8")
    texts = ("n_envs:4", "learning_rate:'quad_4e-3'", "continuous_learning_rate:'lin_4e-3'", "clip_range:'quad_0.2'")
    main([*arguments, "--eval-freq", "-1", "-params", *texts, "-f", str(tmp_path), "--verbose", "0"])
    model = HPO.load(tmp_path / "hpo" / f"{ID}_1" / f"{ID}.zip")
    assert model.lr_schedule(0.5) == pytest.approx(1e-3)
    assert model.component_learning_rates["continuous"](0.5) == pytest.approx(2e-3)
    assert model.clip_range(0.5) == pytest.approx(0.05)


def test_further_arguments_of_load_replace_what_was_saved(folder):
    path = folder / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip"
    saved = HPO.load(path)
    assert saved.ent_coef_schedule(0.5) == pytest.approx(0.01)
    assert saved.component_learning_rates["continuous"](0.5) == pytest.approx(1e-3)
    changes: dict[str, Any] = {"learning_rate": "lin_2e-3", "ent_coef": 0.3, "point_noise": "lin_0.4", "max_grad_norm": 2.0}
    given = HPO.load(path, continuous_learning_rate=None, value_learning_rate="lin_4e-3", **changes)
    assert given.lr_schedule(0.5) == pytest.approx(1e-3)
    assert (given.ent_coef_schedule(0.5), given.point_noise_schedule(0.5)) == (0.3, pytest.approx(0.2))
    assert HPO.load(path, temperature="exp_2.0").temperature_schedule(0.0) == pytest.approx(0.2)
    assert set(given.component_learning_rates) == {"value"}
    assert given.component_learning_rates["value"](0.5) == pytest.approx(2e-3)
    assert (given.component_max_grad_norm, given.max_grad_norm) == (2.0, np.inf)


def test_normalised_training_evaluates_and_keeps_its_statistics(folder, tmp_path):
    arguments = ("train", "--algo", "hpo", "--env", ID, "--conf-file", str(folder / "own.yml"), "--entry", "normalised")
    main([*arguments, "--eval-freq", "20", "-f", str(tmp_path), "--verbose", "0"])
    assert (tmp_path / "hpo" / f"{ID}_1" / ID / "vecnormalize.pkl").is_file()
    main(["enjoy", "--algo", "hpo", "--env", ID, "-f", str(tmp_path), "--no-render", "-n", "5"])


def test_the_papers_settings_are_found_by_name_without_a_config_of_ones_own(tmp_path):
    arguments = ("train", "--algo", "hpo", "--env", ID, "--entry", "paper", "--env-kwargs", "n_items:1", "horizon:2")
    main([*arguments, "-n", "8", "-params", "n_envs:4", "-f", str(tmp_path), "--eval-freq", "-1", "--verbose", "0"])
    config = yaml.safe_load((tmp_path / "hpo" / f"{ID}_1" / ID / "config.yml").read_text())
    assert config["policy_kwargs"] == {"net_arch": [512, 512], "linear_path": [], "softplus_beta": 1.0}


def test_a_class_given_as_a_hyperparameter_is_saved_by_its_name(folder, tmp_path):
    arguments = ("train", "--algo", "hpo", "--env", ID, "--conf-file", str(folder / "own.yml"), "--eval-freq", "-1")
    main([*arguments, "-f", str(tmp_path), "--verbose", "0", "-params", "policy_kwargs:dict(activation_fn=nn.Tanh)"])
    config = yaml.safe_load((tmp_path / "hpo" / f"{ID}_1" / ID / "config.yml").read_text())
    assert config["policy_kwargs"] == {"activation_fn": "torch.nn.modules.activation.Tanh"}


def test_an_error_while_training_keeps_its_traceback(folder, tmp_path, monkeypatch):
    (tmp_path / "own_callback.py").write_text(
        "from stable_baselines3.common.callbacks import BaseCallback\n"
        "class Failing(BaseCallback):\n"
        "    def _on_step(self):\n"
        "        raise ValueError('in the middle')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ("train", "--algo", "hpo", "--env", ID, "--conf-file", str(folder / "own.yml"), "--eval-freq", "-1")
    with pytest.raises(ValueError, match="in the middle"):
        main([*arguments, "-f", str(tmp_path), "-params", "callback:'own_callback.Failing'"])


# ---- enjoy, record, plot ---------------------------------------------------------------------------------------------


def test_enjoy_scores_the_saved_policy(folder):
    code, output, errors = run("enjoy", "--algo", "hpo", "--env", ID, "-f", "logs", "--no-render", "-n", 10, cwd=folder)
    assert code == 0, errors

    model = HPO.load(folder / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip")
    venv = DummyVecEnv([lambda: gym.make(ID, **SMALL)])
    venv.seed(0)
    observation, total = venv.reset(), 0.0
    for _ in range(10):
        observation, reward, _, _ = venv.step(model.predict(observation, deterministic=True)[0])
        total += reward[0]
    assert f"Mean reward: {total / 2:.2f}" in output


def test_record_writes_a_video_of_so_many_steps(folder, tmp_path):
    arguments = ("record", "--algo", "hpo", "--env", ID, "-f", str(folder / "logs"), "-o", str(tmp_path), "-n", "5")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="You have specified a mini-batch size")  # nobody trains here
        main([*arguments, "--load-best", "--env-kwargs", "horizon:2"])
    (video,) = tmp_path.glob("*.mp4")
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
    assert frames == 6  # the start, and what each step led to


def test_plot_draws_the_curve_of_a_run(folder, tmp_path):
    arguments = ("plot", "-a", "hpo", "-e", ID, "-f", str(folder / "logs"), "-w", "4")
    main([*arguments, "--save", str(tmp_path / "curve.png")])
    pyplot.close("all")
    blue = np.array([76, 114, 176]) / 255  # the first colour of rl_zoo3's plots
    curve = image.imread(tmp_path / "curve.png")
    assert (np.abs(curve[..., :3] - blue).max(axis=-1) < 0.02).sum() > 100


@pytest.mark.parametrize(("env", "window"), [(ID, 9), ("HybridInventry-v0", 4)])  # eight episodes have no mean over nine
def test_a_plot_without_a_curve_is_not_written(env, window, folder, tmp_path, capsys):
    arguments = ("plot", "-a", "hpo", "-e", env, "-f", folder / "logs", "-w", window, "--save", tmp_path / "nothing.png")
    assert "no run of this --algo and --env in this folder" in complaint(capsys, *arguments)
    assert not list(tmp_path.iterdir())
    pyplot.close("all")


def test_a_run_without_a_model_is_told_of_the_newest_that_has_one(folder, tmp_path, capsys):
    shutil.copytree(folder / "logs", tmp_path, dirs_exist_ok=True)
    (tmp_path / "hpo" / f"{ID}_2").mkdir()  # of a run that was killed
    message = complaint(capsys, "enjoy", "--algo", "hpo", "--env", ID, "-f", tmp_path, "--no-render")
    assert "the newest run with a model is --exp-id 1" in message


# ---- bad input -------------------------------------------------------------------------------------------------------


def complaint(capsys, *arguments):
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sb3-hpo: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_bad_flag_ends_the_process_with_one_line_and_code_2(tmp_path):
    code, output, errors = run("train", "--algo", "hpo", "--env", ID, "--n-timestepz", 5, cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors.splitlines() == [
        "sb3-hpo: error: unknown flag --n-timestepz; did you mean --n-timesteps? (sb3-hpo train --help lists the flags)"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fly"], "'fly'"),
        (["train", "--algo", "hpoo"], "'hpoo'"),
        (["train", "--algo", "hpo", "--env", "Pump-v0"], "an environment of your own needs --gym-packages MODULE"),
        (["train", "--algo", "hpo", "--env", ID, "-n", "-5"], "--n-timesteps must be at least 1, got -5"),
        (["train", "--algo", "hpo", "--env", ID, "-n", "many"], "'many'"),
        (["train", "--algo", "hpo", "--env", ID, "--conf-file", "nowhere.yml"], "nowhere.yml"),
        (["train", "--algo", "hpo", "--env", ID, "-i", "nowhere.zip"], "nowhere.zip"),
        (["train", "--algo", "hpo", "--env", ID, "--gym-packages", "nowhere"], "'nowhere'"),
        (["train", "--algo", "hpo", "--env", ID, "--entry", "papre"], "no entry 'papre'; it has default, published, Hybrid"),
        (["train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_items"], "'n_items' is not NAME:VALUE"),
        (["train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_items=2"], "write n_items:2"),
        (["train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_items:two"], "name 'two' is not defined); text is quoted"),
        (["train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_items:-1"], "n_items"),
        (["train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_itms:1"], "n_itms"),
        (["train", "--algo", "hpo", "--env", "CartPole-v1"], "CartPole-v1>> does not have: it is not"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "env_kwargs:'n_items:2'"], "env_kwargs must map names to values"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "normalize:'maybe'"], "normalize must be true, false, or"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "continous_learning_rate:1"], "'continuous_learning_rate'"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "seed:1"], "--seed"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "n_scenarios:8"], "n_envs"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "n_envs:0"], "n_envs must be an integer >= 1, got 0"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "n_timesteps:'lots'"], "n_timesteps"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "ent_coef:'3e-4'"], "write 3.0e-4"),
        (
            ["train", "--algo", "hpo", "--env", ID, "-params", "policy_kwargs:{'net_ach':[8]}"],
            "'net_ach'; the nearest known name is 'net_arch'",
        ),
        (["train", "--algo", "hpo", "--env", ID, "-params", "gamma:2"], "gamma must be a finite number in [0, 1], got 2"),
        (
            ["train", "--algo", "hpo", "--env", ID, "-params", "clip_range:'lin_-0.2'"],
            "clip_range must be a finite number > 0",
        ),
        (["train", "--algo", "hybrid_ppo", "--env", ID, "-params", "n_epochs:0"], "n_epochs must be an integer >= 1, got 0"),
        (
            ["train", "--algo", "hpo", "--env", ID, "-params", "policy_kwargs:{'net_arch':[0]}"],
            "net_arch[0] must be an integer",
        ),
        (["train", "--algo", "hpo", "--env", ID, "--env-kwargs", "n_itms:2"], "the nearest known name is 'n_items'"),
        (["train", "--algo", "ppo", "--env", ID, "--env-kwargs", "n_itms:2"], "the nearest known name is 'n_items'"),
        (["train", "--algo", "hpo", "--env", "HybridProcurement-v0", "--env-kwargs", "min_ordr:2"], "'min_order'"),
        (["train", "--algo", "hpo", "--env", "HybridInventry-v0"], "HybridInventory-v0"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "callback:'sb3_hpo.callbacks.Nothing'"], "Nothing"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "frame_stack:2"], "VecFrameStack"),
        (["train", "--algo", "hpo", "--env", ID, "-params", "monitor_kwargs:{'info_keywords':('a',)}"], "info_keywords"),
        (
            ["train", "--algo", "hpo", "--env", ID, "-params", "env_wrapper:'hybrid_envs.wrappers.FlatActionWrapper'"],
            "FlatActionWrapper",
        ),
        (
            [
                "train",
                "--algo",
                "hpo",
                "--env",
                ID,
                "-params",
                "vec_env_wrapper:'stable_baselines3.common.vec_env.VecCheckNan'",
            ],
            "VecCheckNan",
        ),
        (["tune", "--algo", "hpo", "--env", ID, "--storage", "nonsense", "--study-name", "a"], "nonsense"),
        (["enjoy", "--algo", "hpo", "--env", ID, "-f", "nowhere"], "nowhere"),
        (["enjoy", "--algo", "hpo", "--env", "HybridInventry-v0", "-f", "nowhere"], "'HybridInventory-v0'"),
        (["record", "--algo", "hpo", "--env", ID, "-f", "nowhere"], "nowhere"),
        (["plot", "-a", "hpo", "-e", ID, "-f", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-1:]) if isinstance(value, list) else "",
)
def test_bad_input_is_named_in_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert named in complaint(capsys, *arguments)
    assert not list(tmp_path.glob("logs/*/*_1"))  # which the next command would take for the latest run


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("HybridInventory-v0: {policy: [}", "line 1"),
        ("- a\n- b\n", "must map environment ids"),
        ("HybridInventory-v0: 3\n", "'HybridInventory-v0' must map names"),
        ("HybridInventory-v0: !!python/object/apply:os.mkdir [ran]\n", "not plain YAML"),
        ("CartPole-v1: {policy: MlpPolicy, n_timesteps: 5}\n", "Hyperparameters not found"),
        ("HybridInventry-v0: {policy: MlpPolicy, n_timesteps: 8}", "no entry 'HybridInventory-v0'; it has HybridInventry-v0"),
    ],
)
def test_a_bad_config_is_named_and_runs_no_code(text, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.yml").write_text(text)
    message = complaint(capsys, "train", "--algo", "hpo", "--env", ID, "--conf-file", "bad.yml")
    assert "bad.yml" in message
    assert named in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yml"]


@pytest.mark.parametrize("flag", ["-f", "-tb"])
def test_a_folder_that_cannot_be_written_stops_before_training(flag, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["train", "--algo", "hpo", "--env", ID, "--conf-file", folder / "own.yml", "-f", tmp_path / "logs"]
    assert str(tmp_path / "file") in complaint(capsys, *arguments, flag, tmp_path / "file" / "logs")


def test_a_truncated_model_is_named(saved_zips, capsys):
    model = saved_zips / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip"
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    config = ("--conf-file", saved_zips / "own.yml", "-f", saved_zips / "new", "--eval-freq", -1)
    for arguments in (["enjoy", "-f", saved_zips / "logs", "--no-render"], ["train", *config, "-i", model]):
        message = complaint(capsys, *arguments, "--algo", "hpo", "--env", ID)
        assert f"{model} is not a whole model file" in message


def test_a_model_without_its_settings_is_named(saved_zips, capsys):
    model = saved_zips / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip"
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("data", json.dumps({}))
    assert f"{model} is not a whole model" in complaint(
        capsys, "enjoy", "--algo", "hpo", "--env", ID, "-f", saved_zips / "logs", "--no-render"
    )


def test_a_model_of_another_environment_or_algorithm_is_named(saved_zips, capsys):
    model = saved_zips / "logs" / "hpo" / f"{ID}_1" / f"{ID}.zip"
    enjoy = ("enjoy", "--algo", "hpo", "--env", ID, "-f", saved_zips / "logs", "--no-render")
    message = complaint(capsys, *enjoy, "--env-kwargs", "n_items:3")
    assert f"{model} was trained on another environment" in message
    config = ("--conf-file", saved_zips / "own.yml", "-f", saved_zips / "new", "--eval-freq", -1)
    message = complaint(
        capsys, "train", "--algo", "hpo", "--env", ID, *config, "-i", model, "--env-kwargs", "n_items:3", "horizon:5"
    )
    assert f"{model} was trained on another environment" in message

    HybridPPO("MlpPolicy", gym.make(ID, **SMALL), n_steps=5, batch_size=5).save(model)
    assert f"{model} is no model of hpo" in complaint(capsys, *enjoy)


@pytest.mark.parametrize("name", ["config.yml", "args.yml"])
def test_a_run_folder_that_would_run_code_is_refused(name, saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    Path("logs", "hpo", f"{ID}_1", ID, name).write_text("a: !!python/object/apply:os.mkdir [ran]\n")
    message = complaint(capsys, "enjoy", "--algo", "hpo", "--env", ID, "-f", "logs", "--no-render")
    assert f"{name} is not plain YAML" in message
    assert not Path("ran").exists()


def test_a_run_folder_of_the_rl_zoo_itself_is_read(saved):
    run_folder = saved / "logs" / "hpo" / f"{ID}_1" / ID
    config = yaml.safe_load((run_folder / "config.yml").read_text())
    pairs = "".join(f"- - {key}\n  - {json.dumps(value)}\n" for key, value in config.items())
    (run_folder / "config.yml").write_text(
        f"!!python/object/apply:collections.OrderedDict\n- {pairs.replace(chr(10), chr(10) + '  ')}"
    )
    main(["enjoy", "--algo", "hpo", "--env", ID, "-f", str(saved / "logs"), "--no-render", "-n", "5"])


# ---- models of plain data --------------------------------------------------------------------------------------------


def test_the_plain_data_is_the_model_and_enjoy_and_record_do_not_open_the_zip(saved, tmp_path, capsys):
    run_folder = saved / "logs" / "hpo" / f"{ID}_1"
    observation, _ = gym.make(ID, **SMALL).reset(seed=0)
    for name in (ID, "best_model", "rl_model_20_steps"):
        plain, zipped = load_safe(run_folder / f"{name}.safetensors"), HPO.load(run_folder / f"{name}.zip")
        assert plain.num_timesteps == zipped.num_timesteps
        ours, theirs = (model.predict(observation, deterministic=True)[0] for model in (plain, zipped))
        np.testing.assert_array_equal(ours[1], theirs[1])
        (run_folder / f"{name}.zip").write_bytes(b"spoilt")
    arguments = ("--algo", "hpo", "--env", ID, "-f", str(saved / "logs"))
    for choice in ((), ("--load-best",), ("--load-checkpoint", "20")):
        main(["enjoy", *arguments, "--no-render", "-n", "10", *choice])
        assert "Mean reward" in capsys.readouterr().out
    main(["record", *arguments, "-n", "5", "-o", str(tmp_path / "videos")])
    assert list((tmp_path / "videos").glob("*.mp4"))


def test_a_spoilt_or_foreign_model_of_plain_data_is_named(saved, capsys):
    model = saved / "logs" / "hpo" / f"{ID}_1" / f"{ID}.safetensors"
    enjoy = ("enjoy", "--algo", "hpo", "--env", ID, "-f", saved / "logs", "--no-render")
    assert f"{model} was trained on another environment" in complaint(capsys, *enjoy, "--env-kwargs", "n_items:3")
    content = model.read_bytes()
    model.write_bytes(content[:-10])
    assert f"{model} is refused" in complaint(capsys, *enjoy)
    save_safe(HybridPPO("MlpPolicy", gym.make(ID, **SMALL), n_steps=5, batch_size=5), model)
    assert "must be HPO, is HybridPPO" in complaint(capsys, *enjoy)


def test_under_normalize_the_statistics_come_from_the_model_and_the_pickle_is_not_opened(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ("--algo", "hybrid_ppo", "--env", ID, "-f", "logs")
    small = ("-n", "40", "--env-kwargs", "n_items:2", "horizon:5", "--eval-freq", "-1", "--entry", "normalised")
    main(["train", *arguments, "--conf-file", str(folder / "own.yml"), *small, "-params", "n_steps:5", "batch_size:10"])
    rewards = []
    for spoil in (False, True):
        for file in tmp_path.rglob("*.safetensors" if not spoil else "*"):
            if not spoil:
                file.rename(file.with_suffix(".kept"))
            elif file.suffix == ".kept":
                file.rename(file.with_suffix(".safetensors"))
            elif file.suffix in (".zip", ".pkl"):
                file.write_bytes(b"spoilt")
        capsys.readouterr()
        main(["enjoy", *arguments, "--no-render", "-n", "25"])
        rewards.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("Episode Reward")])
    assert len(rewards[0]) == 5
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_export_writes_graph_schema_and_card_of_the_chosen_model(kind, saved, tmp_path, capsys):
    arguments = ("export", "--algo", "hpo", "--env", ID, "-f", str(saved / "logs"), "--load-best", "--format", kind)
    main([*arguments, "-o", str(tmp_path / "out" / "policy")])
    assert "100.0% of the regimes equal" in capsys.readouterr().out
    suffix, load = {"onnx": (".onnx", load_onnx), "torch": (".pt2", load_torch)}[kind]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {suffix, ".json", ".md"}
    assert "the best evaluation in training" in (tmp_path / "out" / "policy.md").read_text()
    schema = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert schema["environment"]["arguments"] == SMALL
    observation, _ = gym.make(ID, **SMALL).reset(seed=0)
    model = HPO.load(saved / "logs" / "hpo" / f"{ID}_1" / "best_model.zip")
    (regime,), (point,) = load(tmp_path / "out" / f"policy{suffix}")(observation=observation[None])
    expected = model.predict(observation, deterministic=True)[0]
    assert regime == expected[0]
    np.testing.assert_allclose(point, expected[1], rtol=1e-5)


def test_export_says_what_is_wrong(saved, capsys):
    arguments = ("export", "--algo", "hpo", "--env", ID, "-f", saved / "logs")
    assert "did you mean --format" in complaint(capsys, *arguments, "--fromat", "onnx")
    assert "nowhere" in complaint(capsys, "export", "--algo", "hpo", "--env", ID, "-f", "nowhere")
    assert "'HybridInventory-v0'" in complaint(capsys, "export", "--env", "HybridInventry-v0", "-f", "nowhere")
    assert "was trained on another environment" in complaint(capsys, *arguments, "--env-kwargs", "n_items:3")


# ---- configs ---------------------------------------------------------------------------------------------------------


def test_no_entry_of_any_config_is_refused():
    own = {algo: default_config(algo, ID) for algo in (*OWN, "ppo")}
    assert all(own.values())
    theirs = Path(exp_manager.__file__).parent / "hyperparams"
    for algo, path in [*own.items(), *((path.stem, str(path)) for path in theirs.glob("*.yml") if path.stem != "her")]:
        for entry in read_entries(path).values():
            check_keys(algo, entry)


def test_rl_zoo3_keeps_its_configs_for_environments_that_are_not_hybrid():
    assert default_config("ppo", "CartPole-v1") is None
    assert default_config("sac", ID) is None
    assert default_config("hpo", "CartPole-v1") is not None


def test_every_command_lists_its_flags(capsys):
    main([])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    for name, flag in (("train", "--entry"), ("tune", "--n-trials"), ("enjoy", "--no-render"), ("plot", "--save")):
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        output = capsys.readouterr().out
        assert stop.value.code == 0
        assert output.startswith(f"usage: sb3-hpo {name}")
        assert flag in output


# ---- tune ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "sample"), [(HPO, sample_hpo_params), (HybridPPO, sample_hybrid_ppo_params)])
def test_sampled_hyperparameters_build_the_algorithm_and_are_read_back_from_the_trial(algorithm, sample):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        trial = study.ask()
        params = sample(trial, 0, 2, {})
        assert convert_params(trial.params) == params
        model = algorithm("MlpPolicy", gym.make(ID, **SMALL), n_steps=5, **params)
        assert model.gamma == 1 - trial.params["one_minus_gamma"]
        assert model.ent_coef_schedule(0.5) == pytest.approx(trial.params["ent_coef"] / 2)
        rate = trial.params["continuous_learning_rate"]
        scheduled = trial.params.get("spread") == "scheduled"
        assert model.component_learning_rates["continuous"](0.0) == pytest.approx(rate / 10 if scheduled else 0.0)
        if "spread" in trial.params:
            std = model.policy.log_std[0].exp().item() if not scheduled else model.point_std_schedule(1.0)
            assert std == pytest.approx(trial.params["point_std"])


@pytest.mark.parametrize("networks", [{"net_arch": [8], "quadratic_path": ["value"]}, "dict(activation_fn=nn.SiLU)"])
def test_a_study_draws_on_top_of_the_entry_and_any_trial_of_it_can_be_trained(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yml").write_text(yaml.safe_dump({ID: CONFIG[ID] | {"policy_kwargs": networks}}))
    common = ("--algo", "hpo", "--env", ID, "--conf-file", "own.yml", "-f", "logs")
    study = ("--storage", "study.log", "--study-name", "own")
    small = ("--n-trials", "1", "--n-evaluations", "1", "--no-optim-plots", "--optimization-log-path", "trials")
    main(["tune", *common, *study, *small])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    (trial,) = optuna.load_study(study_name="own", storage=storage).trials
    main(["train", *common, *study, "--trial-id", "0", "--eval-freq", "-1", "-params", "n_epochs:1"])
    for file in ("trials/trial_0/best_model.zip", f"logs/hpo/{ID}_1/{ID}.zip"):  # a study is no run
        model = HPO.load(file)
        assert model.gamma == 1 - trial.params["one_minus_gamma"]
        assert model.policy.net_arch == [trial.params["width"]] * 2
        assert list(model.policy.quadratic_path) == (["value"] if isinstance(networks, dict) else [])
        assert model.policy.activation_fn is (torch.nn.Tanh if isinstance(networks, dict) else torch.nn.SiLU)
    assert model.n_epochs == 1  # the command line has the last word

    for wrong, what in (("1", "study.log has no study 'own' with a trial 1"), ("-1", "--trial-id must be an integer >= 0")):
        assert what in complaint(capsys, "train", *common, *study, "--trial-id", wrong)
    assert "--trial-id needs --storage and --study-name" in complaint(capsys, "train", *common, "--trial-id", "0")


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["study.log", "sqlite:///study.db"])
def test_two_processes_work_on_one_study_and_lose_no_trial(storage, folder, tmp_path, monkeypatch):
    n_trials = 4
    processes = [
        start(
            *("tune", "--algo", "hpo", "--env", ID, "--conf-file", folder / "own.yml", "-f", "logs", "--no-optim-plots"),
            *("--storage", storage, "--study-name", "shared", "--n-trials", n_trials, "--sampler", "random"),
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    contributions = []
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        lines = [line.split("Trial ")[1] for line in errors.splitlines() if "] Trial " in line]
        contributions.append({int(line.split()[0]) for line in lines})
    monkeypatch.chdir(tmp_path)
    if storage.endswith(".log"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    assert [trial.number for trial in trials] == list(range(2 * n_trials))
    assert all(trial.state.is_finished() and trial.state != optuna.trial.TrialState.FAIL for trial in trials)
    assert [len(numbers) for numbers in contributions] == [n_trials, n_trials]
    assert set.union(*contributions) == set(range(2 * n_trials))


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["hybrid_ppo", "ppo"])
def test_other_algorithms_train_on_hybrid_environments_with_the_configs_of_this_package(algo, tmp_path):
    arguments = ("--algo", algo, "--env", ID, "-f", "logs")
    small = ("--env-kwargs", "n_items:2", "-n", 1600, "-params", "n_envs:4", "batch_size:100")
    code, _, errors = run("train", *arguments, *small, "--eval-freq", 800, cwd=tmp_path)
    assert code == 0, errors
    code, output, errors = run("enjoy", *arguments, "--no-render", "-n", 100, cwd=tmp_path)
    assert code == 0, errors
    assert "Mean reward" in output


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["hpo", "hybrid_ppo"])
def test_several_factors_are_trained_and_scored_from_the_command_line(algo, tmp_path):
    arguments = ("--algo", algo, "--env", "HybridMoving-v0", "-f", "logs")
    small = (
        "--env-kwargs",
        "n_agents:2",
        "horizon:20",
        "regimes:'own'",
        "-n",
        320,
        "-params",
        "policy_kwargs:{'net_arch':[8]}",
    )
    code, _, errors = run("train", *arguments, *small, "--eval-freq", 160, cwd=tmp_path)
    assert code == 0, errors
    code, output, errors = run("enjoy", *arguments, "--no-render", "-n", 40, cwd=tmp_path)
    assert code == 0, errors
    assert "Mean reward" in output
