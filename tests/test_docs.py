"""The code of the documentation runs as it is written, and reaches what the text says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "own_env.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_an_environment_of_ones_own_takes_twenty_lines() -> None:
    problem = snippets()[0].split("import HybridEnv")[1].splitlines()[1:]
    assert len([line for line in problem if line.strip()]) <= 20


def test_the_page_on_own_environments_trains_to_the_optimum_it_computes(tmp_path: Path) -> None:
    script = tmp_path / "snippets.py"
    script.write_text("\n".join([*snippets(), "print(optimum, cost)"]), encoding="utf-8")
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    optimum, cost = map(float, result.stdout.split()[-2:])

    # the same by enumeration: demand on a grid, every order quantity tried
    demand, stock = np.arange(0.5, 100), np.arange(0.5, 100)
    left = np.arange(0.5, 200)[:, None] - demand
    facing = np.maximum(left, -9 * left).mean(axis=1)  # by papers at hand, 0.5, 1.5, ...
    best = np.mean([min(facing[y], 64 + facing[y:].min()) for y in range(len(stock))])
    np.testing.assert_allclose(optimum, best, rtol=2e-3)
    assert cost < 1.01 * best
