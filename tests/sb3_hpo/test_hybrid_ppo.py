"""HybridPPO on environments that nobody of the library wrote, and beside SB3's PPO where the two must agree."""

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_hpo import HybridPPO
from tests.sb3_hpo.environments import DriftEnv, TargetEnv
from tests.sb3_hpo.runs import inventory

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "policy_kwargs": {"net_arch": [16]}}


class Rollout(BaseCallback):
    """Keeps a copy of the last rollout's buffer as it was before training."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        self.arrays = {
            name: getattr(buffer, name).copy()
            for name in (
                "observations",
                "actions",
                "rewards",
                "values",
                "log_probs",
                "episode_starts",
                "advantages",
                "returns",
            )
            if isinstance(getattr(buffer, name), np.ndarray)
        }


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])}


# ---- any environment -------------------------------------------------------------------------------------------------


def test_every_network_learns_on_an_environment_without_step_torch():
    env = TargetEnv()
    assert not hasattr(env, "step_torch")
    model = HybridPPO("MlpPolicy", env, **SMALL)
    before = weights(model)
    model.learn(16)
    assert model.num_timesteps == 16
    moved = changed(model, before)
    assert "log_std" in moved
    for name in ("discrete", "continuous", "value"):
        assert f"components.{name}.hidden.0.weight" in moved


def test_dict_observations_go_through_the_multi_input_policy():
    model = HybridPPO("MultiInputPolicy", DummyVecEnv([lambda: TargetEnv(dict_observation=True)] * 2), **SMALL)
    before = weights(model)
    model.learn(32)
    assert "components.discrete.hidden.0.weight" in changed(model, before)
    observation, _ = TargetEnv(dict_observation=True).reset(seed=0)
    action, _ = model.predict(observation, deterministic=True)
    assert model.action_space.contains(action)


@pytest.mark.slow
def test_environments_may_run_in_spawned_subprocesses():
    env = SubprocVecEnv([TargetEnv, TargetEnv], start_method="spawn")
    try:
        model = HybridPPO("MlpPolicy", env, **SMALL)
        before = weights(model)
        model.learn(32)
        assert changed(model, before)
    finally:
        env.close()


def test_subprocesses_and_one_process_give_the_same_updates():
    trained = []
    for vec_env_class in (DummyVecEnv, SubprocVecEnv):
        env = vec_env_class([TargetEnv, TargetEnv])
        try:
            trained.append(weights(HybridPPO("MlpPolicy", env, **SMALL).learn(32)))
        finally:
            env.close()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_an_id_and_a_vec_normalize_chain_are_accepted():
    model = HybridPPO("MlpPolicy", "HybridSwitchedLQR-v0", **SMALL).learn(16)
    assert model.n_envs == 1
    env = VecNormalize(DummyVecEnv([TargetEnv] * 3))
    model = HybridPPO("MlpPolicy", env, **SMALL).learn(48)
    assert model.n_envs == 3
    assert model.get_vec_normalize_env() is env


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_each_environment_gets_its_own_action_clipped_to_the_box(n_envs):
    """With two environments a batched pair (x[2], b[2, 1]) would be taken for two actions: none is ever passed."""
    env = DummyVecEnv([TargetEnv] * n_envs)
    rollout = Rollout()
    HybridPPO("MlpPolicy", env, **SMALL | {"policy_kwargs": {"net_arch": [16], "log_std_init": 1.0}}).learn(
        16 * n_envs, rollout
    )
    packed = rollout.arrays["actions"]
    assert (np.abs(packed[..., 1:]) > 2).any()  # so that there is something to clip
    for i, single in enumerate(env.envs):
        assert len(single.received) == 16
        for step, (regime, point) in enumerate(single.received):
            assert regime == packed[step, i, 0]
            np.testing.assert_array_equal(point, packed[step, i, 1:].clip(-2, 2))


def test_it_learns_which_regime_pays_and_where_the_target_is():
    """The best is regime 1 at the target, 1 a period; the starting policy is far below."""
    model = HybridPPO(
        "MlpPolicy",
        DummyVecEnv([TargetEnv] * 16),
        n_steps=16,
        batch_size=64,
        n_epochs=5,
        learning_rate=1e-2,
        gamma=0.0,  # one period
        seed=0,
        policy_kwargs={"net_arch": [16], "log_std_init": -1.0},
    )
    # Two regimes alike at the start: drawn actions, for the likeliest may be the right one by luck.
    before, _ = evaluate_policy(model, DummyVecEnv([TargetEnv]), n_eval_episodes=100, deterministic=False, warn=False)
    model.learn(16 * 16 * 15)
    after, _ = evaluate_policy(model, DummyVecEnv([TargetEnv]), n_eval_episodes=100, warn=False)
    assert before < 0.5
    assert after > 0.95


# ---- agreement with PPO ----------------------------------------------------------------------------------------------
#
# With a single regime, π(x, b | s) = π(b | s): the regime's log-probability and entropy are 0 and so is the gradient of the
# discrete network. HybridPPO on Tuple(Discrete(1), Box) is then PPO on the Box, network by network, if
# - the tower is the identity: bounds are infinite in the policy, while those of the environment are finite, as PPO wants,
#   but too wide to clip anything; scale 1;
# - networks have one shape: no linear path.

SAME_NETWORK = {  # parameter of PPO's policy -> its counterpart
    "log_std": "log_std",
    "mlp_extractor.policy_net.0": "components.continuous.hidden.0",
    "action_net": "components.continuous.output",
    "mlp_extractor.value_net.0": "components.value.hidden.0",
    "value_net": "components.value.output",
}


def counterparts(stock, hybrid):
    """Pairs of corresponding parameters; every parameter of PPO's policy is in one."""
    ours = dict(hybrid.policy.named_parameters())
    for name, parameter in stock.policy.named_parameters():
        module, _, leaf = name.rpartition(".")
        yield parameter, ours[f"{SAME_NETWORK[module]}.{leaf}" if module else SAME_NETWORK[leaf]]


def alike(log_std_init=0.0, **kwargs):
    """PPO and HybridPPO on the same problem with the same weights."""
    kwargs = {"n_steps": 28, "batch_size": 28, "n_epochs": 3, "ent_coef": 0.01, "learning_rate": 3e-3, "seed": 0} | kwargs
    network = {"net_arch": [16], "log_std_init": log_std_init}
    stock = PPO("MlpPolicy", DummyVecEnv([lambda: DriftEnv(flat=True)] * 4), policy_kwargs=network, **kwargs)
    free = {"action_bounds": np.full((1, 2, 2), [-np.inf, np.inf]), "linear_path": ()}
    hybrid = HybridPPO("MlpPolicy", DummyVecEnv([lambda: DriftEnv(flat=False)] * 4), policy_kwargs=network | free, **kwargs)
    with torch.no_grad():
        for theirs, ours in counterparts(stock, hybrid):
            ours.copy_(theirs)
    return stock, hybrid


def test_with_one_regime_actions_values_and_entropies_are_those_of_ppo():
    stock, hybrid = alike()
    obs = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    packed = torch.cat([torch.zeros(50, 1), points], dim=1)
    torch.testing.assert_close(hybrid.policy.evaluate_actions(obs, packed), stock.policy.evaluate_actions(obs, points))
    predicted, _ = hybrid.predict(obs.numpy(), deterministic=True)
    expected, _ = stock.predict(obs.numpy(), deterministic=True)
    assert {regime for regime, _ in predicted} == {0}
    np.testing.assert_allclose([point for _, point in predicted], expected, atol=1e-6)


def test_with_one_regime_and_vanishing_noise_rollouts_are_those_of_ppo():
    """The noise of b is drawn after the regime, hence differs from PPO's; so small, it moves nothing that is compared."""
    rollouts = []
    for model in alike(log_std_init=-20.0):
        rollouts.append(Rollout())
        model.learn(4 * 28, rollouts[-1])
    stock, hybrid = (rollout.arrays for rollout in rollouts)
    np.testing.assert_array_equal(hybrid["actions"][..., 0], 0.0)
    np.testing.assert_allclose(hybrid["actions"][..., 1:], stock["actions"], atol=1e-6)
    assert (stock["episode_starts"][1:] == 1).any()  # an episode has ended within
    for name in ("observations", "rewards", "values", "episode_starts", "advantages", "returns"):
        np.testing.assert_allclose(hybrid[name], stock[name], atol=1e-5, err_msg=name)


def test_returns_are_standardised_and_values_follow_them(monkeypatch):
    """
    Of a rollout without training: in the unit of their own, returns have deviation 1, and all in the buffer is what it was.
    The value network says the mean of returns and, in their unit, what it said before.
    """
    monkeypatch.setattr(PPO, "train", lambda self: None)
    arrays, of_network, units = [], [], []
    for own_unit in (False, True):
        model = HybridPPO("MlpPolicy", make_vec_env(inventory, 2), normalize_reward=own_unit, **SMALL).learn(32)
        buffer = model.rollout_buffer
        of_network.append(model.policy.predict_values(torch.as_tensor(buffer.observations).flatten(0, 1)).detach().numpy())
        arrays.append((buffer.rewards, buffer.values, buffer.returns, buffer.advantages))
        units.append(model.reward_scale)
    assert units[0] == 1 and units[1] > 20
    assert buffer.returns.std() == pytest.approx(1.0, rel=1e-4)
    for as_given, in_unit in zip(*arrays, strict=True):
        np.testing.assert_allclose(units[1] * in_unit, as_given, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(of_network[1] - of_network[0], buffer.returns.mean(), rtol=1e-4)


def test_returns_that_are_all_the_same_are_no_unit():
    env = DummyVecEnv([lambda: TransformReward(TargetEnv(), lambda _: 0.0)])
    model = HybridPPO("MlpPolicy", env, normalize_reward=True, gae_lambda=1.0, **SMALL)
    for parameter in model.policy.component("value").parameters():
        torch.nn.init.zeros_(parameter)
    model.learn(3 * 16)
    assert model.reward_scale == 1.0


def test_the_standard_deviation_of_points_follows_its_schedule_and_is_not_learned():
    model = HybridPPO("MlpPolicy", DriftEnv(flat=False), point_std="exp_2.0", **SMALL)
    seen = []

    def look(_locals, _globals):
        seen.append(float(model.policy.log_std.exp().mean()))
        return True

    model.learn(4 * 16, look)
    assert seen[::16] == pytest.approx([2.0 * 0.1**share for share in (0, 0.25, 0.5, 0.75)])
    assert seen[15] == seen[0]
    assert model.policy.log_std.grad is None


@pytest.mark.parametrize("apart", [False, True])
def test_gradients_are_clipped_together_or_network_by_network(apart):
    limit, norms = 1e-3, []
    model = HybridPPO("MlpPolicy", make_vec_env(inventory, 2), clip_networks=apart, max_grad_norm=limit, **SMALL)

    def note(optimizer, _args, _kwargs):
        of_group = [[parameter.grad for parameter in group["params"]] for group in optimizer.param_groups]
        norms.append([float(torch.nn.utils.get_total_norm(gradients)) for gradients in of_group])

    model.policy.optimizer.register_step_pre_hook(note)
    model.learn(32)
    together = np.linalg.norm(norms, axis=1)
    if apart:
        np.testing.assert_allclose(norms, limit, rtol=1e-3)
    else:
        np.testing.assert_allclose(together, limit, rtol=1e-3)
        assert np.max(norms, axis=1) == pytest.approx(limit, rel=0.1)  # one network's gradient is most of it


def test_nothing_follows_the_horizon_if_asked_for():
    """DriftEnv ends by truncation alone. Without value beyond, returns are the discounted sums of an episode's rewards."""
    gamma, rollout = 0.9, Rollout()
    model = HybridPPO(
        "MlpPolicy", DriftEnv(flat=False), gamma=gamma, gae_lambda=1.0, value_beyond_horizon=False, **SMALL | {"n_steps": 30}
    )
    model.learn(30, rollout)
    rewards, starts, returns = (rollout.arrays[name][:, 0] for name in ("rewards", "episode_starts", "returns"))
    ends = np.flatnonzero(starts[1:]) + 1
    assert len(ends) > 1
    for begin, end in zip([0, *ends], ends, strict=False):
        sums = [gamma ** np.arange(end - t) @ rewards[t:end] for t in range(begin, end)]
        np.testing.assert_allclose(returns[begin:end], sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_grad_norm", [0.05, 100.0])
def test_with_one_regime_training_on_the_same_rollout_moves_the_weights_as_ppo_does(max_grad_norm):
    stock, hybrid = alike(max_grad_norm=max_grad_norm)
    rollout = Rollout()
    before = [parameter.detach().clone() for parameter in stock.policy.parameters()]
    discrete = [parameter.detach().clone() for parameter in hybrid.policy.components["discrete"].parameters()]

    stock.set_random_seed(3)  # of the rollout, and of the order of the minibatches
    stock.learn(4 * 28, rollout)

    hybrid.set_logger(configure(None, []))
    hybrid.rollout_buffer.reset()
    for name, array in rollout.arrays.items():
        if name == "actions":
            array = np.concatenate([np.zeros((28, 4, 1), dtype=array.dtype), array], axis=2)
        setattr(hybrid.rollout_buffer, name, array)
    hybrid.rollout_buffer.pos, hybrid.rollout_buffer.full = 28, True
    hybrid.set_random_seed(3)
    hybrid.train()

    for theirs, ours in counterparts(stock, hybrid):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    moved = [(new - old).abs().max() for new, old in zip(stock.policy.parameters(), before, strict=True)]
    assert min(moved) > 1e-3
    for new, old in zip(hybrid.policy.components["discrete"].parameters(), discrete, strict=True):
        assert torch.equal(new, old)
