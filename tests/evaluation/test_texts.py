"""Measures of sampled texts: published oracles, definitions written again, and an evaluation that has them."""

import importlib.util
import math

import pytest

from rl_likelihood.config import build
from rl_likelihood.errors import UserError
from rl_likelihood.evaluation import statistics, texts, verse
from rl_likelihood.evaluation.evaluate import Evaluation, evaluate
from rl_likelihood.report.metric_table import unknown
from tests.evaluation.bigrams import letters, records_of, task_of
from tests.evaluation.test_statistics import record
from tests.runs import small_config

CAT, DOG = "the cat sat on the mat", "The dog sat on the log."
SONNET = (
    "Thou that art now the world's fresh ornament,\nAnd only herald to the gaudy spring,\n"
    "Within thine own bud buriest thy content,\nAnd tender churl mak'st waste in niggarding:\n"
    "Pity the world, or else this glutton be,\nTo eat the world's due, by the grave and thee."
)
with_dictionary = pytest.mark.skipif(not importlib.util.find_spec("pronouncing"), reason="no pronouncing dictionary")


def test_distinct_n():
    assert texts.distinct([CAT, DOG], 1) == 7 / 12 and texts.distinct([CAT, DOG], 2) == 8 / 10
    assert math.isnan(texts.distinct(["", "one"], 2))
    assert texts.words("Don’t, o’er") == texts.words("don't o'er") == ["don't", "o'er"]


def test_self_bleu():
    assert texts.self_bleu([CAT, CAT, CAT]) == pytest.approx(1)
    assert texts.self_bleu([CAT, "other words"]) == 0 and math.isnan(texts.self_bleu([CAT]))
    # Of 6, 5, 4, 3 n-grams 4, 2, 1, 0 are shared ("the" twice); orders above 1 have one more in both counts.
    assert texts.self_bleu([CAT, DOG]) == pytest.approx((4 / 6 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    short = texts.bleu(["the", "cat"], [texts.words(CAT)])
    assert short == pytest.approx(math.exp(1 - 6 / 2) * 1.0)


def test_copied_runs_and_compression():
    trained = texts.runs_of(["A cat sat on the mat", "it is"])
    assert texts.copied("the cat sat on the mat", trained) == 2 / 3
    assert texts.copied("sat on the", trained) is None and texts.copied(DOG, trained) == 0
    assert texts.compression(["word " * 100]) < 0.1 < texts.compression([SONNET]) and math.isnan(texts.compression([]))


@with_dictionary
def test_verse_by_the_dictionary():
    assert verse.with_dictionary()
    assert [verse.syllables(w) for w in ("world", "ornament", "poetry")] == [1, 3, 3]
    assert verse.rhyme("ornament", "content") is False and verse.rhyme("be", "thee") and not verse.rhyme("be", "be")
    assert verse.rhyme("love", "dove") and not verse.rhyme("love", "move")
    assert verse.rhyme("tree", "zithee") and not verse.rhyme("tree", "zithy")
    same = verse.form(SONNET, SONNET)
    assert same["lines"] == 1 and same["rhymes"] == 1 and same["syllables"] < 1
    lines = SONNET.splitlines()
    shorter = verse.form("\n".join([*lines[:5], "The end is day"]), SONNET)
    assert shorter["lines"] == 1 and shorter["rhymes"] < 1
    assert verse.form("\n\n".join(lines[:2]), SONNET)["lines"] == 0


def test_verse_by_spelling():
    """Words that no dictionary has."""
    assert [verse.syllables(w) for w in ("niggardingg", "zzyzzyx", "brillige", "xx")] == [3, 2, 2, 1]
    assert verse.rhyme("slithy", "mithy") and not verse.rhyme("toves", "borogrex")
    assert verse.form("", SONNET) == {"lines": 0.0, "syllables": None, "rhymes": None}
    assert verse.form("anything", "no\nrhyme")["rhymes"] is None


def text_record(answers, **more):
    r = record([-1.0] * len(answers))
    for entry, answer in zip(r["samples"], answers, strict=True):
        del entry["right"]
        entry |= {"answer": answer, "copied": 0.5 if answer else None, **more}
    r["no_chain"] = {"log_prob": -1.0, "samples": [{"answer": CAT, "copied": 1.0} for _ in answers]}
    return r


def test_the_columns_of_texts_by_hand():
    out = statistics.summary([text_record([CAT, DOG]), text_record([CAT, None])])
    assert out["answered"] == 0.75 and out["answer_words"] == 6 and out["copied"] == 0.5
    assert out["distinct_1"] == pytest.approx((7 / 12 + 5 / 6) / 2, abs=1e-6)
    assert out["questions_of"]["self_bleu"] == 1 and out["no_chain/self_bleu"] == pytest.approx(1)
    assert out["no_chain/copied"] == 1 and "verse_lines" not in out and out["grader_failures"] == 0
    assert not unknown(out) and "distinct_2" in out["ci95"]
    verses = statistics.summary([text_record([CAT], lines=1.0, syllables=2.0, rhymes=None)] * 2)
    assert verses["verse_lines"] == 1 and verses["verse_syllables"] == 2 and "verse_rhymes" not in verses
    assert "answered" not in statistics.summary([record([-1.0])])


def test_an_evaluation_of_texts(tmp_path):
    """Two samples, not graded; the numbers are those of the file, and the initial model scores the same chains."""
    task, params = letters(task_of(eval__texts="verse", eval__grader="none", eval__prompts=3, eval__samples=4)[0])
    out = evaluate(Evaluation(task, params, task.heldout, folder=tmp_path, initial=params))
    records = records_of(tmp_path, out)
    assert out["answered"] > 0 and "sampled_success" not in out and "greedy_success" not in out
    for r in records:
        for entry in (*r["samples"], *r["no_chain"]["samples"]):
            assert "right" not in entry and (entry["answer"] is None or "lines" in entry)
        assert r["by_initial"]["samples"] == [s["log_prob"] for s in r["samples"]]
        assert r["by_initial"]["no_chain"] == r["no_chain"]["log_prob"]
    for name in ("perplexity", "perplexity_no_chain", "perplexity_swapped"):
        assert out[f"{name}_by_initial"] == out[name]
    assert not unknown(out)
    # Another initial model says something else of the same chains.
    (tmp_path / "b").mkdir()
    flatter = params | {"head": params["head"] / 2}
    flat = evaluate(Evaluation(task, params, task.heldout, folder=tmp_path / "b", initial=flatter))
    assert flat["perplexity"] == out["perplexity"] and flat["perplexity_by_initial"] != out["perplexity"]


def test_an_evaluation_in_training_leaves_the_initial_model_to_a_later_one(tmp_path):
    """Training asks no initial model, also where its config has eval.by_initial."""
    more = {"eval__texts": "verse", "eval__grader": "none", "eval__prompts": 2, "eval__by_initial": True}
    task, params = letters(task_of(**more)[0])
    of = lambda initial: evaluate(Evaluation(task, params, task.heldout, folder=tmp_path, initial=initial))
    in_training, later = of(None), of(params)
    assert "perplexity_by_initial" not in in_training and later["records"] != in_training["records"]
    assert later["perplexity_by_initial"] == later["perplexity"] == in_training["perplexity"]


def test_texts_are_not_graded():
    with pytest.raises(UserError, match="eval.texts is 'prose'.*eval.grader is 'exact_match'"):
        build(small_config(eval__texts="prose"))
