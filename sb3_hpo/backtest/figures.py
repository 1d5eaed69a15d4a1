"""The figures of a report, which people can zoom: drawn with plotly."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sb3_hpo.backtest.judge import Judgement

OURS, THEIRS, DEMAND = "#1f5fa8", "#d9822b", "#8a8f98"
KINDS = ("#1f5fa8", "#c0392b", "#7aa37a", "#b58900")
"""Colours of the trained policy, of the reference, of demand; of the kinds of cost in their order."""


def figures(judgement: Judgement, steps: list[int], costs: list[float]) -> dict[str, go.Figure]:
    """
    :param judgement: what was found on the test part
    :param steps: of training, at which the policy was played through the validation part
    :param costs: there
    :return: figures by name
    """
    return {
        "money": money(judgement),
        "cumulative": cumulative(judgement),
        "savings": savings(judgement),
        "stock": stock(judgement),
        "training": training(judgement, steps, costs),
    }


def money(judgement: Judgement) -> go.Figure:
    """Where the money went: the kinds of cost of every policy, side by side."""
    names = [verdict.name for verdict in judgement.verdicts]
    kinds = list(judgement.policy.ledger.costs)
    figure = go.Figure(
        [
            go.Bar(
                y=names,
                x=[float(verdict.ledger.costs[kind].sum(axis=2).mean()) for verdict in judgement.verdicts],
                name=kind,
                orientation="h",
                marker_color=colour,
                hovertemplate="%{x:,.1f}",
            )
            for kind, colour in zip(kinds, KINDS, strict=False)
        ]
    )
    line = {"dash": "dash", "color": DEMAND}
    ends = [judgement.bound] * 2
    figure.add_trace(go.Scatter(x=ends, y=[names[0], names[-1]], mode="lines", name="perfect information", line=line))
    figure.update_layout(barmode="stack", xaxis_title=f"cost per {judgement.problem.unit}", yaxis_autorange="reversed")
    return _styled(figure, 130 + 42 * len(names))


def cumulative(judgement: Judgement) -> go.Figure:
    """The cost so far, mean over the runs."""
    periods = judgement.problem.periods("test")
    figure = go.Figure(
        [
            go.Scatter(
                x=periods,
                y=np.cumsum(verdict.ledger.cost.mean(axis=0).sum(axis=1)).round(2).tolist(),
                name=verdict.name,
                line_color=colour,
                hovertemplate="%{y:,.0f}",
            )
            for verdict, colour in ((judgement.policy, OURS), (judgement.reference, THEIRS))
        ]
    )
    figure.update_layout(yaxis_title="cost so far", hovermode="x unified")
    return _styled(figure, 320)


def savings(judgement: Judgement) -> go.Figure:
    """What the trained policy saves against the reference, item by item, with intervals."""
    saved = judgement.saving_of_items()
    order = np.argsort([saving.mean for saving in saved])
    means = [saved[k].mean for k in order]
    figure = go.Figure(
        go.Scatter(
            x=means,
            y=[judgement.problem.items[k] for k in order],
            mode="markers",
            marker={"color": OURS, "size": 9},
            error_x={"array": [saved[k].high - saved[k].mean for k in order], "color": DEMAND, "thickness": 1.5},
            hovertemplate="%{y}: %{x:,.2f}<extra></extra>",
        )
    )
    figure.add_vline(x=0.0, line_color=DEMAND)
    figure.update_layout(xaxis_title=f"saved per {judgement.problem.unit} against: {judgement.reference.name}")
    figure.update_yaxes(type="category", tickmode="linear")
    return _styled(figure, 120 + 18 * len(order))


def stock(judgement: Judgement) -> go.Figure:
    """Stock, demand and orders of one item at a time, in the first of the runs; a menu chooses the item."""
    periods = judgement.problem.periods("test")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.06)
    pairs = ((judgement.policy, OURS), (judgement.reference, THEIRS))
    per_item = 0
    for k in range(len(judgement.problem.items)):
        common: dict[str, Any] = {"x": periods, "visible": k == 0}
        before = len(figure.data)
        demand = judgement.policy.ledger.demand[:, k].round(2).tolist()
        figure.add_trace(go.Scatter(y=demand, name="demand", line={"color": DEMAND, "dash": "dot"}, **common), 1, 1)
        for verdict, colour in pairs:
            held = verdict.ledger.on_hand[0, :, k].round(2).tolist()
            figure.add_trace(go.Scatter(y=held, name=f"stock, {verdict.name}", line_color=colour, **common), 1, 1)
        for verdict, colour in pairs:
            sent = verdict.ledger.ordered[0, :, k].round(2).tolist()
            figure.add_trace(go.Bar(y=sent, name=f"ordered, {verdict.name}", marker_color=colour, **common), 2, 1)
        per_item = len(figure.data) - before
    buttons = [
        {"label": item, "method": "restyle", "args": [{"visible": [k == n // per_item for n in range(len(figure.data))]}]}
        for k, item in enumerate(judgement.problem.items)
    ]
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.18, "yanchor": "bottom", "direction": "down"}
    figure.update_layout(updatemenus=[menu], hovermode="x unified", barmode="group")
    figure.update_yaxes(title_text="at the start", row=1, col=1)
    figure.update_yaxes(title_text="ordered", row=2, col=1)
    return _styled(figure, 520, top=110)


def training(judgement: Judgement, steps: list[int], costs: list[float]) -> go.Figure:
    """The cost on the validation part while the policy was trained, and that of the best reference there."""
    curve = go.Scatter(x=steps, y=costs, mode="lines+markers", name=judgement.policy.name, line_color=OURS)
    best = int(np.argmin(costs))
    chosen = go.Scatter(x=[steps[best]], y=[costs[best]], mode="markers", name="chosen", marker={"color": OURS, "size": 13})
    figure = go.Figure([curve, chosen])
    figure.add_hline(
        y=judgement.reference.validation_cost,
        line_color=THEIRS,
        annotation_text=judgement.reference.name,
        annotation_position="top right",
    )
    high = max(1.6 * judgement.reference.validation_cost, 1.2 * min(costs))
    figure.update_layout(
        xaxis_title="simulated periods of training",
        yaxis={"title": f"cost per {judgement.problem.unit} on validation", "range": [0, high]},
    )
    return _styled(figure, 320)


def _styled(figure: go.Figure, height: int, top: int = 40) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": top, "b": 10},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
