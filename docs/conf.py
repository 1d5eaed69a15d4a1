"""How the site is built: ``make docs``. The pages of environments and of the API are written here, from the docstrings."""

import csv
import importlib
import inspect
import re
import shutil
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

project = "hybrid-rl-suite"
author = copyright = "the hybrid-rl-suite authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx-mathjax-offline"]  # mathematics without a server
exclude_patterns = ["environments"]  # parts of generated pages
nitpicky = True
nitpick_ignore = [  # bare names in docstrings inherited from Gymnasium and torch, and a name imported for type checking alone
    ("py:meth", "step"),
    *(("py:attr", name) for name in ("metadata", "np_random_seed", "observation_space", "render_mode")),
    *(("py:class", name) for name in ("Figure", "Module")),
    ("py:exc", "HybridEnvError"),  # of check_hybrid_env: an AssertionError
]
html_theme = "furo"
html_title = "hybrid-rl-suite"
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}

GENERATED = HERE / "generated"
API = {
    "hybrid_envs": "the environments, their contract, and what is known of each",
    "hybrid_envs.factors": "the factors of a regime, and the layout of their choices",
    "hybrid_envs.solvers": "reference policies, bounds and evaluation",
    "hybrid_envs.piecewise": "problems that jump in a Box action, rewritten as hybrid ones",
    "hybrid_envs.wrappers": "other views: of hybrid environments as flat or clipped ones, of those of peers as hybrid ones",
    "sb3_hpo": "the algorithms",
    "sb3_hpo.arguments": "what their arguments have to be",
    "sb3_hpo.backtest": "from a file of sales to a judged policy and its report",
    "sb3_hpo.callbacks": "what is logged during training",
    "sb3_hpo.checkpoint": "checkpoints from which a killed run goes on exactly",
    "sb3_hpo.credit": "which factor of a regime earned what",
    "sb3_hpo.export": "a policy as one graph, for programs without Python",
    "sb3_hpo.gradients": "exact gradients, estimators, and their quality",
    "sb3_hpo.lookahead": "search at decision time",
    "sb3_hpo.losses": "the two equations",
    "sb3_hpo.networks": "what the networks are made of",
    "sb3_hpo.optimizers": "Muon beside Adam",
    "sb3_hpo.policies": "the policies",
    "sb3_hpo.ranks": "several processes that compute what one would",
    "sb3_hpo.safe_files": "models as plain data, without pickle",
    "sb3_hpo.zoo": "the RL Zoo's commands",
}
"""The public modules; what their ``__all__`` lists is the public surface."""


def write_environments() -> None:
    """One page per registered environment: its animation, its equations, its docstring and its published figures."""
    hybrid_envs = importlib.import_module("hybrid_envs")
    folder = GENERATED / "environments"
    folder.mkdir(parents=True)
    env_ids = sorted(
        env_id
        for env_id, spec in gym.registry.items()
        if isinstance(spec.entry_point, type) and issubclass(spec.entry_point, hybrid_envs.HybridEnv)
    )
    for env_id in env_ids:
        env_class: Any = gym.spec(env_id).entry_point
        parts = [
            f"# {env_id}",
            f'`gymnasium.make("{env_id}")`, class {{py:class}}`hybrid_envs.{env_class.__name__}`',
            f"![an episode under the reference policy](../../media/{env_id}.gif)",
            "## In one formula",
            (HERE / "environments" / f"{env_id}.md").read_text(encoding="utf-8"),
            to_markdown(inspect.getdoc(env_class) or ""),
            "## Published figures",
            published(env_id),
            "## Learning curve",
            f"![cost of HPO's policy by environment steps](../../../benchmarks/results/learning_curve_{env_id}.png)",
            "Seed 0 on a quarter of the zoo config's steps: a look, not a result. The untrained policy may cost more than the "
            "picture shows. The command is `python -m benchmarks.learning_curves`.",
        ]
        (folder / f"{env_id}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    toc = "\n".join(env_ids)
    cards = "\n\n".join(
        f"```{{figure}} ../../media/{env_id}.gif\n:alt: an episode\n\n[{env_id}]({env_id}.md)\n```" for env_id in env_ids
    )
    (folder / "index.md").write_text(
        "# Environments\n\nEvery animation shows an episode under the reference policy.\n\n"
        f"`````{{container}} gallery\n{cards}\n`````\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n",
        encoding="utf-8",
    )


def published(env_id: str) -> str:
    """
    :return: the rows of ``benchmarks/results/suite.csv`` on one environment
    """
    with open(ROOT / "benchmarks" / "results" / "suite.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["env"] == env_id]
    lines = ["| arguments | reference policy | its cost | HPO | HybridPPO, same steps |", "|---|---|---|---|---|"]
    for row in rows:
        hpo, ppo = (
            f"{float(row[f'{algo}_cost']):,.3f} ± {float(row[f'{algo}_half_width']):,.3f}" for algo in ("hpo", "hybrid_ppo")
        )
        policy = f"{{py:class}}`~hybrid_envs.solvers.{row['reference_policy']}`"
        lines.append(f"| {row['arguments']} | {policy} | {float(row['reference']):.3f} | {hpo} | {ppo} |")
    lines += ["", "Cost on 2,000 held-out scenarios: mean over three seeds and its 95 % interval."]
    lines += ["[How it was measured](../../suite.md), and [what is proven of the reference](../../references.md)."]
    return "\n".join(lines)


def to_markdown(docstring: str) -> str:
    """
    :param docstring: Markdown headings and paragraphs, with the fields and roles of reST
    :return: MyST Markdown
    """
    text = re.sub(r"(?m)^:param (\w+): (.*(?:\n[ ]{4}.*)*)", lambda m: f"`{m[1]}`\n: {join(m[2])}\n", docstring)
    text = re.sub(r"(?m)^:raises (\w+): (.*(?:\n[ ]{4}.*)*)", lambda m: f"raises `{m[1]}`\n: {join(m[2])}\n", text)
    text = re.sub(r":(class|meth|func|data|mod):`(~?)\.?([^`]+)`", lambda m: f"`{m[3].split('.')[-1]}`", text)
    return text.replace("``", "`") + "\n"


def join(lines: str) -> str:
    """Continued lines of a field as one line."""
    return " ".join(line.strip() for line in lines.splitlines())


def write_api() -> None:
    """One page per public module, with what its ``__all__`` lists."""
    folder = GENERATED / "api"
    folder.mkdir(parents=True)
    rows = []
    for name, purpose in API.items():
        module = importlib.import_module(name)
        page = [f"# {name}", "", inspect.getdoc(module) or "", "", "```{eval-rst}"]
        for public in module.__all__:
            thing = getattr(module, public)
            kind = "class" if isinstance(thing, type) else "function" if inspect.isroutine(thing) else "data"
            page += [f".. auto{kind}:: {name}.{public}"]
            if isinstance(thing, dict):
                page += ["   :no-value:"]  # a table is read where it is written
            page += [""]
        (folder / f"{name}.md").write_text("\n".join([*page, "```", ""]), encoding="utf-8")
        rows.append(f"- [`{name}`]({name}.md): {purpose}")
    toc = "\n".join(API)
    (folder / "index.md").write_text(
        "# API\n\n" + "\n".join(rows) + f"\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n", encoding="utf-8"
    )


def shorten(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """An environment's docstring is Markdown and has a page of its own: its API entry keeps the arguments."""
    if any(line.startswith("## ") for line in lines):
        start = next((i for i, line in enumerate(lines) if line.startswith(":param")), len(lines))
        end = next((i for i, line in enumerate(lines) if i > start and line.startswith("## ")), len(lines))
        lines[:] = ["What it models is on its page under Environments.", "", *lines[start:end]]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element) -> Element | None:
    """
    A docstring or signature names a thing by the module that defines it; the thing stands on the page of the package that
    exports it. What exists and has no page, such as ``numpy.ndarray``, is text. What does not exist remains a warning.
    """
    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].split(".")
    depth = max((n for n in range(len(parts)) if ".".join(parts[:n]) in sys.modules), default=0)
    objects = env.domains.python_domain.objects
    places = {(it.docname, it.node_id) for name, it in objects.items() if f".{name}".endswith("." + ".".join(parts[depth:]))}
    if len(places) == 1:
        docname, anchor = places.pop()
        return make_refnode(app.builder, node["refdoc"], docname, anchor, text)
    try:
        attrgetter(".".join(parts[depth:]))(sys.modules[".".join(parts[:depth])])
    except (KeyError, AttributeError):
        return None
    return text


def setup(app: Sphinx) -> None:
    shutil.rmtree(GENERATED, ignore_errors=True)
    write_environments()
    write_api()
    app.connect("autodoc-process-docstring", shorten)
    app.connect("missing-reference", resolve)
