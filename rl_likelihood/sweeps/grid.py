"""Sweeps are data: a list of points, each a dict of overrides. Names, commands and progress of the points.

    def get_sweep():
        return product(
            [{"config": "configs/base.py", "optim.lr": 1e-5}],
            named("data", {"math": {"data.train_path": ...}, "deepscaler": {"data.train_path": ...}}),
            sweep("reward.name", ("log_prob", "prob")),
            sweep("seed", (0, 1)),
        )

A key is a config field, "config" (the config file, with its arguments after a colon) or "@label", a name for a choice.
Labels and the seed give the name of the run and its row in tables, and --only selects by them. Where they are the same
for several points, what differs among these is added. Labels are never on the command line. The history of a point is
in its run folder.
"""

import ast
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_likelihood.errors import UserError, user_code
from rl_likelihood.fields import nearest
from rl_likelihood.grading.worker import run_file
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.lock import InUse, in_use, lock

Overrides = dict[str, Any]  # what get_sweep gives for one point

CONFIG, SEED, LABEL = "config", "seed", "@"
ATTEMPTS, LOG = "attempts.jsonl", "log.txt"
LOCK = "SWEEP_LEASE"  # held by the process that starts attempts; the run itself holds runtime.lock.FILE
RETRIES = 3  # of a failed point; a preempted one is tried again without limit


# ------------------------------------------------------------------------------------------- the algebra


def sweep(key: str, values: Iterable[Any]) -> list[Overrides]:
    """One point for each value of one field."""
    return [{key: value} for value in values]


def named(label: str, choices: Mapping[str, Overrides]) -> list[Overrides]:
    """One point for each choice: several fields that change together, under a name."""
    return [{LABEL + label: name, **overrides} for name, overrides in choices.items()]


def product(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Every combination of one point from each part; the last part changes fastest."""
    return [_merge(points) for points in itertools.product(*parts)]


def zipped(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Merges the first points of all parts, the second ones, and so on. Refuses parts of unequal length."""
    lists = [list(part) for part in parts]
    if len({len(part) for part in lists}) > 1:
        raise UserError(f"zipped: parts of {', '.join(str(len(p)) for p in lists)} points; give parts of one length")
    return [_merge(points) for points in zip(*lists, strict=True)]


def chain(*parts: Iterable[Overrides]) -> list[Overrides]:
    """The points of all parts, one part after the other."""
    return list(itertools.chain(*parts))


def _merge(points: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for point in points:
        for key, value in point.items():
            if key in merged and merged[key] != value:
                raise UserError(f"sweep: {key} is {merged[key]!r} and {value!r} in one point; set it in one part only")
            merged[key] = value
    return merged


# ------------------------------------------------------------------------------------------- points


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep: its config file, its overrides by dotted name, its labels without their sign."""

    config: str
    overrides: Overrides
    labels: dict[str, str]

    @property
    def name(self) -> str:
        """The run folder's name: sorted labels, then a fingerprint of config file and overrides.

        A sweep may grow by more values of what varies; the fingerprint depends on this point alone.
        """
        slug = lambda text: re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:60]
        shown = ",".join(f"{k}={slug(v)}" for k, v in sorted(self.labels.items()))
        what = [self.config, sorted((k, _plain(v)) for k, v in self.overrides.items())]
        fingerprint = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:6]
        return f"{shown[:200]}-{fingerprint}"

    def arguments(self) -> list[str]:
        """The arguments of `rl_likelihood.train`, without the workdir."""
        return [f"--config={self.config}", *(f"--config.{k}={_text(v)}" for k, v in self.overrides.items())]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)


def point(overrides: Overrides) -> Point:
    """A point from its overrides. Without labels every override is one."""
    if not isinstance(overrides, Mapping) or not isinstance(overrides.get(CONFIG), str):
        raise UserError(f'sweep: {overrides!r} is no point; give a dict with "{CONFIG}": a config file')
    fields = {k: v for k, v in overrides.items() if k != CONFIG and not k.startswith(LABEL)}
    for key, value in fields.items():
        if not isinstance(_plain(value), bool | int | float | str | list):
            raise UserError(f"sweep: {key} is {value!r}; give text, a number, true or false, or a tuple of them")
    labels = {k.removeprefix(LABEL): _text(v) for k, v in overrides.items() if k.startswith(LABEL)}
    if labels:
        labels |= {SEED: str(fields[SEED])} if SEED in fields else {}
    else:
        labels = {k: _text(v) for k, v in fields.items()}
    return Point(overrides[CONFIG], fields, labels)


def of_what_varies(points: list[Point]) -> list[Point]:
    """The points, of which those without labels of their own are named by what differs between points, and the seed.

    Points of equal labels and seed also get the fields, and the config file, that differ among them; "default" is the
    label of a point without such a field. Their other seeds get the same.
    """

    def differ(among: list[Point]) -> set[str]:
        keys = {key for p in among for key in (CONFIG, *p.overrides)}
        return {key for key in keys if len({json.dumps(_plain(_field(p, key))) for p in among}) > 1}

    if len(points) == 1:
        return points
    constant = {key for p in points for key in p.overrides} - differ(points) - {SEED}
    points = [dataclasses.replace(p, labels={k: v for k, v in p.labels.items() if k not in constant}) for p in points]
    rows: dict[frozenset[Any], dict[str | None, list[Point]]] = {}  # the points by labels, then by seed
    for p in points:
        rows.setdefault(_row(p), {}).setdefault(p.labels.get(SEED), []).append(p)
    more = {row: set().union(*map(differ, seeds.values())) for row, seeds in rows.items()}

    def labels(p: Point) -> dict[str, str]:
        fields = {CONFIG: p.config, **p.overrides}
        return p.labels | {key: _text(fields.get(key, "default")) for key in sorted(more[_row(p)])}

    return [dataclasses.replace(p, labels=labels(p)) for p in points]


def _row(p: Point) -> frozenset[Any]:
    return frozenset((k, v) for k, v in p.labels.items() if k != SEED)


def _field(p: Point, key: str) -> Any:
    return p.config if key == CONFIG else p.overrides.get(key)


def only(points: Sequence[Point], selections: Iterable[str]) -> list[Point]:
    """The points with every `key=value` and without any `key!=value`; a key is a label, a field or "config"."""
    chosen = list(points)
    for selection in selections:
        key, equals, text = selection.partition("=")
        other = key.endswith("!")
        key = key.removesuffix("!")
        known = {key_ for p in points for key_ in (*p.labels, *p.overrides, CONFIG)}
        if not equals or key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near}=VALUE? " if near else ""
            raise UserError(f"--only {selection}: {hint}write KEY=VALUE with a key of {', '.join(sorted(known))}")
        values = [_value(p, key) for p in chosen]
        has = [_same(value, text) for value in values]
        chosen = [p for p, its in zip(chosen, has, strict=True) if its != other]
        if not any(has) or not chosen:  # a value that no point has is misspelt
            there = ", ".join(sorted({_text(v) for v in values if v is not None}))
            whose = "every" if any(has) else "no"
            raise UserError(f"--only {selection}: {whose} point has it; {key} is one of {there}")
    return chosen


def _value(p: Point, key: str) -> Any:
    return p.labels.get(key, _field(p, key))


def _same(value: Any, text: str) -> bool:
    """1e-5 is 1e-05; a label is text."""
    if value is None or _text(value) == text:
        return value is not None
    with contextlib.suppress(ValueError, SyntaxError):  # text that is no Python value is only itself
        number = ast.literal_eval(text)
        return isinstance(number, int | float) and _text(value) in (str(number), str(float(number)))
    return False


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiments file: its points and its optional parts.

    ROWS: the label that names a table's rows. PAPER: published numbers, a list of {"labels": {...}, metric:
    (mean, spread)}. RESOURCES: what a point needs on a ray cluster, as {"CPU": 2} or {"TPU": 4}. prepare(): makes
    the files that points read, if they are not there.
    """

    path: Path
    points: list[Point]
    rows: str = "reward"
    paper: tuple[dict[str, Any], ...] = ()
    resources: dict[str, float] = dataclasses.field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    doc: str = ""

    @property
    def name(self) -> str:
        return self.path.stem


def load(path: str) -> Experiment:
    """The experiments file at `path`. Refuses a missing file, one without a sweep, and a point given twice."""
    file = Path(path).resolve()
    if not file.is_file():
        near = nearest(file.name, (p.name for p in file.parent.glob("*.py")))
        raise UserError(f"{path} does not exist" + (f"; did you mean {near}?" if near else "; name a sweep's file"))
    if file.suffix != ".py":
        raise UserError(f"{path} is no Python file; name a sweep's file")
    root = str(file.parents[1])
    if root not in sys.path:  # sweeps import one another as experiments.NAME, configs as configs.NAME
        sys.path.insert(0, root)
    with user_code(path):
        module = run_file(str(file), file.stat().st_mtime_ns)
        if not callable(getattr(module, "get_sweep", None)):
            raise UserError(f"{path} has no function get_sweep(); it must return the list of points")
        given = module.get_sweep()
        if not isinstance(given, Iterable):
            raise UserError(f"{path}: get_sweep() gives {given!r}; it must return the list of points")
        points = of_what_varies([point(overrides) for overrides in given])
    if not points:
        raise UserError(f"{path}: get_sweep() gives no point; it must return at least one")
    numbers: dict[str, int] = {}
    for i, p in enumerate(points):
        if p.name in numbers:
            raise UserError(f"{path}: points {numbers[p.name]} and {i} are the same ({p.name}); give each once")
        numbers[p.name] = i
    doc = (module.__doc__ or "").strip()
    named_rows = getattr(module, "ROWS", "reward")
    return Experiment(
        Path(path),
        points,
        named_rows,
        tuple(getattr(module, "PAPER", ())),
        dict(getattr(module, "RESOURCES", {})),
        getattr(module, "prepare", None),
        doc.splitlines()[0] if doc else "",
    )


# ------------------------------------------------------------------------------------------- run folders


@dataclasses.dataclass(frozen=True)
class State:
    """The progress of a run, read from its folder.

    kind: new | running | done | preempted | failed (both are tried again) | stopped (`why` it is not tried again).
    """

    kind: str
    step: int
    steps: int  # 0: not known yet
    failures: int
    preemptions: int
    error: str  # of the last failure
    why: str = ""


def state(workdir: Path) -> State:
    """The state of a run folder, which need not exist."""
    status = run_files.read_status(workdir) or {}
    attempts, running = read_attempts(workdir), held(workdir)
    failures, preemptions, why = history(attempts)
    last = attempts[-1]["event"] if attempts else status.get("state", "")
    if status.get("state") == "done":
        kind = "done"
    elif running:
        kind = "running"
        preemptions -= last == "start"  # the attempt that is running
    elif why:
        kind = "stopped"
    else:
        kind = "new" if not last else "failed" if last == "failed" else "preempted"
    step, steps = max(last_step(workdir), int(status.get("step", 0))), int(status.get("steps", 0))
    error = failures[-1] if failures else status.get("error", "")
    return State(kind, step, steps, len(failures), preemptions, error, why)


def history(attempts: Sequence[Mapping[str, Any]]) -> tuple[list[str], int, str]:
    """(errors of the failed attempts, number of preempted ones, why it is not tried again or "").

    A start without an end counts as preempted: the whole machine went away.
    """
    failures: list[str] = []
    preemptions, previous = 0, ""
    for row in attempts:
        event = row["event"]
        preemptions += event == "preempted" or (event == "start" and previous == "start")
        if event == "failed":
            failures.append(row["error"])
        if event == "retry":  # the user has removed the cause
            failures = []
        previous = event
    why = ""
    if len(failures) > 1 and failures[-1] == failures[-2]:
        why = f"the same error twice in a row: {failures[-1]}"
    elif len(failures) > RETRIES:
        why = f"failed {len(failures)} times: {failures[-1]}"
    return failures, preemptions + (previous == "start"), why


def read_attempts(workdir: Path) -> list[dict[str, Any]]:
    """The lines of attempts.jsonl, {"event", "step", ...}; none without the file."""
    path = workdir / ATTEMPTS
    return run_files.read(path) if path.exists() else []


def note(workdir: Path, event: str, **values: Any) -> None:
    """One line of attempts.jsonl; event is start, done, failed (with its `error`), preempted or retry."""
    run_files.append(workdir / ATTEMPTS, {"step": last_step(workdir), "event": event, **values})


def last_step(workdir: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 without one. Reads only the end of the file."""
    path = workdir / run_files.METRICS
    if not path.exists():
        return 0
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 2**16))
        tail = f.read()
    for line in reversed(tail[: tail.rfind(b"\n") + 1].splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the first line of the tail may be cut
            return int(json.loads(line)["step"])
    return 0


def hold(workdir: Path) -> contextlib.ExitStack | None:
    """Locks the run folder; None if another process has it. Close the stack to release it."""
    if held(workdir):
        return None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(workdir, LOCK, say=lambda _: None))
        except InUse:
            return None
        return None if in_use(workdir) else stack.pop_all()


def taken(workdir: Path) -> str:
    """Which process runs in this folder, whose sweep lock we hold; "" if none does."""
    return in_use(workdir, (workdir / LOCK).stat().st_mtime)  # the clock of the file server


def held(workdir: Path) -> str:
    """Which process works in this run folder, by the run's lock or the sweep's; "" if none does."""
    return in_use(workdir) or in_use(workdir, name=LOCK)
