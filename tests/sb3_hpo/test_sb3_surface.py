"""What users of Stable-Baselines3 take for granted, for both algorithms."""

import copy
import io

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_hpo import HPO, HybridPPO

ID, SMALL, N_ENVS, N_STEPS = "HybridInventory-v0", {"n_items": 2, "horizon": 10}, 4, 10
ITERATION = N_ENVS * N_STEPS


@pytest.fixture(params=[HPO, HybridPPO])
def algorithm(request):
    return request.param


def environments(n_envs=N_ENVS, seed=None):
    return make_vec_env(ID, n_envs, seed=seed, env_kwargs=SMALL)


def make(algorithm, env=None, **kwargs):
    kwargs = {"n_steps": N_STEPS, "batch_size": 20, "n_epochs": 2, "seed": 0, "policy_kwargs": {"net_arch": [16]}} | kwargs
    return algorithm("MlpPolicy", environments() if env is None else env, **kwargs)


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def observations():
    return np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)


def predictions(model):
    actions, _ = model.predict(observations(), deterministic=True)
    return np.array([[regime, *point] for regime, point in actions])


# ---- callbacks -------------------------------------------------------------------------------------------------------


def test_the_eval_callback_evaluates_on_time_and_keeps_the_best_model(algorithm, tmp_path):
    model = make(algorithm)
    callback = EvalCallback(
        environments(1), eval_freq=N_STEPS, n_eval_episodes=2, log_path=tmp_path, best_model_save_path=tmp_path, verbose=0
    )
    model.learn(3 * ITERATION, callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [ITERATION, 2 * ITERATION, 3 * ITERATION]
    assert evaluations["results"].shape == (3, 2)
    assert (evaluations["ep_lengths"] == 10).all()
    assert callback.best_mean_reward == evaluations["results"].mean(axis=1).max()
    assert predictions(algorithm.load(tmp_path / "best_model")).shape == (20, 3)


def test_the_eval_callback_hands_the_statistics_of_vec_normalize_to_the_evaluation(algorithm):
    """Training and evaluation are wrapped alike by the user, and that is how callbacks must see them."""
    training = VecNormalize(environments())
    evaluation = VecNormalize(environments(1), training=False)
    model = make(algorithm, training)
    model.learn(ITERATION, EvalCallback(evaluation, eval_freq=N_STEPS, n_eval_episodes=1, verbose=0))
    assert evaluation.obs_rms.count > 1
    np.testing.assert_array_equal(evaluation.obs_rms.mean, training.obs_rms.mean)


def test_the_checkpoint_callback_saves_models_that_load(algorithm, tmp_path):
    model = make(algorithm).learn(2 * ITERATION, CheckpointCallback(5, tmp_path, name_prefix="model"))
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {f"model_{5 * k * N_ENVS}_steps.zip" for k in (1, 2, 3, 4)}
    assert not np.array_equal(predictions(algorithm.load(tmp_path / "model_20_steps")), predictions(model))
    assert algorithm.load(tmp_path / "model_60_steps").num_timesteps == 60


def test_training_stops_after_the_given_number_of_episodes(algorithm):
    model = make(algorithm).learn(100 * ITERATION, StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 2 * ITERATION  # two episodes in each of the environments


def test_training_stops_at_the_reward_threshold(algorithm):
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
    callback = EvalCallback(environments(1), eval_freq=7, n_eval_episodes=1, callback_on_new_best=stop, verbose=0)
    model = make(algorithm).learn(100 * ITERATION, callback)
    assert model.num_timesteps == 7 * N_ENVS


def test_a_training_that_was_stopped_within_a_rollout_goes_on_afterwards(algorithm):
    model = make(algorithm)
    before = weights(model)
    model.learn(100 * ITERATION, StopAt(3))
    assert same(weights(model), before)
    model.learn(ITERATION)
    assert not same(weights(model), before)


class StopAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.n_calls < self.step


class Count(BaseCallback):
    """Counts its calls by name."""

    def __init__(self):
        super().__init__()
        self.calls = {"training_start": 0, "rollout_start": 0, "step": 0, "rollout_end": 0, "training_end": 0}

    def _on_training_start(self):
        self.calls["training_start"] += 1

    def _on_rollout_start(self):
        self.calls["rollout_start"] += 1

    def _on_step(self):
        self.calls["step"] += 1
        return True

    def _on_rollout_end(self):
        self.calls["rollout_end"] += 1

    def _on_training_end(self):
        self.calls["training_end"] += 1


def test_every_callback_of_a_list_is_called_at_every_stage(algorithm):
    callbacks = [Count(), CallbackList([Count()])]
    make(algorithm).learn(3 * ITERATION, callbacks)
    for callback in (callbacks[0], callbacks[1].callbacks[0]):
        expected = {"training_start": 1, "rollout_start": 3, "step": 3 * N_STEPS, "rollout_end": 3, "training_end": 1}
        assert callback.calls == expected


def test_callbacks_see_the_rewards_dones_and_infos_of_each_step(algorithm):
    seen = []

    class Watch(BaseCallback):
        def _on_step(self):
            seen.append((self.locals["rewards"].shape, self.locals["dones"].all(), "episode" in self.locals["infos"][0]))
            return True

    make(algorithm).learn(ITERATION, Watch())
    assert seen == [((N_ENVS,), False, False)] * 9 + [((N_ENVS,), True, True)]


def test_the_progress_bar_counts_environment_steps(algorithm, capfd):
    make(algorithm).learn(2 * ITERATION, progress_bar=True)
    out, err = capfd.readouterr()
    assert "80/80" in out + err


# ---- files -----------------------------------------------------------------------------------------------------------


def continued(model):
    """The weights after one more iteration, from a fixed state of all random generators and environments."""
    model.set_env(environments())
    model.set_random_seed(7)
    model.learn(ITERATION, reset_num_timesteps=False)
    return weights(model)


def test_a_loaded_model_predicts_the_same_and_takes_the_same_next_step(algorithm, tmp_path):
    model = make(algorithm, ent_coef="lin_0.5", learning_rate=lambda progress: 1e-3 * (1 + progress)).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", environments())
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert loaded.num_timesteps == 2 * ITERATION
    before = weights(model)
    expected = continued(model)
    assert not same(expected, before)
    assert same(continued(loaded), expected)


def test_all_settings_of_hpo_survive_saving(tmp_path):
    settings = {
        "cross_term": False,
        "pathwise_weight": 3.0,
        "pathwise_lambda": 0.9,
        "point_noise": "lin_0.5",
        "temperature": "exp_2.0",
        "normalize_reward": False,
        "continuous_learning_rate": 2e-3,
        "value_learning_rate": "lin_0.004",
        "max_grad_norm": 0.1,
        "ent_coef": "lin_0.25",
        "gamma": 0.9,
    }
    model = make(HPO, **settings).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    loaded = HPO.load(tmp_path / "model", environments())
    numbers = ("pathwise_weight", "pathwise_lambda", "component_max_grad_norm", "gamma", "batch_size")
    for name in ("cross_term", "normalize_reward", *numbers):
        assert getattr(loaded, name) == getattr(model, name)
    assert same(continued(loaded), continued(model))


def test_the_temperature_follows_its_schedule_and_the_policy_that_acted_is_the_one_that_learns(algorithm):
    seen = []
    model = make(algorithm, temperature="hold_2.0", learning_rate=0.0)

    def look(_locals, _globals):
        seen.append(1 / float(model.policy.component("discrete").std))
        return True

    model.learn(4 * ITERATION, look)
    assert seen[::N_STEPS] == pytest.approx([2.0, 2.0, 2.0, 2.0 * 0.1**0.5])  # after 0, 1/4, 1/2 and 3/4 of training
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-5)  # no ratio is anything but 1


def test_a_model_is_loaded_with_a_single_environment_and_learns_on(algorithm, tmp_path):
    make(algorithm, learning_rate=1e-3).learn(ITERATION).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", gym.make(ID, **SMALL), batch_size=5)
    assert loaded.n_envs == (N_ENVS if algorithm is HPO else 1)
    before = weights(loaded)
    loaded.learn(loaded.n_envs * N_STEPS)
    assert not same(weights(loaded), before)


def test_a_model_loaded_without_an_environment_predicts_and_takes_one_later(algorithm, tmp_path):
    model = make(algorithm).learn(ITERATION)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert same(continued(loaded), continued(model))


def test_a_model_is_saved_to_and_loaded_from_an_open_file(algorithm):
    model, file = make(algorithm), io.BytesIO()
    model.save(file)
    for env in (None, gym.make(ID, **SMALL)):
        file.seek(0)
        loaded = algorithm.load(file, env, batch_size=5)
        np.testing.assert_array_equal(predictions(loaded), predictions(model))


def test_a_model_with_normalised_observations_is_loaded_with_its_statistics(algorithm, tmp_path):
    model = make(algorithm, VecNormalize(environments())).learn(2 * ITERATION)
    model.save(tmp_path / "model")
    model.get_vec_normalize_env().save(tmp_path / "statistics.pkl")
    restored = VecNormalize.load(tmp_path / "statistics.pkl", environments())
    loaded = algorithm.load(tmp_path / "model", restored)
    assert loaded.get_vec_normalize_env().obs_rms.count == restored.obs_rms.count > 80
    loaded.learn(ITERATION)
    assert restored.obs_rms.count > 120


def test_parameters_are_taken_out_of_one_model_and_put_into_another(algorithm):
    model, other = make(algorithm).learn(2 * ITERATION), make(algorithm, seed=1)
    assert not np.array_equal(predictions(model), predictions(other))
    parameters = copy.deepcopy(model.get_parameters())  # torch hands out the tensors themselves
    assert set(parameters) == {"policy", "policy.optimizer"}
    other.set_parameters(parameters)
    np.testing.assert_array_equal(predictions(other), predictions(model))
    other.num_timesteps = model.num_timesteps  # is not among the parameters
    assert same(continued(other), continued(model))


def test_a_new_environment_takes_the_place_of_the_old_one(algorithm):
    model = make(algorithm).learn(ITERATION)
    new = environments()
    model.set_env(new)
    model.learn(ITERATION)
    assert model.num_timesteps == ITERATION
    assert model.get_env().num_envs == N_ENVS


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluate_policy_returns_what_episodes_earn_in_the_environment(algorithm):
    model, env = make(algorithm), gym.make(ID, **SMALL)
    rewards, lengths = evaluate_policy(model, environments(1, seed=5), n_eval_episodes=1, return_episode_rewards=True)
    obs, _ = env.reset(seed=5)
    total, truncated = 0.0, False
    while not truncated:
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, _, truncated, _ = env.step(action)
        total += reward
    assert lengths == [10]
    assert rewards == pytest.approx([total])


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_evaluate_policy_takes_one_or_more_environments_and_that_of_the_model(algorithm, n_envs):
    model = make(algorithm)
    for env in (environments(n_envs), model.get_env()):
        rewards, lengths = evaluate_policy(model, env, n_eval_episodes=5, return_episode_rewards=True)
        assert len(rewards) == 5
        assert lengths == [10] * 5


# ---- logs ------------------------------------------------------------------------------------------------------------

SB3_SCALARS = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/value_loss", "train/learning_rate"}
HPO_SCALARS = {
    "train/pathwise_loss",
    "train/cross_term_norm",
    "train/grad_norm/discrete",
    "train/grad_norm/continuous",
    "train/grad_norm/value",
    "rollout/cost_per_period",
}


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_sb3s_scalars_and_those_of_hpo(algorithm, tmp_path):
    make(algorithm, tensorboard_log=str(tmp_path), n_epochs=1).learn(11 * ITERATION, tb_log_name="run")
    logged = scalars(tmp_path / "run_1")
    assert set(logged) >= SB3_SCALARS
    steps = [k * ITERATION for k in range(1, 12)]
    assert [step for step, _ in logged["rollout/ep_rew_mean"]] == steps
    assert [step for step, _ in logged["train/value_loss"]] == steps[1:]  # SB3 logs a training with the rollout after it
    if algorithm is HPO:
        assert set(logged) >= HPO_SCALARS
        assert [step for step, _ in logged["train/cross_term_norm"]] == [11 * ITERATION]  # of the tenth iteration
        assert all(value > 0 for name in HPO_SCALARS - {"train/pathwise_loss"} for _, value in logged[name])
        # One whole episode of ten periods in every rollout: the first return over ten is the first cost per period.
        assert logged["rollout/cost_per_period"][0][1] == pytest.approx(-logged["rollout/ep_rew_mean"][0][1] / 10, rel=1e-5)
    else:
        assert not set(logged) & {"train/pathwise_loss", "train/cross_term_norm"}


def test_a_logger_of_ones_own_writes_csv_and_tensorboard(algorithm, tmp_path):
    model = make(algorithm)
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(2 * ITERATION)
    header, first, *_ = (tmp_path / "progress.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["rollout/ep_rew_mean"]) == pytest.approx(scalars(tmp_path)["rollout/ep_rew_mean"][0][1])
    assert "train/value_loss" in header


def test_verbose_prints_a_table_and_silence_prints_nothing(algorithm, capsys):
    make(algorithm, verbose=0).learn(2 * ITERATION)
    assert capsys.readouterr().out == ""
    make(algorithm, verbose=1).learn(2 * ITERATION)
    table = capsys.readouterr().out
    names = ["ep_rew_mean", "total_timesteps", "value_loss"]
    if algorithm is HPO:
        names += ["cost_per_period", "pathwise_loss", "grad_norm/continuous"]
    for name in names:
        assert name in table


# ---- schedules and limits --------------------------------------------------------------------------------------------


class AtRolloutStart(BaseCallback):
    """Keeps a value of the model as it is at the start of every rollout and at the end of training."""

    def __init__(self, value):
        super().__init__()
        self.value, self.values = value, []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.values.append(self.value(self.model))

    def _on_training_end(self) -> None:
        self.values.append(self.value(self.model))


def test_a_linear_entropy_coefficient_decays_to_zero(algorithm):
    watch = AtRolloutStart(lambda model: model.ent_coef)
    make(algorithm, ent_coef="lin_0.5").learn(4 * ITERATION, watch)
    assert watch.values == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])


def test_the_entropy_coefficient_of_hpo_decays_from_its_default_unless_given():
    assert HPO("MlpPolicy", gym.make(ID, **SMALL), n_scenarios=2, policy_kwargs={"net_arch": [4]}).ent_coef == 0.2
    watch = AtRolloutStart(lambda model: model.ent_coef)
    make(HPO, ent_coef=0.1).learn(2 * ITERATION, watch)
    assert watch.values == [0.1, 0.1, 0.1]


def rates(model):
    return {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}


def test_each_network_learns_at_its_own_rate(algorithm):
    watch = AtRolloutStart(rates)
    settings = {"learning_rate": 1e-3, "continuous_learning_rate": "lin_0.004", "value_learning_rate": lambda _: 5e-4}
    make(algorithm, **settings).learn(2 * ITERATION, watch)
    assert watch.values[1] == pytest.approx({"discrete": 1e-3, "continuous": 2e-3, "value": 5e-4})
    assert watch.values[2] == pytest.approx({"discrete": 1e-3, "continuous": 0.0, "value": 5e-4})


def test_a_network_without_a_rate_of_its_own_learns_at_the_common_rate(algorithm):
    watch = AtRolloutStart(rates)
    common = {"learning_rate": lambda progress: 1e-2 * progress, "continuous_learning_rate": None}
    make(algorithm, **common, value_learning_rate=1e-4).learn(2 * ITERATION, watch)
    assert watch.values[1] == pytest.approx({"discrete": 5e-3, "continuous": 5e-3, "value": 1e-4})


def test_at_rate_zero_a_network_stays_as_it_is(algorithm):
    model = make(algorithm, learning_rate=1e-3, continuous_learning_rate=0.0)
    before = weights(model)
    model.learn(ITERATION)
    moved = {name.split(".")[1] for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"discrete", "value"}


def test_no_network_of_hpo_takes_a_step_with_a_gradient_above_its_limit():
    limit, norms = 0.02, {"discrete": [], "continuous": [], "value": []}
    model = make(HPO, max_grad_norm=limit)

    def measure(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norms[group["name"]].append(float(torch.nn.utils.get_total_norm(gradients)))

    model.policy.optimizer.register_step_pre_hook(measure)
    model.learn(3 * ITERATION)
    assert len(norms["continuous"]) == 3
    assert len(norms["discrete"]) == len(norms["value"]) == 3 * 2 * 2  # iterations, epochs, minibatches
    for name, values in norms.items():
        assert max(values) <= limit * (1 + 1e-4), name
        assert max(values) > 0.9 * limit, f"{name} was never near the limit"
