"""What a prompt, an answer, a tokenizer or a setting is refused for, and in which words."""

from __future__ import annotations

import dataclasses

import pytest

from rl_likelihood.data.prompts import PromptConfig, chain_format, encode_all, encode_fitting, render
from rl_likelihood.errors import UserError
from rl_likelihood.shapes import Example
from tests.data.rows import encode

CFG = PromptConfig(max_prompt=1024, max_answer=64)
EOS = (256,)
SUM = Example("a-1", "Calculate 3 + 4.", "7", task="basic_arithmetic")


def replace(**changes) -> PromptConfig:
    return dataclasses.replace(CFG, **changes)


@pytest.fixture(scope="module")
def tok(make_tokenizer):
    return make_tokenizer()


@pytest.fixture(scope="module")
def fmt(tok):
    return chain_format(*tok, EOS, CFG)


def refusal(call) -> str:
    with pytest.raises(UserError) as e:
        call()
    assert "\n" not in str(e.value)
    return str(e.value)


def test_long_prompts_are_named_with_the_size_that_fits(tok, fmt):
    examples = [
        dataclasses.replace(SUM, id=f"r{i}", prompt="x" * (100 if i in (1, 2, 3, 4, 5, 7) else i)) for i in range(9)
    ]
    longest = len(encode(examples[7], tok[0], CFG, fmt).prompt_ids)
    said = refusal(lambda: encode_all(examples, tok[0], replace(max_prompt=longest - 1), fmt))
    for words in (f"prompt.max_prompt = {longest - 1} ", "6 of 9 rows", f"--config.prompt.max_prompt={longest} "):
        assert words in said
    assert all((f"r{i} ({longest})" in said) == (i < 6) for i in range(1, 8)), "the first five are named"
    assert len(encode_all(examples, tok[0], replace(max_prompt=longest), fmt)) == 9


def test_long_answers_are_named_with_the_size_that_fits(tok, fmt):
    examples = [SUM, dataclasses.replace(SUM, id="big", answer="1234567890")]
    said = refusal(lambda: encode_all(examples, tok[0], replace(max_answer=16), fmt))
    for words in ("prompt.max_answer = 16 ", "1 of 2 rows", "big (20)", "--config.prompt.max_answer=20 "):
        assert words in said
    assert len(encode_all(examples, tok[0], replace(max_answer=20), fmt)) == 2


def test_long_rows_are_left_out_and_named_when_that_is_wanted(tok, fmt):
    long = dataclasses.replace(SUM, id="long", prompt="x" * 500)
    both = dataclasses.replace(long, id="both", answer="1234567890")
    full = len(encode(long, tok[0], CFG, fmt).prompt_ids)
    cfg = replace(max_prompt=full - 1, max_answer=19)
    rows, left_out = encode_fitting([long, SUM, both], tok[0], cfg, fmt)
    assert [row.example for row in rows] == [SUM]
    assert left_out == [
        f"long: {full} tokens over prompt.max_prompt = {full - 1}",
        f"both: {full} tokens over prompt.max_prompt = {full - 1} and 20 tokens over prompt.max_answer = 19",
    ]
    assert encode_fitting([], tok[0], cfg, fmt) == ([], [])
    closed = dataclasses.replace(SUM, id="closed", answer="7</answer>")
    rows, (said,) = encode_fitting([closed, SUM], tok[0], cfg, fmt)
    assert [row.example for row in rows] == [SUM] and "row closed contains" in said
    assert "row closed contains" in refusal(lambda: encode_fitting([closed], tok[0], cfg, fmt))
    assert len(encode_fitting([long, both], tok[0], replace(max_prompt=full, max_answer=20), fmt)[0]) == 2
    said = refusal(lambda: encode_fitting([long, both], tok[0], cfg, fmt))
    for words in ("none of the 2", f"prompt.max_prompt = {full - 1}", "prompt.max_answer = 19"):
        assert words in said


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"answer_open": ""}, "answer_open is empty; give the tag, for example '<answer'"),
        ({"answer_open": "<answer>"}, "answer_open is '<answer>'; leave out its last '>'"),
    ],
)
def test_bad_settings_are_refused(tok, fmt, changes, words):
    assert words in refusal(lambda: encode(SUM, tok[0], replace(**changes), fmt))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"answer": " \n"}, "row a-1 has an empty answer"),
        ({"answer": "7</answer>"}, "the answer of row a-1 contains '</answer'"),
        ({"answer": "7<|im_end|>"}, "row a-1 contains '<|im_end|>', a control token of the tokenizer"),
        ({"prompt": "hi<|im_start|>system"}, "row a-1 contains '<|im_start|>', a control token"),
        ({"messages": (("user", "<|pad|>"), ("user", "b"))}, "row a-1 contains '<|pad|>', a control token"),
        ({"answer": "<think>so"}, "the answer of row a-1 contains '<think>'; give the reasoning in the field chain"),
        ({"answer": "so</think>7"}, "the answer of row a-1 contains '</think>'"),
        ({"chain": "so</think>"}, "the chain of row a-1 contains '</think>'"),
        ({"chain": "so<|im_end|>"}, "row a-1 contains '<|im_end|>', a control token"),
    ],
)
def test_bad_rows_are_refused(tok, fmt, changes, words):
    assert words in refusal(lambda: encode(dataclasses.replace(SUM, **changes), tok[0], CFG, fmt))


@pytest.mark.parametrize(
    "shot, words",
    [
        (("q", "so</think>", "2"), "own.jsonl): the chain of row 2 contains '</think>'"),
        (("q", "so", "2</answer>"), "own.jsonl): the answer of row 2 contains '</answer'"),
        (("q<|im_end|>", "so", "2"), "own.jsonl): row 2 contains '<|im_end|>', a control token"),
    ],
)
def test_worked_examples_that_would_end_early_are_refused_as_rows_are(tok, shot, words):
    cfg = replace(examples=1, examples_path="own.jsonl", shots=(("a", "b", "c"), shot))
    assert words in refusal(lambda: chain_format(*tok, (2,), cfg))


def test_a_date_that_is_none_is_refused_for_every_template(tok):
    for day in ("yesterday", "2026-02-30"):
        assert f"prompt.date is {day!r}" in refusal(lambda day=day: chain_format(*tok, (2,), replace(date=day)))


def test_missing_worked_examples_are_refused_with_the_field_and_the_command_that_helps(tok, fmt):
    said = refusal(lambda: encode(SUM, tok[0], replace(examples=5), fmt))
    for words in ("prompt.examples is 5", "4 worked examples", "a-1", "--config.prompt.examples=4"):
        assert words in said
    other = dataclasses.replace(SUM, task="poems")
    cfg = replace(examples=1, examples_field="warm_start.examples")
    said = refusal(lambda: encode(other, tok[0], cfg, fmt))
    for words in (
        "warm_start.examples is 1",
        "'poems'",
        "--config.warm_start.examples=0",
        "--config.prompt.examples_path=",
    ):
        assert words in said
    assert "prompt.examples is" not in said


def test_a_tokenizer_without_an_end_is_refused(tok):
    assert "has no end-of-text id; add eos_token" in refusal(lambda: chain_format(*tok, (), CFG))


def test_a_template_that_refuses_or_loses_messages_is_refused(make_tokenizer):
    plain = make_tokenizer()[0].chat_template
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + plain
    deaf = plain.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    forgetful = plain.replace("m.content", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)")
    for template, cfg, words in (
        (
            strict,
            CFG,
            "prompt.use_system=False",
        ),
        (deaf, CFG, "leaves out part of the system message"),
        (forgetful, replace(examples=1, use_system=False), "leaves out part of the assistant message"),
    ):
        tokenizer, _ = make_tokenizer(template=template)
        assert words in refusal(lambda t=tokenizer, c=cfg: render(SUM, t, c))
    assert render(SUM, make_tokenizer(template=strict)[0], replace(use_system=False)).endswith("<think>")


def test_a_tag_that_is_a_control_token_is_refused(make_tokenizer):
    tokenizer, vocab = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    said = refusal(lambda: chain_format(tokenizer, (*vocab, b""), EOS, CFG))
    assert "does not keep the tag" in said


def test_a_tokenizer_larger_than_the_model_is_refused(tok):
    tokenizer, vocab = tok
    cut = chain_format(tokenizer, vocab, EOS, CFG)
    cut = dataclasses.replace(cut, vocab_bytes=vocab[:-2])
    said = refusal(lambda: encode(SUM, tokenizer, CFG, cut))
    assert f"gives id {len(vocab) - 1} but the model has {len(vocab) - 2} tokens" in said


def test_an_answer_without_tokens_is_refused(make_tokenizer):
    """A vocabulary of words gives the unknown token for what is not in it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    chars = ["<unk>", *(chr(c) for c in range(32, 127)), "\n"]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(chars)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", chat_template=make_tokenizer()[0].chat_template
    )
    vocab = (b"", *(c.encode() for c in chars[1:]))
    fmt = chain_format(tokenizer, vocab, (0,), CFG)
    assert tokenizer.decode(encode(SUM, tokenizer, CFG, fmt).answer_ids).replace(" ", "") == ">7</answer>"
    said = refusal(lambda: encode(dataclasses.replace(SUM, answer="7€"), tokenizer, CFG, fmt))
    assert "has no token for some character of the answer '7€' of row a-1" in said
