"""Doors only downwards: which room may import which (DESIGN section 5), read from the source."""

import ast
from pathlib import Path

import pytest

import rl_likelihood

ROOT = Path(rl_likelihood.__file__).parent
PACKAGE = "rl_likelihood"

GROUND = {"shapes", "mesh"}
MAINS = {"train", "evaluate", "sweep", "plan", "export"}
ROOMS = {
    "shapes": set(),
    "mesh": {"shapes"},  # the ground stands on itself: UserError
    "model": GROUND,
    "rewards": {"shapes"},
    "data": {"shapes"},
    "report": {"shapes"},
    "sampler": {"model"} | GROUND,
    "learner": {"model", "rewards"} | GROUND,
    "pod": {"learner", "sampler", "model"} | GROUND,
}
ROOMS["presets"] = set()  # data: the papers' settings
ROOMS["config"] = set(ROOMS)  # every room's settings
ROOMS["run"] = set(ROOMS)  # what several mains share
EVERYTHING = set(ROOMS)  # nobody -> the mains, not even a main
DOORS = ROOMS | dict.fromkeys(MAINS, EVERYTHING)


def imported_modules(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import anywhere in the source of `module`, inside functions too.

    `from a import b` gives a.b: whether b is a module or a value, its room is the same. Names given to
    import_module or __import__ as strings count.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                here = module.split(".")
                base = here[: len(here) - node.level + is_package] + base
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return found


def room(dotted: str) -> str | None:
    """Room of a module or of a name in it; None for what is not ours or, like __version__, has no room."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and not parts[1].startswith("__") else None


def forbidden(source: str, path: Path) -> list[str]:
    """file:line and a sentence for each import of `source`, the file `path` of the package, without a door."""
    relative = path.relative_to(ROOT)
    parts = [PACKAGE, *relative.with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    here = room(module)
    if here is not None and here not in DOORS:
        return [f"{relative}:1: {here} is not a room; list it and its doors in DESIGN section 5 and here"]
    allowed = DOORS.get(here, set())
    found = {  # a set: `from a import b, c` is one import of a
        (line, there)
        for line, name in imported_modules(source, module, is_package)
        if (there := room(name)) not in (None, here, *allowed)
    }
    return [f"{relative}:{line}: {here or PACKAGE} has no door to {there}" for line, there in sorted(found)]


def test_every_import_has_a_door():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 10
    wrong = [sentence for path in files for sentence in forbidden(path.read_text(), path)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "path, source, line, there",
    [
        ("rewards/x.py", "import jax\nfrom rl_likelihood.model.head import token_stats", 2, "model"),
        ("rewards/x.py", "import rl_likelihood.learner.step as s", 1, "learner"),
        ("rewards/x.py", "from rl_likelihood import mesh", 1, "mesh"),
        ("rewards/x.py", "from ..data import sources", 1, "data"),
        ("rewards/__init__.py", "from ..data import sources", 1, "data"),
        ("rewards/x.py", "from .. import sampler", 1, "sampler"),
        ("model/x.py", "def f():\n    if True:\n        import rl_likelihood.report.plots", 3, "report"),
        ("data/x.py", "import importlib\nimportlib.import_module('rl_likelihood.pod.checkpoint')", 2, "pod"),
        ("shapes.py", "from rl_likelihood import mesh", 1, "mesh"),
        ("pod/x.py", "from rl_likelihood.config import Settings", 1, "config"),
        ("config.py", "from rl_likelihood import train", 1, "train"),
        ("evaluate.py", "from rl_likelihood.train import main", 1, "train"),
        ("__init__.py", "from rl_likelihood.model import decoder", 1, "model"),
    ],
)
def test_an_import_without_a_door_is_named_by_file_and_line(path, source, line, there):
    (sentence,) = forbidden(source, ROOT / path)
    assert sentence.startswith(f"{path}:{line}: ") and sentence.endswith(f"has no door to {there}")


@pytest.mark.parametrize(
    "path, source",
    [
        ("rewards/x.py", "import jax, os\nfrom rl_likelihood.shapes import PAD\nfrom . import y\nfrom .y import z"),
        ("learner/x.py", "from rl_likelihood import mesh\nfrom ..rewards import likelihood\nfrom ..model import head"),
        ("model/__init__.py", "from .decoder import forward\nfrom ..mesh import make_mesh"),
        ("train.py", "from rl_likelihood import __version__, config\nfrom rl_likelihood.pod import checkpoint"),
    ],
)
def test_listed_doors_are_open(path, source):
    assert forbidden(source, ROOT / path) == []


def test_a_room_that_nobody_listed_is_named():
    (sentence,) = forbidden("x = 1", ROOT / "utils.py")
    assert sentence.startswith("utils.py:1: utils is not a room")
