"""How large the code is, and where it breaks the rules of its style.

    python -m bench.size [--json] [--no_step]

Prints a number for each measure, then every offender as file:line. The package's lines are all lines of its Python
files, blank ones and comments too. A function's lines go from `def` to its last line; its parameters are counted
without self and cls.

What a training step passes through is measured, not read. A run of the smallest random model takes its first step while
Python's profiler reports every call between the first and the second call of `Source.next`. Three numbers come of it:
the files of the package with at least one function that was called, all lines of these files, and the lines of code of
these functions. It is the first step because that is when jax traces the step: later on, the mathematics is a compiled
program, and Python does not pass through it. Loading, the warm start, evaluations and checkpoints are not counted.
--no_step leaves this measure out.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "rl_likelihood"
CODE = (PACKAGE, "bench", "configs", "experiments")  # where functions are measured
ALL = (*CODE, "tests", "tpu_setup")  # where files are measured and exceptions to the linter counted
FUNCTION_LINES, PARAMETERS, FILE_LINES = 60, 6, 400  # the most that the rules allow


def files(folders: tuple[str, ...], root: Path = ROOT) -> list[Path]:
    """All Python files of these folders."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, methods and inner functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, without self and cls."""
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return sum(x.arg not in ("self", "cls") for x in every)


def long_functions(root: Path = ROOT) -> list[str]:
    """file:line, name and lines of functions that are too long."""
    return [
        f"{path.relative_to(root)}:{node.lineno} {node.name} ({length(node)} lines)"
        for path in files(CODE, root)
        for node in functions(path)
        if length(node) > FUNCTION_LINES
    ]


def wide_functions(root: Path = ROOT) -> list[str]:
    """file:line, name and parameters of functions that have too many."""
    return [
        f"{path.relative_to(root)}:{node.lineno} {node.name} ({parameters(node)} parameters)"
        for path in files(CODE, root)
        for node in functions(path)
        if parameters(node) > PARAMETERS
    ]


def long_files(root: Path = ROOT) -> list[str]:
    """file:line and lines of files that are too long."""
    return [f"{p.relative_to(root)}:1 ({lines(p)} lines)" for p in files(ALL, root) if lines(p) > FILE_LINES]


def module_aliases(root: Path = ROOT) -> list[str]:
    """file:line and import of modules of ours that are imported under another name."""
    out = []
    for path in files(ALL, root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                out += [
                    f"{path.relative_to(root)}:{node.lineno} {base}{x.name} as {x.asname}"
                    for x in node.names
                    if x.asname and x.asname != x.name and is_module(f"{base}{x.name}", root)
                ]
    return out


def is_module(dotted: str, root: Path = ROOT) -> bool:
    """Whether a dotted name is a module or a package of ours."""
    path = root.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def comments(text: str, root: Path = ROOT) -> list[str]:
    """file:line of every comment that begins with this text."""
    return [
        f"{path.relative_to(root)}:{number}"
        for path in files(ALL, root)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if f"# {text}" in line
    ]


def learn_lines() -> int:
    """Lines of the loop."""
    (node,) = (node for node in functions(ROOT / PACKAGE / "train.py") if node.name == "learn")
    return length(node)


class Window:
    """A profiler that notes the functions of the package that are called between two calls of `Source.next`."""

    def __init__(self) -> None:
        self.called: set[CodeType] = set()
        self.steps = 0

    def __call__(self, frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(f"{ROOT / PACKAGE}/") or code.co_name == "<module>":
            return
        if code.co_name == "next" and "rollouts" in code.co_filename:
            self.steps += 1
        if self.steps == 1:
            self.called.add(code)

    def files(self) -> list[str]:
        """Files of these functions."""
        return sorted({str(Path(code.co_filename).relative_to(ROOT)) for code in self.called})

    def lines(self) -> int:
        """Lines of code of these functions, without blank lines, comments and docstrings."""
        spans = {(c.co_filename, n) for c in self.called for *_, n in c.co_lines() if n}
        first = {(c.co_filename, c.co_firstlineno) for c in self.called}
        return len(spans | first)


def step_window() -> Window:
    """The functions of the package that one training step passes through."""
    from configs.tiny import get_config
    from rl_likelihood import train
    from rl_likelihood.config import build

    c = get_config()
    for name, value in {
        "model.preset": "nano",
        "train.steps": 2,
        "train.eval_first": False,
        "warm_start.steps": 0,
        "eval.prompts": 0,
        "data.train_size": 16,
        "train.prompts_per_step": 4,
        "sampler.group_size": 2,
        "sampler.max_chain": 8,
    }.items():
        c.update_from_flattened_dict({name: value})
    window = Window()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        threading.setprofile(window)
        sys.setprofile(window)
        try:
            train.run(build(c), Path(folder))
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return window


def measure(step: bool = True) -> dict[str, Any]:
    """All measures: numbers, and lists of offenders."""
    package = files((PACKAGE,))
    out: dict[str, Any] = {"package_lines": sum(map(lines, package)), "package_files": len(package)}
    if step:
        window = step_window()
        names = window.files()
        out |= {"step_files": names, "step_lines": sum(lines(ROOT / name) for name in names)}
        out |= {"step_function_lines": window.lines()}
    return out | {
        "learn_lines": learn_lines(),
        "long_functions": long_functions(),
        "wide_functions": wide_functions(),
        "long_files": long_files(),
        "module_aliases": module_aliases(),
        "noqa": comments("noqa"),
        "fmt_skip": comments("fmt: skip"),
    }


LABELS = {
    "package_lines": "Python lines of the package",
    "package_files": "Python files of the package",
    "step_files": "files that a training step passes through",
    "step_lines": "lines of these files",
    "step_function_lines": "lines of code of the functions that it calls",
    "learn_lines": "lines of learn",
    "long_functions": f"functions over {FUNCTION_LINES} lines",
    "wide_functions": f"functions with more than {PARAMETERS} parameters",
    "long_files": f"files over {FILE_LINES} lines",
    "module_aliases": "modules of ours that are imported under another name",
    "noqa": "noqa",
    "fmt_skip": "fmt: skip",
}


def text(measures: dict[str, Any]) -> str:
    """The numbers, then the lists."""
    size = {k: len(v) if isinstance(v, list) else v for k, v in measures.items()}
    out = [f"{size[k]:>7,}  {LABELS[k]}" for k in measures]
    for name, value in measures.items():
        if isinstance(value, list) and value:
            out += ["", f"{LABELS[name]}:", *(f"  {line}" for line in value)]
    return "\n".join(out)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_argument("--no_step", action="store_true", help="train no step")
    args = arguments.parse_args()
    measures = measure(step=not args.no_step)
    print(json.dumps(measures) if args.json else text(measures))


if __name__ == "__main__":
    main()
