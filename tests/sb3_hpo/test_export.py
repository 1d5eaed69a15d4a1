"""The exported graph decides as the policy does, and its schema says how to ask it."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hpo import HPO, HybridPPO
from sb3_hpo.export import DecisionModule, agreement, export_onnx, export_torch, load_onnx, load_torch
from tests.masked import GateEnv, KilnEnv
from tests.sb3_hpo.environments import TargetEnv

SMALL = {"net_arch": [16, 16]}


def shaken(model):
    """The model with other weights than those it starts with, which are nearly indifferent between regimes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def observations_of(model, count, seed=1):
    scale = model.env.get_attr("observation_scale")[0] if model.env.has_attr("observation_scale") else 1.0
    normals = np.random.default_rng(seed).normal(size=(count, *model.observation_space.shape))
    return (1.5 * scale * normals).astype(np.float32)


def undecided(model, seen):
    """Where the two likeliest regimes are so nearly equal that rounding may decide."""
    with torch.no_grad():
        logits = model.policy.regime_logits(torch.as_tensor(seen))
    if logits.shape[1] == 1:
        return np.zeros(len(seen), dtype=bool)
    first, second = logits.topk(2, dim=1).values.T
    return (first - second < 1e-4).numpy()


@pytest.mark.parametrize("project_points", [False, True])
def test_the_onnx_graph_decides_as_predict_does_on_every_environment(env_id, project_points, tmp_path):
    model = shaken(HPO("MlpPolicy", env_id, n_scenarios=2, seed=0, policy_kwargs={"project_points": project_points}))
    observations = observations_of(model, 10_000)
    close = undecided(model, observations)
    assert close.mean() < 0.01
    export_onnx(model, tmp_path / "policy.onnx")
    decide = load_onnx(tmp_path / "policy.onnx")
    found = agreement(model, decide, observations[~close])
    assert found.regimes_equal == 1.0
    assert found.largest_point_difference <= 1e-5
    regimes, _ = decide(observation=observations)
    assert len(np.unique(regimes)) > 1
    env = gym.make(env_id).unwrapped
    for regime, point in zip(*decide(observation=1e4 * observations[:200]), strict=True):
        low, high = np.moveaxis(env.action_bounds[regime], -1, 0)
        assert (point >= low).all() and (point <= high).all()


@pytest.fixture(scope="module")
def normalised():
    venv = VecNormalize(DummyVecEnv([lambda: gym.make("HybridInventory-v0", n_items=2, horizon=5)] * 4), clip_obs=1.5)
    model = HybridPPO("MlpPolicy", venv, n_steps=5, batch_size=10, seed=0, policy_kwargs=SMALL).learn(40)
    return shaken(model)


@pytest.mark.parametrize(("export", "load"), [(export_onnx, load_onnx), (export_torch, load_torch)])
def test_the_statistics_of_vec_normalize_are_in_the_graph(normalised, tmp_path, export, load):
    rms = normalised.get_vec_normalize_env().obs_rms
    noise = np.random.default_rng(0).normal(size=(500, *rms.mean.shape))
    observations = (rms.mean + 2 * np.sqrt(rms.var + 1e-8) * noise).astype(np.float32)
    export(normalised, tmp_path / "policy")
    decide = load(tmp_path / "policy")
    seen = np.clip((observations - rms.mean) / np.sqrt(rms.var + 1e-8), -1.5, 1.5).astype(np.float32)
    assert (np.abs(seen) == 1.5).any()
    close = undecided(normalised, seen)
    expected, _ = normalised.predict(seen[~close], deterministic=True)
    regimes, points = decide(observation=observations[~close])
    assert regimes.tolist() == [regime for regime, _ in expected]
    np.testing.assert_allclose(points, np.stack([point for _, point in expected]), rtol=1e-5, atol=1e-5)


def test_a_drawn_decision_is_the_inverse_of_the_distribution_function_at_the_given_numbers(tmp_path):
    model = shaken(HybridPPO("MlpPolicy", GateEnv(), n_steps=8, batch_size=8, policy_kwargs=SMALL))
    export_onnx(model, tmp_path / "policy.onnx", sampled=True)
    decide = load_onnx(tmp_path / "policy.onnx")
    rng = np.random.default_rng(0)
    count = 2_000
    observations = np.full((count, 1), 0.3, np.float32)
    masks = np.tile([True, False, True], (count, 1))
    uniforms = rng.random(count).astype(np.float32)
    uniforms[:2] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    normals = rng.normal(size=(count, 2)).astype(np.float32)
    regimes, points = decide(observation=observations, action_masks=masks, uniforms=uniforms, normals=normals)

    with torch.no_grad():
        seen = torch.as_tensor(observations[:1])
        logits, candidates = model.policy.regime_logits(seen)[0].double().numpy(), model.policy.candidates(seen)[0].numpy()
        std = model.policy.log_std.exp().numpy()
    odds = np.exp(logits[[0, 2]] - logits.max())
    border = odds[0] / odds.sum()
    clear = np.abs(uniforms - border) > 1e-5
    assert (regimes[clear] == np.where(uniforms < border, 0, 2)[clear]).all()
    assert regimes[0] == 0 and regimes[1] == 2
    expected = np.clip(candidates[regimes] + std * normals, -1, 1)
    np.testing.assert_allclose(points, expected, atol=1e-5)
    assert (np.abs(points) == 1).any() and (np.abs(points) < 1).any()


def test_the_first_regime_is_not_drawn_where_it_is_masked(tmp_path):
    model = shaken(HPO("MlpPolicy", KilnEnv(), n_scenarios=2, policy_kwargs=SMALL))
    module = DecisionModule.of(model, sampled=True)
    observations, masks = torch.zeros(2, 3), torch.tensor([[False, True, True], [False, False, True]])
    regimes, _ = module(observations, masks, torch.zeros(2))
    assert regimes.tolist() == [1, 2]


def test_a_program_of_torch_runs_without_this_package(tmp_path):
    model = shaken(HPO("MlpPolicy", "HybridPortfolio-v0", n_scenarios=2, seed=0, policy_kwargs=SMALL))
    export_torch(model, tmp_path / "policy.pt2")
    observations = observations_of(model, 5)
    np.save(tmp_path / "observations.npy", observations)
    program = """
import sys, numpy, torch
decide = torch.export.load("policy.pt2").module()
observations = torch.from_numpy(numpy.load("observations.npy"))
regime, point = decide(observation=observations)
numpy.savez("actions.npz", regime=regime.numpy(), point=point.detach().numpy())
assert not {"sb3_hpo", "hybrid_envs", "stable_baselines3"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    actions = np.load(tmp_path / "actions.npz")
    expected, _ = model.predict(observations, deterministic=True)
    assert actions["regime"].tolist() == [regime for regime, _ in expected]
    np.testing.assert_allclose(actions["point"], np.stack([point for _, point in expected]), atol=1e-5)


def test_later_training_and_random_numbers_are_not_touched(tmp_path):
    model = shaken(HPO("MlpPolicy", "HybridPortfolio-v0", n_scenarios=2, seed=0, policy_kwargs=SMALL))
    state = torch.get_rng_state()
    module = DecisionModule.of(model)
    assert torch.equal(torch.get_rng_state(), state)
    before = module(torch.ones(1, *model.observation_space.shape))
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    after = module(torch.ones(1, *model.observation_space.shape))
    assert torch.equal(before[1], after[1])


def test_what_cannot_be_exported_is_refused(tmp_path):
    model = HPO("MlpPolicy", "HybridPortfolio-v0", n_scenarios=2, policy_kwargs=SMALL)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"load it with env="):
        export_onnx(HPO.load(tmp_path / "model"), tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match="one-dimensional Box"):
        export_onnx(HybridPPO("MultiInputPolicy", TargetEnv(True), n_steps=8, batch_size=8), tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


def test_a_graph_that_decides_otherwise_is_not_written(tmp_path, monkeypatch):
    model = shaken(HPO("MlpPolicy", "HybridPortfolio-v0", n_scenarios=2, policy_kwargs=SMALL))
    predict = model.policy.predict
    model.policy.predict = lambda *args: ([(regime, point + 1) for regime, point in predict(*args)[0]], None)
    with pytest.raises(RuntimeError, match="does not decide as predict does"):
        export_onnx(model, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_masked_regimes_are_never_taken(tmp_path):
    model = shaken(HPO("MlpPolicy", KilnEnv(), n_scenarios=2))
    masks = np.random.default_rng(0).random((400, 3)) < 0.5
    masks[np.arange(400), np.random.default_rng(1).integers(3, size=400)] = True
    export_onnx(model, tmp_path / "policy.onnx")
    decide = load_onnx(tmp_path / "policy.onnx")
    observations = observations_of(model, 400)
    found = agreement(model, decide, observations, masks)
    assert found.regimes_equal >= 0.99
    assert found.largest_point_difference <= 1e-5
    regimes, _ = decide(observation=observations, action_masks=masks)
    assert masks[np.arange(400), regimes].all()
    assert set(regimes) == {0, 1, 2}


# ---- one export, looked at from several sides ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def model(folder):
    env = gym.make("HybridInventory-v0", n_items=2, horizon=5)
    model = shaken(HPO("MlpPolicy", env, n_scenarios=2, batch_size=10, seed=0))
    export_onnx(model, folder / "policy.onnx", facts={"data": "sales.csv | weeks 1 to 50"})
    return model


@pytest.fixture(scope="module")
def decide(model, folder):
    return load_onnx(folder / "policy.onnx")


def test_batches_of_any_size_are_answered_row_by_row(model, decide):
    observations = observations_of(model, 9)
    regimes, points = decide(observation=observations)
    assert (regimes.dtype, regimes.shape, points.dtype, points.shape) == (np.int64, (9,), np.float32, (9, 2))
    for i in range(9):
        regime, point = decide(observation=observations[i : i + 1])
        assert regime[0] == regimes[i]
        np.testing.assert_allclose(point[0], points[i], rtol=1e-4, atol=1e-4)


def test_a_decision_of_the_graph_takes_a_fraction_of_predicts_time(model, decide):
    observation = observations_of(model, 1)

    def fastest(ask):
        times = []
        for _ in range(200):
            start = time.perf_counter()
            ask()
            times.append(time.perf_counter() - start)
        return min(times)

    predict = fastest(lambda: model.predict(observation[0], deterministic=True))
    assert 4 * fastest(lambda: decide(observation=observation)) < predict  # 15 times where nothing else runs


def test_the_graph_drives_the_environment(model, decide):
    env = gym.make("HybridInventory-v0", n_items=2, horizon=5)
    rewards = []
    for graph in (False, True):
        observation, _ = env.reset(seed=3)
        total, done = 0.0, False
        while not done:
            action = model.predict(observation, deterministic=True)[0]
            if graph:
                regime, point = decide(observation=observation[None])
                action = (regime[0], point[0])
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + reward, terminated or truncated
        rewards.append(total)
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-4)


def reject_constant(text):
    raise AssertionError(f"{text} is no JSON")


def test_the_schema_says_how_to_ask_the_graph(model, folder):
    schema = json.loads((folder / "policy.json").read_text(), parse_constant=reject_constant)
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    kinds = {"float32": "tensor(float)", "int64": "tensor(int64)", "bool": "tensor(bool)"}
    for entries, nodes in ((schema["inputs"], session.get_inputs()), (schema["outputs"], session.get_outputs())):
        told = [(entry["name"], entry["shape"], kinds[entry["dtype"]]) for entry in entries]
        assert told == [(node.name, node.shape, node.type) for node in nodes]
    (observation,), (regime, point) = schema["inputs"], schema["outputs"]
    env = model.env.unwrapped.simulator.env
    np.testing.assert_allclose(observation["scale"], env.observation_scale)
    assert observation["low"] == [None] * 10
    assert "pipeline stock" in observation["meaning"]
    assert "units" in point["meaning"]
    assert point["bounds"] == [[[0.0, 0.0]] * 2, [[0.0, None]] * 2]
    assert regime["space"] == "Discrete(2)"
    assert schema["environment"] == {"id": "HybridInventory-v0", "arguments": {"n_items": 2, "horizon": 5}}
    assert schema["graph_sha256"] == hashlib.sha256((folder / "policy.onnx").read_bytes()).hexdigest()
    assert schema["checked"]["regimes_equal"] >= 0.999


def test_the_model_card_says_what_it_is(model, folder):
    card = (folder / "policy.md").read_text()
    for words in ("HybridInventory-v0", '"n_items": 2', r"sales.csv \| weeks 1 to 50", "## Checked", "## Limits"):
        assert words in card


def test_no_file_names_a_path_of_the_machine_that_wrote_it(model, folder):
    export_torch(model, folder / "program.pt2")
    assert len(list(folder.iterdir())) == 6
    for path in folder.iterdir():
        for place in (Path(__file__).parents[2], Path(torch.__file__).parents[1], folder):
            assert str(place).encode() not in path.read_bytes(), path
