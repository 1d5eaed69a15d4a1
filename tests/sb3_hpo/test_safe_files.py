"""Models of plain data: the same model after loading, and nothing else is loaded."""

import ast
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.nn.utils import parameters_to_vector

import sb3_hpo.safe_files
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.policies import DeterministicPointPolicy
from sb3_hpo.safe_files import load_normalizer, load_safe, save_safe
from sb3_hpo.safe_files.container import MAX_HEADER
from tests.masked import KilnEnv
from tests.sb3_hpo.environments import TargetEnv

SMALL = {"net_arch": [8]}


def make():
    return gym.make("HybridInventory-v0", n_items=2, horizon=5)


def weights(model):
    return parameters_to_vector(model.policy.parameters()).detach()


def trained(algorithm, env, **arguments):
    sizes = {"n_scenarios": 4} if algorithm is HPO else {"n_steps": 10}
    return algorithm("MlpPolicy", env, seed=3, batch_size=10, policy_kwargs=SMALL, **sizes, **arguments).learn(40)


# ---- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_loaded_model_trains_on_bit_for_bit_as_after_sb3s_load(algorithm, normalised, tmp_path):
    settings = {"ent_coef": "quad_0.1", "temperature": "hold_2.0", "learning_rate": "lin_3e-3", "max_grad_norm": 0.7}
    late = {"cross_term": "auto", "point_noise": "early_0.1", "continuous_learning_rate": "late_2e-3"}
    settings |= late if algorithm is HPO else {"clip_range_vf": 0.3, "target_kl": 0.5}
    venv = DummyVecEnv([make] * 4)
    env = VecNormalize(venv, clip_obs=5.0, gamma=0.9) if normalised else make()
    model = trained(algorithm, env, **settings)
    save_safe(model, tmp_path / "model.safetensors")
    model.save(tmp_path / "model.zip")
    if normalised:
        env.save(tmp_path / "statistics.pkl")
        env = VecNormalize.load(tmp_path / "statistics.pkl", DummyVecEnv([make] * 4))
    expected = algorithm.load(tmp_path / "model.zip", env=env if normalised else make())
    expected.learn(80, reset_num_timesteps=False)
    loaded = load_safe(tmp_path / "model.safetensors", DummyVecEnv([make] * 4) if normalised else make())
    assert type(loaded) is algorithm
    assert loaded.num_timesteps == model.num_timesteps
    assert torch.equal(weights(loaded), weights(model))
    loaded.learn(80, reset_num_timesteps=False)
    assert loaded.num_timesteps == expected.num_timesteps
    assert not torch.equal(weights(loaded), weights(model))
    assert torch.equal(weights(loaded), weights(expected))
    if normalised:
        ours, theirs = loaded.get_vec_normalize_env(), expected.get_vec_normalize_env()
        np.testing.assert_array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)
        assert ours.ret_rms.var == theirs.ret_rms.var
        assert (ours.clip_obs, ours.gamma) == (5.0, 0.9)


def test_a_policy_of_every_environment_predicts_the_same_with_and_without_it(env_id, tmp_path):
    model = HPO("MlpPolicy", env_id, n_scenarios=2, seed=0, policy_kwargs=SMALL)
    save_safe(model, tmp_path / "model")
    loaded = load_safe(tmp_path / "model")
    assert load_safe(tmp_path / "model", gym.make(env_id)).env.num_envs == 2
    observations = np.random.default_rng(0).normal(size=(50, *model.observation_space.shape)).astype(np.float32)
    for ours, theirs in zip(*(m.predict(observations, deterministic=True)[0] for m in (loaded, model)), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_all_that_can_be_saved_comes_back(tmp_path):
    policy_kwargs = {
        "net_arch": {"discrete": [8], "continuous": [4, 4], "value": []},
        "linear_laws": 3,
        "linear_gain": 2.5,
        "softplus_beta": 8.0,
        "project_points": True,
        "activation_fn": torch.nn.SiLU,
        "linear_path": ("value",),
        "optimizer_class": torch.optim.AdamW,
        "optimizer_kwargs": {"weight_decay": 0.02, "betas": (0.8, 0.9), "amsgrad": True},
        "log_std_init": -0.5,
        "ortho_init": False,
    }
    model = HybridPPO(
        *("MultiInputPolicy", TargetEnv(dict_observation=True)),
        n_steps=8,
        batch_size=4,
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        clip_range=LinearSchedule(0.2, 0.0, 1.0),
        max_grad_norm=float("inf"),
        policy_kwargs=policy_kwargs,
    ).learn(16)
    save_safe(model, tmp_path / "model")
    loaded = load_safe(tmp_path / "model", TargetEnv(dict_observation=True), gamma=0.5, tensorboard_log=None)
    assert torch.equal(weights(loaded), weights(model))
    assert str(loaded.policy) == str(model.policy)
    assert (loaded.gamma, loaded.max_grad_norm) == (0.5, float("inf"))
    for left in (1.0, 0.6, 0.5, 0.0):
        assert loaded.lr_schedule(left) == model.lr_schedule(left)
        assert loaded.clip_range(left) == model.clip_range(left)
    optimizers = [m.policy.optimizer.state_dict() for m in (loaded, model)]
    assert [group["weight_decay"] for group in optimizers[0]["param_groups"]] == [0.02] * 3
    assert optimizers[0]["state"].keys() == optimizers[1]["state"].keys()
    for i, state in optimizers[1]["state"].items():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert all(torch.equal(optimizers[0]["state"][i][key], value) for key, value in state.items())


def test_masks_and_statistics_alone(tmp_path):
    model = HPO("MlpPolicy", KilnEnv(), n_scenarios=4, seed=0, policy_kwargs=SMALL).learn(16)
    save_safe(model, tmp_path / "model")
    load_safe(tmp_path / "model", KilnEnv()).learn(16)
    venv = DummyVecEnv([make])
    assert load_normalizer(tmp_path / "model", venv) is venv
    env = VecNormalize(DummyVecEnv([make] * 2), norm_reward=False)
    save_safe(trained(HybridPPO, env), tmp_path / "normalised")
    wrapped = load_normalizer(tmp_path / "normalised", venv)
    assert isinstance(wrapped, VecNormalize)
    assert not wrapped.norm_reward
    np.testing.assert_array_equal(wrapped.obs_rms.var, env.obs_rms.var)
    with pytest.raises(ValueError, match="norm_obs=False"):
        load_safe(tmp_path / "normalised", VecNormalize(DummyVecEnv([make]), norm_obs=False))


def test_the_library_safetensors_reads_what_we_write_and_writes_what_we_read(tmp_path):
    model = trained(HPO, make())
    save_safe(model, tmp_path / "model")
    with safetensors.safe_open(tmp_path / "model", "np") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(tmp_path / "model")
    name = "components.discrete.output.weight"
    np.testing.assert_array_equal(tensors[f"policy.{name}"], model.policy.state_dict()[name].numpy())
    safetensors.numpy.save_file(tensors, tmp_path / "again", metadata)
    assert torch.equal(weights(load_safe(tmp_path / "again")), weights(model))


class OwnPolicy(DeterministicPointPolicy):
    pass


class OwnHPO(HPO):
    pass


def test_what_is_not_plain_data_is_refused_when_it_is_saved(tmp_path):
    env = make()
    for model, word in (
        (HPO("MlpPolicy", env, ent_coef=lambda left: 0.1 * left**2), "ent_coef"),
        (HPO(OwnPolicy, env), "OwnPolicy"),
        (OwnHPO("MlpPolicy", env), "OwnHPO"),
        (HPO("MlpPolicy", env, policy_kwargs={"activation_fn": torch.nn.Softmax}), "policy_kwargs.activation_fn"),
        (HPO("MlpPolicy", env, policy_kwargs={"optimizer_class": torch.optim.SGD}), "policy_kwargs.optimizer_class"),
        (HPO("MlpPolicy", env, policy_kwargs={"optimizer_kwargs": {"foreach": False}}), "foreach"),
        (HPO("MlpPolicy", env, policy_kwargs={"features_extractor_kwargs": {}}), "features_extractor_kwargs"),
    ):
        with pytest.raises(ValueError, match=word):
            save_safe(model, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []
    model = HPO("MlpPolicy", env)
    with torch.no_grad():
        model.policy.component("value").output.bias.fill_(np.nan)
    with pytest.raises(ValueError, match=r"components\.value\.output\.bias"):
        save_safe(model, tmp_path / "model")


def test_another_environment_class_or_argument_is_refused(tmp_path):
    save_safe(HPO("MlpPolicy", make(), policy_kwargs=SMALL), tmp_path / "model")
    with pytest.raises(ValueError, match=r"model was trained on another environment: its observation_space"):
        load_safe(tmp_path / "model", gym.make("HybridInventory-v0", n_items=3))
    with pytest.raises(ValueError, match="must be HybridPPO, is HPO"):
        load_safe(tmp_path / "model", algorithm=HybridPPO)
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        load_safe(tmp_path / "model", gama=0.9)
    with pytest.raises(ValueError, match="gamma must be"):
        load_safe(tmp_path / "model", gamma=9)
    with pytest.raises(FileNotFoundError):
        load_safe(tmp_path / "nowhere")


# ---- files from strangers --------------------------------------------------------------------------------------------


class Command:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def take_apart(content):
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["model"]), content[8 + length :]


def put_together(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def described(*path, value=None, remove=False):
    """A crafted file: another value in the description."""

    def craft(content):
        header, description, data = take_apart(content)
        *outer, last = path
        place = description
        for key in outer:
            place = place[key]
        if remove:
            del place[last]
        else:
            place[last] = value
        header["__metadata__"]["model"] = json.dumps(description)
        return put_together(header, data)

    return craft


def replaced_text(old, new):
    """A crafted file: the same description with other text in it."""

    def craft(content):
        header, _, data = take_apart(content)
        assert old in header["__metadata__"]["model"]
        header["__metadata__"]["model"] = header["__metadata__"]["model"].replace(old, new, 1)
        return put_together(header, data)

    return craft


def headed(edit):
    """A crafted file: another header."""

    def craft(content):
        header, _, data = take_apart(content)
        return put_together(edit(header) or header, data)

    return craft


def entry(name, key, value):
    return headed(lambda header: header[name].__setitem__(key, value))


def tensors(edit):
    """A crafted file: other tensors, in a file that is otherwise right."""

    def craft(content):
        arrays = safetensors.numpy.load(content)
        edit(arrays)
        return safetensors.numpy.save(arrays, take_apart(content)[0]["__metadata__"])

    return craft


def filled(name, value):
    return tensors(lambda arrays: arrays[name].__setitem__(..., value))


def changed(name, change):
    return tensors(lambda arrays: arrays.__setitem__(name, change(arrays[name])))


def zipped(name, size):
    def craft(content):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, b"0" * size)
        return buffer.getvalue()

    return craft


def torch_file(content):
    buffer = io.BytesIO()
    torch.save({"policy": Command()}, buffer)
    return buffer.getvalue()


def crossing(content):
    bounds = {"observation_space.low": np.ones(10, np.float32), "observation_space.high": np.zeros(10, np.float32)}
    return tensors(lambda arrays: arrays.update(bounds))(content)


def enormous_rollout(content):
    """Each number is allowed, their product is not."""
    for path, value in ((("n_envs",), 2**17), (("arguments", "n_scenarios"), 2**17), (("arguments", "n_steps"), 2**20)):
        content = described(*path, value=value)(content)
    return content


W = "policy.components.discrete.output.weight"
BIAS = "policy.components.discrete.output.bias"
CRAFTED = {
    # no safetensors file at all
    "empty": (lambda content: b"", "too few"),
    "seven bytes": (lambda content: content[:7], "too few"),
    "a pickle": (lambda content: pickle.dumps(Command(), protocol=0), "header"),
    "a new pickle": (lambda content: pickle.dumps(Command()), "header"),
    "a torch file": (torch_file, "header"),
    "a zip bomb": (zipped("model.json", 50_000_000), "header"),
    "a zip with a path": (zipped("../../executed", 10), "header"),
    # the header
    "cut in the header": (lambda content: content[:100], "header"),
    "cut in the tensors": (lambda content: content[:-100], "the tensors end at byte"),
    "bytes behind the end": (lambda content: content + b"\0" * 8, "end"),
    "a header of 2**63 bytes": (lambda content: struct.pack("<Q", 2**63) + content[8:], "length"),
    "a header of 16 EiB": (lambda content: b"\xff" * 8 + content[8:], "length"),
    "a real header of 64 MiB": (headed(lambda header: json.dumps(header).encode() + b" " * 2**26), "length"),
    "no JSON": (headed(lambda header: b"import os; os.system('touch executed')"), "header"),
    "a list": (headed(lambda header: b"[]"), "header: must be a JSON object"),
    "a million brackets": (headed(lambda header: b"[" * (MAX_HEADER - 8)), "header"),
    "no UTF-8": (headed(lambda header: b"{\xff\xfe}"), "header"),
    "a huge number": (headed(lambda header: b'{"a":' + b"9" * 100_000 + b"}"), "header"),
    "no metadata": (headed(lambda header: header.pop("__metadata__") and None), "__metadata__"),
    "further metadata": (headed(lambda header: header["__metadata__"].__setitem__("code", "1")), "'code'"),
    "another format": (headed(lambda header: header["__metadata__"].__setitem__("format", "pt")), "format"),
    "a model that is no text": (headed(lambda header: header["__metadata__"].__setitem__("model", {})), "model"),
    "the same tensor twice": (
        headed(lambda header: json.dumps(header)[:-1].encode() + b"," + json.dumps({W: header[W]})[1:].encode()),
        "twice",
    ),
    # entries of the header
    "a tensor with a further key": (entry(W, "code", 1), "'code'"),
    "half precision": (entry(W, "dtype", "F16"), "dtype"),
    "a dtype that is a list": (entry(W, "dtype", ["F32"]), "dtype"),
    "negative sizes": (entry(W, "shape", [-2, -8]), "shape"),
    "sizes that are true": (entry(W, "shape", [True, True]), "shape"),
    "a shape that overflows": (entry(W, "shape", [2**40, 2**40]), W),
    "a thousand dimensions": (entry(W, "shape", [1] * 1000), "dimensions"),
    "offsets backwards": (entry(W, "data_offsets", [64, 0]), W),
    "offsets behind the end": (entry(W, "data_offsets", [2**50, 2**50 + 64]), "gap"),
    "overlapping tensors": (headed(lambda header: header[BIAS].__setitem__("data_offsets", [0, 8])), "overlaps"),
    # tensors
    "a tensor is missing": (tensors(lambda arrays: arrays.pop(W)), f"{W}': missing"),
    "a tensor too many": (tensors(lambda arrays: arrays.__setitem__("../executed", np.zeros(3))), "'../executed': nobody"),
    "a transposed weight": (changed(W, lambda array: np.ascontiguousarray(array.T)), "shape"),
    "a weight in float64": (changed(W, lambda array: array.astype(np.float64)), "float32"),
    "a weight that is NaN": (filled(W, np.nan), W),
    "a weight that is infinite": (filled(W, np.inf), W),
    "a bound that is NaN": (filled("policy_kwargs.action_bounds", np.nan), "action_bounds"),
    "bounds that cross": (changed("policy_kwargs.action_bounds", lambda array: array[..., ::-1].copy()), "exceeds"),
    "bounds of another regime": (changed("policy_kwargs.action_bounds", lambda array: array[:1].copy()), "action_bounds"),
    "a scale of 0": (filled("policy_kwargs.action_scale", 0.0), "positive"),
    "a space that crosses": (crossing, "exceeds"),
    "a huge space": (changed("observation_space.low", lambda array: np.zeros(2**21, np.float32)), "allowed"),
    "negative moments": (filled("optimizer.0.exp_avg_sq", -1.0), "exp_avg_sq"),
    "moments of nothing": (tensors(lambda arrays: arrays.__setitem__("optimizer.99.step", np.zeros((), np.float32))), "99"),
    "half of the moments": (tensors(lambda arrays: arrays.pop("optimizer.0.exp_avg")), "optimizer.0.exp_avg"),
    "negative variance": (filled("normalizer.observation.var", -1.0), "var"),
    # classes by name
    "another algorithm": (described("algorithm", value="PPO"), "algorithm"),
    "a command as algorithm": (described("algorithm", value="os.system"), "algorithm"),
    "the other algorithm": (described("algorithm", value="HybridPPO"), "arguments"),
    "a policy of another module": (described("policy", value="tests.Policy"), "policy"),
    "a command as activation": (described("policy_kwargs", "activation_fn", value="os.system"), "activation_fn"),
    "a class as a list": (described("policy_kwargs", "activation_fn", value=["Tanh"]), "activation_fn"),
    "another extractor": (
        described("policy_kwargs", "features_extractor_class", value="NatureCNN"),
        "features_extractor_class",
    ),
    "another optimizer": (described("policy_kwargs", "optimizer_class", value="LBFGS"), "optimizer_class"),
    "an unknown policy argument": (described("policy_kwargs", "device", value="cuda"), "'device'"),
    "an unknown optimizer argument": (described("policy_kwargs", "optimizer_kwargs", value={"foreach": 1}), "foreach"),
    # sizes
    "other layers": (described("policy_kwargs", "net_arch", value=[16]), "shape"),
    "enormous layers": (described("policy_kwargs", "net_arch", value=[2**31, 2**31]), "refused"),
    "a corner blunter than softplus": (described("policy_kwargs", "softplus_beta", value=0.5), "softplus_beta"),
    "a projection that is text": (described("policy_kwargs", "project_points", value="yes"), "project_points"),
    "a gain of nothing": (described("policy_kwargs", "linear_gain", value=0), "linear_gain"),
    "a corner that is text": (described("policy_kwargs", "softplus_beta", value="8"), "softplus_beta"),
    "enormously many laws": (described("policy_kwargs", "linear_laws", value=2**40), "refused"),
    "very many layers": (described("policy_kwargs", "net_arch", value=[1] * 200_000), "net_arch"),
    "layers that are text": (described("policy_kwargs", "net_arch", value=["8"]), "net_arch"),
    "a rollout without end": (described("arguments", "n_steps", value=2**52), "n_steps"),
    "a rollout of a thousand GiB": (enormous_rollout, "n_steps"),
    "environments without end": (described("n_envs", value=2**52), "n_envs"),
    "no environments": (described("n_envs", value=0), "n_envs"),
    # other values
    "a key too many": (described("code", value="import os"), "'code'"),
    "a key too few": (described("counters", remove=True), "'counters'"),
    "an argument too many": (described("arguments", "tensorboard_log", value="/"), "tensorboard_log"),
    "an argument out of range": (described("arguments", "gamma", value=2.0), "gamma"),
    "an argument that is a list": (described("arguments", "gamma", value=[0.9]), "gamma"),
    "a seed that is text": (described("arguments", "seed", value="lin_1"), "seed"),
    "a schedule that is code": (described("arguments", "learning_rate", value="__import__('os')"), "learning_rate"),
    "a schedule with another key": (described("arguments", "learning_rate", value={"f": 1}), "learning_rate"),
    "a rate that is NaN": (replaced_text('"vf_coef": 0.15', '"vf_coef": NaN'), "NaN"),
    "a rate beyond numbers": (replaced_text('"vf_coef": 0.15', '"vf_coef": 1e999'), "finite"),
    "an argument twice": (replaced_text('"gamma"', '"gamma": 1, "gamma"'), "twice"),
    "a negative counter": (described("counters", "num_timesteps", value=-1), "num_timesteps"),
    "a counter that is text": (described("counters", "cross_weight", value="1"), "cross_weight"),
    "rates for two networks": (described("learning_rates", value=[0.1, 0.1]), "learning_rates"),
    "a negative rate": (described("learning_rates", value=[0.1, 0.1, -1]), "learning_rates"),
    "statistics that are true": (described("normalizer", value=True), "normalizer"),
    "statistics not described": (described("normalizer", value=None), "normalizer"),
    "a clip that is text": (described("normalizer", "clip_obs", value="9"), "clip_obs"),
    # spaces
    "other regimes": (described("action_space", "spaces", "0", "n", value=3), "action_bounds"),
    "regimes by the million": (described("action_space", "spaces", "0", "n", value=2**23), "action_space"),
    "regimes without end": (described("action_space", "spaces", "0", "n", value=2**60), "action_space"),
    "another factorisation": (
        described("action_space", "spaces", "0", value={"type": "MultiDiscrete", "nvec": [2, 2]}),
        "refused",
    ),
    "a space of unknown type": (described("observation_space", "type", value="Text"), "observation_space.type"),
    "a space within spaces": (
        described(
            "action_space", "spaces", "0", value={"type": "Tuple", "spaces": {"0": {"type": "Tuple", "spaces": {"0": {}}}}}
        ),
        "depth",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file as it should be, of a model with all that there can be in it."""
    path = tmp_path_factory.mktemp("safe") / "model.safetensors"
    venv = VecNormalize(DummyVecEnv([make] * 4))
    save_safe(HPO("MlpPolicy", venv, batch_size=10, vf_coef=0.15, policy_kwargs=SMALL).learn(20), path)
    return path.read_bytes()


@pytest.fixture
def no_pickle(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a pickle was opened")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)


def test_the_file_they_are_crafted_from_is_right(whole, tmp_path, no_pickle):
    (tmp_path / "model").write_bytes(whole)
    load_safe(tmp_path / "model")
    header, _, data = take_apart(whole)
    (tmp_path / "model").write_bytes(put_together(header, data))
    load_safe(tmp_path / "model", make())
    (tmp_path / "model").write_bytes(tensors(lambda arrays: None)(whole))
    load_safe(tmp_path / "model")


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_file_is_refused_by_name_and_nothing_in_it_is_executed(kind, whole, tmp_path, monkeypatch, no_pickle):
    monkeypatch.chdir(tmp_path)
    craft, word = CRAFTED[kind]
    content = craft(whole)
    Path("crafted.safetensors").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"crafted\.safetensors is refused") as refusal:
        load_safe("crafted.safetensors", make())
    assert word in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB
    assert {path.name for path in tmp_path.iterdir()} == {"crafted.safetensors"}


def test_a_sparse_file_of_a_tebibyte_is_refused_before_it_is_read(whole, tmp_path):
    path = tmp_path / "model"
    header, _, data = take_apart(whole)
    offsets = {name: header[name]["data_offsets"] for name in header.keys() - {"__metadata__", W}}
    end, parts = 0, []
    for name, (start, stop) in offsets.items():
        header[name]["data_offsets"] = [end, end := end + stop - start]
        parts.append(data[start:stop])
    header[W] |= {"shape": [2**37, 2], "data_offsets": [end, end + 2**40]}
    path.write_bytes(put_together(header, b"".join(parts)))
    os.truncate(path, path.stat().st_size + 2**40)
    with pytest.raises(ValueError, match=f"{W}.*shape"):
        load_safe(path)


def test_damage_anywhere_is_refused_or_harmless(whole, tmp_path, no_pickle):
    rng = np.random.default_rng(0)
    path = tmp_path / "model"
    outcomes = set()
    for i in range(150):
        content = bytearray(whole)
        if i % 3 == 0:
            content = content[: rng.integers(len(content))]
        else:
            place = rng.integers(6000 if i % 3 == 1 else len(content))
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            model = load_safe(path)
            assert torch.isfinite(weights(model)).all()
            outcomes.add("harmless")
        except ValueError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert outcomes == {"harmless", "refused"}


def test_reading_imports_no_pickle():
    folder = Path(sb3_hpo.safe_files.__file__).parent
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "__import__", "torch.load", "np.load"), path
    assert imported
    assert not imported & {"pickle", "cloudpickle", "importlib", "subprocess"}
