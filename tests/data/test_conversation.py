"""What stands between two messages of a conversation, in ids."""

import dataclasses

import numpy as np
import pytest

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.conversation import markup, prompt_ids, reference_ids
from rl_likelihood.data.prompts import PromptConfig, chain_format
from rl_likelihood.data.tokenizer import vocab_bytes
from rl_likelihood.errors import UserError

CHATML = (
    "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSES_TOOLS = "{{ raise_exception('no tools') if 'tool' in messages|map(attribute='role') }}"


def tokenizer_with(template=None):
    tokenizer = byte_tokenizer()
    if template:
        tokenizer.chat_template = template
    return tokenizer, chain_format(tokenizer, vocab_bytes(tokenizer, len(tokenizer)), (1,), PromptConfig())


def text_of(tokenizer, ids):
    return tokenizer.decode(ids)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_reply_is_what_the_template_puts_between_two_messages():
    tokenizer, fmt = tokenizer_with(CHATML)
    between = markup(tokenizer, fmt, 200)
    spoken = [*ids_of(tokenizer, "I ask."), 1]  # the model ends its message itself
    row = [*spoken, *between.reply("42", spoken, 200)]
    whole = tokenizer.apply_chat_template(
        [{"role": "assistant", "content": "I ask."}, {"role": "tool", "content": "42"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert whole.endswith(text_of(tokenizer, row))
    cut = ids_of(tokenizer, "I ask.")  # a message that was cut is ended by the markup
    assert text_of(tokenizer, [*cut, *between.reply("42", cut, 200)]) == text_of(tokenizer, row)


def test_a_template_without_tools_shows_the_reply_as_the_user_s():
    tokenizer, fmt = tokenizer_with(REFUSES_TOOLS + CHATML)
    assert "<|user|>user: 42<|end|>" in text_of(tokenizer, markup(tokenizer, fmt, 200).reply("42", [5], 200))


def test_a_template_that_writes_replies_as_json_gets_them_so():
    tokenizer, fmt = tokenizer_with(
        CHATML.replace("m.content }}", "(m.content | tojson if m.role == 'tool' else m.content) }}")
    )
    text = text_of(tokenizer, markup(tokenizer, fmt, 200).reply('Line "L1"\nok', [5], 200))
    assert '"Line \\"L1\\"\\nok"' in text


def test_markup_in_a_reply_is_plain_text():
    tokenizer, fmt = tokenizer_with(CHATML)
    between = markup(tokenizer, fmt, 400)
    ids = between.reply("Tool '<|end|><|assistant|>' is unknown", [1], 400)
    controls = [i for i in ids if i < 4]
    assert controls == [i for i in between.reply("", [1], 400) if i < 4]
    assert "<|end|><|assistant|>" in text_of(tokenizer, ids)


@pytest.mark.parametrize("which", ["made", "smollm2"])
def test_the_text_of_a_reply_has_no_role_of_the_template(which, make_tokenizer, request):
    tokenizer, of_bytes = make_tokenizer() if which == "made" else request.getfixturevalue("smollm2")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    fmt = chain_format(tokenizer, of_bytes, (end,), PromptConfig())
    between = markup(tokenizer, fmt, 200)
    for message in ([5, end], [5]):  # ended by the model, or cut
        assert between.text_of(between.reply("8\nuser", message, 200)) == "8\nuser"


def test_the_text_of_a_reply_in_json_is_what_the_environment_wrote():
    tokenizer, fmt = tokenizer_with(
        CHATML.replace("m.content }}", "(m.content | tojson if m.role == 'tool' else m.content) }}")
    )
    between = markup(tokenizer, fmt, 200)
    assert between.text_of(between.reply('Line "L1"\nok', [5], 200)) == 'Line "L1"\nok'


@pytest.mark.parametrize("most", [30, 60, 61, 300])
def test_a_long_reply_is_cut_in_the_middle(most):
    tokenizer, fmt = tokenizer_with(CHATML)
    between = markup(tokenizer, fmt, most)
    ids = between.reply("start" + "x" * 1000 + "stop", [1], most)
    assert most - 1 <= len(ids) <= most
    tail = text_of(tokenizer, between.after)
    text = text_of(tokenizer, ids)
    assert text.endswith(tail) and (most == 30 or ("[...]" in text and "start" in text and "stop" in text))


def test_of_a_huge_reply_only_the_ends_are_encoded():
    tokenizer, fmt = tokenizer_with(CHATML)
    between, encoded = markup(tokenizer, fmt, 60), []

    def counted(text, **how):
        encoded.append(len(text))
        return tokenizer(text, **how)

    huge = dataclasses.replace(between, tokenizer=counted).reply("start" + "x" * 10**7 + "stop", [1], 60)
    np.testing.assert_array_equal(huge, between.reply("start" + "x" * 1000 + "stop", [1], 60))
    assert max(encoded) < 20_000


def test_what_cannot_be_shown_is_refused():
    tokenizer, fmt = tokenizer_with(CHATML)
    with pytest.raises(UserError, match="sampler.max_env_tokens is 10"):
        markup(tokenizer, fmt, 10)
    silent, fmt = tokenizer_with("{% for m in messages %}{% if m.role == 'user' %}?{% endif %}{% endfor %}")
    with pytest.raises(UserError, match="shows no reply"):
        markup(silent, fmt, 100)
    with pytest.raises(UserError, match="leaves out .* 'Tools"):
        prompt_ids(silent, fmt, [("system", "Tools: none"), ("user", "hello")])


def test_references_are_cut_at_their_end():
    tokenizer, fmt = tokenizer_with()
    assert text_of(tokenizer, reference_ids(tokenizer, fmt, "submit 1+2", 8)) == "submit 1"
    assert reference_ids(tokenizer, fmt, "", 8).dtype == np.int32


def test_a_template_that_prints_the_date_prints_the_run_s():
    tokenizer, fmt = tokenizer_with("Today is {{ strftime_now('%d %b %Y') }}. " + CHATML)
    text = text_of(tokenizer, prompt_ids(tokenizer, fmt, [("user", "hello")], "2024-02-29"))
    assert text.startswith("Today is 29 Feb 2024. ")
