"""Prose and verse with SmolLM2-135M-Instruct: sonnets and novels, six ways to train, three seeds: 36 runs of 16 steps.

    python -m experiments.writing --texts=FOLDER
    python -m rl_likelihood.reer --config=configs/writing.py:data=runs/writing_data/sonnets.txt,form=verse \\
        --workdir=runs/writing_data/verse_reer --config.data.train_size=32 --config.sampler.max_chain=96 \\
        --config.reer.other=HuggingFaceTB/SmolLM2-360M-Instruct
    python -m rl_likelihood.reer --config=configs/writing.py:data=runs/writing_data/novels \\
        --workdir=runs/writing_data/prose_reer --config.data.train_size=32 --config.sampler.max_chain=96 \\
        --config.reer.other=HuggingFaceTB/SmolLM2-360M-Instruct
    python -m rl_likelihood.sweep experiments/writing.py --run
    python -m rl_likelihood.sweep experiments/writing.py --table

FOLDER has sonnets.txt (Shakespeare) and austen.txt or austen.txt.gz (three novels in one file), both from
github.com/aparrish/rwet-examples at 96f4252. The first command writes runs/writing_data/sonnets.txt and a file for each
novel in runs/writing_data/novels. 152 of the 154 sonnets have 14 lines. The novels have 1,309, 1,034 and 1,440
paragraphs of 20 to 120 words. All runs of a task have the same held-out works; the searches write them as rows, for the
runs that learn their chains. reer.other is downloaded; without it the searches have three controls, not four.

Hardware: two x86-64 CPU cores, 10 GB of memory, 20 GB of disk. A run of verse took 14 to 39 minutes beside other work,
half of it for evaluations; --run resumes. Eight of the 36 runs and the search on verse have ended. To save time it
trains LoRA adapters, with two prompts a step, as experiments/long_answers.py.

All likelihood rewards have one loss, that of Kwiatkowski et al. without KL: leave-one-out, sums over tokens, the exact
answer term, groups of 4. So the reward alone differs. nrt is not clipped: a chain that is worse than none would train
nothing, and most chains of this model are. Of the rest, vr_cli is a constant and has no answer term; sft and
reer_sft sample nothing.

The result is three numbers: the length of the chain, what the chain adds (perplexity against perplexity_no_chain), and
the control (perplexity_swapped, after another prompt's chain). A model of 135 M hardly ever closes its chain by itself
and cannot plan a text, so no gain over no chain is expected. What it can show is whether a reward shortens chains, and
whether what they add is of the prompt or of the style alone. `copied` of reer_sft cannot be compared with the others':
it counts 32 training texts at most.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
from pathlib import Path

from experiments.cpu_grid import NO_KL, NOT_FIRST
from rl_likelihood.errors import UserError, exits
from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

DATA = "runs/writing_data"
RESOURCES = {"CPU": 2}
TASKS = {"verse": f"data={DATA}/sonnets.txt,form=verse", "prose": f"data={DATA}/novels,form=next_passage"}
SMALL: Overrides = {
    "sampler.group_size": 4,
    "sampler.max_chain": 96,
    "sampler.width_multiple": 32,
    "lora.rank": 16,
    "optim.lr": 3e-4,  # of adapters
    "train.prompts_per_step": 2,
    "train.steps": 16,
    "train.eval_every": 0,
    "train.checkpoint_every": 4,
    "train.keep_checkpoints": 1,
    "train.keep_optimizer": False,
    "eval.prompts": 15,
    "eval.samples": 2,
    "eval.max_sampled_answer": 240,
}
FROZEN = {"reward.baseline": "frozen"}
REWARDS: dict[str, Overrides] = {
    "avg_log_prob": {"preset": "kw_avg_log_prob", **NO_KL},  # all start from the same model: the first one evaluates it
    "vr_cli": {"preset": "kw_avg_log_prob", "reward.name": "vr_cli", **FROZEN, **NO_KL, **NOT_FIRST},
    "r3": {"preset": "kw_avg_log_prob", "reward.name": "r3", **NO_KL, **NOT_FIRST},
    "nrt": {
        "preset": "kw_avg_prob",
        "reward.name": "nrt",
        "reward.token_weights": "neg_log",
        "reward.clip_gain": False,
        **FROZEN,
        **NO_KL,
        **NOT_FIRST,
    },
    "sft": {"reward.name": "sft", **NOT_FIRST},
}


def of_task(task: str) -> list[Overrides]:
    """The runs of one task, but for their seeds."""
    learned = {
        "reward.name": "sft",
        "reward.sft_chain": "both",
        "data.source": "files",
        "data.train_path": f"{DATA}/{task}_reer/reer.jsonl",
        "data.heldout_path": f"{DATA}/{task}_reer/heldout.jsonl",
        **NOT_FIRST,
    }
    points = chain(named("reward", REWARDS), named("reward", {"reer_sft": learned}))
    return product(named("task", {task: {"config": f"configs/writing.py:{TASKS[task]}"}}), [SMALL], points)


def get_sweep() -> list[Overrides]:
    return product(sweep("seed", (0, 1, 2)), chain(*map(of_task, TASKS)))


# ------------------------------------------------------------------------------------------- the texts

NOVELS = ("Pride and Prejudice", "Sense and Sensibility", "Emma")  # in the order of the file


def write_texts(folder: Path, to: Path) -> None:
    """The sonnets, and a file for each novel of Austen, in the folder `to`."""
    sonnets, packed = folder / "sonnets.txt", folder / "austen.txt.gz"
    austen = packed if packed.exists() else folder / "austen.txt"
    for path in (sonnets, austen):
        if not path.exists():
            raise UserError(f"{path} is not there; set --texts to a folder with sonnets.txt and austen.txt")
    data = gzip.decompress(packed.read_bytes()) if austen == packed else austen.read_bytes()
    titles = [title.upper() for title in NOVELS]
    _, *novels = re.split(rf"(?m)^(?=(?:{'|'.join(titles)})$)", data.decode())
    if [novel.partition("\n")[0] for novel in novels] != titles:
        raise UserError(f"{austen} must have each of these lines once, in this order: {', '.join(titles)}")
    (to / "novels").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sonnets, to / "sonnets.txt")
    for title, novel in zip(NOVELS, novels, strict=True):
        (to / "novels" / f"{title.lower().replace(' ', '_')}.txt").write_text(novel, encoding="utf-8")
    print(f"{to}: sonnets.txt and {len(novels)} novels")


@exits
def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--texts", type=Path, required=True, help="folder with sonnets.txt and austen.txt")
    write_texts(arguments.parse_args().texts, Path(DATA))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
