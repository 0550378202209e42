"""Tokenizers from folders and GGUF files, the bytes of their ids, and refusals."""

import json
import resource

import gguf
import numpy as np
import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import (
    eos_ids,
    keep_tokenizer,
    load_tokenizer,
    save_tokenizer,
    set_template,
    texts_of,
    vocab_bytes,
)
from rl_likelihood.errors import UserError

TEXTS = [
    "The answer is 72.</think>\n<answer>72</answer>",
    "  two spaces,\ttab,\n\nlines \r\n and 1234567890",
    "naïve café, 日本語, Ελληνικά, 🙂 and \u00a0\u2028 odd spaces",
    "a\x00b\x7f it's THEY'LL x_y=(-3)**2",
]


def assert_exact(tokenizer, table, prefix=b""):
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(table[i] for i in ids) == prefix + text.encode()


def test_bytes_of_byte_level(make_tokenizer):
    tokenizer, expected = make_tokenizer(merges=[("t", "h"), ("th", "e"), ("r", ">"), (" ", "the")])
    table = vocab_bytes(tokenizer, len(expected) + 5)
    assert table == expected + (b"",) * 5
    assert_exact(tokenizer, table)


def test_bytes_of_sentencepiece(make_space_prefixed):
    tokenizer, expected = make_space_prefixed()
    table = vocab_bytes(tokenizer, len(expected))
    assert table == expected
    assert table[tokenizer.convert_tokens_to_ids("<0x0A>")] == b"\n"
    assert_exact(tokenizer, table, prefix=b" ")


def test_added_text_tokens_have_bytes(make_tokenizer):
    """An added token that is not special, such as <think> in some vocabularies, is text; a special one is not."""
    tokenizer, expected = make_tokenizer()
    tokenizer.add_tokens(["<think> é"])
    table = vocab_bytes(tokenizer, len(expected) + 1)
    assert table[-1] == "<think> é".encode()
    ids = tokenizer("a<think> éb<|im_end|>").input_ids
    assert len(ids) == 4 and b"".join(table[i] for i in ids) == "a<think> éb".encode()


def test_smollm2(smollm2):
    tokenizer, table = smollm2
    assert len(table) == 49152
    assert_exact(tokenizer, table)
    assert tokenizer.tokenize("12345") == list("12345")
    assert tokenizer("Hello world").input_ids == [19556, 905]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>",) + ("<|im_end|>",) * 2
    assert table[tokenizer.eos_token_id] == b""
    hello = [{"role": "user", "content": "hi"}]
    chat = tokenizer.apply_chat_template(hello, tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "bytes", "cleaned"])
def test_texts_decoded_in_one_call_are_those_of_single_rows(kind, make_tokenizer, make_space_prefixed):
    if kind == "bytes":
        tokenizer = byte_tokenizer()
    else:
        sentences = kind in ("sentencepiece", "cleaned")
        tokenizer = make_space_prefixed()[0] if sentences else make_tokenizer(merges=[("t", "h"), (" ", "th")])[0]
    tokenizer.clean_up_tokenization_spaces = kind == "cleaned"
    ids = np.random.default_rng(0).integers(0, len(tokenizer), (50, 12)).tolist()  # also special ids and half letters
    ids += [[], [tokenizer.eos_token_id], *(tokenizer(text).input_ids for text in (*TEXTS, "it 's a . b"))]
    assert texts_of(tokenizer, ids) == [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    assert texts_of(tokenizer, []) == []


def test_folder_round_trip(make_tokenizer, tmp_path):
    tokenizer, expected = make_tokenizer(merges=[("a", "b")])
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert vocab_bytes(loaded, len(expected)) == expected
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|pad|>")
    for text in TEXTS:
        assert loaded(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("size", [0, 1000])
def test_a_tokenizer_that_finds_no_space_is_one_sentence(size, make_tokenizer, tmp_path):
    """The second size is enough for all but tokenizer.json, which another library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tokenizer = make_tokenizer(merges=[("a", "b")])[0]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match="saved: cannot be written .File too large.*; free some space"):
            save_tokenizer(tokenizer, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "gguf", "bytes", "plain template"])
def test_a_saved_tokenizer_is_the_same_after_its_model_has_moved(kind, make_tokenizer, make_space_prefixed, tmp_path):
    if kind == "gguf":
        write_gguf(tmp_path / "model.gguf", pre="llama-bpe")
        tokenizer = load_tokenizer(tmp_path / "model.gguf")
    elif kind == "bytes":
        tokenizer = byte_tokenizer()
    else:
        tokenizer = make_space_prefixed()[0] if kind == "sentencepiece" else make_tokenizer(merges=[("a", "b")])[0]
    if kind == "plain template":
        set_template(tokenizer, "plain")
    stop = (tokenizer.eos_token_id, 7)
    save_tokenizer(tokenizer, tmp_path / "folder", stop)
    loaded = load_tokenizer((tmp_path / "folder").rename(tmp_path / "moved"))
    assert eos_ids(loaded, tmp_path / "moved") == stop
    for name in ("chat_template", "bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    size = len(tokenizer)
    assert vocab_bytes(loaded, size) == vocab_bytes(tokenizer, size)
    for text in TEXTS:
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special).input_ids
            assert loaded(text, add_special_tokens=special).input_ids == ids
    if tokenizer.chat_template != "{{ messages }}":
        turns = [{"role": "user", "content": "hi"}]
        assert loaded.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(turns, tokenize=False)


def write_gguf(file, pre="smollm", model="gpt2", template="{{ messages }}", types=None, skip=()):
    spell = bytes_to_unicode()
    tokens = [spell[b] for b in range(256)] + ["12", "123", "Ġ1"]
    merges = ["1 2", "12 3", "Ġ 1"]
    tokens += ["<|begin|>", "<|end|>", "<tool>", "[PAD]"]
    kinds = types or [1] * 259 + [3, 3, 4, 5]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if "merges" not in skip:
        writer.add_token_merges(merges)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(259)
    writer.add_eos_token_id(260)
    if template:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    "pre, text, pieces",
    [
        ("smollm", "123 1", ["1", "2", "3", "Ġ", "1"]),  # digits alone, also after a space
        ("qwen2", "123 1", ["1", "2", "3", "Ġ", "1"]),
        ("llama-bpe", "1234 1", ["<|begin|>", "123", "4", "Ġ", "1"]),  # up to three digits; begins with bos
        ("qwen2", "e\u0301", ["Ã", "©"]),  # composed first
        ("llama-bpe", "e\u0301", ["<|begin|>", "e", "Ì", "ģ"]),
        ("smollm", "a<tool>b<|end|>", ["a", "<tool>", "b", "<|end|>"]),
    ],
)
def test_gguf_pre_tokenizers(pre, text, pieces, tmp_path):
    write_gguf(tmp_path / "t.gguf", pre)
    tokenizer = load_tokenizer(tmp_path / "t.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == pieces


def test_gguf_metadata(tmp_path):
    write_gguf(tmp_path / "t.gguf")
    tokenizer = load_tokenizer(tmp_path)  # a folder with this one file
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token) == (259, 260, None)
    assert tokenizer.chat_template == "{{ messages }}"
    table = vocab_bytes(tokenizer, 263)
    assert table[256:] == (b"12", b"123", b" 1", b"", b"", b"<tool>", b"")
    assert_exact(tokenizer, table)


def test_eos_ids(make_tokenizer, tmp_path):
    tokenizer, _ = make_tokenizer()
    own = tokenizer.eos_token_id
    assert eos_ids(tokenizer, tmp_path) == (own,)
    assert eos_ids(tokenizer, tmp_path / "model.gguf") == (own,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert eos_ids(tokenizer, tmp_path) == (own, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, own, 6]}))
    assert eos_ids(tokenizer, tmp_path) == (own, 5, 6)
    tokenizer.eos_token = None
    assert eos_ids(tokenizer, tmp_path) == (5, own, 6)


def refusal(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), str(error.value)


@pytest.mark.parametrize(
    "text", ['{"eos_token_id": [null]}', '{"eos_token_id": "</s>"}', '{"eos_token_id": [2, -1]}', "[2.5]", "{", "true"]
)
def test_a_malformed_generation_config_is_refused_by_name(make_tokenizer, tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    refusal(lambda: eos_ids(make_tokenizer()[0], tmp_path), "generation_config.json")


def test_template_is_required_only_on_demand(make_tokenizer, tmp_path):
    save_tokenizer(make_tokenizer(template=None)[0], tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None
    refusal(
        lambda: set_template(load_tokenizer(tmp_path), "model", str(tmp_path)),
        str(tmp_path),
        "no chat template",
        "prompt.template=plain",
    )
    file = tmp_path / "t.gguf"
    write_gguf(file, template=None)
    refusal(lambda: set_template(load_tokenizer(file), "model", str(file)), "t.gguf", "no chat template")


def test_bad_files(make_tokenizer, tmp_path):
    refusal(lambda: load_tokenizer(tmp_path), "tokenizer.json", "no such file")
    refusal(lambda: load_tokenizer(tmp_path / "no.gguf"), "no.gguf", "no such file")
    (tmp_path / "tokenizer.json").write_text("{}")
    refusal(lambda: load_tokenizer(tmp_path), "tokenizer.json", "cannot be read")
    write_gguf(tmp_path / "t.gguf", pre="deepseek-coder")
    refusal(lambda: load_tokenizer(tmp_path / "t.gguf"), "t.gguf", "'deepseek-coder'", "'smollm', 'qwen2', 'llama-bpe'")
    write_gguf(tmp_path / "t.gguf", model="llama", pre="default")
    refusal(lambda: load_tokenizer(tmp_path / "t.gguf"), "tokenizer.ggml.model = 'llama'")
    write_gguf(tmp_path / "t.gguf", skip=("merges",))
    refusal(lambda: load_tokenizer(tmp_path / "t.gguf"), "tokenizer.ggml.merges", "missing")
    data = (tmp_path / "t.gguf").read_bytes()
    (tmp_path / "t.gguf").write_bytes(data[: len(data) // 2])
    refusal(lambda: load_tokenizer(tmp_path / "t.gguf"), "t.gguf", "truncated")


def test_the_damaged_tokenizer_of_a_workdir_is_not_explained_as_a_model(make_tokenizer, tmp_path):
    (tmp_path / "inputs.json").write_text("{}")
    folder = tmp_path / "tokenizer"
    keep_tokenizer(make_tokenizer()[0], folder, (1,))
    (folder / "generation_config.json").write_text("")
    refusal(lambda: eos_ids(make_tokenizer()[0], folder), f"delete {folder}")
    (folder / "tokenizer.json").write_text("{")
    refusal(lambda: load_tokenizer(folder), f"delete {folder}")
    (folder / "tokenizer.json").unlink()
    refusal(lambda: load_tokenizer(folder), f"delete {folder}")


def test_tokenizer_of_another_model(make_tokenizer):
    tokenizer, expected = make_tokenizer()
    refusal(lambda: vocab_bytes(tokenizer, len(expected) - 1), f"ids up to {len(expected) - 1}", str(len(expected) - 1))
