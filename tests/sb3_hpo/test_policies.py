"""The hybrid policy: three separate networks, feasible candidates, predictions in the environment's own terms."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn.utils import parameters_to_vector

from hybrid_envs.spaces import hybrid_action_space, unpack
from sb3_hpo.networks import Component
from sb3_hpo.policies import COMPONENTS, DeterministicPointPolicy, HybridActorCriticPolicy, HybridMultiInputPolicy
from tests.factored import BreweryEnv
from tests.sb3_hpo.geometry import BOUNDS, INF, SCALE

OBSERVATIONS = spaces.Box(-INF, INF, (4,), dtype=np.float32)
POLICIES = [HybridActorCriticPolicy, DeterministicPointPolicy]


def make_policy(policy_class=DeterministicPointPolicy, observation_space=OBSERVATIONS, **kwargs):
    torch.manual_seed(0)
    kwargs = {"net_arch": [8], "action_bounds": BOUNDS, "action_scale": SCALE} | kwargs
    return policy_class(observation_space, hybrid_action_space(BOUNDS), lambda _: 1e-3, **kwargs)


def shaken(policy):
    """The policy with larger random weights, so that its outputs differ from regime to regime."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter))
    return policy


def observe(batch_size, seed=0):
    return torch.randn(batch_size, 4, generator=torch.Generator().manual_seed(seed))


# ---- networks --------------------------------------------------------------------------------------------------------


OUTPUTS = {"discrete": "regime_logits", "continuous": "candidates", "value": "predict_values"}


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("name", COMPONENTS)
def test_each_output_depends_on_the_parameters_of_its_own_network_alone(policy_class, name):
    policy = make_policy(policy_class, linear_path=COMPONENTS, quadratic_path=COMPONENTS, linear_laws=2)
    getattr(policy, OUTPUTS[name])(observe(6)).square().sum().backward()
    for other in COMPONENTS:
        for parameter_name, parameter in policy.components[other].named_parameters():
            moves = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            assert moves == (other == name), f"{name} and {other}.{parameter_name}"


@pytest.mark.parametrize("policy_class", POLICIES)
def test_the_optimizer_holds_every_parameter_once_in_a_group_per_network(policy_class):
    policy = make_policy(policy_class)
    groups = {group["name"]: group["params"] for group in policy.optimizer.param_groups}
    assert tuple(groups) == COMPONENTS
    assert sum(len(group) for group in groups.values()) == len(list(policy.parameters()))
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in policy.parameters()}


def test_networks_may_have_hidden_layers_of_their_own():
    policy = make_policy(net_arch={"discrete": [3], "continuous": [], "value": [5, 6]})
    widths = {name: [p.shape[0] for p in policy.components[name].hidden.parameters() if p.dim() == 2] for name in COMPONENTS}
    assert widths == {"discrete": [3], "continuous": [], "value": [5, 6]}


def test_the_linear_path_adds_a_linear_function_of_the_features_to_the_named_networks_only():
    policy = make_policy(linear_path=("value",))
    assert [policy.components[name].linear is not None for name in COMPONENTS] == [False, False, True]
    component, obs = policy.components["value"], observe(5)
    hidden_part = component.output(component.hidden(obs))
    torch.testing.assert_close(policy.predict_values(obs) - hidden_part, obs @ component.linear.weight.T)


def test_the_gain_multiplies_the_linear_path_alone():
    policy = shaken(make_policy(linear_path=COMPONENTS, linear_gain=4.0))
    for name in COMPONENTS:
        component, obs = policy.components[name], observe(5)
        hidden_part = component.output(component.hidden(obs))
        torch.testing.assert_close(component(obs) - hidden_part, 4 * obs @ component.linear.weight.T)


def test_the_quadratic_path_adds_squares_over_the_size_of_the_features_to_the_named_networks_only():
    policy = shaken(make_policy(quadratic_path=("discrete",)))
    assert [policy.components[name].quadratic is not None for name in COMPONENTS] == [True, False, False]
    component, obs = policy.components["discrete"], observe(5)
    quadratic_part = (policy.regime_logits(obs) - component.output(component.hidden(obs))).detach().numpy()
    directions = component.quadratic.directions.weight.detach().numpy()  # W1, shape (2d, d)
    outputs = component.quadratic.output.weight.detach().numpy()  # W2
    for row, f in enumerate(obs.numpy()):
        forms = [f @ (directions.T * weights) @ directions @ f for weights in outputs]  # f' W1' diag(w) W1 f
        expected = np.array(forms) / math.sqrt(np.mean(f**2) + 0.01)
        np.testing.assert_allclose(quadratic_part[row], expected, rtol=1e-4, atol=1e-4)


def test_the_quadratic_path_grows_as_its_features_do_and_is_finite_at_zero():
    policy = shaken(make_policy(quadratic_path=("value",)))
    path, far = policy.components["value"].quadratic, 1e3 * observe(5)
    torch.testing.assert_close(path(10 * far), 10 * path(far), rtol=1e-3, atol=1e-3 * float(path(far).detach().abs().max()))
    origin = torch.zeros(1, 4, requires_grad=True)
    path(origin).backward()
    assert not origin.grad.any()


def test_several_linear_laws_are_mixed_by_gates_of_their_own():
    policy = shaken(make_policy(linear_path=("continuous",), linear_laws=3))
    assert [policy.components[name].mixture is not None for name in COMPONENTS] == [False, True, False]
    component, obs = policy.components["continuous"], observe(6)
    hidden = component.hidden(obs)
    mixed = component(obs) - component.output(hidden) - component.linear(obs)
    laws = component.mixture.laws.weight.detach().numpy().reshape(3, -1, 4)  # K laws, outputs, features
    preferences = (component.mixture.gate(hidden) + component.mixture.quadratic(obs)).detach().numpy()
    gates = np.exp(preferences) / np.exp(preferences).sum(axis=1, keepdims=True)
    for row, f in enumerate(obs.numpy()):
        expected = sum(gate * (law @ f) for gate, law in zip(gates[row], laws, strict=True))
        np.testing.assert_allclose(mixed[row].detach().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_one_linear_law_is_the_linear_path_alone():
    torch.manual_seed(0)
    plain = make_policy(linear_path=("continuous",))
    torch.manual_seed(0)
    one = make_policy(linear_path=("continuous",), linear_laws=1)
    assert plain.state_dict().keys() == one.state_dict().keys()
    assert all(torch.equal(plain.state_dict()[name], of_one) for name, of_one in one.state_dict().items())
    with pytest.raises(ValueError, match="linear_laws must be an integer >= 1, got 0"):
        make_policy(linear_laws=0)


def test_a_network_without_hidden_layers_is_affine():
    policy = shaken(make_policy(net_arch=[]))
    a, b = observe(1, seed=1), observe(1, seed=2)
    middle = policy.predict_values((a + b) / 2)
    torch.testing.assert_close(middle, (policy.predict_values(a) + policy.predict_values(b)) / 2)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_observations_are_scaled_before_every_network(policy_class):
    scale = np.array([2.0, 0.5, 1.0, 10.0], np.float32)
    plain = shaken(make_policy(policy_class))
    scaling = shaken(make_policy(policy_class, observation_scale=scale))
    obs = observe(10)
    for function in OUTPUTS.values():
        torch.testing.assert_close(getattr(scaling, function)(obs * torch.from_numpy(scale)), getattr(plain, function)(obs))


@pytest.mark.parametrize("quadratic_path", [False, True])
@pytest.mark.parametrize(("linear_path", "n_laws"), [(False, 1), (True, 1), (True, 3)])
def test_the_output_is_the_sum_of_all_paths_standardised(linear_path, quadratic_path, n_laws):
    torch.manual_seed(0)
    policy = make_policy()
    component = Component(policy.make_features_extractor(), 1, [8], torch.nn.Tanh, linear_path, quadratic_path, n_laws=n_laws)
    obs = observe(50)
    raw = component.output(component.hidden(obs)) + (component.linear(obs) if linear_path else 0)
    raw = raw + (component.mixture(obs, component.hidden(obs)) if n_laws > 1 else 0)
    raw = raw + (component.quadratic(obs) if quadratic_path else 0)
    torch.testing.assert_close(component(obs), raw)
    component.mean.fill_(-200.0)
    component.std.fill_(0.1)
    torch.testing.assert_close(component(obs), -200.0 + 0.1 * raw)


def test_the_point_of_the_gaussian_policy_spreads_in_units_of_the_action_scale():
    torch.manual_seed(0)
    policy = make_policy(HybridActorCriticPolicy, log_std_init=math.log(0.5))
    obs = observe(1).repeat(20_000, 1)
    regimes, points = unpack(policy.get_distribution(obs).sample())
    torch.testing.assert_close(points[regimes == 1].std(dim=0), 0.5 * torch.from_numpy(SCALE), rtol=0.05, atol=0)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_evaluating_actions_agrees_with_the_forward_pass_that_drew_them(policy_class):
    policy = shaken(make_policy(policy_class))
    obs = observe(30)
    actions, values, log_prob = policy(obs)
    assert actions.shape == (30, 6)
    evaluated = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(evaluated, (values, log_prob, policy.get_distribution(obs).entropy()))


# ---- predictions -----------------------------------------------------------------------------------------------------


def is_action(action):
    regime, point = action
    return type(action) is tuple and type(regime) is int and point.dtype == np.float32 and point.shape == (5,)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_logits_are_divided_by_the_temperature_and_the_likeliest_regime_stays(autoregressive):
    env = BreweryEnv(3, masked=False)
    arguments = {"action_bounds": env.action_bounds, "factor_of": env.factors.factor_of, "autoregressive": autoregressive}
    torch.manual_seed(0)
    policy = shaken(
        DeterministicPointPolicy(env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[8], **arguments)
    )
    obs = torch.randn(50, len(env.observation_scale), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        likeliest = policy.regimes(obs).mode()
        before = policy.regimes(obs).given(likeliest).logits
        for temperature in (0.25, 2.0):  # of the logits of before, whatever the temperature was in between
            policy.set_temperature(temperature)
            after = policy.regimes(obs)
            torch.testing.assert_close(after.given(likeliest).probs, (before / temperature).softmax(dim=-1))
            assert torch.equal(after.mode(), likeliest)
    policy.set_temperature(1.3102272059107631)  # 1 over 1 over it is another number in float32
    weights = parameters_to_vector(policy.parameters()).detach().clone()
    policy.set_temperature(1.3102272059107631)
    assert torch.equal(parameters_to_vector(policy.parameters()), weights)


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_batch_of_observations_gets_a_list_of_regime_and_point(policy_class, deterministic):
    policy = shaken(make_policy(policy_class))
    for batch_size in (1, 2, 7):
        actions, state = policy.predict(observe(batch_size).numpy(), deterministic=deterministic)
        assert isinstance(actions, list)
        assert len(actions) == batch_size
        assert state is None
        for action in actions:
            assert is_action(action)
            assert policy.action_space.contains(action)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_a_single_observation_gets_one_bare_action(policy_class):
    policy = shaken(make_policy(policy_class))
    action, _ = policy.predict(observe(1)[0].numpy(), deterministic=True)
    assert is_action(action)
    [(regime, point)], _ = policy.predict(observe(1).numpy(), deterministic=True)
    assert action[0] == regime
    np.testing.assert_array_equal(action[1], point)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_deterministic_predictions_take_the_likeliest_regime_and_its_candidate(policy_class):
    policy = shaken(make_policy(policy_class))
    obs = observe(40)
    with torch.no_grad():
        likeliest, candidates = policy.regime_logits(obs).argmax(dim=1).tolist(), policy.candidates(obs).numpy()
    actions, _ = policy.predict(obs.numpy(), deterministic=True)
    assert len(set(likeliest)) > 1
    for row, (regime, point) in enumerate(actions):
        assert regime == likeliest[row]
        np.testing.assert_array_equal(point, candidates[row, regime])


def test_sampled_predictions_of_hpos_policy_vary_in_the_regime_only():
    policy = make_policy()
    obs = observe(1)
    torch.manual_seed(0)
    actions, _ = policy.predict(obs.repeat(100, 1).numpy())
    candidates = policy.candidates(obs)[0].detach().numpy()
    assert {regime for regime, _ in actions} == {0, 1, 2}
    for regime, point in actions:
        np.testing.assert_allclose(point, candidates[regime], rtol=1e-5)


def test_a_policy_of_dict_observations_predicts_for_one_and_for_many():
    space = spaces.Dict({"stock": spaces.Box(-INF, INF, (3,), dtype=np.float32), "day": spaces.Discrete(7)})
    policy = make_policy(HybridMultiInputPolicy, space)
    action, _ = policy.predict({"stock": np.zeros(3, dtype=np.float32), "day": np.array(2)}, deterministic=True)
    assert is_action(action)
    many = {"stock": np.zeros((4, 3), dtype=np.float32), "day": np.arange(4)}
    actions, _ = policy.predict(many, deterministic=True)
    assert len(actions) == 4
    assert not np.array_equal(actions[0][1], actions[1][1])  # the day is seen


# ---- arguments and files ---------------------------------------------------------------------------------------------


def test_without_bounds_of_its_own_every_regime_has_those_of_the_box():
    box = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([2.0, np.inf], np.float32))
    policy = HybridActorCriticPolicy(OBSERVATIONS, spaces.Tuple((spaces.Discrete(3), box)), lambda _: 1e-3, net_arch=[4])
    np.testing.assert_array_equal(policy.action_bounds, np.tile([[-1.0, 2.0], [0.0, np.inf]], (3, 1, 1)))
    np.testing.assert_array_equal(policy.action_scale, np.ones(2))


@pytest.mark.parametrize("net_arch", [{"pi": [8], "vf": [8]}, {"discrete": [8], "continuous": [8]}])
def test_net_arch_with_other_names_than_the_three_networks_is_refused(net_arch):
    with pytest.raises(ValueError, match=r"net_arch must be a list or a dict with keys .*'continuous'.*, got keys \('"):
        make_policy(net_arch=net_arch)


@pytest.mark.parametrize("argument", ["linear_path", "quadratic_path", "muon"])
@pytest.mark.parametrize("networks", [("tower",), "continuous", True])
def test_what_are_no_names_of_networks_is_refused(argument, networks):
    with pytest.raises(ValueError, match=rf"{argument} must be a list of some of .*, got {re.escape(repr(networks))}"):
        make_policy(**{argument: networks})


def test_a_policy_of_another_action_space_is_refused():
    with pytest.raises(TypeError, match=r"Tuple\(Discrete\(J\), Box"):
        HybridActorCriticPolicy(OBSERVATIONS, spaces.Box(-1.0, 1.0, (2,)), lambda _: 1e-3)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_a_saved_policy_is_loaded_with_its_architecture_bounds_and_values(policy_class, tmp_path):
    arguments = {
        "net_arch": {"discrete": [3], "continuous": [4, 4], "value": []},
        "linear_path": ("discrete", "value"),
        "quadratic_path": ("continuous",),
        "linear_laws": 2,
        "linear_gain": 3.0,
        "observation_scale": np.full(4, 2.0, dtype=np.float32),
    }
    policy = shaken(make_policy(policy_class, **arguments))
    policy.components["value"].mean.fill_(-7.0)
    policy.components["value"].std.fill_(3.0)
    policy.save(tmp_path / "policy.pt")
    loaded = policy_class.load(tmp_path / "policy.pt", device="cpu")
    obs = observe(10)
    for function in OUTPUTS.values():
        assert torch.equal(getattr(loaded, function)(obs), getattr(policy, function)(obs))
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    assert loaded.predict(obs[0].numpy(), deterministic=True)[0][0] == policy.predict(obs[0].numpy(), deterministic=True)[0][0]


@pytest.mark.parametrize("muon", [(), ("continuous",), ("linear",)])
def test_a_copied_policy_learns_apart_from_the_original(muon):
    policy = make_policy(muon=muon)
    before = parameters_to_vector(policy.parameters()).clone()
    twin = copy.deepcopy(policy)
    (twin.predict_values(observe(3)).sum() + twin.candidates(observe(3)).sum()).backward()
    twin.optimizer.step()
    assert all(p.grad is None for p in policy.parameters())
    assert torch.equal(parameters_to_vector(policy.parameters()), before)
    assert not torch.equal(twin.predict_values(observe(3)), policy.predict_values(observe(3)))
    unlike = {name for name, p in twin.named_parameters() if not torch.equal(p, policy.get_parameter(name))}
    assert unlike == {name for name, _ in policy.named_parameters() if ".discrete." not in name}
