"""Search chains of thought for given answers: python -m rl_likelihood.reer --config=... --workdir=DIR.

REER's search (2509.06160; docs/writing.md) finds a chain for each training question of the config. DIR/reer.jsonl has
the useful chains, as rows for warm_start.chains=given and reward.sft_chain. DIR/heldout.jsonl has the held-out
questions, DIR/dropped.jsonl the training questions without a useful chain and the reasons, and DIR/rounds.jsonl every
candidate. A table compares the search with its controls; it is printed, and DIR/reer.json has its numbers. After Ctrl-C
or a kill, the same command resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from rl_likelihood.cli.command import define_processes, from_flags, required, run_main
from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.model.architecture import Params
from rl_likelihood.progress import counted
from rl_likelihood.rollouts.endpoint import of_first
from rl_likelihood.runtime import distributed
from rl_likelihood.runtime.console import say
from rl_likelihood.runtime.devices import Devices, make_devices, sampler_weights
from rl_likelihood.runtime.run_files import replace
from rl_likelihood.search.controls import controls, text_of
from rl_likelihood.search.folder import DROPPED, claimed, refuse_no_chat, row_of, write_results
from rl_likelihood.search.proposer import Drawing, Propose, asks_of, model_proposer, with_model
from rl_likelihood.search.rounds import Ended, Finder, Journal, Variant, find, first_chains, unfit
from rl_likelihood.search.segments import complaint, copied
from rl_likelihood.search.teacher import http_proposer
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Example
from rl_likelihood.task import Task, load

REER, TABLE = "reer.jsonl", "reer.json"


def main() -> None:
    values, _ = from_flags()
    run(build(values), Path(required("workdir", "runs/reer")))


def run(c: Config, workdir: Path) -> None:
    with claimed(c, workdir, finder, prompt_files=True) as f:
        search(f, workdir)


def search(f: Finder, workdir: Path) -> None:
    """Runs the search. Writes the chains, the dropped questions and the table of controls."""
    cfg, examples = f.task.config.reer, [row.example for row in f.task.train]
    firsts = first_chains(f)
    why = unfit(f, firsts)
    chains = {i: text for i, text in enumerate(firsts) if text is not None and not why[i]}
    ended = find(f, chains, Variant("search", cfg.max_copied)) if chains else {}
    good, dropped = rows_of(examples, firsts, why, ended)
    reasons = write_results(workdir, REER, good, dropped, f.task)
    if all(reason == "no reply" for reason in why):
        f.say_failed()
        raise UserError(
            f"reer.proposer is {cfg.proposer}, which gave no first chain for any of {counted(len(firsts), 'question')}"
            "; mend what the lines above name, and run the same command again"
        )
    if not chains:
        raise UserError(
            f"reer.min_chain is {cfg.min_chain}, and of {len(firsts)} first chains none is of use{reasons}; see "
            f"{workdir / DROPPED}, and set reer.min_chain, reer.max_copied or sampler.max_chain to suit"
        )
    f.say(f"{len(good)} chains in {workdir / REER}; dropped {len(dropped)}{reasons}")
    table = controls(f, chains, ended)
    distributed.by_first(lambda: replace(workdir / TABLE, json.dumps(table, indent=1) + "\n"))
    f.say_failed()
    f.say("\n" + text_of(table, len(chains)))


def finder(c: Config, workdir: Path) -> Finder:
    refuse_no_chat(c, "reer")
    devices = make_devices(c)
    task, params = load(c, mesh=devices.learner)
    asks, shortest = asks_of(task), c.reer.min_chain
    if (longest := asks.whole(1).tokens) < shortest and not c.reer.proposer:
        raise UserError(
            f"reer.min_chain is {shortest}, but a first chain has at most {longest} tokens, 3/4 of sampler.max_chain = "
            f"{c.sampler.max_chain}; lower reer.min_chain or raise sampler.max_chain"
        )
    propose, failed = proposer_of(task, params, devices, workdir)
    other = with_model(task, "reer.other", devices.learner) if c.reer.other else None
    if other and other[0].config.sampler.max_chain < 1:
        raise UserError(
            f"reer.other is {c.reer.other!r}, whose {other[0].model.max_position} positions do not hold the longest "
            "prompt and answer; name a model with more positions"
        )
    return Finder(task, params, asks, propose, Journal(workdir), devices, other, say=say, failed=failed)


def proposer_of(task: Task, params: Params, devices: Devices, workdir: Path) -> tuple[Propose, Callable[[], str]]:
    """(the proposer that reer.proposer names, by default the model that scores; its failed calls in words)."""
    c, name = task.config, task.config.reer.proposer
    drawing = Drawing(c.reer.temperature, c.reer.top_p)
    if "://" in name:
        if c.reer.ask == "resample":
            raise UserError(f"reer.ask is 'resample', which continues a reply, but {name} only chats; set it to edit")
        endpoint = of_first(c.judge, name, c.reer.proposer_name, workdir, "reer.proposer", "reer.proposer_name")
        return http_proposer(endpoint, drawing), endpoint.failed
    proposer_task, weights = with_model(task, "reer.proposer", devices.learner) if name else (task, params)
    return model_proposer(proposer_task, sampler_weights(weights, proposer_task.model, devices), drawing), lambda: ""


def rows_of(
    examples: Sequence[Example], firsts: list[str | None], why: list[str], ended: dict[int, Ended]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows with chains to learn from, dropped rows with the reason)."""
    good, dropped = [], []
    for i, e in enumerate(examples):
        row, reason = row_of(e), why[i]
        if i in ended:
            end, s = ended[i], ended[i].search
            row |= {"chain": s.chain, "start_chain": firsts[i], "nll_start": end.nll_start, "nll": s.nll}
            row |= {"nll_none": end.nll_none, "steps": s.taken, "copied": copied(s.chain, e.answer)}
            reason = complaint(s.chain)
        if reason:
            dropped.append(row | {"start_chain": firsts[i], "dropped": reason})
        else:
            good.append(row)
    return good, dropped


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder for the chains; an existing one resumes")
    define_processes()
    run_main(main)
