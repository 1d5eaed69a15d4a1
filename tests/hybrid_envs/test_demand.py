"""The real-data door: sales history from a CSV file, or demand scenarios as an array."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridInventoryEnv
from hybrid_envs.demand import demand_scenarios
from hybrid_envs.sales import read_sales_file

GOOD = "apples,pears\n1,10\n2,20\n3,30\n4,40\n5,50\n"


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "sales.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_a_sales_history_is_read_row_by_row(write):
    assert read_sales_file(write(GOOD)).sales.tolist() == [[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]


@pytest.mark.parametrize("as_type", [str, lambda path: path], ids=["str", "Path"])
def test_every_window_of_the_history_is_a_scenario(write, as_type):
    windows = demand_scenarios(as_type(write(GOOD)), None, horizon=3)
    assert windows.tolist() == [
        [[1, 10], [2, 20], [3, 30]],
        [[2, 20], [3, 30], [4, 40]],
        [[3, 30], [4, 40], [5, 50]],
    ]


def test_a_byte_order_mark_and_blank_lines_at_the_end_do_no_harm(write):
    with pytest.raises(ValueError, match=r"row 3, column 'apples': 'x'"):
        read_sales_file(write("apples\n1\nx\n\n\n", encoding="utf-8-sig"))
    assert read_sales_file(write("apples\n1\n2\n\n\n", encoding="utf-8-sig")).sales.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apples,pears\n1,10\n2,\n", r"row 3, column 'pears': '' is not a finite number >= 0"),
        ("apples,pears\n1,10\nmany,20\n", r"row 3, column 'apples': 'many' is not a finite number >= 0"),
        ("apples,pears\n1,-10\n2,20\n", r"row 2, column 'pears': '-10' is not a finite number >= 0"),
        ("apples,pears\n1,nan\n2,20\n", r"row 2, column 'pears': 'nan' is not a finite number >= 0"),
        ("apples,pears\n1,10\n2,inf\n", r"row 3, column 'pears': 'inf' is not a finite number >= 0"),
        ("apples,pears\n1,10\n2\n", r"row 3 has 1 cells, the header has 2"),
        ("apples,pears\n1,10,100\n2,20\n", r"row 2 has 3 cells, the header has 2"),
        ("apples\n1\n\n3\n", r"row 3 has 0 cells, the header has 1"),
        ("apples,pears\n", r"at least one row of sales, got 1 line"),
        ("", r"at least one row of sales, got 0 line"),
    ],
)
def test_a_bad_file_is_refused_with_row_and_column(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message) as error:
        gym.make("HybridInventory-v0", demand=str(path), horizon=1)
    assert str(path) in str(error.value)


def test_a_history_shorter_than_the_horizon_is_refused_with_both_lengths(write):
    with pytest.raises(ValueError, match=r"5 rows, fewer than horizon = 6"):
        HybridInventoryEnv(demand=write(GOOD), horizon=6)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        HybridInventoryEnv(demand="nowhere.csv")


def test_a_misspelt_distribution_is_not_taken_for_a_file():
    with pytest.raises(
        ValueError, match=r"demand must be 'poisson', 'normal', an array or the path of a CSV file, got 'possion'"
    ):
        HybridInventoryEnv(demand="possion")


def test_items_and_mean_demand_follow_from_the_data(write):
    env = HybridInventoryEnv(demand=write(GOOD), horizon=5)
    assert env.n_items == 2
    assert env.params.mean_demand.tolist() == [3.0, 30.0]


def test_a_given_mean_demand_is_kept(write):
    env = HybridInventoryEnv(demand=write(GOOD), horizon=5, mean_demand=[1.0, 2.0])
    assert env.params.mean_demand.tolist() == [1.0, 2.0]


def test_data_for_another_number_of_items_is_refused(write):
    with pytest.raises(ValueError, match=r"demand holds 2 items, but n_items = 3"):
        HybridInventoryEnv(3, demand=write(GOOD), horizon=5)


def test_every_scenario_drawn_is_one_of_the_data_and_each_is_drawn(write):
    env = HybridInventoryEnv(demand=write(GOOD), horizon=3)
    drawn = env.sample_noise(60, torch.Generator().manual_seed(0)).transpose(0, 1)
    assert {tuple(scenario[:, 0].tolist()) for scenario in drawn} == {(1, 2, 3), (2, 3, 4), (3, 4, 5)}
    assert torch.equal(drawn[..., 1], 10 * drawn[..., 0])


def test_longer_scenarios_are_cut_to_the_horizon():
    data = np.arange(12.0).reshape(1, 6, 2)
    assert demand_scenarios(data, None, horizon=2).tolist() == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-1.0, "-1.0")], ids=["missing", "infinite", "negative"]
)
def test_a_bad_value_in_an_array_is_refused_with_its_place(value, shown):
    data = np.ones((3, 4, 2))
    data[1, 2, 0] = value
    with pytest.raises(ValueError, match=rf"demand\[1, 2, 0\] = {shown}: must be finite and >= 0"):
        HybridInventoryEnv(demand=data, horizon=4)


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3, 1), (0, 5, 2)])
def test_an_array_of_another_shape_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"shape \(scenarios, periods, items\), got"):
        HybridInventoryEnv(demand=np.ones(shape), horizon=2)


def test_an_array_with_too_few_periods_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"demand has 4 periods, fewer than horizon = 5"):
        HybridInventoryEnv(demand=np.ones((3, 4, 2)), horizon=5)


@pytest.mark.parametrize("data", [[[["many"]]], [[[1.0], [2.0, 3.0]]]], ids=["text", "ragged"])
def test_demand_that_is_no_array_of_numbers_is_refused(data):
    with pytest.raises(ValueError, match=r"demand must be numeric, of shape \(scenarios, periods, items\)"):
        HybridInventoryEnv(demand=data, horizon=1)
