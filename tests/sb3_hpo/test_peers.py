"""HybridPPO on environments as peers wrote them."""

import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from hybrid_envs.wrappers import PeerEnvWrapper
from sb3_hpo import HybridPPO
from tests.hybrid_envs.test_peers import Boiler, Peer, every_peer, old_box, old_discrete, old_tuple


class Hurdle(Peer):
    """Pays for jumping 400 of at most 720, and nothing for running; one step."""

    action_space = old_tuple(old_discrete(2), old_tuple(old_box([0.0], [30.0]), old_box([0.0], [720.0])))

    def step(self, action):
        regime, parameters = action
        reward = 1 - abs(float(parameters[1][0]) - 400) / 400 if regime == 1 else 0.0
        return self.observe(), reward, True, {}


@every_peer
def test_hybrid_ppo_trains_on_every_layout(peer, kwargs):
    env = DummyVecEnv([lambda: PeerEnvWrapper(peer(), **kwargs)] * 2)
    model = HybridPPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=2, seed=0).learn(96)
    assert model.num_timesteps == 96
    for inner in env.envs:
        assert len(inner.env.received) == 48
    if env.envs[0].factors.many:
        assert model.policy.factors == env.envs[0].factors
    observation, _ = PeerEnvWrapper(peer(), **kwargs).reset(seed=0)
    assert model.predict(observation)[0] in model.action_space


def test_it_learns_which_regime_pays_and_how_far_to_go_in_the_units_of_the_peer():
    env = DummyVecEnv([lambda: PeerEnvWrapper(Hurdle())] * 16)
    settings = {"batch_size": 64, "n_epochs": 5, "learning_rate": 1e-2, "gamma": 0.0, "policy_kwargs": {"net_arch": [16]}}
    model = HybridPPO("MlpPolicy", env, n_steps=16, seed=0, **settings)
    model.learn(16 * 16 * 8)
    after, _ = evaluate_policy(model, DummyVecEnv([lambda: PeerEnvWrapper(Hurdle())]), n_eval_episodes=50, warn=False)
    assert after == pytest.approx(1.0, abs=0.1)


class Switches(Boiler):
    """Pays for mode 2, for valve 1 and for a power of 4 of at most 5; one step."""

    def step(self, action):
        reward = (action["mode"] == 2) + (action["valve"] == 1) - abs(float(action["power"][0]) - 4) / 4
        return self.observe(), float(reward), True, {}


def test_it_learns_every_choice_of_a_dict_and_the_number_beside_them():
    env = DummyVecEnv([lambda: PeerEnvWrapper(Switches())] * 16)
    settings = {"batch_size": 64, "n_epochs": 5, "learning_rate": 1e-2, "gamma": 0.0, "policy_kwargs": {"net_arch": [16]}}
    model = HybridPPO("MlpPolicy", env, n_steps=16, seed=0, **settings)
    model.learn(16 * 16 * 12)
    after, _ = evaluate_policy(model, DummyVecEnv([lambda: PeerEnvWrapper(Switches())]), n_eval_episodes=50, warn=False)
    assert after == pytest.approx(2.0, abs=0.15)
