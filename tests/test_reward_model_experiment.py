"""experiments/reward_model.py: what it says of options is what the model says, by itself, of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.reward_model
from experiments.reward_model import OUT, Model, experts, letters, likelihoods, measure, pairs, table
from rl_likelihood.data.judged_text import SCORE
from rl_likelihood.data.pairs import Comparison
from rl_likelihood.data.tokenizer import load_tokenizer
from rl_likelihood.model.architecture import head_matrix
from rl_likelihood.model.decoder import forward
from rl_likelihood.rewards.adversarial import verdicts_of
from rl_likelihood.runtime import run_files
from tests.weights.make_checkpoints import write

ROWS = [
    Comparison("a", "What is 2 + 3?", ("five", "six, I think", "ten"), (0.0, 0.0)),
    Comparison("b", "Name a colour.", ("red", "a"), (0.0,)),
    Comparison("c", "And now?", ("later", "no"), (0.0,)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return Model(str(path), *write("llama", path))


def test_the_likelihood_of_an_option_is_that_of_its_tokens(model):
    found = likelihoods(model, ROWS)
    total = found["option likelihood, sum (ranks as option_prob)"]
    assert [len(x) for x in total] == [3, 2, 2]
    reader = model.reader(SCORE, ROWS, [[(a,) for a in r.answers] for r in ROWS])
    tokenizer = load_tokenizer(model.path)
    talk = [{"role": "user", "content": ROWS[0].prompt}, {"role": "assistant", "content": "six, I think"}]
    ids = np.asarray(tokenizer(tokenizer.apply_chat_template(talk, tokenize=False))["input_ids"], np.int32)
    before = tokenizer.apply_chat_template(talk, tokenize=False).partition("six")[0]
    start = len(tokenizer(before)["input_ids"])
    assert start <= reader.max_prompt
    hidden = forward(model.params, model.config, ids[None], np.asarray([len(ids)])).prompt[0]
    logp = jax.nn.log_softmax(hidden @ jnp.asarray(head_matrix(model.params)).T)
    want = sum(float(logp[i - 1, ids[i]]) for i in range(start, len(ids)))
    assert total[0][1] == pytest.approx(want, abs=2e-3)


def test_every_way_scores_every_option_and_the_table_names_all(model):
    rows = {}
    for way in (likelihoods, letters, pairs, experts):  # these tokenizers have no single token for yes
        for name, scores in way(model, ROWS).items():
            assert [len(x) for x in scores] == [3, 2, 2] and np.isfinite(np.concatenate(scores)).all(), name
            rows[name] = measure(scores, ROWS)
    both, first = rows["pairwise, both orders"], rows["pairwise, right one first"]
    assert both["pairs"] == first["pairs"] == 4
    curve = [{"n": 1, "kl": 0.0, "proxy": 0.5, "gold": 0.25, "gold_error": 0.01}]
    text = table({"rows": rows, "best_of": curve})
    assert all(name in text for name in (*rows, "length only", "overlap only", "chance", "25.0%"))


def test_the_label_critic_is_asked_in_both_orders(model, monkeypatch):
    """One critic names the answer with a z, the expert's. One always names the first answer."""
    z, q = load_tokenizer(model.path)("zq")["input_ids"]

    def named(second):
        def critic(_, params, pairs):
            labels = jax.nn.one_hot(second(pairs.judged.rows).astype(int), 3)
            return verdicts_of(labels, pairs.margins > 0)

        monkeypatch.setattr(experiments.reward_model, "verdicts", critic)
        (scores,) = experiments.reward_model.experts(model, rows).values()
        return scores

    rows = [Comparison("a", "Which?", ("z", "q", "qq"), (0.0,) * 2), Comparison("b", "And?", ("z z", "q"), (0.0,))]
    scores = named(lambda ids: jnp.argmax(ids == q, -1) < jnp.argmax(ids == z, -1))
    assert [x.tolist() for x in scores] == [[0, -1, -1], [0, -1]] and measure(scores, rows)["pair_accuracy"] == 1
    assert not np.concatenate(named(lambda ids: jnp.zeros(ids.shape[:2]))).any()


def test_the_documents_have_the_numbers_of_the_results():
    results = OUT.parent
    *_, evaluation, best_of = run_files.read(results / "reward_model_eval.jsonl")
    page = (results.parents[1] / "docs" / "judges.md").read_text()
    for row in best_of["best_of"]:
        right = f"{row['gold']:.1%} ± {row['gold_error']:.1%}"
        assert f"| {row['n']} | {row['kl']:.2f} | {row['proxy']:.2f} | {right} |" in page
    low, high = evaluation["ci95"]["pair_accuracy"]
    assert f"{100 * evaluation['pair_accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})" in page
