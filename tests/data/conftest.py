"""Small tokenizers made on the spot, with the exact bytes of every id, and the real one when it is cached."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONTROL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _wrap(core: Tokenizer, control: list[str], pad: str | None, eos: str, template: str | None):
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, eos_token=eos, chat_template=template)


def byte_level(merges=(), template=TEMPLATE, nfc=False, split_digits=True, pad="<|pad|>"):
    """(tokenizer, vocab_bytes): 256 bytes, then one token for each merge, then control tokens.

    A merge is a pair of texts, for instance ("r", ">"); each side must be a byte or an earlier merge.
    """
    table = bytes_to_unicode()
    spell = lambda text: "".join(table[b] for b in text.encode())
    vocab = {table[b]: b for b in range(256)}
    for left, right in merges:
        vocab[spell(left + right)] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(spell(a), spell(b)) for a, b in merges]))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=split_digits), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    if nfc:
        core.normalizer = normalizers.NFC()
    vocab_bytes = tuple(bytes([b]) for b in range(256)) + tuple((a + b).encode() for a, b in merges)
    return _wrap(core, CONTROL, pad, "<|im_end|>", template), vocab_bytes + (b"",) * len(CONTROL)


def space_prefixed(template=TEMPLATE):
    """(tokenizer, vocab_bytes) in the style of Llama 2: a space before every text, bytes as a fallback."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["▁"] + [chr(c) for c in range(33, 127)]
    merges = [("▁", ">"), ("<", "/")]
    pieces += [a + b for a, b in merges]
    core = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocab_bytes = [b"", b"", b""] + [bytes([b]) for b in range(256)]
    vocab_bytes += [p.replace("▁", " ").encode() for p in pieces[259:]] + [b"", b""]
    return _wrap(core, control, None, "</s>", template), tuple(vocab_bytes)


@pytest.fixture(scope="session")
def make_tokenizer():
    return byte_level


@pytest.fixture(scope="session")
def make_space_prefixed():
    return space_prefixed


@pytest.fixture(scope="session")
def smollm2():
    """(tokenizer, vocab_bytes) of SmolLM2-135M-Instruct."""
    from rl_likelihood.data.tokenizer import load_tokenizer, vocab_bytes
    from rl_likelihood.weights.assets import cache_path

    path = cache_path("smollm2-135m-instruct")
    if not path.is_file():
        pytest.skip("SmolLM2 is not in the cache: python -m rl_likelihood.weights.assets smollm2-135m-instruct")
    tokenizer = load_tokenizer(path)
    return tokenizer, vocab_bytes(tokenizer, len(tokenizer))
