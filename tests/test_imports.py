"""Who may import whom: the environments know nothing of the algorithms, the algorithms no named environment."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
            if node.module == "hybrid_envs":
                yield from (f"hybrid_envs.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_sb3_hpo_imports_the_contract_of_hybrid_envs_and_no_named_environment():
    allowed = {f"hybrid_envs.{module}" for module in ("checks", "core", "spaces", "vector", "wrappers", "evaluation")}
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
    assert importers == {"zoo.py", "zoo_manager.py"}
