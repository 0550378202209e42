"""Sweeps: python -m rl_likelihood.sweep experiments/NAME.py ACTION [--only KEY=VALUE ...]

    --list            the points, by number
    --prepare         write the files that the points read (--run does it too)
    --run[=WHICH]     run all of them, or some ("3", "0-7,12"); what is finished is never run again
    --status          how far each is
    --table           rewards by metrics, over seeds: --format=text|markdown|latex|csv, --paper for published numbers
    --report          tables, figures and one page to read, into --out
    --drop_optimizer  delete the optimizer state of finished runs, two thirds of their disk; they cannot resume then

Runs go to runs/NAME, or to --root. --runner=local (--jobs at a time), ray (--resources), print. An interrupted
sweep goes on with the same command.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rl_likelihood.cli.command import refuse_address
from rl_likelihood.config import apply_preset, binding_differences, build, flatten, from_file
from rl_likelihood.errors import Parser, UserError, exits, user_code
from rl_likelihood.report import figures, page, plots, table, table_text
from rl_likelihood.runtime import disk, run_files
from rl_likelihood.runtime.console import outlive_the_terminal
from rl_likelihood.sweeps import grid, ray_runner, runners
from rl_likelihood.sweeps.grid import Experiment, Point


@exits
def main(argv: Sequence[str] | None = None) -> int:
    # Hide jax's warnings about backends that it does not find.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    return act(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="rl_likelihood.sweep", description="Runs and reports the points of an experiments file.")
    p.add_argument("file", help="experiments/NAME.py, with get_sweep()")
    actions = p.add_mutually_exclusive_group(required=True)
    actions.add_argument("--list", action="store_true", help="the points, by number")
    actions.add_argument("--run", nargs="?", const="all", metavar="WHICH", help='all points, or some: "3", "0-7,12"')
    actions.add_argument("--status", action="store_true", help="how far each point is")
    actions.add_argument("--table", action="store_true", help="rewards by metrics, over seeds")
    actions.add_argument("--report", action="store_true", help="tables, figures and a page to read")
    actions.add_argument("--prepare", action="store_true", help="make the files that points read; --run does it too")
    free = "delete the optimizer state of finished runs, which then cannot train further"
    actions.add_argument("--drop_optimizer", action="store_true", help=free)
    only = "only points that have it; KEY!=VALUE: that do not"
    p.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help=only)
    p.add_argument("--root", type=os.path.expanduser, help="folder of the runs; runs/NAME by default")
    p.add_argument("--runner", default="local", choices=("local", "ray", "print"))
    p.add_argument("--jobs", type=int, default=1, help="local: runs at a time, each on its share of the cores")
    p.add_argument("--resources", default="", metavar="CPU=2,TPU=4", help="ray: what each point needs")
    p.add_argument("--retry", action="store_true", help="run points that were stopped once more")
    p.add_argument("--format", default="text", choices=table_text.FORMATS, help="of --table")
    p.add_argument("--paper", action="store_true", help="published numbers beside those of the table")
    p.add_argument("--out", type=os.path.expanduser, help="folder of --report; that of the runs by default")
    return p


def act(a: argparse.Namespace) -> int:
    if a.jobs < 1:
        raise UserError(f"--jobs is {a.jobs}; it must be at least 1")
    for name in ("root", "out"):
        if getattr(a, name) is not None:
            refuse_address(f"--{name}", getattr(a, name))
    experiment = grid.load(a.file)
    root = Path(a.root) if a.root else Path("runs") / experiment.name
    points = {i: p for i, p in enumerate(experiment.points)}
    selected = grid.only(experiment.points, a.only)
    points = {i: p for i, p in points.items() if p in selected}
    if a.run:
        points = chosen(points, a.run)
    if a.prepare or (a.run and a.runner != "print"):
        prepare(experiment)
    if a.prepare:
        return 0
    if a.list:
        return show_list(experiment, points, root)
    if a.status:
        return show_status(points, root)
    if a.drop_optimizer:
        return drop_optimizers(points, root)
    if a.run:
        return run(experiment, points, root, a)
    runs = [table.Run(p.labels, root / p.name) for p in current(points, root).values()]
    paper = experiment.paper if a.paper else ()
    if a.table:
        print(table_text.FORMATS[a.format](table.blocks(runs, experiment.rows), paper))
        return 0
    return report(experiment, runs, Path(a.out or root), paper)


# ------------------------------------------------------------------------------------------- points and configs


def resolve(p: Point) -> ConfigDict:
    """The whole config of a point, as its run will read it. Refuses what the run would refuse before it loads data."""
    c = from_file(p.config)
    for name, value in p.overrides.items():
        try:
            c.update_from_flattened_dict({name: tuple(value) if isinstance(value, list) else value})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{p.name}: {name} = {value!r}: {' '.join(str(error.args[0]).split())}") from None
    try:
        apply_preset(c, list(p.overrides))
        build(c)
    except UserError as error:
        raise UserError(f"{p.name}: {error}") from None
    return c


def differing(p: Point, workdir: Path) -> list[str]:
    """Fields in which the folder's run and the point differ. Fields that the run did not have yet do not count."""
    path = workdir / "config.json"
    if not path.exists():
        return []
    new = flatten(resolve(p))
    old = new | run_files.read_object(path, "delete the folder, or choose another --root")
    return binding_differences(old, new)


def current(points: dict[int, Point], root: Path) -> dict[int, Point]:
    """The points whose folder holds no run of another config. Names the others on stderr."""
    same = {}
    for i, p in points.items():
        names = differing(p, root / p.name)
        if names:
            print(f"left out: {root / p.name} was run with another {', '.join(names[:3])}", file=sys.stderr)
        else:
            same[i] = p
    return same


def chosen(points: dict[int, Point], which: str) -> dict[int, Point]:
    """The points named by numbers, as "3" or "0-7,12"."""
    if which == "all":
        return points
    wanted: list[int] = []
    for part in which.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise UserError(f'--run={which}: {part!r} is no number; write numbers and ranges, as "0-7,12"')
        wanted += range(int(first), int(last or first) + 1)
    missing = [i for i in wanted if i not in points]
    if missing:
        raise UserError(f"--run={which}: there is no point {missing[0]} (--list shows them, under --only too)")
    return {i: points[i] for i in wanted}


# ------------------------------------------------------------------------------------------- actions


def prepare(experiment: Experiment) -> None:
    if experiment.prepare is not None:
        with user_code():
            experiment.prepare()


def show_list(experiment: Experiment, points: dict[int, Point], root: Path) -> int:
    """Every point's number and name. All of them are checked: a misspelt field is refused."""
    if experiment.doc:
        print(experiment.doc)
    for i, p in points.items():
        resolve(p)
        print(f"{i:>4}  {p.name}")
    print(f"{len(points)} points; runs go to {root}")
    return 0


def show_status(points: dict[int, Point], root: Path) -> int:
    states = {i: grid.state(root / p.name) for i, p in points.items()}
    for i, p in points.items():
        s = states[i]
        step = f"{s.step}/{s.steps or '?'}" if s.kind != "new" else "-"
        counts = [f"{n} {what}" for n, what in ((s.failures, "failed"), (s.preemptions, "preempted")) if n]
        words = f"  ({', '.join(counts)})" if counts else ""
        error = f"  {s.why or s.error}" if s.kind in ("failed", "stopped") else ""
        print(f"{i:>4}  {s.kind:<9} {step:>9}  {p.name}{words}{error}")
    kinds = [s.kind for s in states.values()]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) + f" of {len(kinds)}; in {root}")
    return 0


def drop_optimizers(points: dict[int, Point], root: Path) -> int:
    done = [root / p.name for p in points.values() if grid.state(root / p.name).kind == "done"]
    freed = sum(disk.drop_optimizer(workdir) for workdir in done)
    print(f"{len(done)} of {len(points)} points are done; {freed / 2**30:.2f} GiB of optimizer state deleted in {root}")
    return 0


def run(experiment: Experiment, points: dict[int, Point], root: Path, a: argparse.Namespace) -> int:
    """Runs the points that are not finished. First prints which ones it leaves out, and why."""
    jobs, stopped = [], 0
    for p in points.values():
        workdir = root / p.name
        names = differing(p, workdir)
        if names:
            raise UserError(
                f"{workdir} holds a run with another {', '.join(names[:3])}: its config file has changed since; "
                "choose another --root, or delete the folder"
            )
        state = grid.state(workdir)
        if state.kind == "stopped" and a.retry and a.runner != "print":
            grid.note(workdir, "retry")
        elif state.kind == "stopped":
            say(f"stopped    {p.name}: {state.why}; mend it, then --retry")
            stopped += 1
            continue
        if state.kind == "done":
            continue
        command = (sys.executable, "-m", "rl_likelihood.train", *p.arguments(), f"--workdir={workdir}")
        jobs.append(runners.Job(p.name, workdir, command))
    if a.runner == "print":
        if experiment.prepare is not None:
            say(f"python -m rl_likelihood.sweep {experiment.path} --prepare")
        return runners.print_commands(jobs, say)
    done = len(points) - len(jobs) - stopped
    say(f"{len(points)} points in {root}: {done} done, {stopped} stopped, {len(jobs)} to run")
    if not jobs:
        return int(stopped > 0)
    if a.runner == "ray":
        return ray_runner.run_ray(jobs, resources(a.resources) or experiment.resources, say) or int(stopped > 0)
    return runners.run_local(jobs, a.jobs, say) or int(stopped > 0)


def resources(text: str) -> dict[str, float]:
    """{"CPU": 2.0, "TPU": 4.0} of "CPU=2,TPU=4"."""
    try:
        return {k: float(v) for k, v in (item.split("=") for item in filter(None, text.split(",")))}
    except ValueError:
        raise UserError(f"--resources is {text!r}; write NAME=NUMBER with commas between, as CPU=2,TPU=4") from None


def report(experiment: Experiment, runs: list[table.Run], out: Path, paper: Sequence[dict]) -> int:
    """table.md, table.tex, table.csv, the figures and report.html, and where they are."""
    blocks = table.blocks(runs, experiment.rows)
    for kind, suffix in (("markdown", "md"), ("latex", "tex"), ("csv", "csv")):
        path = out / f"table.{suffix}"
        run_files.replace(path, table_text.FORMATS[kind](blocks, paper) + "\n")
        say(str(path))
    drawn = figures.grid_figures(runs, experiment.rows)
    for path in plots.save(drawn, out):
        say(str(path))
    contents = page.Contents(experiment.name, experiment.doc, blocks[0].rows, blocks, drawn, paper)
    page.write(out / "report.html", contents, runs)
    say(str(out / "report.html"))
    return 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    outlive_the_terminal()
    sys.exit(main())
