"""Calls out of texts: each format read, each kind of malformed call named, and no text that crashes or hangs."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from rl_likelihood.envs import telecom
from rl_likelihood.envs.calls import (
    DEEPEST,
    LONGEST,
    MOST,
    PROBLEMS,
    BadCall,
    answer,
    message,
    parse,
    text_of,
)
from rl_likelihood.envs.telecom import CONVERSATION_TOOLS as TOOLS
from rl_likelihood.envs.tools import Call, Parameter, Tool, schema, signature, table
from rl_likelihood.errors import UserError
from rl_likelihood.grading.code import tool_call
from tests.envs.small_world import LINE, task, world

REBOOT = Call("reboot_device", {})
GRANT = Call("grant_app_permission", {"app_name": "messaging", "permission": "sms"})


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def test_each_format_is_read():
    grant = json.dumps({"name": GRANT.name, "arguments": GRANT.arguments})
    assert parse(f"I look. {hermes(grant)} So.", "hermes") == [GRANT]
    assert parse(hermes(grant, '{"name": "reboot_device"}'), "hermes") == [GRANT, REBOOT]
    llama = grant.replace("arguments", "parameters")
    for text in (llama, f"<|python_tag|>{llama}<|eom_id|>", f"\n{llama}<|eot_id|>"):
        assert parse(text, "llama3") == [GRANT], text
    assert parse(f'{llama}; {{"name": "reboot_device", "parameters": {{}}}}', "llama3") == [GRANT, REBOOT]
    assert parse(f"```json\n[{grant}]\n```", "json") == parse(grant, "json") == [GRANT]


def test_arguments_may_be_json_inside_json_and_strings_may_hold_brackets():
    inside = json.dumps({"name": "f", "arguments": json.dumps({"a": '}{"\\'})})
    assert parse(inside, "llama3") == [Call("f", {"a": '}{"\\'})]


def test_calls_in_thoughts_are_not_made():
    reboot = hermes(text_of(REBOOT))
    assert parse(f"<think>Maybe {reboot}</think>", "hermes") == []
    assert parse(f"<think>Maybe {reboot}", "hermes") == []
    assert parse(f"Maybe {reboot}</think>{hermes(text_of(GRANT))}", "hermes") == [GRANT]


TOGGLE = '<tool_call>{"name": "toggle_data", "arguments": {}}</tool_call>'


@pytest.mark.parametrize("after", ["no</think> nothing", "no"])
def test_calls_in_later_thoughts_are_not_made(after):
    assert parse(f"<think>a</think> hm <think>maybe {TOGGLE} {after}", "hermes") == []
    bare = '{"name": "toggle_data", "parameters": {}}'
    for style in ("llama3", "json"):
        calls = parse(f"<think>a</think> <think>{bare} {after}", style)
        assert not any(isinstance(call, Call) for call in calls), style
    assert parse(f"<think>a</think> <think>b</think>{bare}", "llama3") == [Call("toggle_data", {})]
    assert parse(f"{bare} or not </think>{bare}", "llama3") == [Call("toggle_data", {})]


@pytest.mark.parametrize("words", ["the </tool_call> tag", "<tool_call>", "<think>", "a</think>", "<|eot_id|>"])
def test_tags_in_strings_of_a_call_are_text(words):
    call = Call("say", {"text": words})
    for style in ("hermes", "llama3", "json"):
        for thought in ("", "I say it.</think><think>Now."):
            assert parse(message([call], style, thought), style) == [call], (style, thought)
        assert parse(f"The prompt opened this.</think>{message([call], style)}", style) == [call], style
    assert tool_call(text_of(call), hermes(text_of(call)))


@pytest.mark.parametrize(
    "inside",
    [
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
        '{"name": "f", "args": {"a": 1}, "id": "1"}',
        '[{"name": "f", "input": {"a": 1}}]',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    ],
)
def test_environments_and_graders_read_the_same_calls(inside):
    (call,) = parse(hermes(inside), "hermes")
    assert call == Call("f", {"a": 1}) and tool_call(text_of(call), hermes(inside))
    assert parse(inside, "json") == [call]


def test_kinds_of_parameters_are_checked_and_arrays_are_one():
    def pick(state, numbers):
        return str(len(numbers))

    tools = table([Tool(pick, "Pick.", (Parameter("numbers", "array", "Numbers."),))])
    assert answer(hermes('{"name": "pick", "arguments": {"numbers": [1, 2]}}'), "hermes", tools, None).reply == "2"
    wrong = answer(hermes('{"name": "pick", "arguments": {"numbers": {}}}') + "x", "hermes", tools, None)
    assert wrong.bad == ["wrong_arguments"] and "array" in wrong.reply
    assert '"numbers": []' in answer("x", "hermes", tools, None).reply
    with pytest.raises(UserError, match="'numbers' of the tool pick .*'list'.*array"):
        table([Tool(pick, "Pick.", (Parameter("numbers", "list", "Numbers."),))])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([Parameter("to", "string", ""), Parameter("mode", "string", "")], "change .*'mode'"),
        ([Parameter("state", "string", "")], "change .*'state'"),
        ([], "change .*'to'"),
        ([Parameter("to", "string", "", required=False)], "change .*'to'"),
    ],
)
def test_tools_that_cannot_be_called_are_refused_at_once(parameters, words):
    def change(state, to):
        state["to"] = to

    with pytest.raises(UserError, match=words):
        table([Tool(change, "Change.", tuple(parameters))])
    good = Tool(change, "Change.", (Parameter("to", "string", ""),))
    with pytest.raises(UserError, match="two tools have the name change"):
        table([good, dataclasses.replace(good, about="Again.")])
    with pytest.raises(TypeError, match="the tool change returned NoneType"):
        answer(hermes('{"name": "change", "arguments": {"to": "x"}}'), "hermes", table([good]), {})


def test_a_message_without_a_call_is_replied_to_even_without_tools():
    assert answer("x", "hermes", {}, None) == ("Error: your message has no tool call.", [], ["no_call"])


def test_how_to_write_a_call_is_said_once_in_a_reply():
    reply = answer(hermes(*"{{{"), "hermes", TOOLS, state()).reply
    assert reply.count("Error: ") == 3 and reply.count("Write ") == 1


def test_text_without_a_call_is_none():
    for style in ("hermes", "llama3", "json"):
        assert parse("", style) == []
    assert parse("The phone is broken.", "hermes") == parse("The phone {is} broken.", "llama3") == []


@pytest.mark.parametrize(
    "kind, inside",
    [
        ("not_json", '{"name": "f", "arguments": {}'),
        ("not_json", "reboot_device()"),
        ("not_json", '{"name": "f", "arguments": {"a": NaN}}'),
        ("not_json", '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}"),
        ("too_long", '{"name": "f", "arguments": {"a": "' + "x" * LONGEST + '"}}'),
        ("too_deep", '{"name": "f", "arguments": {"a": ' + "[" * DEEPEST + "]" * DEEPEST + "}}"),
        ("too_deep", '{"name": "f", "arguments": {"a": ' + "[" * 9000 + "]" * 9000 + "}}"),
        ("not_text", '{"name": "f", "arguments": {"a": "\\ud800"}}'),
        ("not_text", '{"name": "f", "arguments": "{\\"a\\": \\"\\\\ud800\\"}"}'),
        ("not_text", '{"name": "\\ud800"}'),
        ("no_name", "[]"),
        ("no_name", '{"name": 5, "arguments": {}}'),
        ("no_name", '{"arguments": {}}'),
        ("no_name", '{"name": "f", "arguments": {}, "parameters": {}}'),
        ("no_name", '{"name": "f", "settings": {}}'),
        ("not_json", '{"name": "f", "arguments": {"a": 1, "a": 2}}'),
        ("not_json", '{"name": "f", "arguments": {"a": 1e400}}'),
        ("not_object", '{"name": "f", "arguments": [1]}'),
        ("not_object", '{"name": "f", "arguments": "[1]"}'),
        ("not_object", '{"name": "f", "arguments": null}'),
    ],
)
def test_malformed_calls_are_named_by_kind(kind, inside):
    assert parse(hermes(inside), "hermes") == [BadCall(kind)]
    assert parse(hermes(inside, text_of(REBOOT)), "hermes") == [BadCall(kind), REBOOT]


@pytest.mark.parametrize("style", ["hermes", "llama3", "json"])
def test_a_message_of_very_many_thoughts_has_no_call(style):
    reboot = message([REBOOT], style)
    assert parse("a</think>" * MOST + reboot, style) == [REBOOT]
    assert parse("a</think>" * (MOST + 1) + reboot, style) == parse("{</think>" * 10**5 + reboot, style) == []


def test_truncated_calls_and_too_many():
    assert parse("<tool_call>" + text_of(REBOOT), "hermes") == [BadCall("truncated")]
    assert parse(text_of(REBOOT)[:-1], "llama3") == [BadCall("truncated")]
    assert parse("{" * 10**6, "llama3") == [BadCall("too_long")]
    assert parse("<|python_tag|>print(1)", "llama3") == [BadCall("not_json")]
    for style, text in (("hermes", hermes(text_of(REBOOT))), ("llama3", text_of(REBOOT))):
        result = parse(text * (MOST + 5), style)
        assert result[:MOST] == [REBOOT] * MOST and result[MOST:] == [BadCall("too_many")]


def state():
    return telecom.start(world(), task(("unseat_sim_card", {})))


def test_calls_are_made_in_order_and_bad_ones_are_replied_to_in_words():
    state_now = state()
    text = hermes(
        "{",
        '{"name": "reseat"}',
        '{"name": "toggle_data", "arguments": {"on": 1}}',
        text_of(Call("reseat_sim_card", {})),
    )
    reply, made, bad = answer(text, "hermes", TOOLS, state_now)
    paragraphs = reply.split("\n\n")
    assert "Error: Tool " in reply and " not found." in reply
    assert bad == ["not_json", "unknown_tool", "wrong_arguments"] and made == [Call("reseat_sim_card", {})]
    assert [p.startswith("Error: ") for p in paragraphs] == [True, True, True, False]
    assert "'reseat'" in paragraphs[1] and "'on'" in paragraphs[2] and "📶" in paragraphs[3]
    refused = answer(hermes(text_of(Call("resume_line", LINE))), "hermes", TOOLS, state_now)
    assert refused.bad == ["refused"] and refused.made == [Call("resume_line", LINE)]


def test_no_call_is_made_behind_one_that_ends_the_conversation():
    state_now = state()
    reply, made, _ = answer(
        hermes('{"name": "done"}', text_of(Call("toggle_data", {}))), "hermes", TOOLS, state_now, last=("done",)
    )
    assert made == [Call("done", {})] and state_now == state()


def test_the_reply_to_a_message_without_a_call_shows_how_to_write_one():
    for style in ("hermes", "llama3", "json"):
        reply, made, bad = (
            answer("Hello.", style, TOOLS, state()) if style != "json" else answer("", style, TOOLS, state())
        )
        shown = reply.partition("Write ")[2]
        (call,) = parse(shown, style)
        assert made == [] and bad == ["no_call"] and answer(shown, style, TOOLS, state()).made == [call]


@pytest.mark.parametrize("style", ["hermes", "llama3", "json"])
def test_a_message_is_read_as_the_calls_it_was_made_of(style):
    calls = [REBOOT, Call("say", {"text": 'a "b"\n; {c}', "n": [1, {"x": None}]})]
    assert parse(message(calls, style), style) == calls
    assert parse(message(calls[:1], style, thought="I reboot."), style) == calls[:1]


# ---------------------------------------------------------------------------------------- any text


def fuzzed(rng: random.Random, style: str) -> str:
    """Calls as models write them, then cut, doubled, nested, with wrong types, names, and dangerous text."""
    values = [
        *(1, -1, 10**30, 1e308, True, None, [], {}, [[]], {"a": {"b": {}}}),
        *("", "x" * 5000, "C1", "L2", "\x00", "</tool_call>", "<|im_end|>", "../../etc", "__class__", "{0.__class__}"),
        *("%s%n", "messaging", "🔋", '"', "\\", "é", '{"id": "\\ud800"}'),
    ]
    names = [*TOOLS, "set_user_info", "__init__", "eval", "os.system", "", "change", "turn_data_off", "\u202e"]
    keys = [
        "customer_id",
        "line_id",
        "id",
        "app_name",
        "permission",
        "mode",
        "gb_amount",
        "self",
        "state",
        "__class__",
        "apn_settings",
    ]
    parts = []
    for _ in range(rng.randint(0, 3)):
        arguments = {rng.choice(keys): rng.choice(values) for _ in range(rng.randint(0, 4))}
        arguments = rng.choice([arguments, arguments, arguments, rng.choice(values)])
        call = {"name": rng.choice(names), rng.choice(["arguments", "parameters", "args"]): arguments}
        text = json.dumps(rng.choice([call, call, call, [call], {"call": call}, rng.choice(values)]))
        if rng.random() < 0.3:
            at = rng.randrange(len(text) + 1)
            text = (
                text[:at]
                + rng.choice(["", "{", "}", '"', "\\ud800", "NaN", "[" * 3000, "é", "\x00"])
                + text[at + rng.randint(0, 3) :]
            )
        parts.append(hermes(text) if style == "hermes" else text)
    text = rng.choice(["", "\n", "; ", "</think>", "<think>"]).join(parts)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text


@pytest.mark.parametrize("style", ["hermes", "llama3", "json"])
def test_ten_thousand_fuzzed_texts_each_get_a_reply_that_can_be_read(style):
    rng, state_now, kinds, made = random.Random(0), state(), set(), 0
    for _ in range(10_000 // 3 + 1):
        text = fuzzed(rng, style)
        result = answer(text, style, TOOLS, state_now)
        assert result.reply or result.made, text
        result.reply.encode()
        made += len(result.made)
        kinds |= set(result.bad)
    assert kinds <= set(PROBLEMS) and len(kinds) >= 6 and made > 25, (kinds, made)


# ---------------------------------------------------------------------------------------- calls as text


def test_the_text_of_a_call_is_right_for_the_grader_and_schemas_name_every_argument():
    assert tool_call(text_of(GRANT), hermes(text_of(GRANT)))
    function = schema(TOOLS["get_bills_for_customer"])["function"]
    assert list(function["parameters"]["properties"]) == ["customer_id", "limit"]
    assert function["parameters"]["required"] == ["customer_id"]
    assert signature(TOOLS["get_bills_for_customer"]) == "get_bills_for_customer(customer_id, limit?)"
