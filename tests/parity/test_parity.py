"""Tiny checkpoints of every family: transformers on torch, live, against ours. Needs torch (extra `parity`)."""

import numpy as np
import pytest

pytest.importorskip("torch")

import jax
from transformers import AutoTokenizer, GenerationConfig

from rl_likelihood.data.tokenizer import load_tokenizer
from rl_likelihood.export import export
from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import forward
from rl_likelihood.model.head import logits, token_stats
from rl_likelihood.weights import files
from tests.parity.make_golden import GOLDEN, log_probs, tiny, torch_greedy, torch_logits, torch_model
from tests.weights.make_checkpoints import CONFIGS, golden_ids, random_params, write

TEXTS = [
    "The answer and the other 10 + 1234 = 5 <answer>7</answer>\n\nin the end<|im_end|>",
    "Swering café, I'LL\t 12\r\n x_y",
]


def assert_equal_outputs(folder, cfg, params):
    """Logits to 1e-3 and log-probs to 1e-4, padding in the second row."""
    ids, lengths = golden_ids()
    theirs = torch_logits(torch_model(folder), ids, lengths)
    hidden = forward(params, cfg, ids, lengths).prompt
    ours = np.asarray(logits(hidden, head_matrix(params)))
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(ours[valid], theirs[valid], atol=1e-3)
    stats = token_stats(hidden[:, :-1], head_matrix(params), ids[:, 1:], chunk=16)
    np.testing.assert_allclose(
        np.asarray(stats.log_prob)[valid[:, 1:]], log_probs(theirs, ids)[valid[:, 1:]], atol=1e-4
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_same_outputs(name, tmp_path):
    write(name, tmp_path)
    assert_equal_outputs(tmp_path, *files.load(tmp_path))


def test_golden_files_are_what_torch_gives(tmp_path):
    golden, now = np.load(GOLDEN / "tiny.npz"), tiny(tmp_path)
    assert set(golden) == set(now)
    for key, value in now.items():
        np.testing.assert_allclose(golden[key], value, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_folder_loads_as_it_is(name, tmp_path):
    """As after training: other weights than the folder that tokenizer and architecture came from."""
    cfg, _ = write(name, tmp_path / "base")
    params = random_params(cfg, seed=42)
    export(cfg, params, tmp_path / "base", tmp_path / "out")
    assert_equal_outputs(tmp_path / "out", cfg, params)

    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), load_tokenizer(tmp_path / "base")
    for text in TEXTS:
        assert theirs(text).input_ids == ours(text).input_ids
    chat = [{"role": "user", "content": "1 + 1?"}]
    prompt = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert theirs.pad_token_id == ours.pad_token_id
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == ours.eos_token_id


def test_exported_bfloat16(tmp_path):
    cfg, params = write("llama", tmp_path / "base")
    export(cfg, params, tmp_path / "base", tmp_path / "out", "bfloat16")
    rounded = jax.tree.map(lambda x: np.asarray(x.astype(jax.numpy.bfloat16), np.float32), params)
    assert_equal_outputs(tmp_path / "out", cfg, rounded)


def test_generation_stops_at_our_eos(tmp_path):
    """generation_config.json reaches `generate`: with the eos made the likeliest id it stops at once."""
    cfg, params = write("llama3", tmp_path / "base")
    eos = load_tokenizer(tmp_path / "base").eos_token_id
    prompt = golden_ids()[0][0, :8].tolist()
    hidden = forward(params, cfg, np.array([prompt]), np.array([8])).prompt[0, -1]
    head = params["head"].copy()
    head[eos] = 10 * np.asarray(hidden)
    export(cfg, params | {"head": head}, tmp_path / "base", tmp_path / "out")
    assert torch_greedy(torch_model(tmp_path / "out"), prompt) == [eos]
