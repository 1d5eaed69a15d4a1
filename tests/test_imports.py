"""Who may import whom: the environments know nothing of the algorithms, the algorithms no named environment."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hybrid_envs", "sb3_hpo", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
}
ROOMS = ("dual_sourcing", "inventory", "moving", "portfolio", "procurement", "switched_lqr", "unit_commitment")
KNOWLEDGE = ("policies", "operator", "milp", "riccati", "bound", "figures")
"""Modules of a room that know its environment; the environment knows none of them."""


def test_importing_every_module_of_hybrid_envs_imports_no_algorithm():
    program = """
import importlib, pkgutil, sys
import hybrid_envs
names = [m.name for m in pkgutil.walk_packages(hybrid_envs.__path__, "hybrid_envs.")]
assert "hybrid_envs.core" in names, names
for name in names:
    importlib.import_module(name)
print([name for name in sys.modules if name.split(".")[0] in ("stable_baselines3", "sb3_contrib", "sb3_hpo", "rl_zoo3")])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_hybrid_envs_does_not_import_matplotlib():
    program = "import hybrid_envs, sys; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def test_sb3_hpo_imports_the_contract_of_hybrid_envs_and_no_named_environment():
    contract = ("backtest", "checks", "core", "evaluation", "factors", "spaces", "vector", "wrappers")
    allowed = {f"hybrid_envs.{module}" for module in contract}
    files = sorted((ROOT / "sb3_hpo").rglob("*.py"))
    imported = {(path.name, name) for path in files for name in imported_modules(path) if name.split(".")[0] == "hybrid_envs"}
    assert imported, "sb3_hpo imports nothing of hybrid_envs, so this test checks nothing"
    assert {(path, name) for path, name in imported if name not in allowed} == set()


def test_rl_zoo3_is_imported_by_the_zoo_modules_alone():
    importers = {
        path.name
        for path in sorted((ROOT / "sb3_hpo").rglob("*.py"))
        for name in imported_modules(path)
        if name.split(".")[0] == "rl_zoo3"
    }
    assert importers == {"commands.py", "manager.py", "saved_run.py"}


def imports() -> dict[str, set[str]]:
    """Of every module, the modules of the project that it imports: also inside functions, also for its types alone."""
    return {name: set(imported_modules(path)) & set(MODULES) for name, path in MODULES.items()}


def test_no_modules_import_each_other_in_a_circle():
    graph = imports()
    assert sum(map(len, graph.values())) > 100, "few imports were found, so this test checks little"
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(graph | {"hybrid_envs.checks": {"hybrid_envs.inventory.policies"}}).prepare()


def test_no_environment_knows_its_solver_or_its_picture_and_the_contract_knows_no_problem():
    graph = imports()
    for room in ROOMS:
        reached, found = set(), {f"hybrid_envs.{room}.env"}
        while found:
            reached |= found
            found = {name for module in found for name in graph[module]} - reached
        knowing = {name for name in reached if name.rsplit(".")[-1] in KNOWLEDGE}
        assert not knowing, f"{room}: {knowing}"
    problems = tuple(f"hybrid_envs.{room}" for room in ROOMS)
    for name in graph:
        if name.count(".") == 1 and name.startswith("hybrid_envs.") and name not in (*problems, "hybrid_envs.solvers"):
            assert not {imported for imported in graph[name] if imported.startswith(problems)}, name


def test_every_package_says_what_is_public():
    for name, path in MODULES.items():
        if path.name == "__init__.py" and not name.startswith("benchmarks"):
            module = __import__(name, fromlist=["__all__"])
            assert module.__all__ == sorted(set(module.__all__)), name
            assert all(hasattr(module, public) for public in module.__all__), name
    for package in ("hybrid_envs", "sb3_hpo"):
        assert (ROOT / package / "py.typed").is_file()
