"""Write a config's held-out questions as a task of lm-eval, so that another harness scores an exported model.

    python -m rl_likelihood.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
    python -m rl_likelihood.export   --workdir=runs/quickstart --out=runs/exported
    python -m experiments.lm_eval_task --config=configs/quickstart.py --out=runs/task

    python3 -m venv .harness && .harness/bin/pip install -e '.[harness]'
    .harness/bin/lm_eval --model hf --model_args pretrained=runs/exported,dtype=float32 --tasks rl_likelihood \
        --include_path runs/task --batch_size 32 --device cpu --output_path runs/task/results --log_samples

This writes OUT/rl_likelihood.yaml and OUT/questions.jsonl. Each prompt is exactly the text that this library gives the
model, with chat template, worked examples and the opened <think>. So lm-eval must not apply a template of its own.

Compare its exact_match with greedy_success of eval.grader=exact_match: the same questions, greedy, the same stop, and
the answer between the tags compared as text. Two rules differ in favour of lm-eval: it has one limit for chain and
answer together, and it grades an answer that this limit cuts off. docs/data.md has measured numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from absl import flags

from rl_likelihood.cli.command import from_flags, run_main
from rl_likelihood.config import build
from rl_likelihood.data import prompts
from rl_likelihood.data.prompts import PromptConfig
from rl_likelihood.datasets import sources
from rl_likelihood.errors import UserError
from rl_likelihood.task import load_tokenizer
from rl_likelihood.weights import assets

NAME = "rl_likelihood"


def answer_pattern(cfg: PromptConfig) -> str:
    r"""`graders.extract_answer` as one regular expression, for a text that ends before its closing tag.

    It searches what follows the first </think>, or the whole text if there is none.
    """
    close, opening = (re.escape(tag) for tag in (cfg.think_close, cfg.answer_open + ">"))
    chain = rf"(?:(?:(?!{close}).)*{close}|(?!.*{close}))"
    return rf"(?s)\A{chain}.*?{opening}\s*(.*?)\s*\Z"


def task(data: Path, cfg: PromptConfig, tokens: int) -> str:
    """The task file, YAML."""
    lines = [
        f"task: {NAME}",
        "dataset_path: json",
        f"dataset_kwargs: {json.dumps({'data_files': {'test': str(data)}})}",
        "test_split: test",
        "output_type: generate_until",
        'doc_to_text: "{{prompt}}"',
        'doc_to_target: "{{answer}}"',
        'target_delimiter: ""',
        "generation_kwargs:",
        f"  until: {json.dumps([cfg.answer_close])}",
        "  do_sample: false",
        f"  max_gen_toks: {tokens}",
        "filter_list:",
        "  - name: answer",
        "    filter:",
        f"      - {json.dumps({'function': 'regex', 'regex_pattern': answer_pattern(cfg)})}",
        '      - {"function": "take_first"}',
        "metric_list:",
        "  - metric: exact_match",
        "    aggregation: mean",
        "    higher_is_better: true",
        "metadata:",
        "  version: 1.0",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    c, _ = from_flags()
    settings, out = build(c), flags.FLAGS.out
    if not out:
        raise UserError("--out is missing; name a folder for the task")
    if c.eval.grader != "exact_match":
        raise UserError(
            f"eval.grader is {c.eval.grader!r}, but lm-eval will compare answers as text; evaluate with "
            "--config.eval.grader=exact_match, and give the same here"
        )
    prompt = sources.resolve_prompt(settings.prompt, settings.data, settings.worked_examples)
    _, heldout, _ = sources.load(settings.data, training=False, shown=prompt.shots)
    if not heldout or not c.eval.prompts:
        raise UserError("there are no held-out questions; set data.heldout_size and eval.prompts")
    tokenizer, _ = load_tokenizer(model_folder(c.model.path), prompt.template)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / "questions.jsonl").resolve()
    rows = [
        {"id": e.id, "prompt": prompts.render(e, tokenizer, prompt), "answer": e.answer}
        for e in heldout[: c.eval.prompts]
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = c.sampler.max_chain + (c.eval.max_sampled_answer or c.prompt.max_answer)
    (folder / f"{NAME}.yaml").write_text(task(data, settings.prompt, tokens))
    print(f"{len(rows)} questions, up to {tokens} tokens each: {folder / NAME}.yaml")


def model_folder(path: str) -> str:
    """Where the tokenizer of model.path is."""
    if not path:
        raise UserError("model.path is empty; lm-eval scores a model with a tokenizer of its own, from a folder")
    return str(assets.resolve(path))


if __name__ == "__main__":
    flags.DEFINE_string("out", "", "folder to write the task to")
    run_main(main)
