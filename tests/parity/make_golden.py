"""What transformers on torch computes: the reference of the parity tests, and the committed golden files.

    python -m tests.parity.make_golden            rewrites tests/weights/golden/ (needs torch; SmolLM2 also accelerate)

tiny.npz: for each checkpoint of tests/weights/make_checkpoints.py the logits of every row's last token and
the log-probs of all its ids. smollm2.json: log-probs of two texts and 64 greedy ids of SmolLM2-135M-Instruct,
the weights read by transformers' own GGUF reader, so that ours is checked by a stranger.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rl_likelihood.data.tokenizer import load_tokenizer
from rl_likelihood.weights import assets
from tests.weights import make_checkpoints

GOLDEN = Path(__file__).parents[1] / "weights" / "golden"
GREEDY_TOKENS = 64

TEXTS = [
    "A farmer has 17 sheep and buys 25 more. Then 8 run away, so 17 + 25 = 42 and 42 - 8 = 34 sheep "
    "are left in the field.",
    "<|im_start|>user\nWhat is 3 * 4 + 5?<|im_end|>\n"
    "<|im_start|>assistant\n3 * 4 = 12, and 12 + 5 = 17, so it is 17.<|im_end|>\n",
]
QUESTION = "Explain in two paragraphs why wooden boats float on water while small stones sink."


def torch_model(path: str | Path, **kw):
    """A transformers model in float32, ready to evaluate."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kw).eval()


@torch.no_grad()
def torch_logits(model, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of right-padded ids [B, T]."""
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return model(
        input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long)
    ).logits.numpy()


def log_probs(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Log-prob [B, T-1] of each id given those before it."""
    logp = torch.log_softmax(torch.tensor(logits[:, :-1]), -1).numpy()
    return np.take_along_axis(logp, ids[:, 1:, None].astype(np.int64), -1)[..., 0]


@torch.no_grad()
def torch_greedy(model, ids: list[int], count: int = GREEDY_TOKENS) -> list[int]:
    """The ids that transformers' generate appends greedily."""
    mask = torch.ones(1, len(ids), dtype=torch.long)
    out = model.generate(torch.tensor([ids]), attention_mask=mask, do_sample=False, max_new_tokens=count)
    return out[0, len(ids) :].tolist()


def tiny(root: Path) -> dict[str, np.ndarray]:
    """Contents of tiny.npz, from checkpoints written below `root`."""
    ids, lengths = make_checkpoints.golden_ids()
    out = {}
    for name in make_checkpoints.CONFIGS:
        make_checkpoints.write(name, root / name)
        logits = torch_logits(torch_model(root / name), ids, lengths)
        out[f"{name}/last_logits"] = logits[np.arange(len(ids)), lengths - 1]
        valid = np.arange(1, ids.shape[1]) < lengths[:, None]
        out[f"{name}/log_probs"] = np.where(valid, log_probs(logits, ids), 0)
    return out


def chat_ids(tokenizer) -> list[int]:
    """The prompt of the greedy continuation."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False).input_ids


def smollm2(model, tokenizer) -> dict:
    """Contents of smollm2.json."""
    texts = []
    for text in TEXTS:
        ids = np.array([tokenizer(text, add_special_tokens=False).input_ids])
        logp = log_probs(torch_logits(model, ids, np.array([ids.shape[1]])), ids)[0]
        texts.append({"ids": ids[0].tolist(), "log_probs": [round(float(x), 6) for x in logp]})
    prompt = chat_ids(tokenizer)
    greedy = torch_greedy(model, prompt)
    if len(greedy) != GREEDY_TOKENS:
        raise SystemExit(f"the answer to QUESTION ends after {len(greedy)} tokens; ask for a longer one")
    return {"texts": texts, "prompt": prompt, "greedy": greedy}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(GOLDEN / "tiny.npz", **tiny(Path(folder)))
    file = assets.resolve("smollm2-135m-instruct")
    tokenizer = load_tokenizer(file)
    golden = smollm2(torch_model(file.parent, gguf_file=file.name), tokenizer)
    print(tokenizer.decode(golden["prompt"] + golden["greedy"]))
    (GOLDEN / "smollm2.json").write_text(json.dumps(golden) + "\n")
