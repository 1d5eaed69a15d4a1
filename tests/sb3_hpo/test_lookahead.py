"""Search at decision time, against enumeration, a closed form, and the policy it starts from."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

import hybrid_envs
from hybrid_envs import HybridEnv, HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.evaluation import evaluate
from hybrid_envs.solvers import SingleMode
from hybrid_envs.spaces import HybridAction
from hybrid_envs.wrappers import FlatActionWrapper
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.lookahead import Lookahead
from sb3_hpo.safe_files import load_safe, save_safe
from tests.factored import BreweryEnv
from tests.masked import KilnEnv


class NewsvendorEnv(HybridEnv):
    """One order b for a demand, uniform on [0, 1], that nobody knows; what is left costs 1, what is short 9."""

    def __init__(self):
        super().__init__(action_bounds=np.array([[[0.0, 2.0]]]), observation_size=1, horizon=1)

    def initial(self, batch_size, generator):
        return Day(torch.zeros(batch_size, dtype=torch.int64))

    def sample_noise(self, batch_size, generator):
        return torch.rand(1, batch_size, generator=generator)

    def transition(self, state, action, noise):
        return state

    def reward(self, state, action, noise, next_state):
        left = action.point[:, 0] - noise
        return -torch.where(left > 0, left, -9 * left)

    def observation(self, state):
        return state.period[:, None] * torch.zeros(1)


class Day(NamedTuple):
    period: torch.Tensor


def trained(env, iterations=5, networks=None, **kwargs):
    model = HPO("MlpPolicy", env, n_scenarios=8, seed=0, policy_kwargs=networks or {"net_arch": [16]}, **kwargs)
    return model.learn(iterations * 8 * env.horizon)


@pytest.fixture(scope="module")
def plant():
    env = HybridSwitchedLQREnv(4, 2, horizon=6)
    return env, trained(env)


# ---- where nothing is random the search cannot lose ------------------------------------------------------------------


@pytest.mark.parametrize("refinements", [0, 5])
def test_every_episode_of_a_plant_costs_at_most_what_the_policy_costs(plant, refinements):
    env, model = plant
    costs = evaluate(env, model, 50, seed=1)
    searched = evaluate(env, Lookahead(model, env, n_scenarios=1, refinements=refinements), 50, seed=1)
    # the search minimises discounted costs, so undiscounted ones may rise a little
    assert (searched <= 1.02 * costs).all()
    assert searched.mean() < 0.98 * costs.mean()


def test_refined_points_are_those_of_the_closed_form():
    env = HybridSwitchedLQREnv(3, 1, horizon=2)
    model = trained(env, iterations=1, gamma=1.0)
    state = env.initial(5, torch.Generator().manual_seed(1))
    _, point = Lookahead(model, env, n_scenarios=1, refinements=400).decide(state)
    A, B, Q, R = env.A, env.B_transposed.T, env.Q, env.R  # the last control is best 0, so one period of Riccati is left
    best = -torch.linalg.solve(R + B.T @ Q @ B, B.T @ Q @ A @ state.x.T).T
    assert torch.allclose(point, best, atol=0.02 * float(best.abs().max()))


def test_a_plant_costs_less_when_the_network_has_learned_what_the_search_finds(plant, tmp_path):
    env, _ = plant
    model = trained(env, networks={"net_arch": [32], "quadratic_path": ["discrete"]})
    model.save(tmp_path / "model")
    taught = [HPO.load(tmp_path / "model", env=env) for _ in range(2)]
    before, searched = (
        evaluate(env, policy, 200, seed=1).mean() for policy in (model, Lookahead(model, env, n_scenarios=1, refinements=0))
    )
    for one in taught:
        Lookahead(one, env, seed=2).teach(rounds=10, n_episodes=50, learning_rate="lin_1e-2")
    assert evaluate(env, taught[0], 200, seed=1).mean() < before - 0.5 * (before - searched)
    weights = (one.policy.component("discrete").parameters() for one in taught)
    assert all(map(torch.equal, *weights))  # equal seeds


def test_taught_points_cost_little_more_than_riccatis():
    env = HybridSwitchedLQREnv(4, 1, horizon=6)
    model = trained(env, iterations=2, gamma=1.0)
    optimum = evaluate(env, SingleMode(env, 0), 200, seed=1).mean()
    before = evaluate(env, model, 200, seed=1).mean() - optimum
    regimes = [parameter.clone() for parameter in model.policy.component("discrete").parameters()]
    teacher = Lookahead(model, env, n_scenarios=1, refinements=30, seed=2)
    teacher.teach_points(rounds=8, n_episodes=50, learning_rate="lin_1e-2")
    assert 0 <= evaluate(env, model, 200, seed=1).mean() - optimum < 0.1 * before
    assert all(map(torch.equal, regimes, model.policy.component("discrete").parameters()))


def test_points_whose_effects_come_after_the_end_stay_as_they_are():
    env = HybridInventoryEnv(2, horizon=4)
    model = trained(env, iterations=1)
    start = env.initial(5, torch.Generator().manual_seed(1))
    last = start._replace(period=torch.full_like(start.period, 3))
    decisions = [Lookahead(model, env, n_scenarios=2, refinements=n, regimes=False).decide(last) for n in (0, 5)]
    assert all(map(torch.equal, *decisions))
    assert np.isfinite(evaluate(env, Lookahead(model, env, n_scenarios=2, refinements=2), 3, seed=1)).all()


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_taught_points_are_no_reply_to_what_cannot_be_known():
    """Who knew demand would order it: 0.5 on average. Who does not orders the quantile u / (u + h) of it, 0.9."""
    env = NewsvendorEnv()
    model = trained(env, iterations=1)
    teacher = Lookahead(model, env, n_scenarios=256, refinements=40)
    teacher.teach_points(rounds=6, n_episodes=16, learning_rate="lin_3e-2")
    (order,) = model.policy.candidates(torch.zeros(1, 1)).flatten().tolist()
    assert order == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("env", [KilnEnv(1), BreweryEnv(1)], ids=["one factor", "three factors"])
def test_in_the_last_period_the_regime_is_the_best_by_enumeration_in_the_same_futures(env):
    env.reset(seed=0)
    model, n, batch = trained(env, iterations=1), 64, 7
    generator = torch.Generator().manual_seed(3)
    state = env.initial(batch, generator)
    with torch.no_grad():
        model.policy.component("discrete").output.bias[0] += 5.0  # so that it likes the first regime too much
    chosen = Lookahead(model, env, n_scenarios=n, refinements=0, seed=5).decide(state).regime

    _, noise = env.sample_scenarios(n * batch, torch.Generator().manual_seed(5))
    changed = 0
    for i in range(batch):
        own, differences = enumerated(env, model, state, i, noise[0, n * i : n * (i + 1)])
        gains = {x: float(of.mean() - of.std() / n**0.5) for x, of in differences.items()}
        best = max(gains, key=gains.get)
        assert tuple(chosen[i].view(-1).tolist()) == (best if gains[best] > 0 else own)
        changed += gains[best] > 0
    assert changed  # or the search had nothing to do


@pytest.mark.parametrize("env", [KilnEnv(1), BreweryEnv(1)], ids=["one factor", "three factors"])
def test_what_was_taught_is_the_best_regime_by_enumeration(env):
    model = trained(env, iterations=1, learning_rate=1e-3)
    with torch.no_grad():
        model.policy.component("discrete").output.bias[0] += 5.0  # so that it likes the first regime too much
    state = env.initial(40, torch.Generator().manual_seed(3))
    noise = env.sample_noise(256, torch.Generator().manual_seed(4))[0]

    def regret():
        return np.mean(
            [max(of.mean().item() for of in enumerated(env, model, state, i, noise)[1].values()) for i in range(40)]
        )

    before = regret()
    points = [parameter.clone() for parameter in model.policy.component("continuous").parameters()]
    Lookahead(model, env, refinements=0).teach(rounds=25, n_episodes=200, learning_rate="lin_1e-2")
    assert 0 <= regret() < 0.15 * before
    assert all(map(torch.equal, points, model.policy.component("continuous").parameters()))


def enumerated(env, model, state, i, noise):
    """
    :return: the policy's regime in row i, and how much more every regime that differs from it in one factor earns in a period
        under each noise, by regime
    """
    rows = type(state)(*(field[i : i + 1].expand(len(noise), *field.shape[1:]) for field in state))
    obs, mask = env.observation(rows), env.regime_mask(rows)
    own, candidates = model.policy.regimes(obs[:1], mask[:1]).mode(), model.policy.candidates(obs).detach()
    rewards = {}
    for x in env.factors.every():
        near = not env.factors.many or (x != own[0]).sum() <= 1
        if near and env.factors.permits(x[None], mask[:1]).item():
            regime = x.expand(len(noise), *x.shape)
            action = HybridAction(regime, env.factors.choose(candidates, regime))
            rewards[tuple(x.view(-1).tolist())] = env.step_torch(rows, action, noise).reward
    first = tuple(own.view(-1).tolist())
    return first, {x: of - rewards[first] for x, of in rewards.items()}


@pytest.mark.parametrize("env", [KilnEnv(4), BreweryEnv(3), BreweryEnv(3, active_limits=(1, 2))])
def test_masks_limits_and_bounds_are_kept(env):
    policy = Lookahead(trained(env, iterations=1), env, depth=2, n_scenarios=3, refinements=3)
    policy.teach(rounds=2, n_episodes=8)
    policy.teach_points(rounds=2, n_episodes=8)
    assert np.isfinite(evaluate(env, policy, 20, seed=0)).all()  # the simulation refuses what is not allowed


def test_a_short_look_is_completed_by_the_value_network():
    env = HybridSwitchedLQREnv(2, 2, horizon=5)
    model = trained(env)
    state = env.initial(6, torch.Generator().manual_seed(0))
    search = Lookahead(model, env, depth=1, n_scenarios=1, refinements=0)
    with torch.no_grad():
        worth = []
        for j in range(2):
            regime = torch.full((6,), j)
            point = env.factors.choose(model.policy.candidates(env.observation(state)), regime)
            result = env.step_torch(state, HybridAction(regime, point), env.sample_noise(6, torch.Generator())[0])
            value = model.policy.predict_values(result.observation).flatten()
            worth.append(result.reward + model.gamma * model.reward_scale * value)
    assert model.reward_scale != 1.0
    assert torch.equal(search.decide(state).regime, torch.stack(worth).argmax(dim=0))


# ---- as a user meets it ----------------------------------------------------------------------------------------------


def test_it_plays_an_environment_of_gymnasium():
    env = gym.make("HybridUnitCommitment-v0", n_generators=2, commitments="free", horizon=4)
    model = HPO("MlpPolicy", env, n_scenarios=8, seed=0).learn(64)
    policy = Lookahead(model, env, depth=2, n_scenarios=4, refinements=1)
    observation, _ = env.reset(seed=0)
    for _ in range(4):
        action, _ = policy.predict(observation)
        observation, *_, truncated, _ = env.step(action)
    assert truncated
    with pytest.raises(ValueError, match="no observation of it"):
        policy.predict(observation)


def test_equal_seeds_give_equal_decisions_and_time_is_kept(plant):
    env, model = plant
    state = env.initial(3, torch.Generator().manual_seed(0))
    first, second = (Lookahead(model, env, seed=4).decide(state) for _ in range(2))
    assert torch.equal(first.regime, second.regime) and torch.equal(first.point, second.point)
    hurried = Lookahead(model, env, refinements=10**6, time_limit=0.05)
    assert hurried.decide(state).point.isfinite().all()  # or it would take hours


def test_the_unit_of_values_is_saved_with_the_model(plant, tmp_path):
    _, model = plant
    model.save(tmp_path / "model")
    save_safe(model, tmp_path / "model.safetensors")
    for loaded in (HPO.load(tmp_path / "model"), load_safe(tmp_path / "model.safetensors")):
        assert loaded.reward_scale == model.reward_scale != 1.0


def test_what_cannot_be_searched_is_refused_by_name(plant):
    env, model = plant
    with pytest.raises(TypeError, match="HPO, whose value network it trusts, not HybridPPO"):
        Lookahead(HybridPPO("MlpPolicy", env, n_steps=8, batch_size=8), env)
    with pytest.raises(TypeError, match="it is no HybridEnv"):
        Lookahead(model, gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="its actions or observations differ"):
        Lookahead(model, HybridSwitchedLQREnv(5, 2))
    for argument, value in (("depth", 0), ("n_scenarios", 0), ("refinements", -1), ("time_limit", 0.0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{argument}.*{value}"):
            Lookahead(model, env, **{argument: value})
    for argument, value in (("rounds", 0), ("n_episodes", 0), ("learning_rate", "fast")):
        with pytest.raises(ValueError, match=f"{argument}.*{value}"):
            Lookahead(model, env).teach(**{argument: value})
        with pytest.raises(ValueError, match=f"{argument}.*{value}"):
            Lookahead(model, env).teach_points(**{argument: value})
    with pytest.raises(ValueError, match="refinements = 0: there are no better points to teach"):
        Lookahead(model, env, refinements=0).teach_points()
    assert isinstance(Lookahead(model, FlatActionWrapper(env)).env, hybrid_envs.HybridEnv)
