"""One self-contained page of a run or a grid: tables, curves, figures, and the sampled chains, to read in any browser.

    python -m rl_likelihood.report.page RUN_DIR... --out=report.html

No server, no network: the page forbids itself both. What models wrote is data in it, never markup.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from rl_likelihood.report import figures as grids
from rl_likelihood.report import metrics, page_chains, plots, table
from rl_likelihood.report.page_parts import STYLE, TEMPLATE
from rl_likelihood.report.page_script import SCRIPT
from rl_likelihood.shapes import UserError

# Title, metric of training, metric of evaluation, how its axis runs, and whether it is for runs of one reward only.
PANELS: tuple[dict[str, Any], ...] = (
    {"title": "Reward in training", "train": "reward/mean", "heldout": "", "one": True},
    {"title": "Greedy success, held-out questions", "train": "", "heldout": "greedy_success", "percent": True},
    {"title": "Sampled success, held-out questions", "train": "", "heldout": "sampled_success", "percent": True},
    {"title": "Perplexity of the answer", "train": "answer/perplexity", "heldout": "perplexity", "log": True},
    {"title": "Perplexity of the answer, no chain", "train": "", "heldout": "perplexity_no_chain", "log": True},
    {"title": "Chain length, tokens", "train": "chain/length", "heldout": "chain_length"},
    {"title": "Chains that never open the answer", "train": "chain/truncated", "heldout": "truncated", "percent": True},
    {"title": "What the chain adds to the answer, nats", "train": "answer/chain_gain", "heldout": "chain_gain"},
    {"title": "Transition words in a hundred", "train": "chain/transition_words", "heldout": "transition_words"},
    {"title": "Entropy of the policy, nats", "train": "policy/entropy", "heldout": ""},
    {"title": "Answer term's share of the gradient", "train": "grad/answer_share", "heldout": "", "percent": True},
)
POINTS = 240  # of a curve at most; a longer one is shown as means over equal stretches


def write(
    path: str | Path,
    title: str,
    doc: str,
    runs: Sequence[table.Run],
    rows: str,
    blocks: Sequence[table.Block],
    figures: Mapping[str, Figure],
    paper: Sequence[Mapping[str, Any]] = (),
    one_start: bool = True,
    limit: int = 0,
) -> None:
    """Writes the page of `runs` to `path`, with these tables and figures in it; `rows` is the label with a colour.

    one_start: the runs of a table begin at the same model, so one's evaluation of step 0 is that of all.
    limit: chains in the page, about (0: what a browser opens at once); of more, each run gives those of evenly spaced
        steps, and the page says so.
    """
    counts = {workdir: page_chains.per_step(workdir) for workdir in dict.fromkeys(run.workdir for run in runs)}
    totals = [sum(steps.values()) for steps in counts.values()]
    share = page_chains.level(totals, limit or page_chains.limit_of(counts, sum(totals)))
    found: dict[Path, dict[str, Any]] = {}
    for shared, lines in table.grouped(runs, rows).items():
        here = [run for group in lines.values() for run in group]
        first = table.starts(here) if one_start else {}
        for run in here:
            if run.workdir not in found:
                found[run.workdir] = run_data(run, rows, first, counts[run.workdir], share)
            found[run.workdir]["blocks"].append(table.title_of(dict(shared)))
    seen = list(found.values())
    text = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(TEMPLATE)
        .render(
            title=title,
            doc=doc,
            runs=[{k: r[k] for k in ("name", "state", "step", "chains", "written")} for r in seen],
            done=sum(r["state"] == "done" for r in seen),
            chains=sum(r["chains"] for r in seen),
            written=sum(r["written"] for r in seen),
            file=metrics.SAMPLES,
            bare=list(dict.fromkeys(found[run.workdir]["row"] for run in runs if table.without_chain(run))),
            blocks=[block_data(block, seen, paper) for block in blocks],
            caption=table.caption(paper),
            figures=[{"name": name.replace("_", " "), "alt": name, "png": _png(f)} for name, f in figures.items()],
            data=_as_data(
                {
                    "runs": seen,
                    "panels": [p for p in PANELS if any(_has(r, p) for r in seen)],
                    "colours": plots.places(r["row"] for r in seen),
                }
            ),
            style=Markup(STYLE),
            script=Markup(SCRIPT),
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        )
    )
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        part.replace(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); choose another --out") from e


def _has(run: Mapping[str, Any], panel: Mapping[str, Any]) -> bool:
    """Whether the run has something to show in a panel."""
    return any(run[kind].get(panel[kind], ((),))[0] for kind in ("train", "heldout"))


def _as_data(value: Any) -> Markup:
    """JSON that stays data inside a page, whatever its strings hold: no < and no & is left in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: odd characters are escapes
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _png(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="white")
    return base64.b64encode(file.getvalue()).decode()


def block_data(block: table.Block, seen: Sequence[Mapping[str, Any]], paper: Sequence[Mapping[str, Any]]) -> dict:
    """A table as text, each line with the number of its first run that has chains to read."""
    head, *body = table.matrix(block, paper)
    lines = []
    for cells in body:
        mine = (i for i, r in enumerate(seen) if r["row"] == cells[0] and block.title in r["blocks"] and r["chains"])
        lines.append({"cells": cells, "run": next(mine, None)})
    return {"title": block.title, "head": head, "body": lines}


def run_data(
    run: table.Run, rows: str, first: Mapping[str, dict], written: Mapping[int, int], share: int
) -> dict[str, Any]:
    """What the page knows of a run: its place in the tables, its curves, its sampled chains.

    first: {seed: an evaluation of step 0}, for a run without one; written: {step: its chains}, of which about `share`
    are taken.
    """
    workdir = Path(run.workdir)
    status = metrics.read_status(workdir) or {"state": "new", "step": 0, "steps": 0}
    curves = grids.loaded(run, first)
    step = max([int(status["step"]), *(row["step"] for row in curves["train"][-1:])])
    reward = reward_of(workdir)
    groups = page_chains.read(workdir, page_chains.kept(written, share), reward)
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
        "train": {p["train"]: curve(curves["train"], p["train"]) for p in PANELS if p["train"]},
        "heldout": {p["heldout"]: curve(curves["heldout"], p["heldout"]) for p in PANELS if p["heldout"]},
        "groups": groups,
        "chains": sum(len(g["chains"]) for g in groups),
        "written": sum(written.values()),
    }


def reward_of(workdir: Path) -> str:
    """The reward that a run was trained on, as its config.json says; nothing for a run that has not begun."""
    try:
        return json.loads((workdir / "config.json").read_text(encoding="utf-8"))["reward.name"]
    except (OSError, ValueError, KeyError):
        return ""


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rl_likelihood.report.page", description="A page of one or several runs.")
    parser.add_argument("run_dir", nargs="+", help="the --workdir of a run")
    parser.add_argument("--out", required=True, help="the page, as report.html")
    args = parser.parse_args(argv)
    try:
        runs = [table.Run({"run": name}, workdir) for name, workdir in plots.names_of(args.run_dir).items()]
        for run in runs:
            plots.load(run.workdir)  # refuses a folder that holds no run
        blocks = [table.stages(run) for run in runs if table.evaluations(run.workdir)]
        write(args.out, ", ".join(run.labels["run"] for run in runs), "", runs, "run", blocks, {}, one_start=False)
        print(args.out)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
