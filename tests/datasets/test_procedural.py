"""Tasks of reasoning_gym: presets and any data set, by name and with parameters; what is refused."""

from __future__ import annotations

import collections
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_likelihood.datasets import procedural
from rl_likelihood.datasets.procedural import CHUNK, _arithmetic, generate, parse
from rl_likelihood.datasets.sources import DataConfig, load
from rl_likelihood.errors import UserError
from rl_likelihood.grading import graders, gym
from rl_likelihood.grading.countdown import evaluate

# Their items have None for an answer: what is right is found by trying it out.
WITHOUT_ANSWER = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour")


def first(text: str, n: int, seed: int = 0, split: str = "train"):
    return list(itertools.islice(generate(text, seed, split), n))


def test_the_calculator_s_teacher_often_gives_up():
    wins, messages = 0, collections.Counter()
    for example in first("calculator", 400):
        task = json.loads(example.check)["environment"]
        (*tries, last) = [call["calls"][0] for call in json.loads(example.chain)]
        values = [evaluate(call["arguments"]["expression"])[0] for call in tries]
        low, high = sorted(task["nums"])
        assert values == [high + low, high - low, high * low][: len(values)]
        assert last == {**tries[-1], "name": "submit"} and task["target"] not in values[:-1]
        wins += values[-1] == task["target"]
        messages[len(tries) + 1] += 1
    assert 0.55 < wins / 400 < 0.67 and set(messages) == {2, 3, 4}


@pytest.mark.parametrize(
    "text, dataset, parameters",
    [
        ("leg_counting", "leg_counting", {}),
        (" leg_counting( max_animals = 2 ) ", "leg_counting", {"max_animals": 2}),
        (
            "basic_arithmetic(operators=['+', '-'], max_terms=3)",
            "basic_arithmetic",
            {"operators": ["+", "-"], "max_terms": 3},
        ),
        ("chain_sum()", "chain_sum", {}),
    ],
)
def test_a_task_is_a_name_with_parameters(text, dataset, parameters):
    task = parse(text)
    assert (task.dataset, task.parameters, task.preset) == (dataset, parameters, None)


def test_a_bare_name_is_the_preset_where_there_is_one():
    assert parse("chain_sum").preset is procedural.PRESETS["chain_sum"]
    assert first("chain_sum", 1)[0].prompt != first("chain_sum()", 1)[0].prompt


def test_any_data_set_is_a_source_with_its_own_words_and_answers():
    tasks = ("leg_counting(min_animals=1, max_animals=2, max_instances=9)", "count_bits", "chain_sum")
    cfg = DataConfig("reasoning_gym", tasks, train_size=30, heldout_size=9)
    train, heldout, report = load(cfg)
    assert load(cfg)[:2] == (train, heldout)
    assert [e.task for e in train[:3]] == ["leg_counting", "count_bits", "chain_sum"]
    assert len({e.prompt for e in train + heldout}) == 39 and len({e.id for e in train + heldout}) == 39
    legs, bits = train[0], train[1]
    assert "legs" in legs.prompt and bits.answer == str(int(bits.prompt.split("number ")[1].split("?")[0]).bit_count())
    assert (graders.reference_of("reasoning_gym", legs), graders.reference_of("numeric", legs)) == (
        legs.check,
        legs.answer,
    )
    assert train[2].check == "", "a preset's reference is computed here"
    assert report.rows == 39 + report.duplicates + report.overlap_removed and report.bad_rows == ()


def test_items_go_on_after_the_last_of_a_generator():
    """Some make all their items at once, some refuse to be asked for billions."""
    for text in ("gsm_symbolic", "word_ladder", "count_bits"):
        rows = (
            list(itertools.islice(generate(text, 0, "train"), CHUNK - 1, CHUNK + 1))
            if text == "count_bits"
            else (first(text, 2))
        )
        assert len({e.prompt for e in rows}) == 2 and all(e.answer for e in rows)


def test_rows_with_an_empty_answer_are_counted_and_named(monkeypatch):
    rows = [dict(question=f"q{i}", answer="" if i % 2 else str(i), metadata={}) for i in range(20)]
    monkeypatch.setattr(procedural, "_items", lambda task, seed: rows)
    train, _, report = load(DataConfig("reasoning_gym", ("count_bits",), train_size=3, heldout_size=0))
    assert [e.answer for e in train] == ["0", "2", "4"]
    assert report.bad_rows == tuple(f"count_bits-train-{i}: the answer is empty" for i in (1, 3))


@pytest.mark.parametrize(
    "text, words",
    [
        ("leg_countin", "did you mean 'leg_counting'? It must be basic_arithmetic, "),
        (
            "zzzzzz",
            "data.tasks has 'zzzzzz'; it must be basic_arithmetic, one_operation, chain_sum, faulty_losses, calculator",
        ),
        ("leg_counting(max_animals)", "cannot be read; write NAME or NAME(parameter=value, ...)"),
        ("leg_counting(max_animals=", "cannot be read"),
        ("leg_counting(max_animals=__import__('os'))", "cannot be read"),
        ("leg_counting(**{})", None),
        ("os.system('x')", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("", "cannot be read"),
        ("leg_counting(max_animals=0)", "which reasoning_gym refuses ("),
        ("leg_counting(colour=1)", "colour"),
        ("leg_counting(size=5)", "'size' is set by the program"),
        ("leg_counting(seed=5)", "'seed' is set by the program"),
        ("composite", "which reasoning_gym refuses (Must specify at least one dataset)"),
        ("rubiks_cube", "'rubiks_cube', whose items have no reference answer"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(text, words):
    if words is None:
        assert first(text, 1)
        return
    with pytest.raises(UserError) as e:
        load(DataConfig("reasoning_gym", (text,), train_size=1))
    assert words in str(e.value) and "\n" not in str(e.value)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=5), st.lists(st.sampled_from("+-*"), min_size=4, max_size=4))
def test_expressions_have_python_s_value(numbers, operators):
    text = str(numbers[0]) + "".join(f" {o} {n}" for o, n in zip(operators, numbers[1:], strict=False))
    item = {"metadata": {"expression": text}}
    assert _arithmetic("id", parse("chain_sum"), item).answer == str(eval(text))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the package's own: files left open
def test_every_data_set_of_the_package_gives_questions_and_takes_its_own_answers():
    from reasoning_gym.factory import DATASETS

    for name in sorted(set(DATASETS) - {"composite"}):
        if name in WITHOUT_ANSWER:
            with pytest.raises(UserError, match="no reference answer"):
                first(f"{name}()", 1)
            continue
        for e in first(f"{name}()", 2):
            assert e.prompt and e.task == name and e.check
            assert graders.gym_match(e.check, e.answer), name
            # Its rule alone too, without the short cut for equal text.
            asked = gym.unpack(e.check)
            rules = gym._rules(asked.dataset, asked.parameters)
            assert gym._right(rules, str(asked.item["answer"]), asked.item), name
            assert graders.gym_match(e.check, "hello") is False, name


def test_a_faulty_chain_has_an_answer_of_its_own_and_the_reference_is_right():
    rows = first("faulty_losses", 300)
    taught = [json.loads(e.check)["taught"] for e in rows]
    for e, answer in zip(rows, taught, strict=True):
        before = int(e.prompt.split()[2])
        assert e.answer == graders.reference_of("exact_match", e) == str(before - 1)
        assert e.chain == f"{before}-1={answer}" and int(answer) in (before, before - 1)
    assert 0.5 < sum(answer != e.answer for e, answer in zip(rows, taught, strict=True)) / 300 < 0.7
