"""The real SmolLM2-135M-Instruct: GGUF -> ours -> Hugging Face folder -> transformers on torch. About half a minute."""

import functools
import json

import numpy as np
import pytest

pytest.importorskip("torch")

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer

from rl_likelihood.data.tokenizer import load_tokenizer, vocab_bytes
from rl_likelihood.export import export
from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import forward
from rl_likelihood.model.head import logits, token_stats
from rl_likelihood.sampler.decode import generate, prepare
from rl_likelihood.sampler.draw import Ends, Request
from rl_likelihood.sampler.stop import stop_table
from rl_likelihood.weights import assets, files
from tests.parity.make_golden import (
    GOLDEN,
    GREEDY_TOKENS,
    TEXTS,
    chat_ids,
    log_probs,
    smollm2,
    torch_logits,
    torch_model,
)

CHAT = (
    "<|im_start|>system\nAnswer with a number.<|im_end|>\n<|im_start|>user\nTom has 12 apples and eats 5. Ann gives "
    "him twice as many as he has left. How many apples has Tom now?<|im_end|>\n<|im_start|>assistant\n12 - 5 = 7 and "
    "2 * 7 = 14, so 7 + 14 = 21.<|im_end|>\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(cfg, params, our tokenizer, exported folder, torch model of that folder)."""
    path = assets.resolve("smollm2-135m-instruct")
    cfg, params = files.load(path)
    folder = tmp_path_factory.mktemp("smollm2")
    export(cfg, params, path, folder)
    return cfg, params, load_tokenizer(path), folder, torch_model(folder)


def test_logits_and_log_probs(model):
    cfg, params, tokenizer, folder, reference = model
    ids = np.array([tokenizer(CHAT).input_ids])
    lengths = np.array([ids.shape[1]])
    assert lengths[0] > 60
    theirs = torch_logits(reference, ids, lengths)
    hidden = jax.jit(functools.partial(forward, cfg=cfg))(params, prompt=ids, prompt_length=lengths).prompt
    np.testing.assert_allclose(logits(hidden, head_matrix(params)), theirs, atol=1e-3)
    stats = token_stats(hidden[:, :-1], head_matrix(params), ids[:, 1:])
    np.testing.assert_allclose(stats.log_prob, log_probs(theirs, ids), atol=1e-4)


def test_greedy_text(model):
    cfg, params, tokenizer, folder, reference = model
    golden = json.loads((GOLDEN / "smollm2.json").read_text())
    now = smollm2(reference, tokenizer)
    assert now["greedy"] == golden["greedy"]
    for text, committed in zip(now["texts"], golden["texts"], strict=True):
        assert text["ids"] == committed["ids"]
        np.testing.assert_allclose(text["log_probs"], committed["log_probs"], atol=1e-4)

    prompt = np.array([chat_ids(tokenizer)], np.int32)
    never = Ends(stop_table(vocab_bytes(tokenizer, cfg.vocab_size), ("no text has this: \0",)), np.int32([-1]))
    length, uid, none = np.array([prompt.shape[1]], np.int32), np.zeros(1, np.int32), np.int32(0)
    request = Request(prompt, length, uid, jax.random.key(0), np.zeros(1, np.float32), never, none, none)
    ids, _, n = generate(prepare(jax.tree.map(jnp.asarray, params), cfg), cfg, request, GREEDY_TOKENS)
    assert int(n[0, 0]) == GREEDY_TOKENS
    greedy = np.asarray(ids[0, 0]).tolist()
    assert tokenizer.decode(greedy) == tokenizer.decode(golden["greedy"])
    assert greedy == golden["greedy"]


def test_tokenizer(model):
    _, _, tokenizer, folder, _ = model
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, CHAT, "    4  naïve\n\n12345 🙂"]:
        assert theirs(text).input_ids == tokenizer(text).input_ids
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
