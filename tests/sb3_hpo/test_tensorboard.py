"""What a run leaves in TensorBoard: scalars in SB3's groups, figures of the policy, hyperparameters."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from rl_zoo3.utils import get_callback_list
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hybrid_envs import HybridEnv, HybridInventoryEnv, HybridSwitchedLQREnv, policy_figure
from hybrid_envs.evaluation import greedy_episode
from hybrid_envs.rendering import new_figure
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.callbacks import CostCallback, HParamCallback, PolicyFigureCallback, hyperparameters
from sb3_hpo.vec_env import simulated
from tests.factored import BreweryEnv
from tests.sb3_hpo.browser import CHROMIUM, Browser

CALLBACKS = """
callback:
  - sb3_hpo.callbacks.CostCallback:
      every: 160
      n_scenarios: 8
  - sb3_hpo.callbacks.PolicyFigureCallback:
      every: 160
  - sb3_hpo.callbacks.HParamCallback
"""
QUALITY = """
  - sb3_hpo.callbacks.GradientQualityCallback:
      every: 2
      n_batches: 2
      n_scenarios: 4
"""
ALGORITHMS = {
    "HPO": (HPO, {"n_scenarios": 8, "cross_term": "auto", "continuous_learning_rate": "lin_5e-3"}),
    "HybridPPO": (HybridPPO, {"n_steps": 80, "batch_size": 20, "learning_rate": 2e-3, "ent_coef": "lin_0.05"}),
}


def make(algo="HPO", env=None, **kwargs):
    cls, settings = ALGORITHMS[algo]
    env = env or gym.make("HybridSwitchedLQR-v0", n_dims=3, horizon=10)
    return cls("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **{"seed": 3} | settings | kwargs)


def train(folder, algo="HPO", callbacks=CALLBACKS, iterations=4, **kwargs):
    """Some iterations of 80 steps, with the callbacks of a zoo config."""
    model = make(algo, tensorboard_log=str(folder), **kwargs)
    return model.learn(iterations * 80, callback=get_callback_list(yaml.safe_load(callbacks)), tb_log_name=algo)


def events_of(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def hparams_of(events):
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    info = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in info.items()}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_logs_scalars_in_sb3s_groups_figures_and_hyperparameters(tmp_path, algo):
    callbacks = CALLBACKS + QUALITY if algo == "HPO" else CALLBACKS
    train(tmp_path, algo, callbacks)
    events = events_of(tmp_path / f"{algo}_1")
    tags = events.Tags()
    groups = {"rollout", "train", "time", "eval"} | ({"gradient"} if algo == "HPO" else set())
    assert {tag.split("/")[0] for tag in tags["scalars"]} == groups
    expected = {"rollout/ep_rew_mean", "train/value_loss", "time/fps", "eval/cost", "eval/optimality_gap"}
    if algo == "HPO":
        expected |= {f"train/grad_norm/{network}" for network in ("discrete", "continuous", "value")}
    assert expected <= set(tags["scalars"])
    assert tags["images"] == ["eval/policy"]
    assert [image.step for image in events.Images("eval/policy")] == [0, 160, 320]
    assert {image.width for image in events.Images("eval/policy")} == {750}
    # what SB3 records last would otherwise never be logged
    assert events.Scalars("train/value_loss")[-1].step == events.Scalars("eval/cost")[-1].step == 320

    hparams = hparams_of(events)
    env = {"env": "HybridSwitchedLQR-v0", "env_kwargs": "n_dims=3, horizon=10"}
    assert hparams | env | {"algo": algo, "seed": "3", "gamma": 0.99, "net_arch": "[8]"} == hparams
    own = {
        "HPO": {"n_envs": 8, "cross_term": "auto", "learning_rate": "lin_0.002", "continuous_learning_rate": "lin_0.005"},
        "HybridPPO": {"n_envs": 1, "cross_term": "False", "learning_rate": "0.002", "continuous_learning_rate": "0.002"},
    }[algo]
    assert hparams | own == hparams
    assert (hparams["max_grad_norm"], hparams["pathwise_weight"]) == {"HPO": ("0.5", 1.0), "HybridPPO": ("0.5", 0.0)}[algo]


def test_both_algorithms_state_the_same_hyperparameters_with_the_same_types():
    """TensorBoard takes the columns for all runs from one of them."""
    plain = HybridPPO("MlpPolicy", HybridInventoryEnv(1), n_steps=4, batch_size=4)
    one, other, third = (
        hyperparameters(make()),
        hyperparameters(make("HybridPPO", seed=None, target_kl=0.1)),
        hyperparameters(plain),
    )
    assert one.keys() == other.keys() == third.keys()
    assert (
        [type(value) for value in one.values()] == [type(other[name]) for name in one] == [type(third[name]) for name in one]
    )
    assert (third["env"], third["env_kwargs"]) == ("HybridInventoryEnv", "")


def test_the_hyperparameter_tab_shows_the_metrics_it_is_asked_for(tmp_path):
    model = make(tensorboard_log=str(tmp_path))
    model.learn(80, callback=HParamCallback(metrics=["rollout/cost_per_period"]))
    content = events_of(tmp_path / "HPO_1").PluginTagToContent("hparams")["_hparams_/experiment"]
    metrics = HParamsPluginData.FromString(content).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["rollout/cost_per_period"]


def test_training_goes_on_as_if_nobody_watched(tmp_path):
    watched, alone = train(tmp_path, iterations=2), make()
    alone.learn(160)
    for name, weights in alone.policy.state_dict().items():
        assert torch.equal(weights, watched.policy.state_dict()[name]), name


def test_under_vec_normalize_the_figure_is_that_of_the_scaled_observations():
    env = HybridSwitchedLQREnv(3, horizon=10)
    venv = VecNormalize(simulated(env, 8), norm_reward=False)
    model, callback = make(env=venv), PolicyFigureCallback(every=80)
    model.learn(160, callback=callback)
    observation = np.random.default_rng(0).normal(0, 3, (5, 3)).astype(np.float32)
    probabilities, points = callback.choices(observation)
    assert probabilities.shape == (5, 2) and points.shape == (5, 2, 3)
    scaled = torch.as_tensor(venv.normalize_obs(observation))
    with torch.no_grad():
        logits = model.policy.regime_logits(scaled)
        np.testing.assert_allclose(probabilities, torch.softmax(logits, 1).numpy(), rtol=1e-6)
        np.testing.assert_allclose(points, model.policy.candidates(scaled).numpy(), rtol=1e-6)
    (regime, point) = callback.model.predict(scaled[0].numpy(), deterministic=True)[0]
    assert regime == probabilities[0].argmax()
    np.testing.assert_allclose(point, points[0, regime], rtol=1e-6)


def test_a_figure_of_several_factors_gets_the_probabilities_of_each(tmp_path):
    seen = []

    class DrawnEnv(BreweryEnv):
        """Three valves, of 2, 3 and 2 positions."""

    @policy_figure.register
    def valves(env: DrawnEnv, policy):
        observations, choices = greedy_episode(env, policy)
        seen.append((observations, choices))
        figure = new_figure(4, 3)
        figure.subplots().plot(choices.probabilities[:, 1])
        return figure

    model, callback = make(env=DrawnEnv(10), tensorboard_log=str(tmp_path)), PolicyFigureCallback(every=80)
    model.learn(80, callback=[callback, HParamCallback(), CostCallback(every=80, n_scenarios=4)], tb_log_name="HPO")
    assert events_of(tmp_path / "HPO_1").Tags()["images"] == ["eval/policy"]
    observations, (probabilities, points) = seen[-1]
    assert probabilities.shape == (10, 3, 3) and points.shape == (10, 3, 4)
    np.testing.assert_allclose(probabilities.sum(axis=2), 1.0, rtol=1e-5)
    assert (probabilities[:, [0, 2], 2] == 0).all()
    distribution = model.policy.regimes(torch.as_tensor(observations))
    np.testing.assert_allclose(probabilities, distribution.independent.probs.detach(), rtol=1e-5, atol=1e-7)


def test_other_formats_than_tensorboard_are_spared_figures_and_hyperparameters(tmp_path):
    model = make()
    model.set_logger(configure(str(tmp_path), ["log", "json", "csv", "tensorboard"]))
    model.learn(160, callback=[PolicyFigureCallback(every=80), HParamCallback()])
    header = (tmp_path / "progress.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "rollout/ep_rew_mean" in header and "eval/policy" not in header and "hparams" not in header


def test_an_environment_that_draws_nothing_is_trained_with_a_warning(monkeypatch):
    monkeypatch.setattr("sb3_hpo.callbacks.policy_figure", policy_figure.dispatch(HybridEnv))
    with pytest.warns(UserWarning, match="HybridSwitchedLQR-v0 has no policy_figure"):
        make().learn(80, callback=PolicyFigureCallback())


@pytest.mark.parametrize("callback", [CostCallback, PolicyFigureCallback])
def test_a_count_that_is_none_is_refused(callback):
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        callback(every=0)


@pytest.mark.parametrize("callback", [CostCallback, PolicyFigureCallback])
def test_a_training_that_cannot_be_simulated_is_refused_before_it_begins(callback):
    class Plain(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (1,))])

        def reset(self, **kwargs):
            return np.zeros(2, np.float32), {}

    model = HybridPPO("MlpPolicy", Plain(), n_steps=4, batch_size=4)
    with pytest.raises(TypeError, match=f"{callback.__name__} simulates; .* is not a hybrid_envs.HybridEnv"):
        model.learn(4, callback=callback())
    assert model.num_timesteps == 0


def test_a_second_announcement_of_the_end_measures_nothing_again():
    """RL Zoo makes one to its first callback, also where training never began."""
    callback = CostCallback(every=80, n_scenarios=4, gap=False)
    CostCallback(every=80).on_training_end()
    make().learn(160, callback=callback)
    callback.on_training_end()
    assert callback.steps == [0, 80, 160]


@contextlib.contextmanager
def tensorboard(logdir):
    """The server on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for_runs(address, runs, seconds=120):
    deadline = time.monotonic() + seconds
    listed = None
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{address}/data/runs", timeout=10) as answer:
            listed = json.load(answer)
            if sorted(listed) == runs:
                return
        time.sleep(0.5)
    raise AssertionError(f"TensorBoard lists {listed}, not {runs}")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_in_a_browser_the_runs_are_listed_and_scalars_images_and_hyperparameters_render(tmp_path):
    train(tmp_path / "logs", "HPO")
    train(tmp_path / "logs", "HybridPPO", env=gym.make("HybridInventory-v0", n_items=2, horizon=10))
    runs = ["HPO_1", "HybridPPO_1"]
    with tensorboard(tmp_path / "logs") as address, Browser(tmp_path / "profile") as browser:
        wait_for_runs(address, runs)

        browser.open(f"{address}/#timeseries")
        for run in runs:
            browser.wait_for(f"deep('runs-data-table').some((table) => table.innerText.includes('{run}'))")
            browser.wait_for(f"deep('scalar-card').some((card) => card.innerText.includes('{run}'))")
        browser.wait_for("deep('image-card img').filter((img) => img.naturalWidth === 750).length === 2")
        browser.screenshot(tmp_path / "timeseries.png")

        browser.open(f"{address}/#scalars")
        for tag in ("eval/cost", "eval/optimality_gap"):
            lines = f"""deep('tf-scalar-card').filter((card) => card.tag === '{tag}')
                .flatMap((card) => roots(card.shadowRoot)).flatMap((root) => all(root, 'path.line'))
                .filter((path) => (path.getAttribute('d') || '').includes('L') && path.getBoundingClientRect().width > 50)"""
            browser.wait_for(f"{lines}.length === 4")  # as measured and smoothed, of both runs
        browser.screenshot(tmp_path / "scalars.png")

        browser.open(f"{address}/#images")
        widths = "deep('tf-image-loader').flatMap((card) => all(card.shadowRoot, 'img')).map((img) => img.naturalWidth)"
        browser.wait_for(f"{widths}.filter((width) => width === 750).length === 2")
        browser.screenshot(tmp_path / "images.png")

        browser.open(f"{address}/#hparams")
        cost = events_of(tmp_path / "logs" / "HPO_1").Scalars("eval/cost")[-1].value
        for text in ("lin_0.005", "HybridPPO_1", "eval/optimality_gap", f"{cost:#.5g}"):
            browser.wait_for(
                f"deep('tf-hparams-table-view').flatMap((view) => roots(view.shadowRoot)).some((root) => "
                f"root.textContent.includes('{text}'))"
            )
        browser.screenshot(tmp_path / "hparams.png")
