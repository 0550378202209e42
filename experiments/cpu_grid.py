"""Eight rewards on two tasks with SmolLM2-135M-Instruct, two seeds: 32 runs of 20 steps.

    python -m rl_likelihood.sweep experiments/cpu_grid.py --run
    python -m rl_likelihood.sweep experiments/cpu_grid.py --status
    python -m rl_likelihood.sweep experiments/cpu_grid.py --report

Hardware: two x86-64 CPU cores, 10 GB of memory, 50 GB of disk (each run's checkpoint has 1.5 to 1.8 GB). Measured
beside other work: 7 to 12 minutes for a run of the short task, 8 to 15 for the long one, 4 to 7 for sft, and 6.8 hours
for all 32. You may interrupt it at any time; the same command resumes. --runner=print prints the commands.

short: one operation on two numbers; exact match verifies it. long: word problems whose reference is a worked solution
of 51 to 95 tokens (reasoning-gym's gsm_symbolic). No rule verifies those. --prepare writes them. Its held-out questions
have other names and numbers than the training questions, but come from the same 100 templates.

What to expect, by tables 1 to 3 of Kwiatkowski et al. 2602.03979 (3B models, hundreds of steps): greedy success is
close for all RL rewards; at temperature 1 base_rl and prob lead, then avg_prob and jepo, then log_prob and
avg_log_prob; perplexity has the opposite order; on long answers log_prob equals sft, prob does not learn, and chains
shrink for all but prob. Nothing was tuned to get this. A model of 135 M may differ: after its many wrong chains, the
answer term teaches it to distrust chains (docs/rewards.md). docs/results.md has what came out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from configs.cpu_grid import DATA
from rl_likelihood.errors import UserError
from rl_likelihood.sweeps.grid import Overrides, chain, named, product, sweep

TRAIN, HELDOUT = 512, 96
RESOURCES = {"CPU": 2}

# All runs of a task and seed start from the same model, so only the first one evaluates it.
NOT_FIRST = {"train.eval_first": False}
# Published settings, by preset (rl_likelihood/presets.py).
KW = {"base_rl": {"preset": "kw_base_rl"}} | {
    name: {"preset": f"kw_{name}", **NOT_FIRST} for name in ("log_prob", "avg_log_prob", "prob", "avg_prob", "jepo")
}
OTHERS = {"self_certainty": {"preset": "intuitor", **NOT_FIRST}, "sft": {"reward.name": "sft", **NOT_FIRST}}
# The paper has G = 32 (4 for jepo), and 4 on long answers. Here all rewards of a task have one G, so that they do equal
# work. The paper does not say what it does with chains that never open the answer. If they are closed by force they
# cost nothing, and a model this small stops closing them. So the short task gives them a floor. On the long task a
# floor would itself teach short chains, and the length of chains is what we measure.
SHORT: Overrides = {
    "config": "configs/cpu_grid.py:task=short",
    "sampler.group_size": 8,
    "reward.truncated": "floor",
    "reward.floor": -5.0,
}
LONG: Overrides = {
    "config": "configs/cpu_grid.py:task=long",
    "sampler.group_size": 4,
    "reward.truncated": "force_close",
}
NO_KL = {"loss.kl": "none", "loss.kl_coef": 0.0}  # the paper: k3 x 0.001 where answers can be verified, none elsewhere


def get_sweep() -> list[Overrides]:
    short, long = named("task", {"short": SHORT}), named("task", {"long": LONG})
    kw, others = named("reward", KW), named("reward", OTHERS)
    points = chain(product(short, kw), product(short, others), product(long, [NO_KL], kw), product(long, others))
    return product(sweep("seed", (0, 1)), points)  # the paper has two; one whole seed comes first


# ------------------------------------------------------------------------------------------- the long task

# Worked examples (question, chain, answer), shown as earlier turns of each conversation. Without any the model does not
# know the tags. With one it closes 5 of 100 chains within 64 tokens at temperature 1, with three it closes 27.
SHOWN = (
    (
        "A ticket costs 12 euros and children pay half. What do 2 adults and 3 children pay together?",
        "I need the price of a child's ticket, then both sums, then the total.",
        "A child's ticket costs 12 / 2 = 6 euros.\n"
        "The adults pay 2 * 12 = 24 euros and the children 3 * 6 = 18 euros.\n"
        "Together they pay 24 + 18 = 42 euros.",
    ),
    (
        "Tom reads 8 pages a day from Monday to Friday and 20 pages on Saturday. The book has 90 pages. How many pages "
        "are left?",
        "First the pages of five days, then Saturday's, then what is left of 90.",
        "In five days Tom reads 8 * 5 = 40 pages.\nWith Saturday he has read 40 + 20 = 60 pages.\n"
        "So 90 - 60 = 30 pages are left.",
    ),
    (
        "A box holds 6 red pens and twice as many blue pens. Ana takes out 5 pens. How many pens are left in the box?",
        "I need the blue pens, then all pens, then I take away 5.",
        "There are 6 * 2 = 12 blue pens in the box.\nAltogether there are 6 + 12 = 18 pens.\n"
        "After Ana takes out 5 pens, 18 - 5 = 13 pens are left.",
    ),
)
_ASK = " Give the result as your final answer. Do not include units."


def prepare() -> None:
    """Write DATA/train.jsonl and DATA/heldout.jsonl if they do not exist. The rows are always the same."""
    write_rows(DATA, (TRAIN, HELDOUT), "word problems with worked solutions", word_problems)


def write_rows(data: str, sizes: tuple[int, int], what: str, make: Callable[[int], list[dict]]) -> None:
    """The rows of `make`, so many for training and so many held out, in the folder `data`, unless its files exist."""
    folder = Path(data)
    paths = dict(zip((folder / "train.jsonl", folder / "heldout.jsonl"), sizes, strict=True))
    if all(path.exists() for path in paths):
        return
    rows = make(sum(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    for path, size in paths.items():
        part, rows = rows[:size], rows[size:]
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        print(f"{path}: {size} {what}")


def shown_messages() -> list[tuple[str, str]]:
    """The worked examples as earlier turns of a conversation: (role, content)."""
    replies = [(question, f"<think>{plan}</think>\n<answer>{answer}</answer>") for question, plan, answer in SHOWN]
    return [message for question, reply in replies for message in (("user", question), ("assistant", reply))]


def word_problems(n: int) -> list[dict]:
    """n distinct problems in the form of data/jsonl.py, with solutions of 51 to 95 tokens of SmolLM2."""
    try:
        import reasoning_gym  # seconds to import, and only --prepare needs it
    except ImportError as error:
        raise UserError("experiments/cpu_grid.py needs reasoning-gym; run pip install reasoning-gym") from error
    items = reasoning_gym.create_dataset("gsm_symbolic", size=20 * n, seed=20260203)
    shown = [{"role": role, "content": content} for role, content in shown_messages()]
    rows: dict[str, dict] = {}
    for i in range(20 * n):
        asked = items[i]["question"].removesuffix(_ASK)
        solved = items[i]["metadata"]["answer_cot"].partition("\n####")[0].strip()
        if len(rows) < n and asked not in rows and len(asked) <= 300 and 160 <= len(solved) <= 230:
            if sum(c.isdigit() for c in solved) > 45:  # a token each
                continue
            messages = [*shown, {"role": "user", "content": asked}]
            rows[asked] = {"id": f"gsm_symbolic-{i}", "messages": messages, "answer": solved}
    if len(rows) < n:
        raise UserError(f"gsm_symbolic of this reasoning-gym gives {len(rows)} of {n} problems; install version 0.1.25")
    return list(rows.values())
