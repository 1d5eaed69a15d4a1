"""From a file of sales to a policy judged on periods that it never saw, and a report about it (docs/backtest.md)."""

from sb3_hpo.backtest.judge import Estimate, Judgement, Verdict, estimate, judge
from sb3_hpo.backtest.report import write_report
from sb3_hpo.backtest.run import REPORT, Plan, run_backtest

__all__ = ["REPORT", "Estimate", "Judgement", "Plan", "Verdict", "estimate", "judge", "run_backtest", "write_report"]
