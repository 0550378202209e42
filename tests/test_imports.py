"""Imports go downwards only: which package may import which (docs/architecture.md), read from the source."""

import ast
from pathlib import Path

import pytest

import rl_likelihood

ROOT = Path(rl_likelihood.__file__).parent
PACKAGE = "rl_likelihood"

GROUND = {"errors", "shapes", "fields", "files", "mesh", "progress"}
# Lowest first. A package may import what stands in its row; an import that goes up is in no row.
ALLOWED = {
    "errors": set(),
    "shapes": set(),
    "fields": {"errors"},
    "files": {"errors"},
    "mesh": {"errors"},
    "progress": set(),
    "rewards": {"errors", "shapes", "fields"},
    "grading": {"errors", "shapes"},
    "data": {"errors", "shapes", "fields", "files"},
    "envs": {"grading", "errors", "shapes", "fields"},
    "datasets": {"data", "envs", "grading", "errors", "shapes", "fields", "progress"},
    "model": GROUND,
    "weights": {"model"} | GROUND,
    "sampler": {"model"} | GROUND,
    "learner": {"model", "rewards"} | GROUND,
    "presets": set(),
    "search_settings": {"errors", "fields"},
}
ALLOWED["settings"] = set(ALLOWED)  # of every package below
ALLOWED["tables"] = set(ALLOWED)
ALLOWED["checks"] = set(ALLOWED)
ALLOWED["config"] = set(ALLOWED)
ALLOWED["runtime"] = {"model", "learner", "sampler", "weights", "settings", "tables", "config"} | GROUND
UPPER = ("run_model", "task", "rollouts", "evaluation", "planning", "report", "search", "training", "sweeps", "cli")
for package in UPPER:
    ALLOWED[package] = set(ALLOWED)  # whatever stands above this row
ALLOWED["api"] = set(ALLOWED) | {"train"}  # training from Python is the main's function
MAINS = {"train", "evaluate", "sweep", "plan", "export", "winrate", "reward_model", "rubrics", "reer", "distill"}
EVERYTHING = set(ALLOWED)  # but no main: nobody imports one
ALLOWED |= dict.fromkeys(MAINS, EVERYTHING)
# Old import paths that keep working (docs/architecture.md, "Contracts"): they do nothing but import the new one.
OLD_PATHS = {"model/weights.py": "weights", "data/prepare.py": "datasets"}


def imported_modules(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import anywhere in the source of `module`, inside functions too.

    `from a import b` gives a.b: whether b is a module or a value, its package is the same. Names given to
    import_module or __import__ as strings count.
    """
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                parts = module.split(".")
                base = parts[: len(parts) - node.level + is_package] + base
            imported += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                imported.append((node.lineno, str(node.args[0].value)))
    return imported


def package_of(dotted: str) -> str | None:
    """Package of a module or of a name in it; None for what is not ours or, like __version__, is in none."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and not parts[1].startswith("__") else None


def forbidden(source: str, path: Path) -> list[str]:
    """file:line and a sentence for each import of `source`, the file `path` of the package, that is not allowed."""
    relative = path.relative_to(ROOT)
    parts = [PACKAGE, *relative.with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    importer = package_of(module)
    if importer is not None and importer not in ALLOWED:
        return [f"{relative}:1: {importer} is not listed; add it to docs/architecture.md, and what it may import here"]
    allowed = ALLOWED.get(importer, set()) | {OLD_PATHS.get(str(relative))}
    wrong = {  # a set: `from a import b, c` is one import of a
        (line, imported)
        for line, name in imported_modules(source, module, is_package)
        if (imported := package_of(name)) not in (None, importer, *allowed)
    }
    return [f"{relative}:{line}: {importer or PACKAGE} may not import {imported}" for line, imported in sorted(wrong)]


def test_every_import_is_allowed():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 10
    wrong = [sentence for path in files for sentence in forbidden(path.read_text(), path)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", OLD_PATHS)
def test_an_old_path_only_imports_the_new_one(path):
    assert len((ROOT / path).read_text().splitlines()) <= 8


@pytest.mark.parametrize(
    "path, source, line, imported",
    [
        ("rewards/x.py", "import jax\nfrom rl_likelihood.model.head import token_stats", 2, "model"),
        ("rewards/x.py", "import rl_likelihood.learner.step as s", 1, "learner"),
        ("rewards/x.py", "from rl_likelihood import mesh", 1, "mesh"),
        ("rewards/x.py", "from ..data import sources", 1, "data"),
        ("rewards/__init__.py", "from ..data import sources", 1, "data"),
        ("rewards/x.py", "from .. import sampler", 1, "sampler"),
        ("model/x.py", "def f():\n    if True:\n        import rl_likelihood.report.plots", 3, "report"),
        ("data/x.py", "import importlib\nimportlib.import_module('rl_likelihood.runtime.checkpoint')", 2, "runtime"),
        ("shapes.py", "from rl_likelihood import mesh", 1, "mesh"),
        ("learner/x.py", "from rl_likelihood.config import Settings", 1, "config"),
        ("config.py", "from rl_likelihood import train", 1, "train"),
        ("evaluate.py", "from rl_likelihood.train import main", 1, "train"),
        ("__init__.py", "from rl_likelihood.model import decoder", 1, "model"),
    ],
)
def test_a_forbidden_import_is_named_by_file_and_line(path, source, line, imported):
    (sentence,) = forbidden(source, ROOT / path)
    assert sentence.startswith(f"{path}:{line}: ") and sentence.endswith(f"may not import {imported}")


@pytest.mark.parametrize(
    "path, source",
    [
        ("rewards/x.py", "import jax, os\nfrom rl_likelihood.shapes import PAD\nfrom . import y\nfrom .y import z"),
        ("learner/x.py", "from rl_likelihood import mesh\nfrom ..rewards import likelihood\nfrom ..model import head"),
        ("model/__init__.py", "from .decoder import forward\nfrom ..mesh import make_mesh"),
        ("train.py", "from rl_likelihood import __version__, config\nfrom rl_likelihood.runtime import checkpoint"),
    ],
)
def test_listed_imports_are_allowed(path, source):
    assert forbidden(source, ROOT / path) == []


def test_a_package_that_nobody_listed_is_named():
    (sentence,) = forbidden("x = 1", ROOT / "utils.py")
    assert sentence.startswith("utils.py:1: utils is not listed")
