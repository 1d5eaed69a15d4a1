"""Masked regimes: never taken, probability 0, no gradient; in training and evaluation, through vectorised environments."""

import copy
import itertools

import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from hybrid_envs import HybridAction, HybridInventoryEnv
from hybrid_envs.evaluation import evaluate
from hybrid_envs.spaces import append_mask, pack
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.callbacks import CostCallback
from sb3_hpo.gradients import exact_cost
from sb3_hpo.policies import DeterministicPointPolicy, HybridActorCriticPolicy
from sb3_hpo.simulation import branched_returns, simulate
from sb3_hpo.vec_env import HybridVecEnv
from tests.masked import GateEnv, KilnEnv, ShutGateEnv, StuckKilnEnv

SMALL = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "policy_kwargs": {"net_arch": [16]}}


def kiln_masks(observations: np.ndarray) -> np.ndarray:
    """By the rules, from what the observation shows: (heat, fired, period)."""
    fired, period = observations[..., 1] > 0.5, observations[..., 2]
    return np.stack([np.ones_like(fired), ~fired, period > 0], axis=-1)


def gate_masks(observations: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(observations.shape[:-1], bool), observations[..., 0] == 0, observations[..., 0] == 1], axis=-1)


class Decisions(BaseCallback):
    """All observations and packed actions of a training."""

    def __init__(self):
        super().__init__()
        self.observations, self.actions = [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.observations.append(self.model.rollout_buffer.observations.copy())
        self.actions.append(self.model.rollout_buffer.actions.copy())


def prefer(model, regime, by=10.0):
    """Let the policy favour a regime wherever it may."""
    with torch.no_grad():
        model.policy.component("discrete").output.bias[regime] += by


# ---- training ----------------------------------------------------------------------------------------------------------

VEC_ENVS = {
    "dummy": lambda env_class: DummyVecEnv([env_class] * 2),
    "subprocesses": lambda env_class: SubprocVecEnv([env_class] * 2),
    "normalised": lambda env_class: VecNormalize(DummyVecEnv([env_class] * 2), norm_obs=False),
    "batched": lambda env_class: HybridVecEnv(env_class(), 2),
}


@pytest.mark.parametrize(
    ("algorithm", "env_class", "how"),
    [(HybridPPO, KilnEnv, how) for how in VEC_ENVS]
    + [(HybridPPO, GateEnv, "dummy"), pytest.param(HybridPPO, GateEnv, "subprocesses", marks=pytest.mark.slow)]
    + [(HPO, KilnEnv, how) for how in ("dummy", "normalised", "batched")],
)
def test_no_masked_regime_is_taken_in_training_and_the_update_sees_the_masks_of_the_moment(algorithm, env_class, how):
    env, decisions = VEC_ENVS[how](env_class), Decisions()
    try:
        model = algorithm("MlpPolicy", env, **SMALL)
        prefer(model, 1, by=2.0)  # the regime that is often masked
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(5 * 2 * 8, decisions)
    finally:
        env.close()
    observations, actions = np.concatenate(decisions.observations), np.concatenate(decisions.actions)
    assert observations.shape[:2] == (40, 2)
    expected = (kiln_masks if env_class is KilnEnv else gate_masks)(observations)
    size = model.action_space[1].shape[0]
    np.testing.assert_array_equal(actions[..., 1 + size :], expected)
    regimes = actions[..., 0].astype(int)
    assert np.take_along_axis(expected, regimes[..., None], axis=-1).all()
    assert not expected[..., 1].all() and set(regimes.flat) == {0, 1, 2}
    moved = {name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"components.{name}.hidden.0.weight" for name in ("discrete", "continuous", "value")} <= moved


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
def test_the_probability_ratio_is_one_before_the_first_update(algorithm):
    class Ratios(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            data = next(copy.deepcopy(self.model.rollout_buffer).get(16))
            with torch.no_grad():
                _, log_prob, _ = self.model.policy.evaluate_actions(data.observations, data.actions)
            torch.testing.assert_close(log_prob, data.old_log_prob)

    model = algorithm("MlpPolicy", DummyVecEnv([KilnEnv] * 2), **SMALL)
    prefer(model, 1)
    model.learn(16, Ratios())


@pytest.mark.parametrize(
    ("algorithm", "env_class", "message"),
    [
        (HPO, StuckKilnEnv, r"StuckKilnEnv: regime_mask\(\) allows no regime in period 2"),
        (HybridPPO, StuckKilnEnv, r"StuckKilnEnv: regime_mask\(\) allows no regime in period 2"),
        (HybridPPO, ShutGateEnv, r"action_masks allows no regime in environment 0"),
    ],
)
def test_a_state_without_an_allowed_regime_stops_training(algorithm, env_class, message):
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", env_class(), **SMALL).learn(16)


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
def test_where_nothing_is_masked_actions_are_packed_as_ever(algorithm):
    env = HybridInventoryEnv(n_items=2)
    assert not is_masking_supported(env) and not hasattr(env, "action_masks")
    decisions = Decisions()
    algorithm("MlpPolicy", env, **SMALL).learn(8, decisions)
    assert decisions.actions[0].shape[2] == 1 + 2


def test_a_model_learns_on_after_a_change_between_masked_and_unmasked_environments(tmp_path):
    class OpenGateEnv(GateEnv):
        action_masks = property()  # raises AttributeError: not there

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, True, False, {}

    model, decisions = HybridPPO("MlpPolicy", GateEnv(), **SMALL), Decisions()
    model.learn(8, decisions).save(tmp_path / "model")
    model = HybridPPO.load(tmp_path / "model")
    for env_class in (OpenGateEnv, GateEnv):
        model.set_env(env_class())
        model.learn(8, decisions)
    assert [actions.shape[2] for actions in decisions.actions] == [6, 3, 6]


# ---- the distribution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_class", [HybridActorCriticPolicy, DeterministicPointPolicy])
def test_probabilities_and_entropies_are_those_of_the_softmax_over_allowed_regimes(policy_class):
    env = KilnEnv()
    torch.manual_seed(0)
    policy = policy_class(env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[8])
    obs = torch.randn(4, 3)
    logits = policy.regime_logits(obs).detach().double().numpy()
    masks = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 1, 1]], dtype=bool)
    regimes = np.array([2, 0, 1, 2])
    points = torch.zeros(4, 1)
    weights = np.exp(logits) * masks
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    log_prob = np.log(probabilities[np.arange(4), regimes])
    entropy = -np.sum(np.where(masks, probabilities * np.log(np.where(masks, probabilities, 1.0)), 0.0), axis=1)
    if policy_class.stochastic_point:
        mean = policy.candidates(obs).detach().double().numpy()[np.arange(4), regimes, 0]
        log_prob += -(mean**2) / 2 - 0.5 * np.log(2 * np.pi)
        entropy += 0.5 * np.log(2 * np.pi * np.e)
    packed = append_mask(pack(torch.as_tensor(regimes), points), torch.as_tensor(masks))
    _, got_log_prob, got_entropy = policy.evaluate_actions(obs, packed)
    np.testing.assert_allclose(got_log_prob.detach().numpy(), log_prob, rtol=1e-5)
    np.testing.assert_allclose(got_entropy.detach().numpy(), entropy, rtol=1e-5, atol=1e-7)


def test_a_masked_regime_gets_no_gradient_and_no_gradient_is_nan():
    env = KilnEnv()
    policy = HybridActorCriticPolicy(env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[8])
    mask = torch.tensor([[True, False, True]] * 5)
    packed, _, _ = policy(torch.randn(5, 3), action_masks=mask)
    _, log_prob, entropy = policy.evaluate_actions(torch.randn(5, 3), packed)
    (1e6 * (log_prob.sum() + entropy.sum())).backward()
    bias = policy.component("discrete").output.bias.grad
    assert bias[1] == 0 and bias[0] != 0 and bias[2] != 0
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


# ---- prediction and evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
@pytest.mark.parametrize("deterministic", [True, False])
def test_predictions_keep_to_the_masks_they_are_given(algorithm, deterministic):
    model = algorithm("MlpPolicy", KilnEnv(), **SMALL)
    prefer(model, 1)
    observation, mask = np.zeros(3, np.float32), np.array([True, False, True])
    assert model.predict(observation, deterministic=deterministic)[0][0] == 1
    assert model.predict(observation, deterministic=deterministic, action_masks=mask)[0][0] != 1
    masks = np.array([[0, 0, 1], [1, 1, 1], [1, 0, 0]])
    actions, _ = model.predict(np.zeros((3, 3), np.float32), deterministic=deterministic, action_masks=masks)
    assert [regime for regime, _ in actions] == [2, 1, 0]
    for (regime, point), bounds in zip(actions, KilnEnv().action_bounds[[2, 1, 0]], strict=True):
        assert bounds[0, 0] <= point[0] <= bounds[0, 1], regime


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 3)), r"shape \(1, 3\).*got \(2, 3\)"),
        (np.ones(2), r"shape \(1, 3\).*got \(2,\)"),
        (np.zeros(3), "no regime in environment 0"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_by_predict(masks, message):
    model = HybridPPO("MlpPolicy", KilnEnv(), **SMALL)
    with pytest.raises(ValueError, match=message):
        model.predict(np.zeros(3, np.float32), action_masks=masks)


@pytest.mark.parametrize("how", ["dummy", "normalised", "batched"])
def test_vectorised_environments_answer_in_the_convention_of_sb3_contrib(how):
    env = VEC_ENVS[how](KilnEnv)
    try:
        assert is_masking_supported(env)
        observations = env.reset()
        for regimes in ([1, 0], [2, 1], [0, 0]):
            np.testing.assert_array_equal(get_action_masks(env), kiln_masks(observations))
            observations, *_ = env.step([(regime, np.zeros(1, np.float32)) for regime in regimes])
        assert [m.shape for m in env.env_method("action_masks", indices=1)] == [(3,)]
    finally:
        env.close()


def test_a_batched_environment_refuses_a_regime_masked_in_its_row():
    env = HybridVecEnv(KilnEnv(), 2)
    env.reset()
    env.step([(1, np.ones(1)), (0, np.zeros(1))])
    with pytest.raises(ValueError, match=r"KilnEnv: regime 1 is masked in this state; allowed are \[0, 2\]"):
        env.step([(1, np.ones(1)), (0, np.zeros(1))])
    env.step([(0, np.zeros(1)), (1, np.ones(1))])


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
def test_sb3_contribs_evaluation_keeps_to_the_masks_and_sb3s_own_is_refused_by_the_environment(algorithm, tmp_path):
    model = algorithm("MlpPolicy", KilnEnv(), **SMALL)
    prefer(model, 1, by=100.0)
    env = DummyVecEnv([KilnEnv])
    assert np.isfinite(evaluate_masked(model, env, n_eval_episodes=3, warn=False)[0])
    with pytest.raises(ValueError, match="regime 1 is masked"):
        evaluate_policy(model, env, n_eval_episodes=3, warn=False)
    callback = MaskableEvalCallback(env, n_eval_episodes=2, eval_freq=4, log_path=str(tmp_path), verbose=0, warn=False)
    model.learn(16, callback)
    assert np.isfinite(np.load(tmp_path / "evaluations.npz")["results"]).all()


def test_costs_are_evaluated_under_the_masks():
    env = KilnEnv()
    model = HPO("MlpPolicy", env, **SMALL)
    prefer(model, 1, by=100.0)
    costs = evaluate(env, model, n_scenarios=8, seed=0)
    assert np.isfinite(costs).all()
    callback = CostCallback(env, every=10_000, n_scenarios=8, seed=0)
    model.learn(1, callback)
    assert callback.costs[0] == pytest.approx(costs.mean())


# ---- simulation and gradients; the estimators themselves are tested in test_gradients.py --------------------------------


def small_policy(env):
    torch.manual_seed(3)
    policy = DeterministicPointPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, action_bounds=env.action_bounds, net_arch=[8]
    )
    for component in policy.components.values():
        torch.nn.init.normal_(component.output.weight)
    return policy


def test_the_exact_cost_is_that_of_the_allowed_sequences_enumerated_by_hand():
    env = KilnEnv(horizon=3)
    policy, generator = small_policy(env), torch.Generator().manual_seed(0)
    start, noise = env.initial(2, generator), env.sample_noise(2, generator)
    expected, sequences = 0.0, 0
    for sequence in itertools.product(range(3), repeat=3):
        if sequence[0] == 2 or any(a == b == 1 for a, b in itertools.pairwise(sequence)):
            continue
        sequences += 1
        state, cost, probability = start, torch.zeros(2), torch.ones(2)
        for t, x in enumerate(sequence):
            allowed = [0] + [1] * (t == 0 or sequence[t - 1] != 1) + [2] * (t > 0)
            obs = env.observation(state)
            probability = probability * policy.regime_logits(obs)[:, allowed].softmax(1)[:, allowed.index(x)]
            regime = torch.full((2,), x)
            result = env.step_torch(state, HybridAction(regime, env.factors.choose(policy.candidates(obs), regime)), noise[t])
            state, cost = result.state, cost - result.reward
        expected = expected + (probability * cost).mean()
    assert sequences == 14  # of 27
    torch.testing.assert_close(exact_cost(env, policy, start, noise), expected)


def test_simulated_episodes_take_allowed_regimes_only_and_say_so_in_their_probabilities():
    env = KilnEnv(horizon=6)
    policy, generator = small_policy(env), torch.Generator().manual_seed(0)
    start, noise = env.initial(200, generator), env.sample_noise(200, generator)
    rollout = simulate(env, policy, start, noise, generator=generator)
    masks = torch.as_tensor(kiln_masks(rollout.observations.detach().numpy()))
    assert masks.gather(2, rollout.regimes.unsqueeze(2)).all()
    assert not rollout.log_pi.exp()[~masks].any()
    torch.testing.assert_close(rollout.log_pi.exp().sum(2), torch.ones(6, 200))
    assert branched_returns(env, policy, rollout.states, noise, generator=generator).isfinite().all()


def test_a_simulated_state_without_an_allowed_regime_is_named():
    env = StuckKilnEnv()
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"StuckKilnEnv: regime_mask\(\) allows no regime in period 2"):
        simulate(env, small_policy(env), env.initial(2, generator), env.sample_noise(2, generator))


def test_where_an_episode_has_terminated_no_regime_need_be_left():
    class Cooled(StuckKilnEnv):
        def terminal(self, state):
            return state.period >= 2

    env = Cooled()
    generator = torch.Generator().manual_seed(0)
    rollout = simulate(env, small_policy(env), env.initial(2, generator), env.sample_noise(2, generator))
    assert not rollout.rewards[2:].any()
    assert np.isfinite(HPO("MlpPolicy", env, **SMALL).learn(8).rollout_buffer.rewards).all()
