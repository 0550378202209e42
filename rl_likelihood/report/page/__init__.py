"""One self-contained page of a run or a grid: tables, curves, figures, and the sampled chains, to read in any browser.

    python -m rl_likelihood.report.page RUN_DIR... --out=report.html

It uses no server and no network: its content security policy forbids both. Texts of models are data in it, never
markup. Its HTML, CSS and JavaScript are the files in this folder.
"""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from rl_likelihood import files
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation.trace import PERCENT
from rl_likelihood.report import figures, panels, plots, style, table, table_text
from rl_likelihood.report.page import chains
from rl_likelihood.report.panels import Panel
from rl_likelihood.runtime import run_files

FILES = Path(__file__).parent
SCRIPTS = ("page.js", "curves.js", "texts.js", "chains.js")
POINTS = 240  # of a curve at most; a longer one is shown as means over equal stretches


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a page shows beside its runs; `rows` is the label that has a colour."""

    title: str
    doc: str
    rows: str
    blocks: Sequence[table.Block]
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    paper: Sequence[Mapping[str, Any]] = ()


def write(
    path: str | Path, contents: Contents, runs: Sequence[table.Run], one_start: bool = True, limit: int = 0
) -> None:
    """Writes the page of `runs` to `path`.

    one_start: the runs of a table begin at the same model, so that they share one evaluation of step 0.
    limit: about how many chains the page shows (0: as many as a browser opens at once). If there are more, each run
        shows those of evenly spaced steps, and the page says so.
    """
    path = Path(path)
    text = _render(contents, runs, _data_of_runs(contents.rows, runs, one_start, limit))
    try:
        files.replace(path, text.encode(errors="backslashreplace"))
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); choose another --out") from e


def _data_of_runs(rows: str, runs: Sequence[table.Run], one_start: bool, limit: int) -> list[dict[str, Any]]:
    """`run_data` of each run, once, with the titles of all tables that it is in."""
    counts = {workdir: chains.per_step(workdir) for workdir in dict.fromkeys(run.workdir for run in runs)}
    totals = [sum(steps.values()) for steps in counts.values()]
    share = chains.level(totals, limit or chains.limit_of(counts, sum(totals)))
    data: dict[Path, dict[str, Any]] = {}
    for shared, lines in table.grouped(runs, rows).items():
        of_table = [run for group in lines.values() for run in group]
        first = table.starts(of_table) if one_start else {}
        for run in of_table:
            if run.workdir not in data:
                data[run.workdir] = run_data(run, rows, first, counts[run.workdir], share)
            data[run.workdir]["blocks"].append(table.title_of(dict(shared)))
    return list(data.values())


def _render(contents: Contents, runs: Sequence[table.Run], data: list[dict[str, Any]]) -> str:
    script = "".join((FILES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    shown = [p for p in panels.PAGE if any(_has(r, p) for r in data)]
    no_chain = [run.labels.get(contents.rows, "") for run in runs if table.without_chain(run)]
    environment = Environment(loader=FileSystemLoader(FILES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        title=contents.title,
        doc=contents.doc,
        runs=[{k: r[k] for k in ("name", "state", "step", "chains", "written")} for r in data],
        done=sum(r["state"] == "done" for r in data),
        chains=sum(r["chains"] for r in data),
        written=sum(r["written"] for r in data),
        file=run_files.SAMPLES,
        texts=any(r["texts"] for r in data),
        no_chain=list(dict.fromkeys(no_chain)),
        blocks=[block_data(block, data, contents.paper) for block in contents.blocks],
        caption=table_text.caption(contents.blocks, contents.paper),
        figures=[{"name": k.replace("_", " "), "alt": k, "webp": _webp(f)} for k, f in contents.figures.items()],
        data=_as_data(
            {"runs": data, "panels": [_panel_data(p) for p in shown], "colours": style.numbers(r["row"] for r in data)}
        ),
        style=Markup((FILES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _panel_data(panel: Panel) -> dict[str, Any]:
    """A panel as the script reads it; `one`: only where the shown runs have one reward; `trace`: parts, not steps."""
    m = panel.metric
    about = {"title": m.title, "definition": m.definition, "percent": m.unit == "%", "log": m.logarithmic}
    if panel == panels.TRACE_CURVE:
        about |= {"title": m.title.replace("{k} %", "parts"), "trace": True}
    return about | {"train": panel.train, "heldout": panel.heldout, "one": panel == panels.REWARD}


def _has(run: Mapping[str, Any], panel: Panel) -> bool:
    return any(run[kind].get(name, ((),))[0] for kind, name in panel._asdict().items())


def _as_data(value: Any) -> str:
    """JSON, packed to a third of its size. In base64 it stays data inside a page, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _webp(figure: Figure) -> str:
    """A figure without loss, in half the bytes of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="webp", dpi=110, facecolor="white", pil_kwargs={"lossless": True})
    return base64.b64encode(file.getvalue()).decode()


def block_data(block: table.Block, runs: Sequence[Mapping[str, Any]], paper: Sequence[Mapping[str, Any]]) -> dict:
    """A table as text, each line with the number of its first run that has chains to read."""
    head, *body = table_text.matrix(block, paper)
    about = ["", *(c.definition for c in table_text.columns_of(block, paper)), "finished of planned"]
    lines = []
    for cells in body:
        in_line = [r["row"] == cells[0] and block.title in r["blocks"] and r["chains"] > 0 for r in runs]
        lines.append({"cells": cells, "run": in_line.index(True) if any(in_line) else None})
    heads = [{"text": text, "about": words} for text, words in zip(head, about, strict=True)]
    return {"title": block.title, "head": heads, "body": lines}


def run_data(
    run: table.Run, rows: str, first: Mapping[str, dict], written: Mapping[int, int], share: int
) -> dict[str, Any]:
    """What the page knows of a run: its row in the tables, its curves, its sampled chains.

    first: {seed: an evaluation of step 0}, for a run without one; written: {step: its chains}, of which about `share`
    are taken.
    """
    workdir = Path(run.workdir)
    status = run_files.read_status(workdir) or {"state": "new", "step": 0, "steps": 0}
    curves = figures.loaded(run, first)
    step = max([int(status["step"]), *(row["step"] for row in curves["train"][-1:])])
    reward = table.reward_of(workdir)
    groups = chains.read(workdir, chains.steps_shown(written, share))
    labels = dict(run.labels)
    name = ", ".join(f"{k} {v}" for k, v in labels.items()) or workdir.name
    return {
        "name": name,
        "row": labels.get(rows, name),
        "seed": labels.get(table.SEED, ""),
        "reward": reward or labels.get(rows, name),
        "blocks": [],
        "state": status["state"],
        "step": f"{step}/{status['steps']}" if status["steps"] else "-",
        "train": {p.train: curve(curves["train"], p.train) for p in panels.PAGE if p.train},
        "heldout": {p.heldout: curve(curves["heldout"], p.heldout) for p in panels.PAGE if p.heldout}
        | {panels.TRACE_CURVE.heldout: trace_curve(curves["heldout"])},
        "groups": groups,
        "texts": chains.heldout(workdir),
        "chains": sum(len(g["chains"]) for g in groups),
        "written": sum(written.values()),
    }


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[list]:
    """[steps, values] of a metric; a gap is null, and more than POINTS steps become means over stretches."""
    steps, values = plots.series(list(rows), key)
    size = math.ceil(len(steps) / POINTS) if len(steps) else 1
    out: list[list] = [[], []]
    for at in range(0, len(steps), size):
        part = [float(v) for v in values[at : at + size] if math.isfinite(v)]
        out[0].append(int(steps[min(at + size // 2, len(steps) - 1)]))
        out[1].append(float(f"{sum(part) / len(part):.6g}") if part else None)
    return out


def trace_curve(evaluations: Sequence[Mapping[str, Any]]) -> list[list]:
    """[percent of the chain, log-prob per token] of the last evaluation that has TRACE; both empty without one."""
    last = next((row for row in reversed(evaluations) if "trace@0" in row), None)
    return [list(PERCENT), [last[f"trace@{percent}"] for percent in PERCENT]] if last else [[], []]
