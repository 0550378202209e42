"""Every likelihood reward along one run: the figure docs/rewards.png.

    python -m rl_likelihood.train --config=configs/quickstart.py:steps=24 --workdir=runs/rewards
    python -m experiments.rewards_figure --workdir=runs/rewards [--out=docs/rewards.png]

Each step logs every likelihood reward, whichever one trains. A panel shows one of them: its mean over the step's
chains, and its running mean. The title gives its correlation with the trained reward within groups, averaged over the
steps. Group-relative advantages depend only on what is within groups.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.runtime import run_files

ROOT = Path(__file__).parents[1]
WINDOW = 5
UNITS = {"log_prob": "nats", "avg_log_prob": "nats per token", "jepo": "nats"}


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and those before it, WINDOW at most."""
    return np.asarray([values[max(0, i + 1 - WINDOW) : i + 1].mean() for i in range(len(values))])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--workdir", default=str(ROOT / "runs" / "quickstart"))
    arguments.add_argument("--out", default=str(ROOT / "docs" / "rewards.png"))
    a = arguments.parse_args()
    rows = run_files.read(Path(a.workdir) / run_files.METRICS)
    config = json.loads((Path(a.workdir) / "config.json").read_text())
    steps = np.asarray([row["step"] for row in rows])
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharex=True, layout="constrained")
    for axis, name in zip(axes.flat, OBJECTIVES, strict=True):
        values = np.asarray([row[f"reward/{name}"] for row in rows])
        axis.plot(steps, values, color="0.75", lw=1)
        axis.plot(steps, running_mean(values), color="C0", lw=2)
        title = name
        if f"corr/{name}" in rows[0]:
            title += f"   r = {np.mean([row[f'corr/{name}'] for row in rows]):.2f}"
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel(UNITS.get(name, "probability"), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    task = ", ".join(config["data.tasks"])
    floored = " (unfinished chains at its floor)" if config["reward.truncated"] == "floor" else ""
    figure.suptitle(
        f"All likelihood rewards along one run on {task} that trains {config['reward.name']}{floored};\n"
        "r: correlation within groups with the trained reward (jepo has no value of its own for a row)",
        fontsize=10,
    )
    Path(a.out).parent.mkdir(exist_ok=True)
    figure.savefig(a.out, dpi=150)
    print(a.out)


if __name__ == "__main__":
    main()
