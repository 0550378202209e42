"""Chain and answer meet at a token boundary, the right tokens are scored, and silent errors are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.data.prompts import (
    INSTRUCTION,
    PromptConfig,
    chain_format,
    chat,
    collate,
    completion_ids,
    encode_all,
    prints_date,
    render,
)
from rl_likelihood.data.tokenizer import set_template
from rl_likelihood.data.worked_examples import WORKED_EXAMPLES
from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import extract_answer
from rl_likelihood.shapes import CHAIN, REFERENCE, TAG, Example
from tests.data.rows import encode

CFG = PromptConfig(max_prompt=1024, max_answer=64)
EOS = (258,)
SUM = Example("a-1", "Calculate 3 + 4.", "7", task="basic_arithmetic")
# Merges of a kind that real vocabularies have, on both sides of the boundary but not across it.
MERGES = (("!", "<"), ("<", "/"), ("<", "a"), (">", "<"), (">", "="), (".", "<"), (">", "\n"), ("e", "r"))


def replace(**changes) -> PromptConfig:
    return dataclasses.replace(CFG, **changes)


@pytest.fixture(scope="module")
def tok(make_tokenizer):
    return make_tokenizer(MERGES)


@pytest.fixture(scope="module")
def fmt(tok):
    return chain_format(*tok, EOS, CFG)


def text_of(ids, vocab) -> str:
    return b"".join(vocab[i] for i in ids).decode()


def scored_text(row, vocab) -> list[str]:
    return [vocab[i].decode(errors="replace") for i, s in zip(row.answer_ids, row.answer_scored, strict=True) if s]


# ---------------------------------------------------------------------------------------- the chain format


def test_chain_format_spells_its_tags(tok, fmt):
    _, vocab = tok
    assert text_of(fmt.close_think_ids, vocab) == "</think>\n<answer"
    assert text_of(fmt.open_answer_ids, vocab) == "\n<answer"
    assert (fmt.think_close, fmt.answer_open, fmt.answer_close) == ("</think>", "<answer", "</answer")
    assert fmt.eos_ids == EOS and fmt.pad_id == len(vocab) - 3 and fmt.vocab_bytes == vocab


def test_without_a_pad_id_padding_is_the_end_of_text(make_tokenizer):
    assert chain_format(*make_tokenizer(pad=None), (258, 3), CFG).pad_id == 258


@pytest.mark.parametrize("merges", [(("r", ">"),), (("e", "r"), ("er", ">"))])
def test_a_token_across_the_boundary_is_refused(make_tokenizer, merges):
    tokenizer, vocab = make_tokenizer(merges)
    token = "".join(merges[-1])
    with pytest.raises(UserError, match=rf"the tokenizer has a token '{token}' \(id {255 + len(merges)}\) across the"):
        chain_format(tokenizer, vocab, EOS, CFG)


def test_a_token_that_only_looks_like_one_across_the_boundary_is_not(make_tokenizer):
    tokenizer, vocab = make_tokenizer((("b", "r"), ("br", ">")))  # the <br> of web pages
    row = encode(SUM, tokenizer, CFG, chain_format(tokenizer, vocab, EOS, CFG))
    assert text_of(row.answer_ids, vocab) == ">7</answer>"


def test_the_boundary_is_also_checked_on_every_answer(make_tokenizer, tok, fmt):
    # The format of a sound tokenizer used with one that cuts elsewhere: only the answers can tell.
    tokenizer, vocab = make_tokenizer((("r", ">"), *MERGES))
    with pytest.raises(UserError, match="'<answer' .*'>' .*'7' .*row a-1"):
        encode(SUM, tokenizer, CFG, dataclasses.replace(fmt, vocab_bytes=vocab))


@settings(max_examples=200, deadline=None)
@given(answer=st.text(min_size=1, max_size=12).filter(str.strip))
def test_pieces_joined_as_ids_are_the_text_encoded_once(answer, tok, fmt):
    tokenizer, vocab = tok
    if "</answer" in answer or any(t in answer for t in ("<|pad|>", "<|im_start|>", "<|im_end|>")):
        return
    row = encode(dataclasses.replace(SUM, answer=answer), tokenizer, CFG, fmt)
    assert text_of(row.answer_ids, vocab) == f">{answer}</answer>"
    whole = tokenizer(f"<answer>{answer}</answer>", add_special_tokens=False)["input_ids"]
    opening = tokenizer("<answer", add_special_tokens=False)["input_ids"]
    assert opening + list(row.answer_ids) == whole


# ---------------------------------------------------------------------------------------- what is scored


@pytest.mark.parametrize(
    "answer, delims, scored",
    [
        ("12", "none", ["1", "2"]),
        ("12", "close", ["1", "2", "</"]),
        ("12", "both", [">", "1", "2", "</", "a", "n", "s", "w", "er", ">"]),
        ("=1", "none", [">=", "1"]),  # tokens that share a delimiter with the answer are the answer's
        ("1!", "none", ["1", "!<"]),
        ("1!", "close", ["1", "!<"]),  # this one begins the closing tag already
        ("1 <", "close", ["1", " ", "<", "</"]),
        ("é", "none", ["\ufffd", "\ufffd"]),  # two tokens of one character
        ("a  b", "none", ["a", " ", " ", "b"]),
    ],
)
def test_scored_tokens(tok, fmt, answer, delims, scored):
    example = dataclasses.replace(SUM, answer=answer)
    row = encode(example, tok[0], replace(score_delims=delims), fmt)
    assert row.answer_scored.dtype == bool and row.answer_scored.shape == row.answer_ids.shape
    assert scored_text(row, tok[1]) == scored


def test_an_answer_that_the_tokenizer_normalises_is_scored_whole(make_tokenizer):
    tokenizer, vocab = make_tokenizer(nfc=True)
    fmt = chain_format(tokenizer, vocab, EOS, CFG)
    row = encode(dataclasses.replace(SUM, answer="e\u0301!"), tokenizer, replace(score_delims="none"), fmt)
    assert text_of(row.answer_ids, vocab) == ">\u00e9!</answer>"
    assert list(row.answer_scored) == [False, True, True, True] + [False] * 9


def test_a_tokenizer_that_prefixes_a_space_adds_none_at_the_boundary(make_space_prefixed):
    tokenizer, vocab = make_space_prefixed()
    fmt = chain_format(tokenizer, vocab, (2,), CFG)
    assert text_of(fmt.close_think_ids, vocab) == "</think>\n<answer"
    row = encode(dataclasses.replace(SUM, answer="5 km"), tokenizer, CFG, fmt)
    assert text_of(row.answer_ids, vocab) == ">5 km</answer>"
    assert scored_text(row, vocab) == ["5", " ", "k", "m", "</"]
    ids, _ = completion_ids(row, "2 + 3 = 5.", tokenizer, fmt)
    assert text_of(ids, vocab) == "2 + 3 = 5.</think>\n<answer>5 km</answer>"


# ---------------------------------------------------------------------------------------- prompts


def test_zero_shot_prompt_by_the_chat_template(tok, fmt):
    tokenizer, _ = tok
    text = render(SUM, tokenizer, CFG)
    assert text == (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\nCalculate 3 + 4.<|im_end|>\n"
        "<|im_start|>assistant\n<think>"
    )
    row = encode(SUM, tokenizer, CFG, fmt)
    assert tokenizer.decode(row.prompt_ids) == text
    assert row.prompt_ids.dtype == np.int32 and row.example is SUM


def test_the_instruction_can_go_to_the_user(tok):
    text = render(SUM, tok[0], replace(use_system=False))
    assert "system" not in text
    assert f"<|im_start|>user\n{INSTRUCTION}\n\nCalculate 3 + 4.<|im_end|>" in text


def test_worked_examples_are_earlier_turns(tok):
    turns = chat(SUM, replace(examples=2), WORKED_EXAMPLES["basic_arithmetic"][:2])
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    question, chain, answer = WORKED_EXAMPLES["basic_arithmetic"][0]
    assert turns[1]["content"] == question
    assert turns[2]["content"] == f"<think>{chain}</think>\n<answer>{answer}</answer>"
    assert extract_answer(turns[2]["content"], CFG) == answer
    text = render(SUM, tok[0], replace(examples=2))
    assert text == render(SUM, tok[0], CFG, shots=WORKED_EXAMPLES["basic_arithmetic"][:2])
    assert text.count("<think>") == 4 and text.endswith("<think>")  # instruction, two examples, prefill
    last = chat(SUM, replace(use_system=False), WORKED_EXAMPLES["basic_arithmetic"][:1])
    assert last[0]["content"].startswith(INSTRUCTION) and last[-1]["content"] == SUM.prompt


def test_a_conversation_keeps_its_turns_and_its_system_message():
    example = Example(
        "c",
        "And 2 + 2?",
        "4",
        messages=(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "And 2 + 2?")),
    )
    turns = chat(example, CFG, ())
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user"]
    assert turns[0]["content"] == f"{INSTRUCTION}\n\nBe brief."
    user = chat(example, replace(use_system=False), ())
    assert user[0]["content"] == "Be brief." and user[1]["content"] == f"{INSTRUCTION}\n\nHi"
    assert chat(SUM, replace(instruction=""), ())[0] == {"role": "system", "content": INSTRUCTION}


def test_a_template_that_opens_the_thinking_itself_is_not_opened_twice(make_tokenizer):
    plain, _ = make_tokenizer()
    tokenizer, _ = make_tokenizer(
        template=plain.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    )
    assert render(SUM, tokenizer, CFG).endswith("assistant\n<think>\n")


def test_an_empty_think_block_of_a_template_is_opened_again(make_tokenizer):
    """As Qwen3's template ends with thinking off: the model is to think in the block, not after it."""
    closed = make_tokenizer()[0].chat_template.replace(
        "assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif"
    )
    assert render(SUM, make_tokenizer(template=closed)[0], CFG).endswith("assistant\n<think>")


def test_todays_date_in_a_template_is_the_one_of_the_settings(make_tokenizer):
    """Llama 3.2's template asks for it; another day must not be another prompt."""
    plain = make_tokenizer()[0]
    template = '{{ strftime_now("%d %b %Y") }}' + plain.chat_template
    tokenizer, _ = make_tokenizer(template=template)
    assert render(SUM, tokenizer, replace(date="2024-02-29")).startswith("29 Feb 2024<|im_start|>")
    assert render(SUM, tokenizer, replace(date="2024-03-01")).startswith("01 Mar 2024")
    assert prints_date(tokenizer) and not prints_date(plain)
    with pytest.raises(UserError, match="prompt.date is 'yesterday'"):
        render(SUM, tokenizer, replace(date="yesterday"))
    with pytest.raises(UserError, match="strftime_now"):
        computed, _ = make_tokenizer(template=template.replace('"%d %b %Y"', '"%d" + " %b"'))
        render(SUM, computed, replace(date="2024-02-29"))
    assert render(SUM, plain, replace(date="2024-02-29")) == render(SUM, plain, CFG)


def test_a_base_model_gets_the_plain_template(make_tokenizer):
    tokenizer, _ = make_tokenizer(template=None)
    set_template(tokenizer, "plain")
    text = render(SUM, tokenizer, replace(examples=1))
    question, chain, answer = WORKED_EXAMPLES["basic_arithmetic"][0]
    assert text == (
        f"{INSTRUCTION}\n\nQuestion: {question}\nAnswer: <think>{chain}</think>\n<answer>{answer}</answer>\n\n"
        f"Question: {SUM.prompt}\nAnswer: <think>"
    )


def test_the_users_own_examples_come_before_those_of_the_task(tok):
    own = (("Which colour?", "Grass is green.", "green"), ("Which one?", "The first.", "1"))
    text = render(SUM, tok[0], replace(examples=1, shots=own))
    assert own[0][0] in text and own[1][0] not in text and WORKED_EXAMPLES["basic_arithmetic"][0][1] not in text


# ---------------------------------------------------------------------------------------- completions and batches


def test_completions_for_fine_tuning(tok, fmt):
    tokenizer, vocab = tok
    row = encode(SUM, tokenizer, CFG, fmt)
    ids, segment = completion_ids(row, "3 + 4 = 7.", tokenizer, fmt)
    assert text_of(ids, vocab) == "3 + 4 = 7.</think>\n<answer>7</answer>"
    assert ids.dtype == segment.dtype == np.int32 and ids.shape == segment.shape
    for kind, text in ((CHAIN, "3 + 4 = 7."), (TAG, "</think>\n<answer"), (REFERENCE, ">7</answer>")):
        assert text_of(ids[segment == kind], vocab) == text
    assert list(segment) == sorted(segment)
    for none in (None, "", []):
        ids, segment = completion_ids(row, none, tokenizer, fmt)
        assert text_of(ids, vocab) == "</think>\n<answer>7</answer>" and set(segment) == {TAG, REFERENCE}


def test_sampled_ids_are_never_encoded_again(tok, fmt):
    tokenizer, vocab = tok
    row = encode(SUM, tokenizer, CFG, fmt)
    sampled = [ord("<"), ord("/"), ord("e"), ord("r")]  # the tokenizer itself would write "</" and "er"
    for chain in (sampled, np.asarray(sampled)):
        ids, segment = completion_ids(row, chain, tokenizer, fmt)
        assert list(ids[:4]) == sampled and list(segment[:5]) == [CHAIN] * 4 + [TAG]


def test_collate_pads_to_fixed_widths(tok, fmt):
    rows = encode_all([SUM, dataclasses.replace(SUM, prompt="Calculate 30 + 40.", answer="-70")], tok[0], CFG, fmt)
    batch = collate(rows, [5, 9], 400, 20, fmt.pad_id)
    assert batch.tokens.shape == (2, 400) and batch.answer.shape == batch.answer_scored.shape == (2, 20)
    for i, row in enumerate(rows):
        assert batch.length[i] == len(row.prompt_ids) and batch.answer_length[i] == len(row.answer_ids)
        np.testing.assert_array_equal(batch.tokens[i, : batch.length[i]], row.prompt_ids)
        np.testing.assert_array_equal(batch.answer[i, : batch.answer_length[i]], row.answer_ids)
        assert (batch.tokens[i, batch.length[i] :] == fmt.pad_id).all()
        assert (batch.answer[i, batch.answer_length[i] :] == fmt.pad_id).all()
        assert batch.answer_scored[i].sum() == row.answer_scored.sum() == [2, 4][i]
    assert list(batch.uid) == [5, 9] and batch.tokens.dtype == batch.uid.dtype == np.int32
    narrow = collate(rows[:1], [0], len(rows[0].prompt_ids), len(rows[0].answer_ids), fmt.pad_id)
    np.testing.assert_array_equal(narrow.tokens[0], rows[0].prompt_ids)


def test_encode_all_is_encode_row_by_row(tok, fmt):
    examples = [SUM, dataclasses.replace(SUM, prompt="Calculate 1 - 2.", answer="-1")]
    for row, example in zip(encode_all(examples, tok[0], CFG, fmt), examples, strict=True):
        one = encode(example, tok[0], CFG, fmt)
        np.testing.assert_array_equal(one.prompt_ids, row.prompt_ids)
        np.testing.assert_array_equal(one.answer_ids, row.answer_ids)
        np.testing.assert_array_equal(one.answer_scored, row.answer_scored)
    assert encode_all([], tok[0], CFG, fmt) == []


# ---------------------------------------------------------------------------------------- the real one


def test_smollm2_cuts_at_the_boundary_and_scores_digits(smollm2):
    tokenizer, vocab = smollm2
    fmt = chain_format(tokenizer, vocab, (tokenizer.eos_token_id,), CFG)
    assert [vocab[i].decode() for i in fmt.close_think_ids] == ["</", "think", ">", "\n", "<", "answer"]
    examples = [
        dataclasses.replace(SUM, answer=a) for a in ("42", "-12", "= 5", "1/2", "Paris, France", "<b>x</b>", "é")
    ]
    rows = encode_all(examples, tokenizer, CFG, fmt)
    for example, row in zip(examples, rows, strict=True):
        assert text_of(row.answer_ids, vocab) == f">{example.answer}</answer>"
    assert [vocab[i].decode() for i in rows[0].answer_ids] == [">", "4", "2", "</", "answer", ">"]
    assert scored_text(rows[0], vocab) == ["4", "2", "</"]
    assert scored_text(rows[1], vocab) == ["-", "1", "2", "</"]
    assert scored_text(rows[4], vocab) == ["Paris", ",", " France", "</"]


def test_smollm2_prompts(smollm2):
    tokenizer, vocab = smollm2
    fmt = chain_format(tokenizer, vocab, (tokenizer.eos_token_id,), CFG)
    row = encode(SUM, tokenizer, replace(examples=2), fmt)
    text = tokenizer.decode(row.prompt_ids)
    assert text.startswith("<|im_start|>system\n" + INSTRUCTION) and "SmolLM" not in text
    assert text.count("<|im_start|>") == 7 and text.endswith("<|im_start|>assistant\n<think>")
    assert [vocab[i] for i in row.prompt_ids[-3:]] == [b"<", b"think", b">"]
