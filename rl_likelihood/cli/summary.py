"""The results of a run or of an evaluation, on the console."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_likelihood.progress import counted
from rl_likelihood.report import table, table_text
from rl_likelihood.runtime import run_files
from rl_likelihood.runtime.console import chains_words, excerpt, say
from rl_likelihood.training.best import FAST


def summary(workdir: Path) -> None:
    """Before and after side by side, the same questions answered by each, and the figure."""
    rows = {row["stage"]: row for row in table.evaluations(workdir) if not row["stage"].startswith(FAST)}
    if not rows:
        return
    say("\n" + table_text.side_by_side(rows))
    n = int(next(iter(rows.values()))["questions"])
    error = f"the standard error of a success rate is up to {50 / n**0.5:.1f} points"
    say(f"\nOn {counted(n, 'held-out question')}, {error}")
    say("\nGreedy answers to the first held-out questions")
    columns = [row.get("examples", []) for row in rows.values()]
    for shown in zip(*columns, strict=False):
        say(f"  {excerpt(shown[0]['prompt'])}  [{excerpt(shown[0]['reference'])}]")
        for stage, example in zip(rows, shown, strict=True):
            mark = {True: "right", False: "wrong"}.get(example["right"], "ungraded")
            say(f"    {stage:<{max(map(len, rows))}}  {mark}  {excerpt(example['text'])}")
    if (workdir / run_files.METRICS).exists():
        from rl_likelihood.report.plots import curves  # here because matplotlib's import takes half a second

        say(f"\nfigure   {curves({workdir.name: workdir}, workdir)[0]}")
    say(f"chains   {workdir / run_files.SAMPLES}")


def evaluation_text(row: Mapping[str, Any]) -> str:
    """What `evaluate` prints for people: `row` is its line of eval.jsonl."""
    where = f"step {row['step']}" + (f", {row['data']}" if row.get("data") else "")
    asked = f"{counted(row['questions'], 'question')}, {chains_words(row['samples'])}, {row['seconds']:.0f} s"
    failures = row.get("grader_failures", 0)
    lines = [f"{where}: {asked}", "", table_text.evaluation(row)]
    if failures:
        lines += ["", f"{failures} answers could not be graded; they count as neither right nor wrong"]
    if "records" in row:
        lines += ["", f"records   {row['records']}"]
    return "\n".join(lines)
