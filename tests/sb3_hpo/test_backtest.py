"""``sb3-hpo backtest``: from a file of sales to a report, through a kill, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest
from scipy import stats

from hybrid_envs.demand import synthetic_sales
from sb3_hpo import HPO
from sb3_hpo.backtest import estimate
from sb3_hpo.backtest.report import money
from sb3_hpo.safe_files import load_safe
from sb3_hpo.zoo import main
from tests.sb3_hpo.browser import CHROMIUM, Browser

ITEMS = ["nails", "<b>glue</b>"]
"""The second one must not become part of the page."""
SMALL = ["--env-kwargs", "horizon:12", "history:2", "resampled:0", "-params", "n_envs:8", "policy_kwargs:dict(net_arch=[8])"]
STEPS = 12 * 8


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    sales = synthetic_sales(80, 2, mean=np.array([6.0, 20.0]), season=0.5, seed=1).astype(int)
    days = np.datetime64("2024-01-01") + 7 * np.arange(80)
    lines = [",".join(["date", "week", *ITEMS])]
    lines += [f"{day},{1 + k % 52},{row[0]},{row[1]}" for k, (day, row) in enumerate(zip(days, sales, strict=True))]
    (folder / "sales.csv").write_text("\n".join(lines) + "\n")
    (folder / "costs.csv").write_text(f"item,holding_cost,underage_cost\n{ITEMS[0]},1,9\n{ITEMS[1]},0.5,6\n")
    return folder


def command(files, folder, *further, iterations=12):
    data = [
        "--data",
        str(files / "sales.csv"),
        "--costs",
        str(files / "costs.csv"),
        "--dates",
        "date",
        "--calendar",
        "week:52",
    ]
    return ["backtest", *data, "-n", str(iterations * STEPS), "-o", str(folder), *SMALL, *further]


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """The folder of a backtest that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "backtest"
    main(command(files, folder))
    return folder


def results(folder):
    facts = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in facts.items() if name != "seconds"}


def test_it_tells_what_it_found(whole, files):
    facts = results(whole)
    assert facts["unit"] == "week" and facts["split"]["test"] == {"first": "2025-03-24", "last": "2025-07-07", "periods": 16}
    ours, *others = facts["policies"]
    assert ours["name"] == "HPO" and {"forecast and (R, s, S)", "periodic (R, S)"} <= {one["name"] for one in others}
    assert others == sorted(others, key=lambda one: one["validation_cost"]) and facts["reference"] == others[0]["name"]
    for one in facts["policies"]:
        assert one["cost"]["mean"] >= facts["bound"] and 0 <= one["service"] <= 1
        np.testing.assert_allclose(sum(one["costs"].values()), one["cost"]["mean"])
    np.testing.assert_allclose(facts["saving"]["mean"], others[0]["cost"]["mean"] - ours["cost"]["mean"])
    np.testing.assert_allclose(sum(item["cost"] for item in facts["items"]), ours["cost"]["mean"])


def test_the_policy_is_there_to_be_used(whole):
    model = load_safe(whole / "policy.safetensors")
    assert isinstance(model, HPO)
    session = onnxruntime.InferenceSession(whole / "policy.onnx")
    observation = np.zeros((1, *model.observation_space.shape), dtype=np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: observation})
    assert int(outputs[0][0]) == model.predict(observation, deterministic=True)[0][0][0]
    card = (whole / "policy.md").read_text()
    assert "2025-03-24 to 2025-07-07 (16 weeks)" in card and "one stretch of recorded sales" in card


def test_with_margins_it_tells_the_profit(files, tmp_path):
    folder = tmp_path / "backtest"
    main([*command(files, folder, iterations=2), "--env-kwargs", *SMALL[1:4], "lost_sales:True", "margin:4.0"])
    facts, page = results(folder), (folder / "report.html").read_text()
    ours, costs = facts["policies"][0], facts["policies"][0]["costs"]
    sold = facts["earnings"] - costs["lost margin"]
    profit = sold - costs["holding"] - costs["shortage"] - costs["orders"]
    assert profit == pytest.approx(facts["earnings"] - ours["cost"]["mean"])
    assert f"<b>profit</b> was <b>{money(profit)}</b>" in page


def test_the_test_part_is_used_once(whole, files, capsys):
    before = (whole / "report.html").read_bytes()
    main(command(files, whole))
    assert "is there already: the test part is used once" in capsys.readouterr().out
    assert (whole / "report.html").read_bytes() == before


def test_after_a_kill_it_goes_on_to_the_same_result(whole, files, tmp_path):
    folder = tmp_path / "backtest"
    arguments = [sys.executable, "-m", "sb3_hpo.zoo", *command(files, folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*.pt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    subprocess.run(arguments, env=environment, check=True, timeout=300, capture_output=True)
    assert results(folder) == results(whole)


RANGE = "document.getElementById('figure-cumulative').layout.xaxis.range.join()"
"""What part of time the figure shows."""


def drag(browser, selector):
    """With the mouse over the middle half of an element."""
    browser.evaluate(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
    rect = browser.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
    moves = [("mousePressed", 0.25), ("mouseMoved", 0.5), ("mouseMoved", 0.75), ("mouseReleased", 0.75)]
    for kind, share in moves:
        place = {"x": rect["x"] + share * rect["width"], "y": rect["y"] + 0.5 * rect["height"]}
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_the_report_in_a_browser(whole, tmp_path):
    facts = results(whole)
    with Browser(tmp_path / "profile") as browser:
        browser.call("Network.enable")
        browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        browser.open((whole / "report.html").as_uri())
        browser.wait_for("document.querySelectorAll('.main-svg').length >= 5")
        for name in ("money", "cumulative", "stock", "savings", "training"):
            drawn = f"all(document.getElementById('figure-{name}'), 'path').some((p) => p.getBoundingClientRect().width > 20)"
            browser.wait_for(drawn)
        assert browser.evaluate("all(document, '.picture svg path').length") > 10
        assert f"{facts['policies'][0]['cost']['mean']:,.0f}" in browser.evaluate(
            "document.querySelector('.verdict').innerText"
        )
        assert browser.evaluate("all(document, '#items tbody tr').map((row) => row.cells[0].innerText)") == ITEMS
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        # The menu shows the other item, and people can zoom.
        shown = "document.getElementById('figure-stock').data.map((trace) => trace.visible)"
        assert browser.evaluate(shown) == [True] * 5 + [False] * 5
        button = "document.getElementById('figure-stock').layout.updatemenus[0].buttons[1]"
        browser.evaluate(f"Plotly.restyle('figure-stock', ...{button}.args)")
        browser.wait_for(f"{shown}.join() === '{','.join(['false'] * 5 + ['true'] * 5)}'")
        browser.screenshot(tmp_path / "report.png")
        before = browser.evaluate(RANGE)
        drag(browser, "#figure-cumulative .nsewdrag")
        browser.wait_for(f"{RANGE} !== '{before}'")


def complaint(capsys, arguments):
    """The one line on stderr with which the command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            ["--env", "HybridInventry-v0"],
            "there is no environment 'HybridInventry-v0'; the nearest known name is 'HybridInventory-v0'",
        ),
        (["--env", "HybridMoving-v0"], "HybridMoving-v0 has no backtest; environments with one are HybridInventory-v0"),
        (["--data", "nowhere.csv"], "--data: there is no file 'nowhere.csv'"),
        (["--costs", "nowhere.csv"], "--costs: there is no file 'nowhere.csv'"),
        (["--calendar", "weak:52"], "calendar column 'weak' is there 0 times"),
        (["--dates", "day"], "dates column 'day' is there 0 times"),
        (["--split", "0.1", "0.45", "0.45"], "fewer than horizon = 12"),
        (["--split", "0.8", "0.1", "0.1"], "the part 'validation' has 8 periods of 80"),
        (["--split", "0.5", "0.5", "0.5"], "split_shares must be three numbers that add up to 1"),
        (["--env-kwargs", "lead_tme:3"], "lead_tme"),
        (["--env-kwargs", "split:'test'"], "'split' is set by the flag --split"),
        (["-params", "n_epoch:3"], "n_epoch"),
        (["-params", "gamma:3"], "gamma"),
        (["-n", "0"], "--n-timesteps must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(files, tmp_path, capsys, further, message):
    assert message in complaint(capsys, [*command(files, tmp_path / "backtest"), *further])
    assert not (tmp_path / "backtest" / "checkpoints").exists()


def test_a_folder_of_another_run_is_left_alone(whole, files, tmp_path, capsys):
    assert "training.seed was 0 there and is 1 here" in complaint(capsys, command(files, whole, "--seed", "1"))
    (tmp_path / "thesis.txt").touch()
    assert "holds something else than a backtest" in complaint(capsys, command(files, tmp_path))


def test_intervals_are_those_of_the_means_of_blocks():
    series = np.random.default_rng(0).normal(size=40).cumsum()
    means = series.reshape(5, 8).mean(axis=1)
    low, high = stats.t.interval(0.95, 4, loc=means.mean(), scale=means.std(ddof=1) / np.sqrt(5))
    np.testing.assert_allclose(estimate(series, 8), (series.mean(), low, high))


def test_intervals_hold_nineteen_times_in_twenty_though_weeks_depend_on_each_other():
    rng, inside, runs = np.random.default_rng(1), 0, 2000
    for noise in rng.normal(size=(runs, 200)):
        series = np.zeros(80)
        value = 0.0
        for t, shock in enumerate(noise[:120]):
            value = 0.5 * value + shock
            if t >= 40:
                series[t - 40] = value
        found = estimate(series, 8)
        inside += found.low <= 0 <= found.high
    assert 0.92 < inside / runs < 0.97
