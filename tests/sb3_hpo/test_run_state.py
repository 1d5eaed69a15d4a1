"""A run that was killed and resumed is the run that was never killed."""

from contextlib import nullcontext
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from hybrid_envs import HybridEnv
from sb3_hpo.callbacks import CostCallback, GradientQualityCallback
from sb3_hpo.checkpoint import ExactCheckpointCallback, newest_checkpoint, read_checkpoint
from tests.sb3_hpo.environments import DriftEnv, TargetEnv
from tests.sb3_hpo.runs import (
    FORK,
    RUNS,
    Killed,
    Troubled,
    episodes,
    hpo,
    hpo_normalized,
    hybrid_ppo,
    hybrid_ppo_normalized,
    inventory,
    same_weights,
    train,
)


@pytest.mark.parametrize("name", RUNS)
def test_resumed_weights_equal_those_of_the_unbroken_run(name: str, tmp_path: Path) -> None:
    unbroken = train(RUNS[name](), tmp_path / "unbroken")
    for kill_at in (3.4, 10.9):
        with pytest.raises(Killed):
            train(RUNS[name](), tmp_path / "killed", kill_at=kill_at)
    resumed = train(RUNS[name](), tmp_path / "killed")
    assert unbroken.num_timesteps == resumed.num_timesteps
    assert unbroken._n_updates == resumed._n_updates
    assert unbroken._current_progress_remaining == resumed._current_progress_remaining
    assert len(episodes(unbroken)) > 5
    assert episodes(unbroken) == episodes(resumed)
    assert same_weights(unbroken, resumed)


def test_the_unbroken_run_is_the_run_without_checkpoints(tmp_path: Path) -> None:
    with_checkpoints = train(hpo_normalized(), tmp_path, every=1)
    without = train(hpo_normalized(), tmp_path / "rare", every=10**6)
    assert same_weights(with_checkpoints, without)


def test_a_finished_run_resumes_to_its_own_end(tmp_path: Path) -> None:
    first = train(hpo(), tmp_path)
    again = train(hpo(), tmp_path)
    assert first.num_timesteps == again.num_timesteps
    assert first._current_progress_remaining == again._current_progress_remaining
    np.testing.assert_array_equal(first._last_episode_starts, again._last_episode_starts)
    assert same_weights(first, again)


def evaluating(folder: Path) -> tuple[EvalCallback, StopTrainingOnNoModelImprovement]:
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=2)
    eval_env = VecNormalize(make_vec_env(inventory, 1, seed=5), training=False)
    best = dict(best_model_save_path=str(folder / "best"), log_path=str(folder / "log"))
    return EvalCallback(eval_env, callback_after_eval=stop, eval_freq=10, n_eval_episodes=2, verbose=0, **best), stop


def test_the_evaluation_callback_goes_on_with_its_scenarios_its_records_and_its_best_model(tmp_path: Path) -> None:
    def evaluated(folder: Path, kill_at: float | None = None) -> tuple[EvalCallback, StopTrainingOnNoModelImprovement, int]:
        callback, stop = evaluating(tmp_path / folder)
        model = train(hybrid_ppo_normalized(), tmp_path / folder, kill_at=kill_at, callbacks=(callback,), iterations=20)
        return callback, stop, model.num_timesteps

    expected, expected_stop, expected_steps = evaluated(Path("unbroken"))
    for kill_at in (4.5, 7.9):
        with pytest.raises(Killed):
            evaluated(Path("killed"), kill_at)
    found, found_stop, found_steps = evaluated(Path("killed"))
    assert len(expected.evaluations_results) >= 4
    assert found.evaluations_results == expected.evaluations_results
    assert found.evaluations_timesteps == expected.evaluations_timesteps
    assert found.best_mean_reward == expected.best_mean_reward
    assert found_stop.no_improvement_evals == expected_stop.no_improvement_evals
    assert found_steps == expected_steps
    best = [type(hybrid_ppo()).load(tmp_path / run / "best" / "best_model") for run in ("unbroken", "killed")]
    assert same_weights(*best)


def test_evaluations_without_improvement_are_counted_across_a_resume(tmp_path: Path) -> None:
    def end(kill_at: float | None = None) -> tuple[int, float]:
        stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2)
        callback = EvalCallback(
            make_vec_env(inventory, 1), callback_after_eval=stop, eval_freq=5, n_eval_episodes=1, verbose=0
        )
        if kill_at is not None:  # rewards are negative: there is never a better one; the resumed run knows from the checkpoint
            callback.best_mean_reward = 0.0
        model = train(hybrid_ppo(), tmp_path, kill_at=kill_at, callbacks=(callback,))
        return model.num_timesteps, callback.best_mean_reward

    with pytest.raises(Killed):
        end(kill_at=2.3)
    assert end() == (4 * 5 * 3, 0.0)  # three evaluations after the first, in steps of three environments


def test_callbacks_that_count_go_on_counting(tmp_path: Path) -> None:
    def counted(folder: str, kill_at: float | None = None) -> tuple[list[int], list[float], int, int, int]:
        env = inventory().unwrapped
        assert isinstance(env, HybridEnv)
        cost = CostCallback(env, every=100, n_scenarios=8, gap=False)
        quality = GradientQualityCallback(("no_cross",), every=5, n_batches=2, n_scenarios=2, reference="no_cross")
        episodes, timed = StopTrainingOnMaxEpisodes(6), EveryNTimesteps(50, StopTrainingOnMaxEpisodes(1000))
        model = train(hpo(), tmp_path / folder, kill_at=kill_at, callbacks=(cost, quality, episodes, timed))
        return cost.steps, cost.costs, quality.iteration, timed.last_time_trigger, model.num_timesteps

    expected = counted("unbroken")
    with pytest.raises(Killed):
        counted("killed", 5.5)
    assert counted("killed") == expected
    assert expected[-1] == 6 * 6 * 10, "the run was to end after six episodes of each of six scenarios"


def test_a_run_stopped_within_a_rollout_is_not_saved_there(tmp_path: Path) -> None:
    train(hpo(), tmp_path, callbacks=(StopTrainingOnMaxEpisodes(4),))
    _, content = newest_checkpoint(tmp_path)
    assert content["num_timesteps"] % (6 * 7) == 0
    assert content["num_timesteps"] < 4 * 6 * 10


def test_every_checkpoint_has_the_statistics_of_its_own_moment(tmp_path: Path) -> None:
    model = train(hpo_normalized(), tmp_path)
    files = sorted(tmp_path.glob("checkpoint_*.pt"))
    assert len(files) == 3
    for path in files:
        content = read_checkpoint(path)
        layers = dict(zip(content["identity"]["env"]["wrappers"], content["state"]["env"], strict=True))
        # one update with six observations at the reset and in every step; SB3 counts from 1e-4
        count = layers["VecNormalize"]["rms"]["observation"]["count"]
        assert count == pytest.approx(1e-4 + 6 + content["num_timesteps"], abs=1e-9)
    np.testing.assert_array_equal(
        layers["VecNormalize"]["rms"]["observation"]["mean"], model.get_vec_normalize_env().obs_rms.mean
    )


def test_the_wrapper_given_to_hpo_keeps_sharing_the_statistics_after_a_resume(tmp_path: Path) -> None:
    given = VecNormalize(make_vec_env(inventory, 6))
    with pytest.raises(Killed):
        train(hpo(given), tmp_path, kill_at=5)
    given = VecNormalize(make_vec_env(inventory, 6))
    model = train(hpo(given), tmp_path)
    assert given.obs_rms.count == pytest.approx(1e-4 + 6 + model.num_timesteps)


def test_what_was_logged_but_not_yet_written_is_not_lost(tmp_path: Path) -> None:
    def losses(folder: str, logs: str, kill_at: float | None = None) -> dict[str, str]:
        model = hpo()
        model.set_logger(configure(str(tmp_path / logs), ["csv"]))
        step = model.n_steps * model.n_envs
        checkpoints = ExactCheckpointCallback(tmp_path / folder, every=2, verbose=0)
        with nullcontext() if kill_at is None else pytest.raises(Killed):
            model.learn(6 * step, callback=[checkpoints, Troubled(kill_at and round(kill_at * step))])
        lines = [line.split(",") for line in (tmp_path / logs / "progress.csv").read_text().splitlines()]
        steps, loss = (lines[0].index(name) for name in ("time/total_timesteps", "train/value_loss"))
        return {line[steps]: line[loss] for line in lines[1:]}

    expected = losses("unbroken", "log")
    losses("killed", "first log", kill_at=4.5)
    found = losses("killed", "second log")
    assert list(found) == ["210", "252"]  # the fifth and the sixth iteration; losses are written one iteration later
    assert found == {step: expected[step] for step in found}


# ---- what cannot be resumed exactly is refused before training -------------------------------------------------------


class Opaque(gym.Wrapper):
    pass


class Telling(gym.Wrapper):
    """Holds state, adds it to the reward, and tells it."""

    count = 0

    def step(self, action):
        self.count += 1
        observation, reward, *rest = self.env.step(action)
        return observation, reward + self.count % 5, *rest

    def state_dict(self):
        return {"count": self.count, "env": self.env.get_wrapper_attr("state_dict")()}

    def load_state_dict(self, saved):
        self.count = saved["count"]
        self.env.get_wrapper_attr("load_state_dict")(saved["env"])


class TellingDrift(DriftEnv):
    def state_dict(self):
        return {"position": self.position, "period": self.period, "random": self.np_random.bit_generator.state}

    def load_state_dict(self, saved):
        self.position, self.period = saved["position"], saved["period"]
        self.np_random.bit_generator.state = saved["random"]


def test_an_environment_or_a_wrapper_that_tells_its_state_resumes_exactly(tmp_path: Path) -> None:
    builds = {
        "env": lambda: hybrid_ppo(make_vec_env(lambda: TellingDrift(flat=False), 2)),
        "wrapper": lambda: hybrid_ppo(make_vec_env(inventory, 2, wrapper_class=Telling)),
    }
    for name, build in builds.items():
        unbroken = train(build(), tmp_path / name)
        with pytest.raises(Killed):
            train(build(), tmp_path / f"{name} killed", kill_at=5.5)
        assert same_weights(unbroken, train(build(), tmp_path / f"{name} killed"))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: hybrid_ppo(TargetEnv()), "TargetEnv"),
        (lambda: hybrid_ppo(make_vec_env(inventory, 2, wrapper_class=Opaque)), "Opaque"),
        (lambda: hybrid_ppo(make_vec_env(inventory, 2, wrapper_class=Opaque, **FORK)), "Opaque"),
        (lambda: hybrid_ppo(VecFrameStack(make_vec_env(inventory, 2), 2)), "VecFrameStack"),
    ],
)
def test_what_does_not_tell_its_state_is_named_before_training(build, named: str, tmp_path: Path) -> None:
    model = build()
    with pytest.raises(TypeError, match=rf"(?s){named}.*does not tell its state.*state_dict"):
        train(model, tmp_path)
    assert model.num_timesteps == 0
    assert not list(tmp_path.iterdir())


def test_an_evaluation_environment_that_does_not_tell_its_state_is_refused_too(tmp_path: Path) -> None:
    callback = EvalCallback(make_vec_env(TargetEnv, 1), verbose=0)
    with pytest.raises(TypeError, match="TargetEnv"), pytest.warns(UserWarning):
        train(hpo(), tmp_path, callbacks=(callback,))


def test_global_generators_are_where_they_were(tmp_path: Path) -> None:
    train(hpo(), tmp_path / "a")
    expected = torch.rand(3), np.random.random(3)
    with pytest.raises(Killed):
        train(hpo(), tmp_path / "b", kill_at=5.5)
    train(hpo(), tmp_path / "b")
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.random(3), expected[1])
