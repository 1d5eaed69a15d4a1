"""How policies for joint replenishment are judged on recorded sales: what they see, what they pay, and what they take over."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridEnv, Uniform, recorded_problem
from hybrid_envs.backtest import Backtest
from hybrid_envs.demand import synthetic_sales
from hybrid_envs.evaluation import ReferencePolicy
from hybrid_envs.solvers import PeriodicReview

PERIODS, SHARES = 100, [0.6, 0.2, 0.2]


def write_sales(folder, change=lambda sales: sales):
    sales = change(synthetic_sales(PERIODS, 2, mean=np.array([6.0, 20.0]), season=0.5, zero_share=0.1, seed=3))
    weeks = 1 + np.arange(PERIODS) % 52
    path = folder / "sales.csv"
    np.savetxt(path, np.column_stack([weeks, sales]), "%d", ",", header="week,nails,glue", comments="")
    return path


def make(path, **kwargs) -> Backtest:
    arguments = {"calendar": {"week": 52}, "split": "train", "horizon": 13, "history": 3} | kwargs
    problem = recorded_problem(gym.make("HybridInventory-v0", demand=str(path), **arguments))
    assert problem is not None
    return problem


class Recorder(ReferencePolicy):
    """Orders at least one period's demand every third period, and keeps what it was shown."""

    def __init__(self, env: HybridEnv):
        self.env, self.shown = env, []

    def act(self, observation, period):
        self.shown.append(observation.copy())
        position = observation[:, : 2 * self.env.lead_time].reshape(len(observation), -1, 2).sum(axis=1)
        ordering = (period % 3 == 0).astype(np.int64)
        regime = ordering[:, None].repeat(3, axis=1) if self.env.itemised else ordering
        return regime, (1.0 + np.maximum(5.0 - position, 0)) * self.env.params.mean_demand


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"lost_sales": True},
        {"lost_sales": True, "margin": [3.0, 8.0]},
        {"minor_fixed_cost": [5.0, 9.0]},
        {"lead_time": 4, "history": 0},
    ],
)
def test_costs_are_those_of_the_environment(tmp_path, kwargs):
    path = write_sales(tmp_path)
    problem = make(path, **kwargs)
    ledger = problem.play(Recorder(problem.env), "test")
    assert ledger.cost.shape == (8, 20, 2) and ledger.demand.shape == (20, 2)
    np.testing.assert_array_equal(ledger.demand, np.loadtxt(path, delimiter=",", skiprows=1)[80:, 1:])

    recorded = gym.make("HybridInventory-v0", demand=ledger.demand[None], horizon=20, **kwargs).unwrapped
    state = recorded.standing(problem._shelves["test"])
    for t in range(20):
        joined = torch.as_tensor(ledger.ordered[:, t] > 0).long()
        together = joined.amax(dim=1, keepdim=True)
        regime = torch.cat([together, joined], dim=1) if recorded.itemised else together[:, 0]
        np.testing.assert_allclose(ledger.on_hand[:, t], state.stock[:, 0], atol=1e-4)
        demand = torch.as_tensor(ledger.demand[t], dtype=recorded.dtype).expand(8, -1)
        order = torch.as_tensor(ledger.ordered[:, t], dtype=recorded.dtype)
        result = recorded.step_torch(state, HybridAction(regime, order), demand)
        state = result.state
        earned = recorded.params.margin @ ledger.demand[t]  # were nothing short
        np.testing.assert_allclose(earned - ledger.cost[:, t].sum(axis=1), result.reward, rtol=1e-4, atol=1e-3)
    assert problem.earnings("test") == pytest.approx(np.mean(ledger.demand @ recorded.params.margin))


def test_nothing_is_seen_before_it_happens(tmp_path):
    """Sales from period t on are changed: until t, nothing that a policy is shown or owns may differ."""
    t = 90

    def change(sales):
        sales[t:] = 3 * sales[t:] + 1
        return sales

    one, other = make(write_sales(tmp_path)), None
    (tmp_path / "changed").mkdir()
    other = make(write_sales(tmp_path / "changed", change))
    shown = []
    for problem in (one, other):
        recorder = Recorder(problem.env)
        problem.play(recorder, "test")
        shown.append(np.stack(recorder.shown))
    np.testing.assert_array_equal(shown[0][: t - 79], shown[1][: t - 79])
    assert (shown[0][t - 79] != shown[1][t - 79]).any()
    np.testing.assert_array_equal(one.env.demand_data, other.env.demand_data)
    for (_, policy), (_, same) in zip(one.references(), other.references(), strict=True):
        before, after = (
            problem.play(policy_of, "validation").ordered for problem, policy_of in ((one, policy), (other, same))
        )
        np.testing.assert_array_equal(before, after)


def test_every_policy_takes_over_the_same_shelves_in_other_phases_of_the_cycle(tmp_path):
    problem = make(write_sales(tmp_path))
    policies = [Recorder(problem.env), next(policy for _, policy in problem.references())]
    first = [problem.play(policy, "test").on_hand[:, 0] for policy in policies]
    np.testing.assert_array_equal(first[0], first[1])
    assert len(np.unique(first[0], axis=0)) > 1 and (first[0].max(axis=1) > 0).all()


@pytest.mark.parametrize("kwargs", [{}, {"lost_sales": True}, {"lost_sales": True, "margin": 8.0}])
def test_no_policy_undercuts_the_bound(tmp_path, kwargs):
    problem = make(write_sales(tmp_path), **kwargs)
    bound = problem.bound("test")
    for name, policy in [("ours", Recorder(problem.env)), *problem.references()]:
        assert (problem.play(policy, "test").cost.sum(axis=(1, 2)) >= bound * (1 - 1e-6)).all(), name


def test_service_is_the_share_of_demand_that_was_there(tmp_path):
    ledger = make(write_sales(tmp_path)).play(PeriodicReview(make(write_sales(tmp_path)).env, 3, 4.0), "test")
    met = np.minimum(np.maximum(ledger.on_hand, 0), ledger.demand)
    np.testing.assert_allclose(ledger.service, met.sum(axis=(0, 1)) / (8 * ledger.demand.sum(axis=0)))


def test_parts_and_their_periods(tmp_path):
    problem = make(write_sales(tmp_path), split_shares=[0.5, 0.3, 0.2])
    assert [len(problem.periods(part)) for part in ("train", "validation", "test")] == [50, 30, 20]
    assert problem.periods("test")[0] == "row 82"  # of the file, whose first row is the header
    assert problem.items == ["nails", "glue"] and problem.unit == "period"


def test_what_cannot_be_judged_is_refused(tmp_path):
    path = write_sales(tmp_path)
    with pytest.raises(ValueError, match="split must be 'train' in a backtest, got None"):
        make(path, split=None)
    with pytest.raises(ValueError, match="a backtest: fixed_cost differs from scenario to scenario"):
        make(path, fixed_cost=Uniform(1.0, 2.0))
    with pytest.raises(ValueError, match="part 'test' has 10 periods of 100; it is judged in blocks of 4, and needs 3"):
        make(path, split_shares=[0.7, 0.2, 0.1])
    assert recorded_problem(gym.make("HybridSwitchedLQR-v0")) is None
