"""The report: one HTML file that a manager can read, with its figures inside."""

import io
from importlib.resources import files
from pathlib import Path
from typing import Any

from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import policy_figure
from sb3_hpo.backtest.judge import Judgement
from sb3_hpo.callbacks import PolicyFigureCallback
from sb3_hpo.checkpoint.files import write_whole
from sb3_hpo.export.files import versions
from sb3_hpo.hybrid_ppo import HybridPPO

TEMPLATE = "report.html.j2"


def write_report(
    path: Path, judgement: Judgement, model: HybridPPO, facts: dict[str, Any], steps: list[int], costs: list[float]
) -> None:
    """
    Write one HTML file that needs no other file and no network. Needs the extra ``backtest``.

    :param path: of the file
    :param judgement: what was found on the test part
    :param model: the trained policy, with its environment
    :param facts: the same in figures, as in ``results.json``
    :param steps: of training, at which it was played through the validation part
    :param costs: there
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    from sb3_hpo.backtest.figures import figures

    config = {"responsive": True, "displaylogo": False}
    drawn = {
        name: figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=config)
        for name, figure in figures(judgement, steps, costs).items()
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"money": money, "percent": percent}
    template = environment.from_string(files("sb3_hpo.backtest").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    page = template.render(
        facts=facts,
        figures=drawn,
        picture=picture(judgement.problem.env, model),
        plotly=get_plotlyjs(),
        versions=versions(),
        env=judgement.problem.env,
    )
    write_whole(path, page.encode())


def picture(env: HybridEnv, model: HybridPPO) -> str:
    """
    :return: what the policy does, in the problem's own terms, as SVG; empty where there is no such picture
    """
    watcher = PolicyFigureCallback(env)
    watcher.model = model
    figure = policy_figure(env, watcher.choices)
    if figure is None:
        return ""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def money(value: float) -> str:
    """
    :return: with three digits at least, and no more than a reader needs
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def percent(share: float) -> str:
    """
    :return: of a share
    """
    return f"{100 * share:.1f} %"
