"""How many tokens the telecom prompts, tickets, calls and replies have. Reads texts, not models.

Prints the least, the mean and the most, and how many texts have more than 320, 640 and 1,024 tokens. The replies of a
tool to the expert in the base tasks are counted by tool, where one has more than 320.

python -m bench.telecom_tokens texts --tau2=FOLDER --out=texts.json
python -m bench.telecom_tokens smollm2 --texts=texts.json
python -m bench.telecom_tokens quicktok --texts=texts.json      # pip install quicktok-v1: Llama 3, Qwen 3
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

LIMITS, OF_TOOL = (320, 640, 1024), "replies of "


def texts(tau2: str) -> dict[str, list[str]]:
    from rl_likelihood.datasets.tau2_telecom import whole
    from rl_likelihood.envs import telecom, telecom_expert
    from rl_likelihood.envs.calls import text_of
    from rl_likelihood.envs.telecom import Telecom, system_prompt
    from rl_likelihood.envs.telecom_state import read_world

    world, tasks = read_world(tau2), telecom.read_tasks(tau2)
    base = [tasks[name] for name in telecom.read_json(Path(tau2) / "split_tasks.json")["base"]]
    played = [telecom_expert.solve(world, task)[0] for task in base]
    expert = [[turn.reply for turn in turns] for turns in played]
    by_tool: dict[str, list[str]] = {}
    for turn in (turn for turns in played for turn in turns):
        by_tool.setdefault(OF_TOOL + turn.act.call.name, []).append(turn.reply)
    environment = Telecom(world, tasks, "")
    return {
        "prompt full": [system_prompt("full", "hermes", tau2)],
        "prompt compact": [system_prompt("compact", "hermes")],
        "ticket": sorted({task.ticket for task in tasks.values()}),
        "reference call": sorted({text_of(call) for task in tasks.values() for call in task.reference}),
        "reference calls of a base task": [whole(world, task)[0].answer for task in base],
        "the same as messages, with done": [environment.start({"task": task.id}).reference for task in base],
        "reply to the expert": sorted({reply for replies in expert for reply in replies}),
        "all replies to the expert in a base task": ["\n".join(replies) for replies in expert],
    } | by_tool


def smollm2() -> dict[str, Callable[[str], int]]:
    from rl_likelihood.data.tokenizer import load_tokenizer
    from rl_likelihood.weights.assets import resolve

    tokenizer = load_tokenizer(resolve("smollm2-135m-instruct"))
    return {"SmolLM2": lambda text: len(tokenizer.encode(text, add_special_tokens=False))}


def quicktok() -> dict[str, Callable[[str], int]]:
    import quicktok

    counters = {}
    for name, vocabulary in (("Llama 3", "llama3"), ("Qwen 3", "qwen3")):
        encoding = quicktok.get_encoding(vocabulary)
        counters[name] = lambda text, encoding=encoding: len(encoding.encode_ordinary(text))
    return counters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("texts", "smollm2", "quicktok"))
    parser.add_argument("--tau2")
    parser.add_argument("--texts")
    parser.add_argument("--out")
    flags = parser.parse_args()
    if flags.command == "texts":
        Path(flags.out).write_text(json.dumps(texts(flags.tau2)))
        return
    for name, count in {"smollm2": smollm2, "quicktok": quicktok}[flags.command]().items():
        for what, texts_of in json.loads(Path(flags.texts).read_text()).items():
            lengths = [count(text) for text in texts_of]
            longer = [sum(n > limit for n in lengths) for limit in LIMITS]
            if longer[0] or not what.startswith(OF_TOOL):
                of_lengths = f"{min(lengths):6} {statistics.mean(lengths):8.1f} {max(lengths):6}"
                print(f"{name:8} {what:42} {of_lengths}   of {len(lengths):4}: {longer}")


if __name__ == "__main__":
    main()
