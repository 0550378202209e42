"""EMPO's clusters of similar answers: by hand, and with the vectors of a decoder."""

import numpy as np
import pytest

from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.tokenizer import save_tokenizer
from rl_likelihood.rollouts import similar_answers
from rl_likelihood.rollouts.similar_answers import SimilarAnswers
from rl_likelihood.run_model import random_model
from rl_likelihood.weights import files
from tests.small import random_params

ANGLES = {"0": 0, "1": 20, "2": 40, "3": 180}  # degrees; 30 of them are similar


def on_a_circle(texts):
    angles = np.radians([ANGLES[text] for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], -1) + 5.0


def test_clusters_by_hand():
    """The third answer is similar to the second, but not to the first of that cluster."""
    judge = SimilarAnswers(on_a_circle, np.array([5.0, 5.0]), float(np.cos(np.radians(30))))
    out, measured = judge(["1", "3"], [["0", "1", "2", "1", None], [None, "3", "3", "2", "2"]])
    np.testing.assert_allclose(out.values, [[0.6, 0.6, 0.2, 0.6, 0], [0, 0.4, 0.4, 0.4, 0.4]])
    assert out.keep.all()
    assert measured == {"vote/mixed_pairs": pytest.approx(2 / 5)}, "of five pairs"
    nothing, measured = judge(["1"], [[None, None]])
    assert not nothing.values.any() and measured == {"vote/mixed_pairs": 0}


def test_equal_answers_share_a_cluster_of_a_decoder(tmp_path):
    model = random_model("nano")
    files.save(tmp_path, model, random_params(model, seed=4, scale=0.1))
    save_tokenizer(byte_tokenizer(), tmp_path)
    judge = similar_answers.similar_answers(str(tmp_path), None, ["12", "7", "a word"], 0.999)
    vectors = judge.embed(["12", "7", "a word"])
    np.testing.assert_allclose(judge.centre, vectors.mean(0), rtol=1e-5)
    out, _ = judge(["12"], [["12", "a word", "12", ""]])
    np.testing.assert_allclose(out.values, [[0.5, 0.25, 0.5, 0.25]])
