"""HPO: what it accepts, what its rollout records, and that its step is the mixed gradient, recomputed here from scratch."""

import copy
import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import OrderEnforcing
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parameters_to_vector
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_envs import (
    HybridAction,
    HybridDualSourcingEnv,
    HybridInventoryEnv,
    HybridProcurementEnv,
    HybridSwitchedLQREnv,
    HybridUnitCommitmentEnv,
)
from hybrid_envs.solvers import evaluate
from sb3_hpo import HPO
from tests.sb3_hpo.environments import PurseEnv
from tests.sb3_hpo.sharing import RUNS

ID = "HybridInventory-v0"
SMALL: dict[str, Any] = {"n_items": 2, "horizon": 10}
TINY: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "seed": 0}


def inventory(**kwargs):
    return HybridInventoryEnv(**SMALL | kwargs)


def regulator(**kwargs):
    return HybridSwitchedLQREnv(**{"n_dims": 2, "n_modes": 2, "horizon": 10} | kwargs)


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- what it accepts -------------------------------------------------------------------------------------------------


def test_an_id_is_enough():
    model = HPO("MlpPolicy", ID, n_scenarios=2, **TINY).learn(200)
    assert (model.n_envs, model.n_steps, model.num_timesteps) == (2, 100, 200)


@pytest.mark.parametrize("env", [inventory, lambda: gym.make(ID, **SMALL), lambda: OrderEnforcing(Monitor(inventory()))])
def test_a_single_environment_is_simulated_as_n_scenarios(env):
    model = HPO("MlpPolicy", env(), n_scenarios=8, **TINY)
    before = weights(model)
    model.learn(80)
    assert model.n_envs == 8
    assert model.rollout_buffer.actions.shape == (80, 3)
    assert not same(weights(model), before)


def test_64_scenarios_over_the_horizon_in_four_minibatches_are_the_default():
    model = HPO("MlpPolicy", inventory(), **TINY)
    assert (model.n_envs, model.n_steps, model.batch_size) == (64, 10, 160)


def test_given_numbers_of_periods_and_batch_size_are_kept():
    model = HPO("MlpPolicy", inventory(), n_scenarios=3, n_steps=7, batch_size=5, **TINY)
    assert (model.n_envs, model.n_steps, model.batch_size) == (3, 7, 5)


def test_the_minibatch_of_a_rollout_that_four_does_not_divide_is_rounded_up():
    assert HPO("MlpPolicy", inventory(), n_scenarios=3, n_steps=7, **TINY).batch_size == 6


@pytest.mark.parametrize(
    "chain",
    [
        lambda venv: venv,
        VecNormalize,
        VecMonitor,
        lambda venv: VecNormalize(VecMonitor(venv)),
        lambda venv: VecMonitor(VecNormalize(venv, norm_obs=False)),
    ],
)
def test_a_vec_env_and_its_wrappers_say_how_many_scenarios_there_are(chain):
    model = HPO("MlpPolicy", chain(make_vec_env(ID, 6, env_kwargs=SMALL)), n_scenarios=99, **TINY)
    before = weights(model)
    model.learn(60)
    assert (model.n_envs, model.n_scenarios) == (6, 6)
    assert not same(weights(model), before)
    assert [info["r"] for info in model.ep_info_buffer] != []


def test_environments_in_subprocesses_are_simulated_in_one_batch():
    venv = SubprocVecEnv([inventory, inventory])
    try:
        model = HPO("MlpPolicy", VecNormalize(venv), **TINY).learn(20)
    finally:
        venv.close()
    twin = HPO("MlpPolicy", VecNormalize(DummyVecEnv([inventory] * 2)), **TINY).learn(20)
    assert same(weights(model), weights(twin))


def test_the_statistics_of_the_given_vec_normalize_are_the_ones_that_training_updates():
    given = VecNormalize(make_vec_env(ID, 4, env_kwargs=SMALL))
    HPO("MlpPolicy", given, **TINY).learn(80)
    assert given.obs_rms.count == pytest.approx(4 * 21, abs=0.1)  # a reset and two rollouts of ten steps
    stock, holding_cost = given.obs_rms.mean[0], given.obs_rms.mean[6]
    assert stock != 0
    assert holding_cost == pytest.approx(inventory().params.holding_cost[0], rel=0.01)


def test_the_bounds_and_scales_of_the_environment_reach_the_policy():
    env = inventory()
    policy = HPO("MlpPolicy", env, **TINY).policy
    for name in ("action_bounds", "action_scale", "observation_scale"):
        np.testing.assert_array_equal(getattr(policy, name), getattr(env, name))


def test_what_vec_normalize_has_scaled_is_not_scaled_again():
    policy = HPO("MlpPolicy", VecNormalize(make_vec_env(ID, 2, env_kwargs=SMALL)), **TINY).policy
    assert policy.observation_scale is None
    unscaled = VecNormalize(make_vec_env(ID, 2, env_kwargs=SMALL), norm_obs=False)
    assert HPO("MlpPolicy", unscaled, **TINY).policy.observation_scale is not None


# ---- learning --------------------------------------------------------------------------------------------------------


def mean_cost(model, env, deterministic):
    reward, _ = evaluate_policy(model, make_vec_env(lambda: env, 1), n_eval_episodes=20, deterministic=deterministic)
    return -reward


@pytest.mark.parametrize(("env", "share"), [(lambda: inventory(horizon=20), 0.6), (lambda: regulator(n_dims=3), 0.4)])
def test_it_beats_its_own_starting_policy_by_a_wide_margin_within_seconds(env, share):
    rates = {"learning_rate": 5e-3, "continuous_learning_rate": 5e-3}
    model = HPO("MlpPolicy", env(), n_scenarios=32, **rates, **TINY)
    start = mean_cost(model, env(), deterministic=False)  # the likeliest of two regimes nearly alike would be a matter of luck
    model.learn(15 * model.n_envs * model.n_steps)
    assert mean_cost(model, env(), deterministic=True) < share * start


def test_learning_without_an_argument_takes_200_iterations():
    model = HPO("MlpPolicy", inventory(), n_scenarios=2, n_steps=2, batch_size=4, n_epochs=1, policy_kwargs={"net_arch": [4]})
    model.learn()
    assert model.num_timesteps == 200 * 2 * 2


def test_the_same_seed_gives_the_same_model_bit_for_bit_and_another_seed_another():
    def train(seed):
        return weights(HPO("MlpPolicy", inventory(), n_scenarios=8, policy_kwargs={"net_arch": [16]}, seed=seed).learn(160))

    first = train(0)
    assert same(first, train(0))
    assert not same(first, train(1))


# ---- one iteration, recorded -----------------------------------------------------------------------------------------


class Iteration(NamedTuple):
    """What happened in one iteration; lists hold one entry per period."""

    policy: Any  # as it was during the rollout
    gradient: torch.Tensor  # of κ, at the optimizer's first step
    states: list[Any]
    noise: list[torch.Tensor]
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[list[dict[str, Any]]]
    buffer: dict[str, np.ndarray]
    unit: float  # of rewards, to which this rollout has led

    @property
    def regimes(self):
        return torch.from_numpy(self.buffer["actions"][..., 0]).long()


class Recorder(BaseCallback):
    def __init__(self):
        super().__init__()
        self.states, self.noise, self.rewards, self.dones, self.infos = [], [], [], [], []

    def _look_ahead(self) -> None:
        simulator = self.training_env.unwrapped.simulator
        self.states.append(type(simulator.state)(*(field.detach().clone() for field in simulator.state)))
        self.noise.append(simulator.noise[simulator.state.period, torch.arange(simulator.num_envs)])

    def _on_rollout_start(self) -> None:
        self._look_ahead()

    def _on_step(self) -> bool:
        for name in ("rewards", "dones", "infos"):
            getattr(self, name).append(copy.deepcopy(self.locals[name]))
        self._look_ahead()
        return True

    def _on_rollout_end(self) -> None:
        names = ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns")
        self.buffer = {name: getattr(self.model.rollout_buffer, name).copy() for name in names}
        self.unit = self.model.reward_scale


def kappa_of(policy):
    return list(policy.components["continuous"].parameters())


def one_iteration(model) -> Iteration:
    policy, recorder, gradients = copy.deepcopy(model.policy), Recorder(), []

    def keep_gradient(optimizer, args, kwargs):
        gradients.append([None if p.grad is None else p.grad.flatten().clone() for p in kappa_of(model.policy)])

    handle = model.policy.optimizer.register_step_pre_hook(keep_gradient)
    model.learn(model.n_steps * model.n_envs, recorder, reset_num_timesteps=False)
    handle.remove()
    first, *later = gradients
    assert later, "no PPO epoch has run"
    assert all(g is None for gradient in later for g in gradient), "κ moves in the full-batch step alone"
    return Iteration(
        policy,
        torch.cat(first),
        recorder.states,
        recorder.noise,
        np.array(recorder.rewards),
        np.array(recorder.dones),
        recorder.infos,
        recorder.buffer,
        recorder.unit,
    )


def hpo(env, **kwargs):
    """HPO without gradient clipping."""
    return HPO("MlpPolicy", env, **TINY | {"n_scenarios": 8, "max_grad_norm": math.inf} | kwargs)


def lively(model):
    """The model with larger random weights, so that regimes depend on states and candidates on regimes."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# ---- the mixed gradient ----------------------------------------------------------------------------------------------


def in_double(state):
    return type(state)(*(field.double() if field.is_floating_point() else field for field in state))


def restarted(state, recorded, rows):
    """The recorded state, which carries no gradient, in the given rows."""
    fields = zip(recorded, state, strict=True)
    return type(state)(*(torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old) for new, old in fields))


def act(policy, env, state, regime, drawn=None):
    """log π(x | s) and b = β(s)[x] in the precision of the state; ``drawn`` is what the tower was given, if it was noisy."""
    obs = env.observation(state) / policy.obs_unit
    log_prob = policy.components["discrete"](obs).log_softmax(dim=1).gather(1, regime[:, None])[:, 0]
    z = policy.components["continuous"](obs)
    if drawn is not None:
        z = z + (drawn - z).detach()  # the noise is a number
    return log_prob, policy.tower(z)[torch.arange(len(regime)), regime]


def replay(env, it, drawn=None):
    """
    The recorded scenarios once more, in float64, all with gradients: costs and log π, ``(n_steps, n_envs)``, and the value of
    what follows, ``(n_envs,)``. ``drawn`` holds what the tower was given in each period, if that was noisy.
    """
    env, policy = env.to(dtype=torch.float64), copy.deepcopy(it.policy).double()
    costs, log_probs, state = [], [], in_double(it.states[0])
    for t, regime in enumerate(it.regimes):
        if t > 0 and it.dones[t - 1].any():
            state = restarted(state, in_double(it.states[t]), torch.from_numpy(it.dones[t - 1]))
        log_prob, point = act(policy, env, state, regime, None if drawn is None else drawn[t])
        result = env.step_torch(state, HybridAction(regime, point), it.noise[t].double())
        state = result.state
        costs.append(-result.reward)
        log_probs.append(log_prob)
    value = policy.components["value"](env.observation(state) / policy.obs_unit)[:, 0]
    return policy, torch.stack(costs), torch.stack(log_probs), value * torch.from_numpy(~it.dones[-1])


def scales(it):
    """Costs of the buffer's advantages: centred, then in units of their deviation. And the two units of the cost."""
    disadvantages = -torch.from_numpy(it.buffer["advantages"]).double()
    advantage_std = disadvantages.std()
    return (disadvantages - disadvantages.mean()) / advantage_std, advantage_std, it.unit


def gradient_of(loss, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, kappa_of(policy), retain_graph=True)]).float()


def relative_error(gradient, expected):
    assert expected.norm() > 0
    return ((gradient - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("cross_term", [True, False])
@pytest.mark.parametrize("env", [inventory, lambda: inventory(lost_sales=True, lead_time=1), regulator])
def test_kappa_steps_along_the_mixed_gradient_of_the_replayed_scenario(env, cross_term):
    it = one_iteration(lively(hpo(env(), gamma=1.0, cross_term=cross_term)))
    policy, costs, log_probs, _ = replay(env(), it)
    np.testing.assert_allclose(costs.detach().numpy(), -it.rewards, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(log_probs.detach().numpy(), it.buffer["log_probs"], atol=1e-4)
    disadvantages, advantage_std, unit = scales(it)
    pathwise = (costs / unit / advantage_std).mean()
    cross = (log_probs * disadvantages).mean()
    mixed = gradient_of(pathwise + cross, policy) if cross_term else None
    pathwise_alone = gradient_of(pathwise, policy)
    assert relative_error(it.gradient, mixed if cross_term else pathwise_alone) < 1e-5
    if cross_term:
        assert relative_error(pathwise_alone, mixed) > 1e-3  # so that the assertion above sees the second term


@pytest.mark.parametrize("pathwise_weight", [1.0, 7.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_weight_and_the_units_of_the_two_terms_are_as_documented(pathwise_weight, normalize):
    settings = {"pathwise_weight": pathwise_weight, "normalize_advantage": normalize, "normalize_reward": normalize}
    it = one_iteration(lively(hpo(regulator(), gamma=1.0, **settings)))
    policy, costs, log_probs, _ = replay(regulator(), it)
    disadvantages, advantage_std, unit = scales(it)
    if not normalize:
        disadvantages, advantage_std, unit = -torch.from_numpy(it.buffer["advantages"]).double(), 1.0, 1.0
    loss = pathwise_weight * costs.mean() / unit / advantage_std + (log_probs * disadvantages).mean()
    assert relative_error(it.gradient, gradient_of(loss, policy)) < 1e-5


def test_every_tenth_iteration_measures_the_cross_term_and_takes_the_same_step():
    model = lively(hpo(inventory(), gamma=1.0))
    model.learn(8 * 80)
    one_iteration(model)
    assert "train/cross_term_norm" not in model.logger.name_to_value
    it = one_iteration(model)
    policy, costs, log_probs, _ = replay(inventory(), it)
    disadvantages, advantage_std, unit = scales(it)
    cross = (log_probs * disadvantages).mean()
    mixed = gradient_of(costs.mean() / unit / advantage_std + cross, policy)
    assert relative_error(it.gradient, mixed) < 1e-5
    measured = model.logger.name_to_value["train/cross_term_norm"]
    assert measured == pytest.approx(float(gradient_of(cross, policy).norm()), rel=1e-4)


@pytest.mark.parametrize("cross_term", [True, False])
def test_with_discounting_each_point_answers_for_the_costs_that_follow_it_discounted_from_its_own_period(cross_term):
    """Σ_t ∂b_t/∂κ · ∂/∂b_t Σ_{k>=t} γ^(k-t) c_k: every b_t in turn is a leaf, and later points respond to the states."""
    gamma, periods, n_envs = 0.7, 5, 4
    it = one_iteration(lively(hpo(regulator(horizon=periods), gamma=gamma, n_scenarios=n_envs, cross_term=cross_term)))
    env, policy = regulator(horizon=periods).to(dtype=torch.float64), copy.deepcopy(it.policy).double()
    disadvantages, advantage_std, unit = scales(it)
    expected = torch.zeros_like(it.gradient)
    for t in range(periods):
        state = in_double(it.states[t])
        _, point = act(policy, env, state, it.regimes[t])
        leaf, future = point.detach().requires_grad_(), torch.zeros(())
        for k in range(t, periods):
            log_prob, later = act(policy, env, state, it.regimes[k])
            result = env.step_torch(state, HybridAction(it.regimes[k], leaf if k == t else later), it.noise[k].double())
            future = future - gamma ** (k - t) * (result.reward / unit / advantage_std).sum()
            if cross_term:
                future = future + gamma ** (k - t) * (log_prob * disadvantages[k]).sum()
            state = result.state
        (slope,) = torch.autograd.grad(future, leaf)
        expected += gradient_of((point * slope).sum() / (periods * n_envs), policy)
    assert relative_error(it.gradient, expected) < 1e-5

    policy, costs, log_probs, _ = replay(regulator(horizon=periods), it)
    loss = costs.mean() / unit / advantage_std + cross_term * (log_probs * disadvantages).mean()
    assert relative_error(gradient_of(loss, policy), expected) > 0.01  # what it would be without discounting


@pytest.mark.parametrize(("env", "n_steps"), [(inventory, 25), (regulator, 25), (PurseEnv, 11)])
def test_gradients_are_cut_where_a_scenario_is_reset_within_a_rollout(env, n_steps):
    it = one_iteration(lively(hpo(env(), gamma=1.0, n_steps=n_steps)))
    assert it.dones.any(axis=0).all()
    policy, costs, log_probs, future = replay(env(), it)
    disadvantages, advantage_std, unit = scales(it)
    pathwise = (costs.mean() / unit - future.mean() / n_steps) / advantage_std
    assert relative_error(it.gradient, gradient_of(pathwise + (log_probs * disadvantages).mean(), policy)) < 1e-5


def test_a_rollout_that_ends_in_mid_episode_is_valued_where_it_ends_and_the_next_one_is_cut_off_from_it():
    model = lively(hpo(inventory(), gamma=1.0, n_steps=4))
    for first_period in (0, 4, 8):
        it = one_iteration(model)
        assert it.states[0].period.tolist() == [first_period] * 8
        policy, costs, log_probs, future = replay(inventory(), it)
        disadvantages, advantage_std, unit = scales(it)
        without = costs.mean() / unit / advantage_std + (log_probs * disadvantages).mean()
        assert relative_error(it.gradient, gradient_of(without - future.mean() / 4 / advantage_std, policy)) < 1e-5
        assert relative_error(gradient_of(without, policy), it.gradient) > 0.01


def test_the_value_of_the_last_states_is_discounted_from_each_period_on():
    """As in the test above it, b of the only period is the leaf, and the value behind it counts γ times."""
    gamma = 0.7
    it = one_iteration(lively(hpo(regulator(), gamma=gamma, n_steps=1, cross_term=False)))
    policy, costs, _, future = replay(regulator(), it)
    _, advantage_std, unit = scales(it)
    loss = (costs.mean() / unit - gamma * future.mean()) / advantage_std
    assert relative_error(it.gradient, gradient_of(loss, policy)) < 1e-5


@pytest.mark.parametrize("cross_term", [True, False])
@pytest.mark.parametrize("env", [inventory, regulator])
def test_each_point_maximises_its_lambda_return(env, cross_term):
    """
    Σ_t ∂b_t/∂κ · ∂/∂b_t Σ_{k>=t} (γλ)^(k-t) [c_k - γ (1 - λ) v(s_{k+1})], and -γ v(s_T) in the last period: every b_t in turn
    is a leaf, and later points and regimes respond to the states.
    """
    gamma, lambda_, n_steps, n_envs = 0.9, 0.6, 5, 4
    settings = {"n_steps": n_steps, "n_scenarios": n_envs, "cross_term": cross_term, "pathwise_lambda": lambda_}
    model = lively(hpo(env(), gamma=gamma, **settings))
    for ended in (False, True):  # the episode, with the rollout
        it = one_iteration(model)
        assert it.dones[-1].all() == ended
        simulator, policy = env().to(dtype=torch.float64), copy.deepcopy(it.policy).double()
        disadvantages, advantage_std, unit = scales(it)
        expected, without = torch.zeros_like(it.gradient), torch.zeros_like(it.gradient)
        for t in range(n_steps):
            state = in_double(it.states[t])
            _, point = act(policy, simulator, state, it.regimes[t])
            leaf, values = point.detach().requires_grad_(), torch.zeros(())
            future = 0.0 * leaf.sum()  # what is ordered last costs nothing within the rollout
            for k in range(t, n_steps):
                log_prob, later = act(policy, simulator, state, it.regimes[k])
                action = HybridAction(it.regimes[k], leaf if k == t else later)
                result = simulator.step_torch(state, action, it.noise[k].double())
                state, weight = result.state, (gamma * lambda_) ** (k - t)
                future = future - weight * (result.reward / unit / advantage_std).sum()
                if cross_term:
                    future = future + weight * (log_prob * disadvantages[k]).sum()
                value = policy.components["value"](simulator.observation(state) / policy.obs_unit).sum()
                last = k == n_steps - 1
                if not (last and ended):
                    values = values - weight * gamma * (1 if last else 1 - lambda_) * value / advantage_std
            (slope,) = torch.autograd.grad(future + values, leaf, retain_graph=True)
            expected += gradient_of((point * slope).sum() / (n_steps * n_envs), policy)
            (slope,) = torch.autograd.grad(future, leaf)
            without += gradient_of((point * slope).sum() / (n_steps * n_envs), policy)
        assert relative_error(it.gradient, expected) < 1e-5
        assert relative_error(without, expected) > 0.01  # so that the assertion above sees the values


def test_noise_on_the_point_is_in_the_scenario_and_gradients_pass_through_the_tower_behind_it():
    model = lively(hpo(inventory(), gamma=1.0, cross_term=False, point_noise=0.5))
    drawn = []
    model.policy.tower.register_forward_pre_hook(lambda tower, inputs: drawn.append(inputs[0].detach().double()))
    it = one_iteration(model)
    assert not it.dones[:-1].any()
    policy, costs, _, _ = replay(inventory(), it, drawn)
    _, advantage_std, unit = scales(it)
    np.testing.assert_allclose(costs.detach().numpy(), -it.rewards, rtol=1e-4, atol=1e-3)
    loss = costs.mean() / unit / advantage_std
    assert relative_error(it.gradient, gradient_of(loss, policy)) < 1e-5


def test_the_noise_on_the_point_has_the_scheduled_deviation_and_prediction_has_none():
    policy = hpo(inventory()).policy
    obs = torch.zeros(20_000, inventory().observation_space.shape[0])
    inputs = []
    policy.tower.register_forward_pre_hook(lambda tower, given: inputs.append(given[0].detach()))
    with torch.no_grad():
        policy.candidates(obs), policy.candidates(obs, 0.5)
    assert inputs[0].std(dim=0).max() == 0
    np.testing.assert_allclose(inputs[1].std(dim=0), 0.5, rtol=0.03)

    given, model = [], hpo(inventory(), point_noise="lin_0.8")
    candidates = model.policy.candidates
    model.policy.candidates = lambda obs, noise_std=0.0, regime=None: (
        given.append(noise_std) or candidates(obs, noise_std, regime)
    )
    model.learn(4 * 80)
    assert sorted(set(given)) == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("project_points", [False, True])
def test_only_projected_points_come_back_from_an_end_of_their_range(project_points):
    kwargs = {"net_arch": [8], "linear_path": [], "project_points": project_points}
    model = HPO("MlpPolicy", PurseEnv(), n_scenarios=32, seed=0, continuous_learning_rate="lin_0.4", policy_kwargs=kwargs)
    with torch.no_grad():  # far beyond the lower end, as if spending had been a bad idea for long
        model.policy.component("continuous").output.bias.fill_(-20.0)
    model.learn(150 * 4 * 32)
    purses = np.stack([np.linspace(5, 20, 10), np.zeros(10)], axis=1).astype(np.float32)
    _, spent = zip(*model.predict(purses, deterministic=True)[0], strict=True)
    assert (np.array(spent) > 0.5).all() if project_points else (np.array(spent) < 0.01).all()


def test_what_is_early_falls_to_0_in_the_first_half_of_training():
    model = hpo(inventory(), ent_coef="early_0.8", point_noise="early_0.4")
    done = [0.0, 0.25, 0.49, 0.5, 0.75, 1.0]
    assert [model.ent_coef_schedule(1 - share) for share in done] == pytest.approx([0.8, 0.4, 0.016, 0.0, 0.0, 0.0])
    assert [model.point_noise_schedule(1 - share) for share in done] == pytest.approx([0.4, 0.2, 0.008, 0.0, 0.0, 0.0])


def test_the_entropy_coefficient_falls_with_the_square_of_what_is_left_of_training():
    model = hpo(inventory())
    assert [model.ent_coef_schedule(left) for left in (1.0, 0.5, 0.1, 0.0)] == pytest.approx([0.2, 0.05, 0.002, 0.0])


def test_points_can_wait_for_the_regimes():
    rates = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):  # before the update: the rate of the iteration before
            rates.append({group["name"]: group["lr"] for group in self.model.policy.optimizer.param_groups}["continuous"])

    hpo(inventory(), continuous_learning_rate="late_1e-2").learn(10 * 80, callback=Watch())
    # V·left·min(1, (2·done)^4), after 1/10, 2/10, ... of training
    expected = [1e-2 * (1 - i / 10) * min(1.0, (i / 5) ** 4) for i in range(1, 10)]
    assert rates[1:] == pytest.approx(expected)


# ---- what PPO is given -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [True, "bounded"])
@pytest.mark.parametrize(("env", "n_steps"), [(inventory, 25), (PurseEnv, 11)])
def test_advantages_bootstrap_from_the_last_observation_of_truncated_episodes_and_not_of_terminated_ones(env, n_steps, beyond):
    gamma, gae_lambda, n_envs = 0.9, 0.7, 6
    options: dict[str, Any] = {"gamma": gamma, "gae_lambda": gae_lambda, "value_beyond_horizon": beyond}
    options["policy_kwargs"] = TINY["policy_kwargs"] | {"softplus_beta": 1.0}  # orders after which a bound bites
    model = lively(hpo(env(), n_scenarios=n_envs, n_steps=n_steps, **options))
    it = one_iteration(model)

    def value(obs):
        return it.policy.predict_values(torch.as_tensor(obs)[None]).item()

    final_obs = env().observation(it.states[-1])
    sums = [gamma ** np.arange(n_steps - t) @ it.rewards[t:] for t in range(n_steps)]
    low, high = (bound / (1 - gamma**n_steps) for bound in (min(0.0, np.min(sums)), max(0.0, np.max(sums))))
    if beyond is True:
        low, high = -np.inf, np.inf
    ends, bounds = set(), 0
    for i in range(n_envs):
        advantage = 0.0
        for t in reversed(range(n_steps)):
            reward, now = it.rewards[t, i], value(it.buffer["observations"][t, i])
            if it.dones[t, i]:
                truncated = it.infos[t][i]["TimeLimit.truncated"]
                ends.add(truncated)
                extrapolated = value(it.infos[t][i]["terminal_observation"]) if truncated else 0.0
                bootstrap = min(max(extrapolated, low), high)
                bounds += truncated and not low <= extrapolated <= high
                advantage = reward + gamma * bootstrap - now
            else:
                following = value(final_obs[i] if t == n_steps - 1 else it.buffer["observations"][t + 1, i])
                advantage = reward + gamma * following - now + gamma * gae_lambda * advantage
            assert it.buffer["advantages"][t, i] == pytest.approx(advantage / it.unit, abs=1e-4)
            assert it.buffer["returns"][t, i] == pytest.approx((advantage + now) / it.unit, abs=1e-4)
    assert ends == ({True, False} if env is PurseEnv else {True})
    assert bounds > 0 or env is not inventory or beyond is True


def test_nothing_follows_the_horizon_if_asked_for():
    gamma, model = 0.9, lively(hpo(inventory(), n_scenarios=4, gamma=0.9, gae_lambda=1.0, value_beyond_horizon=False))
    it = one_iteration(model)
    assert it.dones[-1].all()
    sums = np.stack([gamma ** np.arange(len(it.rewards) - t) @ it.rewards[t:] for t in range(len(it.rewards))])
    np.testing.assert_allclose(it.buffer["returns"], sums / sums.std(), rtol=1e-4, atol=1e-4)
    assert it.unit == pytest.approx(sums.std(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("activation_fn", [torch.nn.ReLU, torch.nn.SiLU, torch.nn.ELU, torch.nn.Tanh])
def test_an_unstable_plant_does_not_run_away_whatever_the_activation(activation_fn):
    """
    The first policy lets states grow, and costs 75,000. Unless bounded, the value of the last state, extrapolated by units
    that do not saturate, then feeds on itself: costs were 10^6 and more after 40 iterations, and gradients NaN.
    """
    env = HybridSwitchedLQREnv(n_dims=48, n_modes=4)
    kwargs = {"activation_fn": activation_fn, "net_arch": [128, 128]}
    options = {"continuous_learning_rate": "lin_5e-3", "value_beyond_horizon": "bounded", "seed": 0}
    model = HPO("MlpPolicy", env, n_scenarios=128, policy_kwargs=kwargs, **options)
    model.learn(60 * 20 * 128)
    assert evaluate(env, model, 200, 10_000).mean() < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("activation_fn", [torch.nn.ReLU, torch.nn.SiLU])
def test_orders_do_not_grow_with_the_stock_that_they_make_whatever_the_activation(activation_fn):
    """With a limit of 5 for the gradients' norms ReLU cost 204 here, and with an entropy coefficient from 0.05 it cost 444."""
    env = HybridDualSourcingEnv(n_items=10)
    model = HPO("MlpPolicy", env, policy_kwargs={"activation_fn": activation_fn}, seed=0)
    model.learn(60 * env.horizon * 64)
    assert evaluate(env, model, 200, 10_000).mean() < 60


def test_the_terminal_observation_is_the_last_of_the_old_episode():
    it = one_iteration(hpo(inventory(demand="normal"), n_steps=12))
    env = inventory(demand="normal")
    _, point = act(it.policy, env, it.states[9], it.regimes[9])
    last = env.step_torch(it.states[9], HybridAction(it.regimes[9], point), it.noise[9]).observation
    for i in range(8):
        np.testing.assert_allclose(it.infos[9][i]["terminal_observation"], last[i].detach(), atol=1e-4)
    np.testing.assert_allclose(it.buffer["observations"][10], env.observation(it.states[10]))
    assert (it.states[10].stock == 0).all()


@pytest.mark.parametrize("wrap", [lambda venv: venv, VecNormalize])
def test_the_probability_ratio_is_one_before_the_first_minibatch(wrap):
    model = lively(hpo(wrap(make_vec_env(ID, 8, env_kwargs=SMALL)), n_steps=25, n_epochs=1, batch_size=200))
    it = one_iteration(model)
    obs, actions = (torch.from_numpy(it.buffer[name]).flatten(0, 1) for name in ("observations", "actions"))
    _, log_prob, _ = it.policy.evaluate_actions(obs, actions)
    np.testing.assert_allclose((log_prob.detach().numpy() - it.buffer["log_probs"].flatten()), 0, atol=1e-5)
    assert model.logger.name_to_value["train/clip_fraction"] == 0
    assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-8


def test_the_scenarios_hold_the_candidates_of_the_sampled_regimes():
    it = one_iteration(lively(hpo(regulator())))
    for t in range(10):
        _, point = act(it.policy, regulator(), it.states[t], it.regimes[t])
        np.testing.assert_allclose(it.buffer["actions"][t, :, 1:], point.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert set(it.regimes.flatten().tolist()) == {0, 1}


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("HPO")])
def test_what_is_computed_again_on_the_way_back_gives_the_same_networks_and_is_not_kept(name):
    kept = []
    for checkpointing in (False, True):
        model, sizes = RUNS[name](), []
        model.gradient_checkpointing = checkpointing
        iteration = model.n_steps * model.n_envs
        model.num_timesteps = 9 * iteration  # in the tenth the cross term is measured, by several ways back
        model.learn(2 * iteration, reset_num_timesteps=False)
        learned = parameters_to_vector(model.policy.parameters()).detach()
        with saved_tensors_hooks(lambda tensor, sizes=sizes: (sizes.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
            _, callback = model._setup_learn(iteration)
            callback.on_training_start({}, {})
            model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        kept.append((learned, sum(sizes)))
    (plain, all_of_it), (recomputed, rest) = kept
    assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-7)
    assert rest < all_of_it / 2  # the networks have eight units only


# ---- VecNormalize ----------------------------------------------------------------------------------------------------

MEAN, VARIANCE, RETURN_VARIANCE, CLIP_OBS, CLIP_REWARD = 0.5, 4.0, 300.0**2, 1.0, 3.0


class ScaledByHand(HybridInventoryEnv):
    """What VecNormalize does with the numbers above, written into the equations."""

    def observation(self, state):
        return ((super().observation(state) - MEAN) / (VARIANCE + 1e-8) ** 0.5).clamp(-CLIP_OBS, CLIP_OBS)

    def reward(self, state, action, noise, next_state):
        reward = super().reward(state, action, noise, next_state)
        return (reward / (RETURN_VARIANCE + 1e-8) ** 0.5).clamp(-CLIP_REWARD, CLIP_REWARD)


def test_gradients_through_frozen_vec_normalize_are_those_of_an_environment_scaled_by_hand():
    normalized = VecNormalize(
        DummyVecEnv([inventory] * 8), training=False, clip_obs=CLIP_OBS, clip_reward=CLIP_REWARD, gamma=0.9
    )
    normalized.obs_rms.mean[:], normalized.obs_rms.var[:] = MEAN, VARIANCE
    normalized.ret_rms.var = np.array(RETURN_VARIANCE)
    wrapped = one_iteration(lively(hpo(normalized, gamma=0.9)))
    by_hand = one_iteration(
        lively(hpo(ScaledByHand(**SMALL), gamma=0.9, policy_kwargs=TINY["policy_kwargs"] | {"observation_scale": None}))
    )
    assert (np.abs(by_hand.buffer["observations"][..., :4]) == CLIP_OBS).any()  # the clip of observations matters
    assert (np.abs(by_hand.rewards) == CLIP_REWARD).any()  # and that of rewards
    assert (np.abs(by_hand.rewards) < CLIP_REWARD).mean() > 0.5
    assert torch.equal(wrapped.regimes, by_hand.regimes)
    np.testing.assert_allclose(wrapped.buffer["advantages"], by_hand.buffer["advantages"], atol=1e-4)
    assert relative_error(wrapped.gradient, by_hand.gradient) < 1e-4


def test_live_observations_and_rewards_follow_the_moving_statistics_of_vec_normalize():
    seen = []

    class Watch(BaseCallback):
        def _on_step(self):
            live = {"obs": self.locals["obs"], "live_reward": self.locals["rollout"].periods[-1].reward}
            seen.append(live | {"rewards": self.locals["rewards"], "shown": self.model._last_obs})
            return True

    hpo(VecNormalize(make_vec_env(ID, 8, env_kwargs=SMALL)), n_steps=25).learn(200, Watch())
    for step in seen:
        np.testing.assert_allclose(step["obs"].detach().numpy(), step["shown"], atol=1e-5)
        np.testing.assert_allclose(step["live_reward"].detach().numpy(), step["rewards"], atol=1e-5)


# ---- nothing waits in a rollout --------------------------------------------------------------------------------------


class NothingIsRead(TorchDispatchMode):
    """Fails when a number is read out of a tensor, for which the host would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read out of a tensor"
        return func(*args, **(kwargs or {}))


class Wakeful(HPO):
    """HPO whose simulation fails when a tensor is read."""

    def _simulate(self, *args):
        with pytest.MonkeyPatch.context() as patch, NothingIsRead():
            for name in ("cpu", "numpy", "item", "tolist", "nonzero"):
                patch.setattr(torch.Tensor, name, lambda *_, name=name, **__: pytest.fail(f"Tensor.{name} was called"))
            return super()._simulate(*args)


class Counter(BaseCallback):
    reads_arrays = False

    def _on_step(self):
        return True


@pytest.mark.parametrize("callbacks", [lambda _: None, lambda folder: [Counter(), CheckpointCallback(10**9, folder)]])
@pytest.mark.parametrize(
    "env",
    [
        lambda: inventory(),
        lambda: regulator(),
        lambda: HybridUnitCommitmentEnv(commitments="free", min_up_time=3),  # masks
        lambda: inventory(minor_fixed_cost=20.0),  # counterfactual credit
        lambda: HybridProcurementEnv(2, per_item=True),  # of a problem with jumps
    ],
)
def test_no_number_is_read_out_of_a_tensor_while_scenarios_are_simulated(env, callbacks, tmp_path):
    model = Wakeful("MlpPolicy", env(), n_scenarios=4, n_steps=25, **TINY)
    model.learn(2 * 4 * 25, callbacks(tmp_path))  # past the horizon
    assert np.isfinite(model.rollout_buffer.advantages).all()
    assert len(model.ep_info_buffer) == 4 * (50 // model.env.get_attr("horizon")[0])


class Reader(BaseCallback):
    def __init__(self):
        super().__init__()
        self.rewards, self.dones = [], []

    def _on_step(self):
        self.rewards.append(self.locals["rewards"])
        self.dones.append(self.locals["dones"])
        return True


@pytest.mark.parametrize("env", [inventory, PurseEnv])
def test_training_is_the_same_whether_or_not_a_callback_reads_the_arrays_of_each_step(env):
    reader = Reader()
    read, unread = (
        HPO("MlpPolicy", env(), n_scenarios=6, n_steps=7, **TINY).learn(3 * 42, callback) for callback in (reader, None)
    )
    assert same(weights(read), weights(unread))
    episodes = [[{"r": info["r"], "l": info["l"]} for info in model.ep_info_buffer] for model in (read, unread)]
    assert episodes[0] == episodes[1]
    np.testing.assert_array_equal(read._last_obs, unread._last_obs)
    np.testing.assert_array_equal(read._last_episode_starts, unread._last_episode_starts)
    assert np.shape(reader.rewards) == np.shape(reader.dones) == (21, 6)


@pytest.mark.parametrize(("broken", "what"), [("observation", "observation"), ("reward", "reward")])
def test_what_is_not_finite_is_named_with_its_period_after_the_rollout(broken, what):
    class Overflowing(HybridSwitchedLQREnv):
        def transition(self, state, action, noise):
            state = super().transition(state, action, noise)
            late = (state.period >= 3).unsqueeze(1)  # the fourth period
            return state._replace(x=torch.where(late, torch.inf, state.x)) if broken == "observation" else state

        def reward(self, state, action, noise, next_state):
            reward = super().reward(state, action, noise, next_state)
            return torch.where(state.period >= 3, torch.nan, reward) if broken == "reward" else reward

    model = HPO("MlpPolicy", Overflowing(n_dims=2, horizon=10), n_scenarios=4, **TINY)
    with pytest.raises(FloatingPointError, match=rf"Overflowing: non-finite {what} in period 3 \(scenario 0\)"):
        model.learn(40)
