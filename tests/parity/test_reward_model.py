"""An exported reward model: transformers' sequence classifier gives our scores, in a padded batch of its own."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rl_likelihood.data.judged_text import SCORE
from rl_likelihood.export import export
from rl_likelihood.rollouts.local_judge import local_judge
from tests.weights.make_checkpoints import write

QUESTIONS = ["What is 2 + 3?", "Name a colour, please."]
ANSWERS = [["5", "it is five, I think"], ["red", "no"]]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_transformers_gives_our_scores(name, tmp_path):
    cfg, params = write(name, tmp_path / "base")
    score = np.random.default_rng(0).normal(size=(1, cfg.width)).astype(np.float32)
    export(cfg, {**params, "score": score}, tmp_path / "base", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    talks = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, group in zip(QUESTIONS, ANSWERS, strict=True)
        for a in group
    ]
    batch = tokenizer.apply_chat_template(talks, tokenize=True, padding=True, return_tensors="pt", return_dict=True)
    assert not batch["attention_mask"].all(), "rows of several lengths"
    with torch.no_grad():
        theirs = model(**batch).logits[:, 0].numpy().reshape(2, 2)
    ours = local_judge(str(tmp_path / "out"), SCORE, 60, 60)(QUESTIONS, [[(a,) for a in group] for group in ANSWERS])
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours.values, theirs, atol=2e-3)
