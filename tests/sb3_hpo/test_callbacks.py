"""Costs and optimality gaps during training, and the automatic weight of the cross term."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hybrid_envs import HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.solvers import SwitchedRiccati, evaluate
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.callbacks import CostCallback, GapCallback
from sb3_hpo.vec_env import simulated

TINY = {"n_scenarios": 8, "seed": 0, "policy_kwargs": {"net_arch": [8]}}


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_cost_and_gap_are_those_of_the_evaluated_policies(tmp_path):
    env = HybridSwitchedLQREnv(3, horizon=6)
    model = HPO("MlpPolicy", env, **TINY)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    callback = CostCallback(env, every=2 * 48, n_scenarios=32, seed=5)
    model.learn(6 * 48, callback=callback)
    assert callback.steps == [0, 96, 192, 288]
    assert callback.costs[-1] == evaluate(env, model, 32, seed=5).mean()
    reference = evaluate(env, SwitchedRiccati(env), 32, seed=5).mean()
    assert callback.reference_cost == pytest.approx(reference)
    logged = scalars(tmp_path, "eval/optimality_gap")
    assert [value for _, value in logged] == pytest.approx(
        [cost / reference - 1 for cost in callback.costs[: len(logged)]], abs=1e-5
    )


def test_an_environment_without_reference_has_a_cost_but_no_gap(tmp_path):
    env = HybridInventoryEnv(2, horizon=10, lost_sales=True)
    model = HPO("MlpPolicy", env, **TINY)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(2 * 80, callback=CostCallback(env, every=80, n_scenarios=8))
    assert scalars(tmp_path, "eval/cost")
    with pytest.raises(KeyError):
        scalars(tmp_path, "eval/optimality_gap")


def test_under_vec_normalize_the_evaluated_policy_sees_scaled_observations():
    env = HybridSwitchedLQREnv(3, horizon=6)
    venv = VecNormalize(simulated(env, 8), norm_reward=False)
    model = HPO("MlpPolicy", venv, seed=0, policy_kwargs={"net_arch": [8]})
    callback = CostCallback(env, every=48, n_scenarios=16, gap=False)
    model.learn(2 * 48, callback=callback)

    class Scaled:
        def predict(self, observation, *args, **kwargs):
            return model.predict(venv.normalize_obs(observation), *args, **kwargs)

    assert callback.costs[-1] == evaluate(env, Scaled(), 16, seed=10_000).mean()
    assert callback.costs[-1] != evaluate(env, model, 16, seed=10_000).mean()


def weights_of(model, iterations):
    weights = []
    model.learn(iterations * model.n_steps * model.n_envs, callback=lambda *_: weights.append(model.cross_weight) or True)
    return np.array(weights)


def test_the_automatic_weight_of_the_cross_term_is_a_share_that_moves():
    weights = weights_of(
        HPO("MlpPolicy", gym.make("HybridSwitchedLQR-v0", n_dims=3, horizon=5), cross_term="auto", **TINY), 25
    )
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights[0] == 1.0
    assert len(np.unique(weights)) >= 2


def test_a_cross_term_that_is_all_noise_is_faded_out():
    """With one period there is no later regime that κ could influence."""
    model = HPO("MlpPolicy", gym.make("HybridSwitchedLQR-v0", n_dims=3, horizon=1), cross_term="auto", **TINY)
    assert weights_of(model, 25)[-1] == 0.0


def test_the_fixed_weight_of_the_cross_term_is_one():
    assert (weights_of(HPO("MlpPolicy", gym.make("HybridSwitchedLQR-v0", n_dims=3, horizon=5), **TINY), 12) == 1.0).all()


@pytest.mark.parametrize("value", ["on", 2, None])
def test_an_unknown_choice_of_cross_term_is_refused(value):
    with pytest.raises(ValueError, match=r"cross_term must be True, False or 'auto', got"):
        HPO("MlpPolicy", "HybridSwitchedLQR-v0", cross_term=value)


# ---- which half of a policy holds it back ----------------------------------------------------------------------------


def gaps_at_first(model, env, folder, **options):
    """
    :return: what the callback logs of the policy as it is, by half
    """
    model.set_logger(configure(str(folder), ["tensorboard"]))
    model.learn(48, callback=GapCallback(env, n_scenarios=40, seed=5, lookahead={"n_scenarios": 1} | options))
    halves = {half: scalars(folder, f"eval/gap_{half}")[0] for half in ("points", "regimes", "both")}
    assert {step for step, _ in halves.values()} == {0}
    return {half: gap for half, (_, gap) in halves.items()}


def test_with_one_mode_the_gap_is_all_points_and_what_riccati_would_save(tmp_path):
    env = HybridSwitchedLQREnv(3, 1, horizon=6)
    model = HPO("MlpPolicy", env, gamma=1.0, **TINY)
    own, optimum = (evaluate(env, policy, 40, seed=5).mean() for policy in (model, SwitchedRiccati(env)))
    gaps = gaps_at_first(model, env, tmp_path, refinements=100)
    assert gaps["regimes"] == 0.0
    assert own > 1.5 * optimum
    assert gaps["points"] == gaps["both"] == pytest.approx(1 - optimum / own, abs=0.02)


def test_a_policy_that_prefers_the_wrong_regime_has_a_gap_of_regimes(tmp_path):
    """Two modes, of which the second moves nothing: whoever switches to it pays, whatever his controls."""
    env = HybridSwitchedLQREnv(A=1.2 * np.eye(2), B=np.stack([np.eye(2), np.zeros((2, 2))]), horizon=6)
    model = HPO("MlpPolicy", env, gamma=1.0, **TINY)
    model.policy.component("continuous").linear.weight.data[:2] = -1.1 * torch.eye(2) / float(env.action_scale[0])
    preference, costs = model.policy.component("discrete").output.bias.data, []
    for wrong in (-9.0, 9.0):
        preference.copy_(torch.tensor([-wrong, wrong]))
        costs.append(evaluate(env, model, 40, seed=5).mean())
    right, own = costs
    gaps = gaps_at_first(model, env, tmp_path)
    assert gaps["regimes"] == pytest.approx(1 - right / own, abs=0.02)
    assert gaps["regimes"] > 0.3
    assert gaps["points"] < 0.1 * gaps["regimes"]
    assert gaps["both"] == pytest.approx(gaps["regimes"], abs=0.02)


def test_training_is_the_same_with_the_gap_as_without_it():
    weights = []
    for callback in (None, GapCallback(every=48, n_scenarios=4)):
        model = HPO("MlpPolicy", HybridSwitchedLQREnv(3, horizon=6), **TINY).learn(4 * 48, callback=callback)
        weights.append(model.policy.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(of.values() for of in weights), strict=True))


def test_the_gap_is_hpos_and_says_so_before_any_work():
    env = HybridSwitchedLQREnv(3, horizon=6)
    with pytest.raises(TypeError, match="Lookahead needs a model of HPO"):
        HybridPPO("MlpPolicy", env, n_steps=6, batch_size=6).learn(12, callback=GapCallback(env))
    with pytest.raises(ValueError, match="refinements must be an integer >= 0, got -1"):
        HPO("MlpPolicy", env, **TINY).learn(48, callback=GapCallback(lookahead={"refinements": -1}))
