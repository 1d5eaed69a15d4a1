"""Regimes of several factors: the exact gradient by enumeration, credit, coupling, and training end to end."""

import itertools

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from hybrid_envs import HybridInventoryEnv, HybridProcurementEnv, HybridUnitCommitmentEnv, HybridVectorEnv
from hybrid_envs.evaluation import evaluate
from hybrid_envs.factors import RegimeFactors
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.credit import Decision, counterfactual_baseline
from sb3_hpo.distributions import Coupling, RegimeDistribution
from sb3_hpo.export import export_onnx
from sb3_hpo.gradients import EstimatorOptions, exact_gradient, expectation
from sb3_hpo.safe_files import load_safe, save_safe
from sb3_hpo.simulation import points
from tests.factored import BreweryEnv
from tests.sb3_hpo.test_gradients import DTYPE, N_SCENARIOS, double_policy, relative_error

CASES = {
    "masked": (BreweryEnv(3), {}),
    "independent": (BreweryEnv(3, masked=False), {}),
    "points see the regime": (BreweryEnv(3), {"points_see_regime": True}),
    "autoregressive": (BreweryEnv(3), {"autoregressive": True}),
    "limited": (BreweryEnv(3, active_limits=(1, 2)), {}),
    "all": (BreweryEnv(2, masked=False, active_limits=(2, 2)), {"autoregressive": True, "points_see_regime": True}),
    "units that are held": (
        HybridUnitCommitmentEnv(3, commitments="free", min_up_time=2, min_down_time=[1, 2, 2], horizon=3),
        {"points_see_regime": True},
    ),
    "items on an order": (HybridInventoryEnv(2, fixed_cost=100.0, minor_fixed_cost=20.0, lead_time=1, horizon=3), {}),
    "items with suppliers": (HybridProcurementEnv(2, per_item=True, max_trucks=1, lead_time=1, horizon=3), {}),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    env, kwargs = CASES[request.param]
    env.to(dtype=DTYPE)
    generator = torch.Generator().manual_seed(1)
    args = (
        env,
        double_policy(env, **kwargs),
        env.initial(N_SCENARIOS, generator),
        env.sample_noise(N_SCENARIOS, generator),
    )
    return request.param, args, exact_gradient(*args)


# ---- exactness -------------------------------------------------------------------------------------------------------


def test_the_mixed_gradient_is_exact_on_average_and_without_its_cross_term_it_is_not(case):
    _, args, exact = case
    mixed = expectation("mixed", *args)
    for network in exact:
        assert relative_error(mixed[network], exact[network]) < 1e-9
    assert relative_error(expectation("no_cross", *args)["continuous"], exact["continuous"]) > 1e-3


def averaged_baseline(env, decision, probabilities, point_of, outcome_value):
    """Baselines of independent factors, weighted by the probability of each redrawn choice, shape ``(batch, m)``."""
    total = torch.zeros(decision.regime.shape, dtype=DTYPE)
    for j in range(env.factors.largest):
        possible = probabilities[:, :, j] > 0
        redrawn = torch.where(possible, j, decision.regime)  # what may not be drawn has no weight
        worth = counterfactual_baseline(env, decision._replace(redrawn=redrawn), point_of, outcome_value)
        total += probabilities[:, :, j] * worth
    return total


def counterfactual(env, policy, noise, value):
    """Their averages in a rollout, with any function of the observation for the value."""

    def baseline(rollout):
        baselines = []
        for t in range(len(rollout.rewards)):
            state = type(rollout.states)(*(field[t].detach() for field in rollout.states))
            shock = noise[t].repeat_interleave(len(state.period) // noise.shape[1], dim=0)
            x = rollout.regimes[t]
            worth = averaged_baseline(
                env,
                Decision(state, shock, x, rollout.observations[t].detach(), x),
                rollout.log_pi[t].detach().exp(),
                lambda obs, x: points(env, policy, obs, x),
                lambda result: result.reward + value(result.observation),
            )
            baselines.append(worth)
        return torch.stack(baselines)

    return baseline


@pytest.mark.parametrize("name", ["masked", "independent", "points see the regime"])
def test_counterfactual_baselines_leave_the_gradient_unbiased_whatever_the_value_is(name):
    env, kwargs = CASES[name]
    env.to(dtype=DTYPE)
    policy, generator = double_policy(env, seed=3, **kwargs), torch.Generator().manual_seed(2)
    state, noise = env.initial(N_SCENARIOS, generator), env.sample_noise(N_SCENARIOS, generator)
    baseline = counterfactual(env, policy, noise, lambda observation: 5.0 * observation.sin().sum(dim=1))
    options = EstimatorOptions(baseline=baseline)
    exact = exact_gradient(env, policy, state, noise)
    found = expectation("mixed", env, policy, state, noise, options=options)
    for network in exact:
        assert relative_error(found[network], exact[network]) < 1e-9


def test_one_draw_of_each_factor_gives_the_baseline_on_average():
    env, generator, n = BreweryEnv(3).to(dtype=DTYPE), torch.Generator().manual_seed(2), 4000
    policy = double_policy(env, seed=3)
    state, noise = env.initial(1, generator), env.sample_noise(1, generator)[0]
    obs, mask = env.observation(state), env.regime_mask(state)
    regimes = policy.regimes(obs, mask)
    x, probabilities = regimes.sample(generator), regimes.independent.probs.detach()
    parts = (noise, x, policy.candidates(obs).detach())
    state = type(state)(*(field.expand(n, *field.shape[1:]) for field in state))
    noise, x, candidates = (part.expand(n, *part.shape[1:]) for part in parts)
    expanded = policy.regimes(obs.expand(n, -1), None if mask is None else mask.expand(n, -1))
    decision = Decision(state, noise, x, candidates, expanded.sample(generator))
    exact = averaged_baseline(env, decision, probabilities.expand(n, -1, -1), env.factors.choose, lambda r: r.reward)
    assert torch.allclose(exact, exact[:1].expand_as(exact))
    drawn = counterfactual_baseline(env, decision, env.factors.choose, lambda r: r.reward)
    spread = drawn.std(0) / n**0.5
    assert (spread > 0).all() and ((drawn.mean(0) - exact[0]).abs() < 5 * spread).all()


@pytest.mark.parametrize("name", ["masked", "independent"])
def test_branches_of_one_factor_at_a_time_give_the_exact_gradient(name):
    env, _ = CASES[name]
    env = BreweryEnv(2, masked=env.masked).to(dtype=DTYPE)
    policy, generator = double_policy(env, seed=5), torch.Generator().manual_seed(2)
    state, noise = env.initial(2, generator), env.sample_noise(2, generator)
    exact = exact_gradient(env, policy, state, noise)
    # the last period's branches are exact; the first one's draw the second period's regimes, so they are averaged
    draws = [expectation("branched", env, policy, state, noise, options=EstimatorOptions())["discrete"] for _ in range(200)]
    mean, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0) / len(draws) ** 0.5
    assert ((mean - exact["discrete"]).abs() <= 5 * spread + 1e-9).all()


# ---- one distribution over all regimes ---------------------------------------------------------------------------------

FACTORS = RegimeFactors([2, 3, 2], [0, 1, 2])
LIMITED = RegimeFactors([2, 3, 2], [0, 1, 2], active_limits=(1, 2))


@pytest.mark.parametrize("factors", [FACTORS, LIMITED], ids=["free", "limited"])
@pytest.mark.parametrize("coupled", [False, True])
def test_probabilities_of_all_regimes_sum_to_one_and_samples_follow_them(factors, coupled):
    torch.manual_seed(0)
    coupling = None
    if coupled:
        coupling = Coupling(factors)
        torch.nn.init.normal_(coupling.weight)
    logits = torch.randn(1, 7)
    mask = torch.tensor([[True, True, True, False, True, True, True]])
    every = factors.every()
    distribution = RegimeDistribution(logits.expand(len(every), -1), factors, mask.expand(len(every), -1), coupling)
    with torch.no_grad():
        probabilities = distribution.log_prob(every).sum(dim=1).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
    forbidden = ~factors.permits(every, mask.expand(len(every), -1))
    assert forbidden.any() and probabilities[forbidden].abs().max() < 1e-12
    n = 20_000
    many = RegimeDistribution(logits.expand(n, -1), factors, mask.expand(n, -1), coupling)
    for drawn in (many.sample(), many.draw_by(torch.rand(n, 3))):
        index = drawn[:, 0] * 6 + drawn[:, 1] * 2 + drawn[:, 2]
        shares = torch.bincount(index, minlength=12) / n
        assert torch.allclose(shares, probabilities, atol=5 * (0.25 / n) ** 0.5)


def test_a_coupling_expresses_what_independent_factors_cannot():
    """Either one or the other, each with probability 1/2: never both, never none."""
    factors, coupling = RegimeFactors([2, 2], [0, 1]), Coupling(RegimeFactors([2, 2], [0, 1]))
    with torch.no_grad():
        coupling.weight[0, 3] = coupling.weight[1, 2] = 60.0  # x_2 = 1 after x_1 = 0, and 0 after 1
    distribution = RegimeDistribution(torch.zeros(4, 4), factors, coupling=coupling)
    probabilities = distribution.log_prob(factors.every()).sum(dim=1).exp()
    assert torch.allclose(probabilities, torch.tensor([0.0, 0.5, 0.5, 0.0]), atol=1e-6)


def test_deviations_change_one_factor_and_are_found_again_by_factor():
    regime = torch.tensor([[1, 2, 0], [0, 0, 1]])
    every = FACTORS.deviations(regime)
    assert every.shape == (2, 5, 3)
    number = every[..., 0] * 100 + every[..., 1] * 10 + every[..., 2]
    found = FACTORS.of_deviations(number, regime)
    for row, f, j in itertools.product(range(2), range(3), range(3)):
        expected = regime[row].clone()
        if j < FACTORS.sizes[f]:
            expected[f] = j
        assert found[row, f, j] == expected[0] * 100 + expected[1] * 10 + expected[2]


# ---- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (HPO, {"n_scenarios": 16}),
        (HPO, {"n_scenarios": 16, "credit": "joint"}),
        (HPO, {"n_scenarios": 16, "ratio": "joint", "cross_term": "auto"}),
        (HPO, {"n_scenarios": 16, "policy_kwargs": {"autoregressive": True}}),
        (HPO, {"n_scenarios": 16, "policy_kwargs": {"points_see_regime": True}}),
        (HybridPPO, {"n_steps": 30, "batch_size": 30}),
        (HybridPPO, {"n_steps": 30, "batch_size": 30, "ratio": "joint", "policy_kwargs": {"points_see_regime": True}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("limits", [None, (1, 2)], ids=["free", "limited"])
def test_training_saving_and_predicting_work_as_with_one_factor(algorithm, kwargs, limits, tmp_path):
    env = BreweryEnv(5, active_limits=limits)
    model = algorithm("MlpPolicy", env, seed=0, **kwargs).learn(240)
    vector = HybridVectorEnv(env, 8)
    observations, _ = vector.reset(seed=0)
    masks = vector.regime_mask().numpy()
    actions, _ = model.predict(observations, deterministic=True, action_masks=masks)
    for (regime, point), mask in zip(actions, masks, strict=True):
        env.check_action((regime, point), mask)
        low, high = env.factors.bounds_of(regime[None], env.action_bounds)
        assert ((point >= low) & (point <= high)).all()
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=env)
    for (x, b), (y, c) in zip(actions, again.predict(observations, deterministic=True, action_masks=masks)[0], strict=True):
        assert np.array_equal(x, y) and np.array_equal(b, c)
    again.learn(240)
    assert np.isfinite(evaluate(env, again, 8, seed=0)).all()


@pytest.mark.parametrize(("algorithm", "kwargs"), [(HPO, {"n_scenarios": 8}), (HybridPPO, {"n_steps": 40, "batch_size": 40})])
def test_factors_of_a_rewrite_by_thresholds_train(algorithm, kwargs):
    env = HybridProcurementEnv(2, per_item=True, horizon=20)
    model = algorithm("MlpPolicy", env, seed=0, **kwargs)
    before = [weights.clone() for weights in model.policy.parameters()]
    model.learn(2 * model.n_steps * model.n_envs)
    assert not any(torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    regimes, point = model.predict(env.reset(seed=0)[0], deterministic=True)[0]
    env.check_action((regimes, point), np.ones(10, dtype=bool))
    assert np.isfinite(evaluate(env, model, 8, seed=0)).all()


def test_training_lowers_the_cost_of_three_valves():
    env = BreweryEnv(10)
    model = HPO("MlpPolicy", env, n_scenarios=64, seed=0)
    before = evaluate(env, model, 200, seed=1).mean()
    model.learn(40 * 640)
    assert evaluate(env, model, 200, seed=1).mean() < 0.6 * before


def test_a_file_of_another_factorisation_is_refused(tmp_path):
    HPO("MlpPolicy", BreweryEnv(5), n_scenarios=4).save(tmp_path / "model")

    class OtherEnv(BreweryEnv):
        def __init__(self):
            super().__init__(5)
            self.factors = RegimeFactors([2, 3, 2], [0, 1, 0, -1])

    with pytest.raises(ValueError, match=r"factor_of=\[0, 1, 1, -1\].*factor_of=\[0, 1, 0, -1\]"):
        HPO.load(tmp_path / "model", env=OtherEnv())


def test_sb3s_evaluation_runs_without_masks():
    env = BreweryEnv(5, masked=False)
    model = HPO("MlpPolicy", env, n_scenarios=4, seed=0)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2)
    assert np.isfinite(mean)


@pytest.mark.parametrize("kwargs", [{}, {"policy_kwargs": {"autoregressive": True}}], ids=["independent", "autoregressive"])
@pytest.mark.parametrize("limits", [None, (1, 2)], ids=["free", "limited"])
def test_exported_graphs_and_plain_files_decide_as_predict_does(kwargs, limits, tmp_path):
    env = BreweryEnv(5, active_limits=limits)
    model = HPO("MlpPolicy", env, n_scenarios=8, seed=0, **kwargs).learn(200)
    assert export_onnx(model, tmp_path / "policy.onnx").regimes_equal > 0.999
    save_safe(model, tmp_path / "model.safetensors")
    again = load_safe(tmp_path / "model.safetensors", env=env)
    observations = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    for (x, b), (y, c) in zip(
        model.predict(observations, deterministic=True)[0], again.predict(observations, deterministic=True)[0], strict=True
    ):
        assert np.array_equal(x, y) and np.array_equal(b, c)
