"""Theorem 1 without Monte Carlo: every regime sequence is enumerated, so that unbiased means equal to rounding."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from stable_baselines3.common.callbacks import BaseCallback

from hybrid_envs import HybridAction, HybridEnv, HybridInventoryEnv, HybridSwitchedLQREnv, Uniform
from sb3_hpo import HPO
from sb3_hpo.callbacks import GradientQualityCallback
from sb3_hpo.gradients import (
    ESTIMATORS,
    NETWORKS,
    EstimatorOptions,
    estimate,
    every_sequence,
    exact_cost,
    exact_gradient,
    expectation,
    leave_one_out,
    measure_quality,
    quality,
    returns,
)
from sb3_hpo.policies import DeterministicPointPolicy
from sb3_hpo.simulation import branched_returns, repeat_rows, require_exogenous_noise, simulate, simulate_relaxed
from tests.masked import KilnEnv

DTYPE = torch.float64
N_SCENARIOS = 3


class DoublePolicy(DeterministicPointPolicy):
    """SB3 turns every observation into float32; rounding to 1e-9 needs it as it is."""

    def _evaluate(self, name, obs, *further):
        return self.components[name](torch.cat([obs, *(part.double() for part in further)], dim=1))


def double_policy(env: HybridEnv, seed: int = 0, **policy_kwargs: bool) -> DoublePolicy:
    """A policy in float64 whose regimes and points depend strongly on the state, so that the cross term is not small."""
    torch.manual_seed(seed)
    policy = DoublePolicy(
        env.observation_space,
        env.action_space,
        lambda _: 1e-3,
        action_bounds=env.action_bounds,
        action_scale=env.action_scale,
        factor_of=env.factors.factor_of,
        active_limits=env.factors.active_limits,
        net_arch=[8],
        **policy_kwargs,
    ).double()
    for component in policy.components.values():
        torch.nn.init.normal_(component.output.weight, std=0.7)
        torch.nn.init.normal_(component.output.bias, std=0.3)
    if policy.coupling is not None:
        torch.nn.init.normal_(policy.coupling.weight, std=1.0)
    return policy


class Case:
    """A small problem with a few scenarios, a policy, and the exact gradient."""

    def __init__(self, env: HybridEnv):
        self.env = env.to(dtype=DTYPE)
        self.policy = double_policy(env)
        generator = torch.Generator().manual_seed(1)
        state, noise = env.sample_scenarios(N_SCENARIOS, generator)
        self.args = (env, self.policy, state, noise)
        self.exact = exact_gradient(*self.args)


@pytest.fixture(
    scope="module",
    params=[
        lambda: HybridInventoryEnv(n_items=2, lead_time=2, horizon=4),
        lambda: HybridSwitchedLQREnv(n_dims=3, n_modes=3, horizon=4),
        KilnEnv,
        lambda: HybridInventoryEnv(2, horizon=4, mean_demand=Uniform(6.0, 14.0), underage_cost=Uniform(6.3, 11.7)),
    ],
    ids=["inventory", "switched-lqr", "masked", "instances"],
)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param())


def state_baseline(rollout):
    """Any function of the observation of the same period."""
    return 3.0 + rollout.observations.sin().sum(dim=-1)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


every_option = pytest.mark.parametrize(
    "options",
    [EstimatorOptions(cost_to_go, baseline) for cost_to_go in (True, False) for baseline in (None, state_baseline)],
    ids=["cost-to-go", "cost-to-go,baseline", "whole-episode", "whole-episode,baseline"],
)


# ---- exactness -------------------------------------------------------------------------------------------------------


def test_the_exact_gradient_is_that_of_finite_differences(case):
    with torch.no_grad():
        for network in NETWORKS:
            parameters = list(case.policy.components[network].parameters())
            start = torch.nn.utils.parameters_to_vector(parameters)
            direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(2), dtype=DTYPE)
            costs = []
            for step in (1e-6, -1e-6):
                torch.nn.utils.vector_to_parameters(start + step * direction, parameters)
                costs.append(float(exact_cost(*case.args)))
            torch.nn.utils.vector_to_parameters(start, parameters)
            assert (costs[0] - costs[1]) / 2e-6 == pytest.approx(float(case.exact[network] @ direction), rel=1e-5)


@every_option
@pytest.mark.parametrize("network", NETWORKS)
def test_the_mixed_estimator_averages_to_the_exact_gradient(case, options, network):
    mean = expectation("mixed", *case.args, options=options)[network]
    assert case.exact[network].norm() > 1e-3
    assert relative_error(mean, case.exact[network]) < 1e-9


@every_option
def test_without_the_cross_term_the_continuous_gradient_is_biased_and_the_discrete_is_not(case, options):
    mean = expectation("no_cross", *case.args, options=options)
    assert relative_error(mean["discrete"], case.exact["discrete"]) < 1e-9
    assert relative_error(mean["continuous"], case.exact["continuous"]) > 1e-3


def test_pathwise_and_cross_term_add_up_to_the_mixed_gradient(case):
    parts = [expectation(name, *case.args)["continuous"] for name in ("pathwise_only", "cross_term")]
    torch.testing.assert_close(sum(parts), case.exact["continuous"], rtol=1e-9, atol=1e-9)


def test_pathwise_only_moves_no_regime(case):
    mean = expectation("pathwise_only", *case.args)
    assert not mean["discrete"].any()
    torch.testing.assert_close(mean["continuous"], expectation("no_cross", *case.args)["continuous"])


class StopsNearTheOrigin(HybridSwitchedLQREnv):
    """An episode whose length depends on the regimes."""

    def terminal(self, state):
        return state.x.norm(dim=1) < 4.0


def test_episodes_that_terminate_early_are_exact_too():
    case = Case(StopsNearTheOrigin(n_dims=3, n_modes=3, horizon=4))
    state, noise, regimes = every_sequence(case.env, *case.args[2:])
    rollout = simulate(case.env, case.policy, state, noise, regimes=regimes)
    ended = rollout.rewards == 0
    assert not ended[0].all() and 0.1 < ended.double().mean() < 0.9
    assert rollout.log_probs.sum(dim=0).exp().sum().item() == pytest.approx(N_SCENARIOS)
    mean = expectation("mixed", *case.args, options=EstimatorOptions(baseline=state_baseline))
    for network in NETWORKS:
        assert relative_error(mean[network], case.exact[network]) < 1e-9


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_errors_over_ten_thousand_draws_are_standard_normal(case):
    n_draws, n_repeats = 10_000, 100
    env, policy, state, noise = case.args
    scenario = type(state)(*(field[:1] for field in state)), noise[:, :1]
    exact = exact_gradient(env, policy, *scenario)
    generator = torch.Generator().manual_seed(3)
    directions = {name: torch.randn(exact[name].shape, generator=generator, dtype=DTYPE) for name in NETWORKS}

    def project(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([gradient[name] @ directions[name] for name in NETWORKS])

    # Points carry no noise: on one scenario a draw is its regime sequence, and its gradient can be looked up.
    _, _, sequences = every_sequence(env, *scenario)
    table = torch.stack(
        [project(estimate("mixed", env, policy, *scenario, regimes=sequence)) for sequence in sequences.T.unsqueeze(2)]
    )
    place = env.n_regimes ** torch.arange(len(noise)).flip(0)
    repeated = repeat_rows(scenario[0], n_draws), scenario[1].expand(-1, n_draws, -1)

    def draw() -> torch.Tensor:
        with torch.no_grad():
            regimes = simulate(env, policy, *repeated, generator=generator).regimes
        return table[place @ regimes]  # (n_draws, 2)

    draws = torch.stack([draw() for _ in range(n_repeats)])
    z = (draws.mean(dim=1) - project(exact)) / (draws.std(dim=1) / n_draws**0.5)
    for of_network in z.T:
        assert stats.kstest(of_network.numpy(), "norm").pvalue > 0.01

    generator.manual_seed(4)
    batch_mean = draw().mean(dim=0)
    whole = estimate("mixed", env, policy, *repeated, generator=generator.manual_seed(4))
    torch.testing.assert_close(project(whole), batch_mean, rtol=1e-9, atol=1e-9)


def test_the_leave_one_out_baseline_is_unbiased_and_quieter():
    case = Case(HybridSwitchedLQREnv(n_dims=3, n_modes=3, horizon=4))
    env, policy, state, noise = case.args
    repeated = repeat_rows(state, 16), noise.repeat_interleave(16, dim=1)
    generator = torch.Generator().manual_seed(5)
    draws = {}
    for baseline in (None, leave_one_out):
        options = EstimatorOptions(baseline=baseline)
        estimates = [
            estimate("mixed", env, policy, *repeated, options=options, generator=generator)["continuous"] for _ in range(300)
        ]
        draws[baseline] = torch.stack(estimates)
    errors = draws[leave_one_out].mean(0) - case.exact["continuous"]
    standard_error = draws[leave_one_out].std(0) / 300**0.5
    assert float((errors.abs() / standard_error).max()) < 4.5
    assert draws[leave_one_out].var(0).sum() < draws[None].var(0).sum()


def test_branching_is_unbiased_and_quieter(case):
    env, policy, state, noise = case.args
    repeated = repeat_rows(state, 16), noise.repeat_interleave(16, dim=1)
    generator = torch.Generator().manual_seed(8)
    draws = {}
    for name in ("mixed", "branched"):
        options = EstimatorOptions(baseline=leave_one_out)
        estimates = [estimate(name, env, policy, *repeated, options=options, generator=generator) for _ in range(200)]
        draws[name] = {network: torch.stack([estimate[network] for estimate in estimates]) for network in NETWORKS}
    for network in NETWORKS:
        of_network = draws["branched"][network]
        standard_error = of_network.std(0) / len(of_network) ** 0.5 + 1e-12
        assert float(((of_network.mean(0) - case.exact[network]).abs() / standard_error).max()) < 4.5
        assert of_network.var(0).sum() < 0.9 * draws["mixed"][network].var(0).sum()


def test_branches_of_the_last_period_are_its_rewards(case):
    env, policy, state, noise = case.args
    with torch.no_grad():
        rollout = simulate(env, policy, state, noise, generator=torch.Generator().manual_seed(9))
        values = branched_returns(env, policy, rollout.states, noise)
        last = type(state)(*(field[-1] for field in rollout.states))
        for regime in range(env.n_regimes):
            x = torch.full((N_SCENARIOS,), regime)
            result = env.step_torch(
                last, HybridAction(x, env.factors.choose(policy.candidates(rollout.observations[-1]), x)), noise[-1]
            )
            allowed = env.regime_mask(last)[:, regime]
            torch.testing.assert_close(values[-1, allowed, regime], result.reward[allowed])
        cut = branched_returns(env, policy, rollout.states, noise, depth=1)
    torch.testing.assert_close(cut[-1], values[-1])
    assert not torch.allclose(cut[0], values[0])


def test_the_score_function_of_a_noisy_point_points_the_same_way_in_the_mean():
    case = Case(HybridSwitchedLQREnv(n_dims=3, n_modes=3, horizon=4))
    env, policy, state, noise = case.args
    repeated = (
        type(state)(*(field.repeat_interleave(20_000, dim=0) for field in state)),
        noise.repeat_interleave(20_000, dim=1),
    )
    gradient = estimate(
        "score_function",
        env,
        policy,
        *repeated,
        options=EstimatorOptions(baseline=leave_one_out, point_std=0.1),
        generator=torch.Generator().manual_seed(6),
    )
    for network in NETWORKS:
        assert torch.cosine_similarity(gradient[network], case.exact[network], dim=0) > 0.95


def test_the_relaxed_problem_tends_to_the_true_one_as_it_cools(case):
    """Straight-through visits true states whatever the temperature; the blended episode does so at temperature 0."""
    env, policy, state, noise = case.args
    total = {}
    for straight_through, temperature in ((True, 5.0), (False, 1e-4), (False, 5.0)):
        with torch.no_grad():
            rewards = simulate_relaxed(
                env,
                policy,
                state,
                noise,
                temperature=temperature,
                straight_through=straight_through,
                generator=torch.Generator().manual_seed(7),
            )
        total[straight_through, temperature] = rewards
    torch.testing.assert_close(total[False, 1e-4], total[True, 5.0])
    assert not torch.allclose(total[False, 5.0], total[True, 5.0], rtol=1e-2)


# ---- what HPO does ---------------------------------------------------------------------------------------------------


class FirstIteration(BaseCallback):
    """Keeps the scenarios and regimes of the first rollout."""

    def _on_rollout_start(self):
        simulator = self.training_env.unwrapped.simulator
        self.state, self.noise = simulator.state, simulator.noise

    def _on_rollout_end(self):
        self.regimes = torch.as_tensor(self.model.rollout_buffer.actions[..., 0]).long()

    def _on_step(self):
        return True


def mean_return(rollout):
    """Subtracting the mean of all advantages, as advantage normalisation does, is a constant baseline."""
    return returns(rollout.rewards).mean().expand_as(rollout.rewards)


@pytest.mark.parametrize(
    "make", [lambda: HybridInventoryEnv(n_items=2, horizon=12), lambda: HybridSwitchedLQREnv(n_dims=3, n_modes=3)]
)
def test_hpo_hands_the_mixed_gradient_to_its_optimizer(make):
    env = make()
    model = HPO(
        "MlpPolicy", env, n_scenarios=16, gamma=1.0, gae_lambda=1.0, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}
    )
    torch.nn.init.normal_(model.policy.components["continuous"].output.weight, std=0.3)
    torch.nn.init.normal_(model.policy.components["discrete"].output.weight, std=0.5)
    for parameter in model.policy.components["value"].output.parameters():
        torch.nn.init.zeros_(parameter)  # v = 0: advantages are Monte-Carlo returns
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    handed = []

    def record(optimizer, args, kwargs):
        gradients = [p.grad for p in model.policy.components["continuous"].parameters()]
        if gradients[0] is not None:
            handed.append(torch.cat([gradient.flatten().clone() for gradient in gradients]))

    model.policy.optimizer.register_step_pre_hook(record)
    rollout = FirstIteration()
    model.learn(model.n_steps * model.n_envs, callback=rollout)

    model.policy.load_state_dict(before)
    for name, same in (("mixed", True), ("no_cross", False)):
        gradient = estimate(
            name,
            env,
            model.policy,
            rollout.state,
            rollout.noise,
            regimes=rollout.regimes,
            options=EstimatorOptions(baseline=mean_return),
        )["continuous"]
        cosine = torch.cosine_similarity(handed[0].double(), gradient.double(), dim=0)
        assert (float(cosine) > 1 - 1e-6) == same


# ---- quality ---------------------------------------------------------------------------------------------------------


def test_quality_of_gradients_with_known_noise():
    generator = torch.Generator().manual_seed(0)
    mean, n, d, std = torch.full((50,), 0.2, dtype=DTYPE), 20_000, 50, 0.3
    gradients = mean + std * torch.randn(n, d, generator=generator, dtype=DTYPE)
    signal, noise = float(mean.square().sum()), d * std**2
    result = quality(gradients, -gradients)
    assert result.rmse == pytest.approx(noise**0.5, rel=1e-2)
    assert result.signal_ratio == pytest.approx(signal / (signal + noise), rel=2e-2)
    assert result.alignment == pytest.approx((signal / (signal + noise)) ** 0.5, rel=2e-2)
    assert result.cross_alignment == pytest.approx(-result.alignment)


def test_pure_noise_has_no_signal_however_few_the_batches():
    generator = torch.Generator().manual_seed(0)
    ratios = [quality(noise, noise).signal_ratio for noise in torch.randn(2000, 4, 10, generator=generator)]
    assert abs(np.mean(ratios)) < 4 * np.std(ratios) / 2000**0.5


def test_quality_needs_two_batches():
    with pytest.raises(ValueError, match="at least 2 batches, got 1"):
        quality(torch.ones(1, 3), torch.ones(1, 3))


def test_every_estimator_is_measured_on_every_network():
    env = HybridSwitchedLQREnv(n_dims=3, n_modes=3, horizon=4)
    measured = measure_quality(env, HPO("MlpPolicy", env, n_scenarios=2).policy, n_batches=3, n_scenarios=4)
    assert set(measured) == set(ESTIMATORS)
    for networks in measured.values():
        assert set(networks) == set(NETWORKS)
        assert np.isfinite(list(networks.values())).all()
    assert measured["mixed"]["continuous"].alignment == pytest.approx(measured["mixed"]["continuous"].cross_alignment)


# ---- the callback ----------------------------------------------------------------------------------------------------


def train(callback: BaseCallback | None) -> HPO:
    env = HybridInventoryEnv(n_items=2, horizon=8)
    model = HPO("MlpPolicy", env, n_scenarios=4, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    return model.learn(4 * 8 * 4, callback=callback)


class Recorded(BaseCallback):
    """Keeps the names that were logged."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def _on_rollout_start(self):
        pass

    def _on_rollout_end(self):
        self.names |= set(self.logger.name_to_value)

    def _on_step(self):
        return True


def test_the_callback_logs_and_changes_nothing():
    recorded = Recorded()
    plain = train(None)
    watched = train([GradientQualityCallback(["mixed", "score_function"], every=2, n_batches=2, n_scenarios=3), recorded])
    assert {"gradient/mixed/continuous/alignment", "gradient/score_function/discrete/rmse"} <= recorded.names
    for name, value in plain.policy.state_dict().items():
        assert torch.equal(value, watched.policy.state_dict()[name]), name


def test_the_callback_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="no estimator 'mixt'"):
        GradientQualityCallback(["mixt"])
    with pytest.raises(ValueError, match="n_batches"):
        GradientQualityCallback(n_batches=1)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_enumeration_refuses_too_many_sequences_and_says_how_many():
    env = HybridInventoryEnv(n_items=1, horizon=20)
    policy = HPO("MlpPolicy", env, n_scenarios=2).policy
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="1048576 regime sequences, more than max_sequences = 1000"):
        exact_gradient(env, policy, env.initial(1, generator), env.sample_noise(1, generator), max_sequences=1000)


class DemandFollowsOrders(HybridInventoryEnv):
    """Broken: the demand of the next episode remembers the last order."""

    ordered = torch.tensor(0.0)

    def transition(self, state, action, noise):
        self.ordered = action.point.mean()
        return super().transition(state, action, noise)

    def sample_noise(self, batch_size, generator):
        return super().sample_noise(batch_size, generator) + 0.01 * self.ordered


class DemandInsideTheStep(HybridInventoryEnv):
    """Broken: demand is drawn when the order is known, with a mean that depends on it."""

    def transition(self, state, action, noise):
        return super().transition(state, action, torch.poisson(0.1 * action.point))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (DemandFollowsOrders, "differs after other actions"),
        (DemandInsideTheStep, "period 0, replayed .* came out differently"),
    ],
)
def test_noise_that_depends_on_the_action_is_refused(broken, message):
    env = broken(n_items=2, horizon=4)
    policy = HPO("MlpPolicy", HybridInventoryEnv(n_items=2, horizon=4), n_scenarios=2).policy
    generator = torch.Generator().manual_seed(0)
    scenario = env.initial(2, generator), env.sample_noise(2, generator)
    with pytest.raises(ValueError, match=message):
        estimate("mixed", env, policy, *scenario)
    with pytest.raises(ValueError, match=f"{broken.__name__}: "):
        exact_gradient(env, policy, *scenario)


def test_every_instance_of_the_suite_has_exogenous_noise(env):
    before = torch.random.get_rng_state()
    require_exogenous_noise(env)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_estimator_is_refused_with_the_known_ones():
    env = HybridInventoryEnv(n_items=1, horizon=2)
    with pytest.raises(ValueError, match="no estimator 'reinforce'; there are mixed, no_cross"):
        estimate("reinforce", env, None, None, torch.empty(2, 1, 1))


def test_the_relaxed_estimator_takes_no_regimes(case):
    with pytest.raises(ValueError, match="draw their own regimes"):
        expectation("relaxed", *case.args)


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "mixed_gradient.md"
SNIPPETS = re.findall(r"<!-- test -->\n```python\n(.*?)```\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["exactness", "counterexamples"])
def test_the_snippets_of_the_page_print_what_it_shows(snippet, capsys):
    code, shown = snippet
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out == shown
