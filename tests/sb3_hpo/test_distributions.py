"""The distribution of a hybrid action, against torch's distributions put together by hand and against integrals."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from hybrid_envs.spaces import pack, unpack
from sb3_hpo.distributions import HybridDistribution

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, 5.0]])
STD = torch.tensor([0.5, 2.0])


@pytest.fixture
def candidates():
    """Shape ``(2, 3, 2)``: two observations, three regimes, two coordinates."""
    return torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))


def repeated(logits, candidates, times):
    return logits.repeat(times, 1), candidates.repeat(times, 1, 1)


def test_the_log_probability_is_the_regimes_plus_the_gaussians_around_its_own_candidate(candidates):
    actions = pack(torch.tensor([2, 0]), torch.tensor([[0.1, -0.4], [1.0, 3.0]]))
    expected = torch.stack(
        [
            Categorical(logits=LOGITS[row]).log_prob(torch.tensor(regime))
            + Independent(Normal(candidates[row, regime], STD), 1).log_prob(actions[row, 1:])
            for row, regime in enumerate([2, 0])
        ]
    )
    distribution = HybridDistribution().proba_distribution(LOGITS, candidates, STD)
    torch.testing.assert_close(distribution.log_prob(actions), expected)


def test_without_a_standard_deviation_only_the_regime_has_a_probability(candidates):
    distribution = HybridDistribution().proba_distribution(LOGITS, candidates)
    for regimes in ([0, 1], [2, 2]):
        actions = pack(torch.tensor(regimes), torch.full((2, 2), 99.0))
        torch.testing.assert_close(distribution.log_prob(actions), LOGITS.log_softmax(dim=1)[[0, 1], regimes])
    torch.testing.assert_close(distribution.entropy(), Categorical(logits=LOGITS).entropy())


def test_density_and_entropy_agree_with_numerical_integration_over_regimes_and_points():
    logits, candidates, std = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[[-2.0], [0.5], [7.0]]]), torch.tensor([0.8])
    grid = torch.linspace(-20, 25, 20_001)
    distribution = HybridDistribution().proba_distribution(*repeated(logits, candidates, len(grid)), std)
    log_density = torch.stack(
        [distribution.log_prob(pack(torch.full((len(grid),), x), grid[:, None])) for x in range(3)]
    ).double()  # (regimes, grid)
    density = log_density.exp()
    assert torch.trapezoid(density, grid.double()).sum().item() == pytest.approx(1, abs=1e-5)
    integral = torch.trapezoid(-density * log_density, grid.double()).sum().item()
    assert distribution.entropy()[0].item() == pytest.approx(integral, abs=1e-4)


def test_the_entropy_is_the_mean_surprise_of_samples(candidates):
    torch.manual_seed(0)
    times = 100_000
    distribution = HybridDistribution().proba_distribution(*repeated(LOGITS, candidates, times), STD)
    surprise = -distribution.log_prob(distribution.sample()).view(times, 2)
    standard_error = surprise.std(dim=0) / times**0.5
    assert ((surprise.mean(dim=0) - distribution.entropy()[:2]).abs() < 4 * standard_error).all()


def test_regimes_are_sampled_as_often_as_the_softmax_says(candidates):
    torch.manual_seed(0)
    times = 100_000
    distribution = HybridDistribution().proba_distribution(*repeated(LOGITS, candidates, times), STD)
    regimes, _ = unpack(distribution.sample().view(times, 2, 3))
    expected = LOGITS.softmax(dim=1)
    for regime in range(3):
        frequency = (regimes == regime).double().mean(dim=0)
        p = expected[:, regime].double()
        assert ((frequency - p).abs() < 4 * (p * (1 - p) / times).sqrt()).all()


def test_points_are_sampled_around_the_candidate_of_their_own_regime(candidates):
    torch.manual_seed(0)
    times = 100_000
    distribution = HybridDistribution().proba_distribution(*repeated(LOGITS[:1], candidates[:1], times), STD)
    regimes, points = unpack(distribution.sample())
    for regime in range(3):
        chosen = points[regimes == regime]
        assert ((chosen.mean(dim=0) - candidates[0, regime]).abs() < 4 * STD / len(chosen) ** 0.5).all()
        assert ((chosen.std(dim=0) / STD - 1).abs() < 4 / (2 * len(chosen)) ** 0.5).all()


def test_without_a_standard_deviation_the_sampled_point_is_the_candidate_itself(candidates):
    torch.manual_seed(0)
    distribution = HybridDistribution().proba_distribution(*repeated(LOGITS, candidates, 50), None)
    regimes, points = unpack(distribution.sample())
    assert set(regimes.tolist()) == {0, 1, 2}
    assert torch.equal(points, torch.stack([candidates[i % 2, x] for i, x in enumerate(regimes)]))


@pytest.mark.parametrize("std", [None, STD])
def test_the_mode_is_the_likeliest_regime_with_its_candidate(candidates, std):
    logits = torch.tensor([[0.3, 2.5, 2.0], [0.0, 0.0, 5.0]])
    mode = HybridDistribution().actions_from_params(logits, candidates, std, deterministic=True)
    assert torch.equal(mode, torch.cat([torch.tensor([[1.0], [2.0]]), torch.stack([candidates[0, 1], candidates[1, 2]])], 1))


def test_sampled_actions_come_with_their_log_probability(candidates):
    actions, log_prob = HybridDistribution().log_prob_from_params(LOGITS, candidates, STD)
    expected = HybridDistribution().proba_distribution(LOGITS, candidates, STD).log_prob(actions)
    assert torch.equal(log_prob, expected)


def test_the_log_probability_pulls_on_the_chosen_candidate_only(candidates):
    candidates.requires_grad_()
    actions = pack(torch.tensor([2, 0]), torch.zeros(2, 2))
    distribution = HybridDistribution().proba_distribution(LOGITS, candidates, STD)
    distribution.log_prob(actions).sum().backward()
    expected = torch.zeros(2, 3, 2)
    for row, regime in enumerate([2, 0]):  # d/dμ log N(0; μ, σ) = -μ / σ²
        expected[row, regime] = -candidates[row, regime].detach() / STD**2
    torch.testing.assert_close(candidates.grad, expected)
