"""From a file of sales to a policy judged on periods that it never saw, and a report about it."""

from sb3_hpo.backtest.judge import Estimate, Judgement, Verdict, estimate, judge
from sb3_hpo.backtest.report import write_report
from sb3_hpo.backtest.run import REPORT, Plan, run_backtest

__all__ = [  # noqa: RUF022  in the order of sorted()
    "Estimate",
    "Judgement",
    "Plan",
    "REPORT",
    "Verdict",
    "estimate",
    "judge",
    "run_backtest",
    "write_report",
]
