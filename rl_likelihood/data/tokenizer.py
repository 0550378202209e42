"""Loads tokenizers from Hugging Face folders and GGUF files, and gives the exact bytes of every id."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rl_likelihood.errors import UserError
from rl_likelihood.files import gguf_of, gguf_reader

# For base models: only words, no control tokens.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}Answer: {{ m.content }}\n\n{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
)
# tokenizer.ggml.token_type
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5


def _words(digits: str) -> str:
    """The splitting rule of GPT-4-like vocabularies. `digits`: the pattern of the digits in one token."""
    contraction, letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
    return "|".join([contraction, letters, digits, r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def _split(pattern: str) -> list:
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


# tokenizer.ggml.pre -> (how text is normalised, how it is cut before the merges, whole words before merges).
PRE_TOKENIZERS = {
    "smollm": (
        None,
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        False,
    ),
    "qwen2": (normalizers.NFC(), _split(_words(r"\p{N}")), False),
    "llama-bpe": (None, _split(_words(r"\p{N}{1,3}")), True),
}


def load_tokenizer(path: str | os.PathLike) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder, a .gguf file, or a folder with exactly one .gguf. Uses no network.

    It has the model's chat template, eos, bos and pad (None if the model has none). UserError for missing or broken
    files, and for a GGUF vocabulary of unknown kind.
    """
    path = Path(path)
    gguf = gguf_of(path)
    return _from_gguf(gguf) if gguf else _from_folder(path)


def set_template(
    tokenizer: PreTrainedTokenizerFast, template: str, path: str = "", setting: str = "--config.prompt.template"
) -> None:
    """Sets the chat template: the tokenizer's own ("model"), or the plain one ("plain"). Raw prompts ("raw") need none.

    UserError for "model" if the tokenizer has no template. For the message, `path`: the tokenizer's location,
    `setting`: the setting that gives `template`.
    """
    if template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif template != "raw" and not tokenizer.chat_template:
        raise UserError(
            f"{path}: its tokenizer has no chat template; for a base model set {setting}=plain, else "
            "add chat_template to tokenizer_config.json or take the instruct version of the model"
        )


def _from_folder(path: Path) -> PreTrainedTokenizerFast:
    file = path / "tokenizer.json"
    if not file.is_file():
        writes = "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes it"
        needed = f"a model folder needs it beside its weights ({writes})"
        raise UserError(f"{file}: no such file; {_cure(path, needed)}")
    try:
        # This class uses tokenizer.json unchanged, whatever class tokenizer_config.json names.
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as e:  # tokenizers raises bare Exception for a file that it cannot parse
        raise UserError(f"{file}: cannot be read as a tokenizer ({e}); {_cure(path)}") from e


def _cure(folder: Path, of_model: str = "download the model again") -> str:
    """What to do about a damaged folder: a model's, or the one that `keep_tokenizer` wrote to a workdir."""
    if folder.name == "tokenizer" and (folder.parent / "inputs.json").is_file():
        return f"delete {folder}, and the run takes the tokenizer of its model again"
    return of_model


def _from_gguf(file: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer from a GGUF file's metadata tokenizer.ggml.*."""
    meta = {k: field.contents() for k, field in gguf_reader(file).fields.items() if k.startswith("tokenizer.")}
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{file}: tokenizer.ggml.model = {kind!r} with tokenizer.ggml.pre = {pre!r} is not supported, only 'gpt2' "
            f"with {', '.join(map(repr, PRE_TOKENIZERS))}; take the Hugging Face folder of this model"
        )
    for key in ("tokens", "merges", "token_type"):
        if not isinstance(meta.get(f"tokenizer.ggml.{key}"), list):
            raise UserError(f"{file}: metadata tokenizer.ggml.{key} is missing; download the file again")
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    normalizer, cut, whole_words = PRE_TOKENIZERS[pre]
    backend = Tokenizer(
        models.BPE(
            # Unused ids only pad the vocabulary to a round size.
            vocab={token: i for i, (token, t) in enumerate(zip(tokens, types, strict=True)) if t != UNUSED},
            merges=[tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]],
            ignore_merges=whole_words,
        )
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    backend.decoder = decoders.ByteLevel()
    for token, t in zip(tokens, types, strict=True):
        if t in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, special=t == CONTROL, normalized=False)])

    def token(key: str) -> str | None:
        i = meta.get(f"tokenizer.ggml.{key}_token_id")
        return None if i is None else tokens[i]

    bos = token("bos")
    if bos and meta.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=token("eos"),
        pad_token=token("padding"),
        chat_template=meta.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, path: str | os.PathLike, stop: tuple[int, ...] | None = None
) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template to a folder, for transformers 4 and 5.

    `stop`: ids that end a text; they are written to generation_config.json, from which `eos_ids` reads them. Without
    `stop`, an existing generation_config.json is kept. UserError if a file cannot be written.
    """
    try:
        tokenizer.save_pretrained(path)
        file = Path(path) / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name in both; only 5 knows the one it writes
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if stop is not None:
            (Path(path) / "generation_config.json").write_text(json.dumps({"eos_token_id": list(stop)}) + "\n")
    except Exception as e:
        if not isinstance(e, OSError) and "(os error" not in str(e):  # the tokenizers library raises no OSError
            raise
        why = getattr(e, "strerror", None) or e
        raise UserError(f"{path}: cannot be written ({why}); free some space or choose another folder") from e


def keep_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, stop: tuple[int, ...]) -> None:
    """Writes a tokenizer to a new folder, which appears whole or not at all. An existing one is kept."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        save_tokenizer(tokenizer, part, stop)
        part.rename(folder)


def eos_ids(tokenizer: PreTrainedTokenizerFast, model_path: str | os.PathLike) -> tuple[int, ...]:
    """The ids that end a text: the tokenizer's eos, then those of generation_config.json, or else of config.json.

    Chat models often have several (Llama 3: end of turn and end of text). Empty if none is known.
    """
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        file = Path(model_path) / name
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{file}: not valid JSON ({e}); {_cure(file.parent)}") from None
        value = config.get("eos_token_id") if isinstance(config, dict) else config
        if value is not None:
            stop = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in stop):
                raise UserError(
                    f"{file}: eos_token_id is {value!r}; write one id, or a list of ids, or remove the line"
                )
            ids += stop
            break
    return tuple(dict.fromkeys(ids))


def texts_of(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row of ids, without special tokens: as `tokenizer.decode`, but in one call."""
    if tokenizer.clean_up_tokenization_spaces:  # what it replaces depends on the tokenizer's kind
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=True)


def vocab_bytes(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> tuple[bytes, ...]:
    """The exact bytes of every id [vocab_size]. Joined over the ids of a text, they are the text in UTF-8.

    b"" for special tokens and for ids that the tokenizer does not use (models round their vocabulary up). Sentencepiece
    vocabularies add a space at the start of a text. UserError for a tokenizer that is neither byte-level nor
    sentencepiece with byte fallback, or that has ids outside the model's vocabulary.
    """
    vocab = tokenizer.get_vocab()
    top = max(vocab.values())
    if top >= vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path or '(from GGUF)'}: has ids up to {top}, but the model's vocabulary is "
            f"{vocab_size}; take tokenizer and weights of the same model"
        )
    to_bytes = _inverse(tokenizer)
    added = tokenizer.added_tokens_decoder
    out = [b""] * vocab_size
    for text, i in vocab.items():
        if i not in added:
            out[i] = to_bytes(text)
        elif not added[i].special:
            out[i] = added[i].content.encode()  # added tokens are matched in plain text, outside the alphabet
    return tuple(out)


def _inverse(tokenizer: PreTrainedTokenizerFast):
    """The function from a vocabulary entry to its bytes, for the tokenizer's kind of decoder."""
    decoder = tokenizer.backend_tokenizer.decoder
    kinds = json.loads(decoder.__getstate__()) if decoder is not None else {}
    steps = kinds.get("decoders", [kinds])
    names = {step.get("type") for step in steps}
    if "ByteLevel" in names:
        alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
        # An entry outside the alphabet decodes to its own text.
        return lambda text: bytes(alphabet[c] for c in text) if alphabet.keys() >= set(text) else text.encode()
    spaces = "Metaspace" in names or any(s.get("pattern") == {"String": "\u2581"} for s in steps)
    if "ByteFallback" in names and spaces:
        byte = re.compile(r"<0x([0-9A-F]{2})>")

        def sentencepiece(text: str) -> bytes:
            match = byte.fullmatch(text)
            return bytes([int(match[1], 16)]) if match else text.replace("\u2581", " ").encode()

        return sentencepiece
    raise UserError(
        f"tokenizer {tokenizer.name_or_path}: decoder {sorted(map(str, names))} is neither byte-level nor "
        "sentencepiece with byte fallback, so the bytes of its ids are not known; take a model of another family"
    )
