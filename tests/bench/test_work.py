"""The timed calls do what their names say, and peers get the same work."""

import importlib
import sys

import jax
import numpy as np

from bench import flops, machine, peers, token_weights, work
from rl_likelihood.model.architecture import ModelConfig

NANO = ModelConfig("llama", 64, 16, 2, 4, 2, 4, 32, scan_layers=False)
SHAPE = flops.Shape(2, 2, 8, 4)


def test_every_call_runs_and_the_learner_changes_the_weights():
    made = work.workload(work.Case(NANO, SHAPE, micro=1, no_chain=True))
    assert list(made.calls) == ["prefill", "sampling", "scoring", "learner", "iteration"]
    ids, logp, length = made.calls["sampling"]()
    assert ids.shape == (2, 2, 4) and (length == 4).all() and np.all(logp < 0)
    assert made.calls["prefill"]()[0].shape == (2, 2, 1)
    two = work.workload(work.Case(NANO, SHAPE, streams=2), ("sampling",))
    np.testing.assert_array_equal(two.calls["sampling"]()[0], ids)
    scored = made.calls["scoring"]().stats.log_prob
    assert scored.shape == (2, 2, 4) and np.all(np.asarray(scored) < 0)
    first, second = (made.calls["learner"]()["loss/kl"] for _ in range(2))
    assert first == 0 and second > 0, "the policy moves, the reference does not"
    assert np.isfinite(made.calls["iteration"]()["grad/norm"])


def test_the_rewards_compared_take_a_step_on_the_same_rows():
    made = token_weights.calls(work.Case(NANO, flops.Shape(2, 3, 8, 4)), tokens=2)
    out = {name: call() for name, call in made.items()}
    assert list(out) == ["avg_log_prob", "nrt", "r3"]
    first = [float(x["reward/avg_log_prob"]) for x in out.values()]
    assert first[0] == first[1] == first[2] < 0 and len({float(x["reward/mean"]) for x in out.values()}) == 3


def test_every_call_is_timed_in_every_round():
    made = work.workload(work.Case(NANO, SHAPE), ("prefill",))
    times = work.rounds(machine.limits() | made.calls, 2)
    assert {k: len(v) for k, v in times.items()} == {"matrix": 2, "memory": 2, "prefill": 2}
    assert work.summary([1.0, 2.0, 4.0]) == {"median_s": 2.0, "fastest_s": 1.0, "spread": 1.5}
    assert jax.tree.all(jax.tree.map(lambda x: x > 0, times))


def test_peers_are_given_the_same_model_and_the_same_work(monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the module replaces
    peer_protocol = importlib.import_module("bench.peer_protocol")
    for name, m in work.MODELS.items():
        assert peer_protocol.SHAPES[name] == {
            "vocab": m.vocab_size,
            "width": m.width,
            "layers": m.layers,
            "heads": m.heads,
            "kv_heads": m.kv_heads,
            "head_dim": m.head_dim,
            "mlp": m.mlp,
        }
    for name, w in work.SHAPES.items():
        assert peers.SIZES[name] == (w.prompts, w.group, w.prompt, w.completion)
