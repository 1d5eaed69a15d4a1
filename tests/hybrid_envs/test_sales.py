"""Files of sales and of costs: what is read, and what is refused, named by row and column."""

import numpy as np
import pytest
import torch

from hybrid_envs import HybridInventoryEnv, HybridProcurementEnv, check_hybrid_env
from hybrid_envs.resampling import resample, seasonal_level
from hybrid_envs.sales import read_sales_file

WEEKS = ["2026-01-05", "2026-01-12", "2026-01-19", "2026-01-26", "2026-02-02", "2026-02-09"]
SALES = "date,nails,glue\n" + "".join(f"{week},{k},{10 * k}\n" for k, week in enumerate(WEEKS, start=1))
COSTS = "item,holding_cost,underage_cost\nnails,1,9\nglue,2,8\n"


BAD_SALES = {
    "an empty file": ("", "at least one row of sales, got 0 line"),
    "a header alone": ("date,nails\n", "at least one row of sales, got 1 line"),
    "not text": (b"\xff\xfe\x00\x01", "not a text file in UTF-8"),
    "a quote that does not end": ('date,nails\n2026-01-05,"1\n', "row 2: not CSV"),
    "semicolons": ("date;nails\n2026-01-05;1\n", "row 1: columns must be separated by commas, here ';'"),
    "tabs": ("date\tnails\n2026-01-05\t1\n", r"row 1: columns must be separated by commas, here '\\t'"),
    "a column without a name": (SALES.replace("nails,glue", "nails,"), "row 1: column 3 has no name"),
    "a column twice": (SALES.replace("nails,glue", "nails,nails"), "row 1: column 'nails' is there 2 times"),
    "no column of dates": (SALES.replace("date", "day"), "dates column 'date' is there 0 times"),
    "no items": ("date\n2026-01-05\n", "none is an item"),
    "a short row": (SALES.replace("2026-01-19,3,30", "2026-01-19,3"), "row 4 has 2 cells, the header has 3"),
    "a long row": (SALES.replace("2026-01-19,3,30", "2026-01-19,3,30,7"), "row 4 has 4 cells, the header has 3"),
    "a decimal comma": (SALES.replace("2026-01-19,3,30", "2026-01-19,3,30,5"), "row 4 has 4 cells, the header has 3"),
    "a blank line": (SALES.replace("2026-01-19,3,30\n", "\n2026-01-19,3,30\n"), "row 4 has 0 cells, the header has 3"),
    "an empty cell": (SALES.replace(",3,30", ",,30"), "row 4, column 'nails': '' is not a finite number >= 0"),
    "a word": (SALES.replace(",3,30", ",3,none"), "row 4, column 'glue': 'none' is not a finite number >= 0"),
    "a unit": (SALES.replace(",3,30", ",3 kg,30"), "row 4, column 'nails': '3 kg' is not a finite number >= 0"),
    "not a number": (SALES.replace(",3,30", ",nan,30"), "row 4, column 'nails': 'nan' is not a finite number >= 0"),
    "infinity": (SALES.replace(",3,30", ",inf,30"), "row 4, column 'nails': 'inf' is not a finite number >= 0"),
    "a return": (SALES.replace(",3,30", ",-3,30"), "row 4, column 'nails': '-3' is not a finite number >= 0"),
    "a date of another kind": (SALES.replace("2026-01-19", "19.1.2026"), "row 4, column 'date': '19.1.2026' is not a date"),
    "an empty date": (SALES.replace("2026-01-19", ""), "row 4, column 'date': '' is not a date"),
    "a day that is none": (SALES.replace("2026-01-19", "2026-01-32"), "row 4, column 'date': '2026-01-32' is not in the cal"),
    "dates and weeks": (SALES.replace("2026-01-19", "2026-W04"), "row 4, column 'date': '2026-W04' is written otherwise"),
    "a week twice": (
        SALES.replace("2026-01-19", "2026-01-12"),
        "row 4, column 'date': '2026-01-12' is there before, in row 3",
    ),
    "a missing week": (SALES.replace("2026-01-19,3,30\n", ""), "row 4, column 'date': '2026-01-26' follows .*: 1 missing"),
    "an odd day": (SALES.replace("2026-01-19", "2026-01-20"), "row 4, column 'date': '2026-01-20' .*: another distance"),
    "weeks that go back": (
        "\n".join([SALES.splitlines()[0], *reversed(SALES.splitlines()[1:])]) + "\n",
        "row 3, column 'date': '2026-02-02' follows '2026-02-09'; rows must go forward",
    ),
    "a year more": (SALES.replace("2026-02-09", "2027-02-08"), "row 7, column 'date': '2027-02-08' .*: 52 missing"),
    "too few rows": ("date,nails\n2026-01-05,1\n", "1 rows, fewer than horizon = 2"),
}
BAD_COSTS = {
    "an unknown column": (COSTS.replace("holding_cost", "holding"), "unknown column 'holding'"),
    "demand among the costs": (COSTS.replace("holding_cost", "mean_demand"), "unknown column 'mean_demand'"),
    "no names": ("holding_cost,underage_cost\n1,9\n2,8\n", "there is no column 'item'"),
    "names alone": ("item\nnails\nglue\n", "no column is an argument"),
    "an unknown item": (COSTS.replace("glue", "tape"), "row 3, column 'item': 'tape' is no item of the file of sales"),
    "an item twice": (COSTS + "nails,1,9\n", "row 4, column 'item': 'nails' is there before, in row 2"),
    "an item less": (COSTS.replace("glue,2,8\n", ""), "column 'item': there is no row for 'glue'"),
    "another order": (
        "item,holding_cost\nglue,2\nnails,1\n",
        "row 2, column 'item': 'glue', but item 1 of the file of sales is 'nails'",
    ),
    "a missing cost": (COSTS.replace("glue,2", "glue,"), "row 3, column 'holding_cost': '' is not a finite number >= 0"),
    "a negative cost": (COSTS.replace("glue,2", "glue,-2"), "row 3, column 'holding_cost': '-2' is not a finite number >= 0"),
    "a currency": (COSTS.replace("nails,1,9", "nails,1,9 €"), "row 2, column 'underage_cost': '9 €' is not a finite number"),
    "a short row": (COSTS.replace("glue,2,8", "glue,2"), "row 3 has 2 cells, the header has 3"),
}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(("content", "message"), BAD_SALES.values(), ids=BAD_SALES)
def test_a_bad_file_of_sales_is_refused_by_row_and_column(write, content, message):
    path = write("sales.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        HybridInventoryEnv(demand=path, dates="date", horizon=2)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("content", "message"), BAD_COSTS.values(), ids=BAD_COSTS)
def test_a_bad_file_of_costs_is_refused_by_row_and_column(write, content, message):
    path = write("costs.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        HybridInventoryEnv(demand=write("sales.csv", SALES), dates="date", horizon=2, costs=path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (WEEKS, [739621 + 7 * k for k in range(6)]),
        ([f"2026-W{2 + k:02}" for k in range(6)], [739621 + 7 * k for k in range(6)]),
        (["2025-11", "2025-12", "2026-01", "2026-02", "2026-03", "2026-04"], [24311 + k for k in range(6)]),
        ([f"{3 + k}" for k in range(6)], [3 + k for k in range(6)]),
    ],
)
def test_dates_are_days_weeks_months_or_numbers(write, cells, values):
    text = SALES
    for week, cell in zip(WEEKS, cells, strict=True):
        text = text.replace(week, cell)
    file = read_sales_file(write("sales.csv", text), ["date"], "date")
    assert file.items == ["nails", "glue"]
    assert file.periods == cells
    assert file.calendar[:, 0].tolist() == values
    assert file.sales.tolist() == [[k, 10 * k] for k in range(1, 7)]


@pytest.mark.parametrize("cell", ["1_234", "١٢"])
def test_what_python_reads_as_a_number_and_no_spreadsheet_does_is_refused(write, cell):
    with pytest.raises(ValueError, match=f"row 3, column 'nails': '{cell}' is not a finite number"):
        read_sales_file(write("sales.csv", f"nails\n 1.5e1 \n{cell}\n"))


def test_the_last_day_of_every_month_is_evenly_spaced(write):
    days = ["2025-12-31", "2026-01-31", "2026-02-28", "2026-03-31"]
    file = read_sales_file(write("sales.csv", "date,nails\n" + "".join(f"{day},1\n" for day in days)), dates="date")
    assert (file.periods, file.unit) == (days, "month")


def test_the_same_day_of_every_month_is_evenly_spaced(write):
    days = ["2025-12-01", "2026-01-01", "2026-02-01", "2026-03-01"]
    rows = "".join(f"{day},1\n" for day in days)
    assert read_sales_file(write("sales.csv", "date,nails\n" + rows), dates="date").periods == days
    with pytest.raises(ValueError, match=r"row 4, column 'date': '2026-03-01' follows '2026-01-01': 1 missing"):
        read_sales_file(
            write("sales.csv", "date,nails\n" + rows.replace("2026-02-01,1\n", "") + "2026-04-01,1\n"), dates="date"
        )


def test_costs_belong_to_items_and_the_season_is_seen_of_dates(write):
    path = write("sales.csv", SALES)
    calendar = {"date": 365.25}
    env = HybridInventoryEnv(demand=path, dates="date", calendar=calendar, horizon=2, costs=write("costs.csv", COSTS))
    assert env.params.holding_cost.tolist() == [1, 2]
    assert env.params.underage_cost.tolist() == [9, 8]
    angle = 2 * np.pi * (739621 + np.arange(2)[:, None] * 7) / 365.25
    np.testing.assert_allclose(env.calendar[0], np.hstack([np.sin(angle), np.cos(angle)]), atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"holding_cost": 3.0}, r"holding_cost = 3.0 is given beside the column 'holding_cost' of costs"),
        ({"demand": "poisson", "dates": None}, r"costs = .* belongs to the items of a file of sales, but demand is none"),
        ({"demand": "poisson", "costs": None}, r"dates = 'date' is of a file of sales"),
        ({"resampled": -1}, r"resampled must be an integer >= 0, got -1"),
        ({"resampled": 9, "split": "test", "split_shares": [0.3, 0.3, 0.4]}, r"resampled = 9 is for training"),
        ({"resampled": 9, "demand": "poisson", "dates": None, "costs": None}, r"resampled = 9 is of a file of sales"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(write, kwargs, message):
    given = {"demand": write("sales.csv", SALES), "dates": "date", "horizon": 2, "costs": write("costs.csv", COSTS)}
    with pytest.raises(ValueError, match=message):
        HybridInventoryEnv(**given | kwargs)


def test_the_seasonal_level_is_the_one_that_the_sales_were_drawn_from():
    rng = np.random.default_rng(0)
    week = np.arange(400)
    season = np.column_stack([np.sin(2 * np.pi * week / 52), np.cos(2 * np.pi * week / 52)])
    level = np.exp([3.0, 2.0] + season @ [[0.5, -0.3], [0.2, 0.6]])
    np.testing.assert_allclose(seasonal_level(rng.poisson(level), season), level, rtol=0.1)
    sold = rng.poisson(level)
    np.testing.assert_allclose(seasonal_level(sold, np.ones((400, 1))), np.tile(sold.mean(axis=0), (400, 1)), rtol=1e-3)
    assert np.isfinite(seasonal_level(np.zeros((400, 1)), season)).all()


def test_resampled_sales_keep_their_season_and_what_stays_together():
    week = np.arange(104)
    season = np.sin(2 * np.pi * week / 52)[:, None]
    level = np.exp(3 + 0.5 * season)
    ratio = np.where(week // 8 % 2, 1.2, 0.8)[:, None]
    rows = np.tile(np.arange(10, 60), (3000, 1))
    drawn = resample(level * ratio, season, rows)
    fitted = seasonal_level(level * ratio, season)
    np.testing.assert_allclose(drawn.mean(axis=0), fitted[10:60], rtol=0.03)
    relative = np.log(drawn / fitted[10:60])[:, :, 0]
    neighbours = np.corrcoef(relative[:, 20], relative[:, 21])[0, 1]
    assert 0.5 < neighbours < 0.95  # seven of eight neighbours are of one block, and most of those alike
    assert abs(np.corrcoef(relative[:, 20], relative[:, 40])[0, 1]) < 0.1


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_procurement_reads_the_file_as_joint_replenishment_does(write, split):
    weeks = np.datetime64("2024-01-01") + 7 * np.arange(40)
    rows = [f"{week},{k},{k % 7},{k % 5}" for k, week in enumerate(weeks)]
    common = {
        "demand": write("sales.csv", "\n".join(["date,week,nails,glue", *rows]) + "\n"),
        "costs": write("costs.csv", COSTS),
        "dates": "date",
        "calendar": {"week": 52},
        "history": 2,
        "horizon": 6,
        "split": split,
        "starting_stock": {"uniform": [0.0, 3.0]},
    }
    bought, ordered = HybridProcurementEnv(**common), HybridInventoryEnv(**common)
    (state, demand), (same, same_demand) = (
        env.sample_scenarios(20, torch.Generator().manual_seed(0)) for env in (bought, ordered)
    )
    torch.testing.assert_close(demand, same_demand, rtol=0, atol=0)
    torch.testing.assert_close(bought.observation(state), ordered.observation(same), rtol=0, atol=0)
    assert state.stock[:, 0].min() >= 0 and state.stock[:, 0].max() > 0
    check_hybrid_env(bought)
    with pytest.raises(TypeError, match="no argument 'lost_sales'"):
        HybridProcurementEnv(lost_sales=True)
