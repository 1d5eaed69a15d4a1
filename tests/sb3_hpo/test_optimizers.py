"""Muon for some matrices, Adam for the rest."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

import hybrid_envs  # noqa: F401
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.optimizers import MuonAdam, orthogonalised
from sb3_hpo.safe_files import load_safe, save_safe

RATE = 0.01


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (4,), (3, 6), (2,))]


def give_gradients(of, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in of:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 6)])
def test_orthogonalising_keeps_singular_vectors_and_makes_all_singular_values_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() > 1.5 * values.min() or min(shape) == 1
    inside = left.T @ orthogonalised(matrix) @ right.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()))
    assert ((inside.diagonal() > 0.6) & (inside.diagonal() < 1.3)).all()


def test_directions_without_gradient_are_not_followed():
    column, row = torch.randn(6, 1, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    assert torch.linalg.matrix_rank(orthogonalised(column @ row), rtol=1e-9) == 1
    assert orthogonalised(torch.zeros(3, 3)).abs().max() == 0


def test_matrices_follow_the_orthogonalised_momentum_and_adam_moves_the_rest():
    ours, theirs = parameters(), parameters()
    optimizer = MuonAdam(ours, lr=RATE, matrices=ours[:1])
    adam = torch.optim.Adam(theirs[1:], lr=RATE)
    momentum, expected = torch.zeros(5, 3), ours[0].detach().clone()
    for seed in range(3):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        gradient = ours[0].grad.clone()
        momentum = 0.9 * momentum + 0.1 * gradient
        expected -= RATE * 0.2 * 5**0.5 * orthogonalised(0.1 * gradient + 0.9 * momentum)
        optimizer.step()
        adam.step()
        torch.testing.assert_close(ours[0].grad, gradient)
    torch.testing.assert_close(ours[0].detach(), expected)
    for own, adams in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(own, adams, rtol=0, atol=0)
    assert not torch.equal(ours[2], parameters()[2])


def test_a_state_that_is_loaded_goes_on_as_if_nothing_had_happened():
    def started(of):
        return MuonAdam(of, lr=RATE, matrices=of[:1])

    first = parameters()
    optimizer = started(first)
    for seed in range(3):
        give_gradients(first, seed)
        optimizer.step()
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = started(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for of, its in ((first, optimizer), (second, resumed)):
        give_gradients(of, 7)
        its.step()
    for own, other in zip(first, second, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_a_state_of_adam_alone_is_loaded_and_muon_begins_anew():
    of, before = parameters(), parameters()
    adam, optimizer = torch.optim.Adam(before, lr=RATE), MuonAdam(of, lr=RATE, matrices=of[:1])
    give_gradients(before, 0)
    adam.step()
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    give_gradients(of, 0)
    gradient = of[0].grad.clone()
    optimizer.step()
    expected = parameters()[0] - RATE * 0.2 * 5**0.5 * orthogonalised(gradient)
    torch.testing.assert_close(of[0].detach(), expected.detach())


def test_matrices_without_gradient_stay_where_they_are():
    of = parameters()
    optimizer = MuonAdam(of, lr=RATE, matrices=of[:1])
    give_gradients(of[1:], 0)
    optimizer.step()
    torch.testing.assert_close(of[0].detach(), parameters()[0].detach(), rtol=0, atol=0)
    assert not torch.equal(of[2], parameters()[2])


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="closure"):
        MuonAdam(parameters(), lr=RATE, matrices=[]).step(lambda: 0.0)


def small(algorithm, **networks):
    env = gym.make("HybridInventory-v0", n_items=2, horizon=6)
    scenarios = {"n_scenarios": 4} if algorithm is HPO else {"n_steps": 24, "batch_size": 12}
    return algorithm("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]} | networks, **scenarios)


def moved_by(model, moment):
    """The names of the parameters of which the optimizer keeps that moment."""
    names = {parameter: name.removeprefix("components.") for name, parameter in model.policy.named_parameters()}
    return {names[parameter] for parameter, state in model.policy.optimizer.state.items() if moment in state}


@pytest.mark.parametrize(
    ("muon", "matrices"),
    [
        (["continuous"], {f"continuous.{layer}.weight" for layer in ("hidden.0", "output", "linear")}),
        (["linear"], {"continuous.linear.weight", "value.linear.weight"}),
        (
            ["value", "linear"],
            {"continuous.linear.weight", *(f"value.{layer}.weight" for layer in ("hidden.0", "output", "linear"))},
        ),
    ],
)
def test_muon_moves_the_matrices_of_what_is_named(muon, matrices):
    model = small(HPO, muon=muon, linear_path=["continuous", "value"]).learn(48)
    every = {name.removeprefix("components.") for name, _ in model.policy.named_parameters()}
    assert moved_by(model, "momentum") == matrices
    assert moved_by(model, "exp_avg") == every - matrices  # biases are Adam's everywhere


def test_muon_for_linear_paths_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match=r"muon = \['linear'\], but no network has a linear path: linear_path = \(\)"):
        small(HybridPPO, muon=["linear"])


@pytest.mark.parametrize(
    ("algorithm", "muon"),
    [(HPO, ("continuous", "discrete")), (HybridPPO, ("continuous", "discrete")), (HPO, ("linear",))],
)
@pytest.mark.parametrize("safe", [False, True])
def test_a_model_goes_on_exactly_after_it_was_saved_and_loaded(algorithm, muon, safe, tmp_path):
    model = small(algorithm, muon=list(muon)).learn(48)
    if safe:
        save_safe(model, tmp_path / "model")
        loaded = load_safe(tmp_path / "model", model.get_env())
    else:
        model.save(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=model.get_env())
    assert loaded.policy.muon == muon
    for of in (model, loaded):
        of.policy.set_training_mode(True)
        for number, parameter in enumerate(of.policy.parameters()):
            parameter.grad = torch.full_like(parameter, 1.0 + number)
        of.policy.optimizer.step()
    for own, other in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        np.testing.assert_array_equal(own.detach().numpy(), other.detach().numpy())


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
def test_muon_beside_another_optimizer_than_adam_is_refused(algorithm):
    with pytest.raises(ValueError, match=r"muon = \('continuous',\) needs optimizer_class = torch.optim.Adam, got AdamW"):
        small(algorithm, muon=["continuous"], optimizer_class=torch.optim.AdamW)
