"""What the step's programs hold, send and compute."""

import dataclasses

import jax
import numpy as np
import pytest

from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import init_reference, init_state, make_score, make_step
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.model import head
from rl_likelihood.model.architecture import init
from rl_likelihood.planning import hlo
from rl_likelihood.planning.aot import count_flops
from rl_likelihood.shapes import NoChainRows
from rl_likelihood.task import using
from tests.learner.modes import BATCH, MODEL, PARAMS, G, P, T, cfg_of
from tests.small import one_device, random_batch, random_params, rewarded, tiny


def test_the_state_is_given_away_and_not_held_twice():
    cfg, optimizer, mesh = rewarded("log_prob"), make_optimizer(OptimizerConfig()), one_device()
    big = tiny(layers=2, width=64, mlp=256)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), random_params(big))
    compiled = make_step(big, cfg, optimizer, mesh, BATCH).lower(state, None, BATCH).compile()
    memory = compiled.memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * held
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 0.1 * held


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("scan, micro, most", [(True, 0, 1.75), (False, 0, 1.75), (True, 1, 2.6), (False, 1, 2.6)])
def test_beside_the_state_a_step_holds_one_gradient_and_in_micro_batches_one_tree_more(scan, micro, most, kl):
    """Of a model so large that a batch's own values count for little: in copies of its parameters. A reference model
    is beside them as it is given, and not copied."""
    model = tiny(layers=8, width=256, mlp=1024, scan_layers=scan)
    loss = LossConfig(kl="k3", kl_coef=kl) if kl else LossConfig()
    cfg, batch = rewarded("log_prob", loss=loss, micro_batch_prompts=micro), random_batch(0, 2, 2, 4, 10)
    optimizer = make_optimizer(OptimizerConfig())
    params = jax.eval_shape(lambda key: init(key, model), jax.random.key(0))
    state = jax.eval_shape(lambda p: init_state(p, optimizer, cfg), params)
    ref = jax.eval_shape(lambda p: init_reference(p, one_device(), model, cfg), params)
    memory = make_step(model, cfg, optimizer, one_device(), batch).lower(state, ref, batch).compile().memory_analysis()
    one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    assert memory.temp_size_in_bytes < most * one, memory.temp_size_in_bytes / one


@pytest.mark.parametrize("scored_only, tokens", [(False, T), (True, 3)])
def test_no_other_token_meets_the_vocabulary(scored_only, tokens):
    """No token of a prompt; and in evaluation only as many of a row as may be scored."""

    def operations(vocab, s):
        model, batch = tiny(vocab_size=vocab), random_batch(1, P, G, s, T)
        cfg = StepConfig(head_chunk=P * G * T, scored_only=scored_only, reference_tokens=3)
        return count_flops(make_score(model, cfg).trace(random_params(model), batch).jaxpr.jaxpr)

    width = tiny().width
    scored = 2 * width * P * G * tokens
    for s in (5, 40):
        # The mean row of the head is one more row a token, whatever the vocabulary.
        assert operations(48, s) - operations(24, s) == 24 * scored


def test_the_scored_tokens_alone_have_the_same_log_probs():
    no_chain = NoChainRows(*(x[:, :1] for x in (BATCH.completion, BATCH.segment, BATCH.scored)))
    batch, cfg = BATCH.replace(no_chain=no_chain), cfg_of("stale", temperature=1.0)
    alone, every = (
        make_score(MODEL, dataclasses.replace(cfg, scored_only=only, reference_tokens=3))(PARAMS, batch)
        for only in (True, False)
    )
    for some, of_all, scored in (
        (alone.stats.log_prob, every.stats.log_prob, batch.scored),
        (alone.no_chain_logp, every.no_chain_logp, no_chain.scored),
    ):
        assert some.shape == (*scored.shape[:2], 3)
        valid = np.arange(3) < scored.sum(-1)[..., None]
        np.testing.assert_allclose(np.asarray(some)[valid], np.asarray(of_all)[scored], atol=1e-5)


def test_the_vocabulary_s_matrix_moves_between_devices_as_often_in_many_blocks_as_in_one():
    mesh, optimizer = make_mesh((1, 4, 2)), make_optimizer(OptimizerConfig())
    model = tiny(layers=1, vocab_size=1024)
    sent = []
    for chunk, blocks in ((1000, 1), (8, 4)):
        cfg = dataclasses.replace(cfg_of("kl"), head_chunk=chunk)
        state = jax.eval_shape(lambda p, cfg=cfg: init_state(p, optimizer, cfg), random_params(model))
        with using(mesh):
            assert -(-512 // head._block(512, P * G * T, chunk)) == blocks
            text = make_step(model, cfg, optimizer, mesh, BATCH).lower(state, state.params, BATCH).compile().as_text()
        sent.append({(c.kind, c.axes): c.sent for c in hlo.collectives(text, mesh)})
    of_kind = [sum(n for (kind, axes), n in x.items() if kind == "all-gather" and "fsdp" in axes) for x in sent]
    assert of_kind[0] == of_kind[1] > 0
    # Sums over the vocabulary's parts are made block by block, of a number a token; never a block of the matrix.
    assert sum(sent[1].values()) < 1.5 * sum(sent[0].values()), sent
