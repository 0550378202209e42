"""Small runs for the tests of the mains: a two-layer model over bytes, sums of one-digit numbers."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.base import get_config
from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.runtime import run_files

SMALL = {
    "model.preset": "nano",
    "model.layers": "scan",
    "data.tasks": ("faulty_losses",),
    "data.train_size": 40,
    "data.heldout_size": 6,
    "prompt.instruction": "Add.",
    "prompt.use_system": False,
    "prompt.max_prompt": 40,
    "prompt.max_answer": 10,
    "mesh.data": 1,
    "mesh.fsdp": 2,
    "mesh.tensor": 4,
    "sampler.group_size": 3,
    "sampler.max_chain": 12,
    "train.steps": 4,
    "train.prompts_per_step": 2,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 10,
    "optim.lr": 1e-3,
    "eval.prompts": 5,
    "eval.samples": 2,
    "eval.batch_prompts": 4,
    "report.console_samples": 2,
    "report.sample_prompts": 2,
}


def small_config(**overrides) -> ConfigDict:
    """The small run's config; names with `__` for dots, as sampler__group_size=2."""
    c = get_config()
    for name, value in {**SMALL, **{k.replace("__", "."): v for k, v in overrides.items()}}.items():
        section, _, field = name.partition(".")
        if field:
            c[section][field] = value
        else:
            c[section] = value
    return c


def config_file(folder: Path, **overrides) -> Path:
    """A config file of the small run, for subprocesses."""
    values = {**SMALL, **{k.replace("__", "."): v for k, v in overrides.items()}}
    path = folder / "small.py"
    path.write_text(
        "from configs.base import get_config as base\n\n\n"
        "def get_config(arg=''):\n    c = base(arg)\n"
        + "".join(f"    c.{name} = {value!r}\n" for name, value in values.items())
        + "    return c\n"
    )
    return path


def experiment(folder: Path, **overrides) -> str:
    """A sweep of two rewards over the nano model."""
    (folder / "experiments").mkdir()
    config = config_file(folder, **{"train__steps": 2, "report__console_samples": 0, **overrides})
    path = folder / "experiments" / "small.py"
    path.write_text(
        '"""Two rewards."""\nfrom rl_likelihood.sweeps.grid import named, product, sweep\n\n\ndef get_sweep():\n'
        '    kw = {"preset": "kw_log_prob", "sampler.group_size": 3}\n'
        '    rewards = {"log_prob": kw, "sft": {"reward.name": "sft"}}\n'
        f'    return product([{{"config": {str(config)!r}}}], named("reward", rewards), sweep("seed", (0,)))\n'
    )
    return str(path)


def run(workdir: Path, **overrides) -> Path:
    train.run(build(small_config(**overrides)), workdir)
    return workdir


def rows(workdir: Path, name: str) -> list[dict]:
    """Rows without what a clock decides."""
    timed = ("seconds", "tokens_per_second")
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k not in timed and k != "queue/depth"}
        for row in run_files.read(workdir / name)
    ]
