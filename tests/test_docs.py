"""The code of the documentation runs as it is written, and reaches what the text says."""

import fcntl
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import gymnasium as gym
import numpy as np
import pytest
from sphinx.util.inventory import InventoryFile

from tests.conftest import ENV_IDS

DOCS = Path(__file__).parent.parent / "docs"


def snippets(page: str = "own_env.md") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


SHORT = """
from sb3_hpo import HPO
learn = HPO.learn
HPO.learn = lambda self, total_timesteps=None, *args, **options: learn(self, 2 * self.n_steps * self.n_envs, *args, **options)
"""
"""Trainings of two iterations: that the code runs is tested here, what it reaches elsewhere."""
CONTEXT = {
    "getting_started.md": SHORT,
    "index.md": SHORT,
    "checkpoints.md": SHORT,
    "many_processes.md": SHORT,
    "backtest.md": "",
    "deploy.md": SHORT,
    "tensorboard.md": SHORT + "import numpy as np\n" + snippets()[0],
    "factors.md": "",
    "lookahead.md": "",
    "own_data.md": SHORT,
    "piecewise.md": "",
    "references.md": "",
    "zoo.md": "",
}
"""What the code of a page stands on. The code of own_env.md is run below, that of mixed_gradient.md in test_gradients.py."""
NEEDS = {"zoo.md": "ray"}
"""What is not among the dependencies of the tests; without it the code is only compiled."""
NOT_RUN = {"peer_envs.md"}
"""Environments of packages that do not install beside ours."""


def test_every_page_with_code_is_known_to_these_tests() -> None:
    pages = {path.name for path in DOCS.glob("*.md") if snippets(path.name)}
    assert pages == set(CONTEXT) | NOT_RUN | {"own_env.md", "mixed_gradient.md"}
    for page in NOT_RUN | set(NEEDS):
        compile("\n".join(snippets(page)), page, "exec")


@pytest.mark.parametrize("page", sorted(CONTEXT))
def test_the_code_of_a_page_runs_as_it_is_written(page: str, tmp_path: Path) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    script = tmp_path / "snippets.py"
    script.write_text("\n".join([CONTEXT[page], *snippets(page)]), encoding="utf-8")
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", "html", str(DOCS), str(folder)]
    with open(DOCS / "conf.py", "rb") as conf:
        fcntl.flock(conf, fcntl.LOCK_EX)  # every build writes docs/generated, and tests run in several processes
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_lists_what_is_public_and_nothing_else(site: Path) -> None:
    with open(site / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    listed: dict[str, set[str]] = defaultdict(set)
    for kind in ("py:class", "py:function", "py:data", "py:exception"):
        for name, item in inventory.get(kind, {}).items():
            page, _, anchor = item.uri.partition("#")
            if anchor == name:  # others are the same things, under the names of the modules that define them
                listed[Path(page).stem].add(name.removeprefix(f"{Path(page).stem}."))
    assert {"hybrid_envs", "hybrid_envs.solvers", "sb3_hpo"} <= set(listed)
    for module, names in listed.items():
        assert names == set(importlib.import_module(module).__all__), module


def test_every_environment_has_its_page(site: Path) -> None:
    for env_id in ENV_IDS:
        page = (site / "generated" / "environments" / f"{env_id}.html").read_text(encoding="utf-8")
        docstring = gym.spec(env_id).entry_point.__doc__  # type: ignore[union-attr]
        assert all(f"<h2>{heading}" in page for heading in re.findall(r"(?m)^ *## (.*)$", docstring)), env_id


def test_links_between_pages_and_within_them_lead_somewhere(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 30
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            target, _, anchor = unquote(link).partition("#")
            target = target.partition("?")[0]
            if re.match(r"[a-z]+:", target):
                continue
            reached = (path.parent / target).resolve() if target else path
            if not reached.exists() or (anchor and reached in ids and anchor not in ids[reached]):
                dead.append((path.name, link))
    assert not dead


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
