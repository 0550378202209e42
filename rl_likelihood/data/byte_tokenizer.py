"""A byte tokenizer for models with random weights: 256 bytes, two words of the chain format, four control tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# The `model_path` that stands for this tokenizer.
BYTES = "bytes"
CONTROLS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
# Whole words of the chain format, so that tags cost three tokens and not sixteen.
WORDS = ("think", "answer")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}<|end|>"
    "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose only merges spell WORDS, with a chat template that has one control token per turn."""
    tokens = [*CONTROLS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in WORDS:
        for i in range(2, len(word) + 1):
            if word[:i] not in tokens:
                merges.append((word[: i - 1], word[i - 1]))
                tokens.append(word[:i])
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROLS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=CONTROLS[0],
        eos_token=CONTROLS[1],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
