"""The jitted step: every mode's loss against plain sequences, micro-batches, devices, metrics, one golden run."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_likelihood.learner.measures import metrics
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import StepConfig
from rl_likelihood.learner.step import (
    gradients,
    init_reference,
    init_state,
    make_score,
    make_step,
    prompts_per_forward,
    state_shardings,
)
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.rewards.likelihood import OBJECTIVES
from rl_likelihood.shapes import CHAIN, PAD, REFERENCE, SAMPLED, TAG
from rl_likelihood.task import using
from tests.learner.modes import (
    BATCH,
    HOST_REWARDS,
    KEEP,
    MODEL,
    MODES,
    PARAMS,
    REF,
    STALE,
    S,
    T,
    cfg_of,
    expected,
    step_gradients,
)
from tests.small import (
    TINY,
    one_device,
    random_batch,
    random_params,
    reference_log_distributions,
    reference_log_probs,
    rewarded,
    tiny,
)


@pytest.mark.parametrize("name", MODES)
def test_loss_and_gradient_are_those_of_plain_sequences(name):
    _, batch, _ = MODES[name]
    cfg = cfg_of(name)
    grads, sums, per_row = step_gradients(PARAMS, (REF if name == "kl" else None, None), batch, MODEL, cfg)
    terms = cfg.loss.policy_term * sums["loss/policy"] + cfg.loss.answer_term * sums["loss/answer"]
    loss, slope = expected()[name]
    assert float(terms + cfg.loss.kl_coef * sums["loss/kl"]) == pytest.approx(loss, rel=2e-5, abs=1e-6)
    size = max(float(np.abs(x).max()) for x in jax.tree.leaves(slope))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * size), grads, slope)


def test_the_batch_of_these_tests_holds_every_case():
    assert all((BATCH.segment == kind).any() for kind in (PAD, CHAIN, TAG, REFERENCE, SAMPLED))
    rows = (~BATCH.truncated).sum(-1)
    assert set(rows) >= {1, 2}, "drop leaves a row alone, and some rows, in a group"
    assert (BATCH.prompt_length < S).any() and not np.array_equal(BATCH.scored, BATCH.segment == REFERENCE)


def test_what_a_dropped_row_holds_changes_nothing():
    cfg = cfg_of("stale")
    out = (~KEEP)[..., None]
    other = STALE.replace(
        completion=np.where(out, (STALE.completion + 3) % 24, STALE.completion),
        sampler_logp=np.where(out, -99.0, STALE.sampler_logp),
        host_rewards={"math": np.where(KEEP, HOST_REWARDS, 1e6).astype(np.float32)},
    )
    a, b = (step_gradients(PARAMS, (None, None), batch, MODEL, cfg) for batch in (STALE, other))
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert (np.asarray(a[2]["advantage"])[~KEEP] == 0).all()


def test_a_group_with_nothing_kept_is_as_if_it_were_not_in_the_batch():
    """Neither the loss nor a mean over groups counts it."""
    three = jax.tree.map(lambda x: x[:3], STALE)
    for name in ("log_prob", "stale"):
        a, b = (step_gradients(PARAMS, (None, None), batch, MODEL, cfg_of(name)) for batch in (STALE, three))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a[0], b[0])
        got, expected = (metrics(out[1], out[2], batch) for out, batch in ((a, STALE), (b, three)))
        assert not KEEP[3].any() and float(expected["reward/std"]) > 0.01
        for key in ("reward/std", "reward/jepo", "reward/mean", "reward/zero_std_groups", "loss/policy", "loss/answer"):
            assert float(got[key]) == pytest.approx(float(expected[key]), rel=1e-4), key


def test_the_floor_is_in_the_trained_reward_and_nowhere_else():
    _, _, rows = step_gradients(PARAMS, (None, None), BATCH, MODEL, cfg_of("floor"))
    without = dataclasses.replace(cfg_of("floor").reward, truncated="force_close")
    _, _, plain = step_gradients(PARAMS, (None, None), BATCH, MODEL, cfg_of("floor", reward=without))
    assert BATCH.truncated.any() and (np.asarray(rows["reward"])[BATCH.truncated] == -7).all()
    np.testing.assert_array_equal(rows["reward/avg_log_prob"], plain["reward/avg_log_prob"])
    np.testing.assert_array_equal(rows["reward/log_prob"], plain["reward/log_prob"])


def test_kl_of_a_model_with_itself_is_zero():
    _, batch, _ = MODES["kl"]
    grads, sums, _ = step_gradients(PARAMS, (PARAMS, None), batch, MODEL, cfg_of("kl"))
    assert abs(float(sums["loss/kl"])) < 1e-6
    without = cfg_of("kl", loss=LossConfig(aggregation="seq_mean"))
    grads2, sums2, _ = step_gradients(PARAMS, (None, None), batch, MODEL, without)
    assert sums2["loss/kl"] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, grads2)


def test_micro_batches_are_one_batch():
    # Dropped and truncated rows, token counts and a reference model: every global count is at stake.
    batch = STALE.replace(keep=KEEP[[0, 0, 1, 2]])
    loss = LossConfig(aggregation="token_mean", ratio="token", kl="k3", kl_coef=0.1)
    one, two = (
        step_gradients(PARAMS, (REF, None), batch, MODEL, cfg_of("drop", loss=loss, micro_batch_prompts=n))
        for n in (0, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)


def test_left_to_itself_a_cpu_takes_no_more_prompts_than_pay():
    batch = lambda p, g, t: random_batch(6, p=p, g=g, s=4, t=t)
    assert prompts_per_forward(batch(6, 2, 100), StepConfig()) == 3, "600 tokens; 6 prompts have 1,200"
    assert prompts_per_forward(batch(6, 2, 300), StepConfig()) == 1
    assert prompts_per_forward(batch(2, 2, 600), StepConfig()) == 1, "a prompt is not divided"
    assert prompts_per_forward(batch(6, 2, 20), StepConfig()) == 6
    assert prompts_per_forward(batch(7, 4, 60), StepConfig()) == 7, "240 tokens are few, 1,680 not too many"
    assert prompts_per_forward(batch(7, 4, 120), StepConfig()) == 1, "3,360 are"
    assert prompts_per_forward(batch(6, 2, 300), StepConfig(micro_batch_prompts=2)) == 2
    with using(make_mesh((2, 2, 2))):
        assert prompts_per_forward(batch(6, 2, 300), StepConfig()) == 6
    tpu = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    with jax.sharding.use_abstract_mesh(one_device().abstract_mesh.update(abstract_device=tpu)):
        assert prompts_per_forward(batch(6, 2, 300), StepConfig()) == 6


def test_everything_but_the_network_is_float32():
    half = tiny(layers=1, compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda p: gradients(p, (p, None), BATCH, half, cfg_of("kl")), PARAMS)
    for path, leaf in jax.tree.leaves_with_path(shapes):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_), (path, leaf.dtype)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes[0]))


def test_score_gives_the_rows_of_one_forward_however_it_is_split():
    one, two = (make_score(MODEL, cfg_of("stale", micro_batch_prompts=n))(PARAMS, STALE) for n in (0, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
    own = STALE.segment != PAD
    exact = reference_log_probs(PARAMS, MODEL, STALE, 0.7)
    np.testing.assert_allclose(np.asarray(one.stats.log_prob)[own], exact[own], atol=1e-4)
    np.testing.assert_array_equal(one.sampled, np.isin(STALE.segment, (CHAIN, SAMPLED)))


def test_every_process_gets_all_scores_of_a_mesh():
    mesh = make_mesh((2, 2, 2))
    cfg = StepConfig(two_branches=True, micro_batch_prompts=2)
    one = make_score(TINY, cfg)(random_params(TINY), STALE)
    with using(mesh):
        spread = make_score(TINY, cfg, mesh)(random_params(TINY), STALE)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(spread))
    own = STALE.segment != PAD
    np.testing.assert_allclose(np.asarray(spread.stats.log_prob)[own], np.asarray(one.stats.log_prob)[own], atol=2e-5)


# ------------------------------------------------------------------ the whole step: devices, metrics, golden numbers

# eps keeps AdamW smooth where a gradient is almost 0: without it rounding decides the sign of an update.
OPTIMIZER = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=2, total_steps=10, eps=1e-3, weight_decay=0.1))
LOSS = LossConfig(kl="k2", kl_coef=0.1)
CFG = rewarded("jepo", loss=LOSS, two_branches=True, micro_batch_prompts=4, head_chunk=32)
BATCHES = [random_batch(20 + i, p=8, g=2, s=S, t=T, sampled=True) for i in range(3)]


@functools.cache
def trained(shape, scan=True):
    """Three steps on a mesh of this shape: metrics of each, per-row values of the last, parameters after each."""
    model = dataclasses.replace(TINY, scan_layers=scan)
    mesh = one_device() if shape is None else make_mesh(shape, jax.devices()[: math.prod(shape)])
    placed = state_shardings(mesh, TINY, OPTIMIZER, CFG)
    # Made by a program, and copied before numpy looks at it: a buffer that numpy shares cannot be donated.
    state = jax.jit(lambda params: init_state(params, OPTIMIZER, CFG), out_shardings=placed)(random_params(TINY))
    ref = init_reference(jax.device_put(random_params(TINY, 1), placed.params), mesh, model, CFG)
    step = make_step(model, CFG, OPTIMIZER, mesh, BATCHES[0])
    history, params = [], []
    for batch in BATCHES:
        before = state
        with using(None if shape is None else mesh):  # as a run does
            state, out, per_row = step(state, ref, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params)), "the old state is donated"
        jax.tree.map(lambda x, at: x.sharding.is_equivalent_to(at, x.ndim) or pytest.fail(str(at)), state, placed)
        history.append(jax.device_get(out))
        params.append(jax.device_get(jax.tree.map(jnp.copy, state.params)))
    assert int(state.step) == 3
    return history, jax.device_get(per_row), params


# groups: the prompts of a micro-batch over data, the rows of each over fsdp. tokens: those of each prompt over fsdp.
# context: the tokens of each row, padded because 4 does not divide them. all: fsdp x context x tensor.
MESHES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (1, 1, 8),
    "mixed": (2, 2, 2),
    "groups": (4, 2, 1),
    "tokens": (1, S, 1),
    "context": (1, 2, 4, 1),
    "all": (1, 2, 2, 2),
}


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_devices_are_one(shape):
    one, eight = trained(None), trained(shape)
    # Metrics to float32 rounding; parameters of order 1 after three updates of 1e-2.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), one[:2], eight[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), one[2], eight[2])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one[2][-1], random_params(TINY))
    assert min(jax.tree.leaves(moved)) > 1e-3, "every parameter learned"


@pytest.mark.parametrize("shape", [None, MESHES["mixed"]], ids=["one", "mixed"])
def test_unrolled_layers_and_an_unstacked_reference_model_are_scanned_ones(shape):
    scanned, unrolled = trained(None), trained(shape, scan=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), scanned[:2], unrolled[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), scanned[2], unrolled[2])


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_a_reference_model_is_stored_as_it_is_used(scan):
    model = dataclasses.replace(TINY, scan_layers=scan, compute_dtype="bfloat16")
    whole = random_params(TINY, 1)
    stored = init_reference(whole, one_device(), model, CFG)
    assert {x.dtype for x in jax.tree.leaves(stored)} == {jnp.dtype("bfloat16")}
    assert isinstance(stored["layers"], dict) == scan
    run = jax.jit(gradients, static_argnums=(3, 4))
    rounded, plain = (run(random_params(TINY), (ref, None), BATCHES[0], model, CFG) for ref in (stored, whole))
    assert float(plain[1]["loss/kl"]) > 0
    jax.tree.map(np.testing.assert_array_equal, rounded, plain)


@pytest.mark.parametrize(
    "name, local", [("data", (2, 16, 16)), ("fsdp", (2, 2, 16)), ("tensor", (2, 16, 2)), ("mixed", (2, 8, 8))]
)
def test_a_mesh_splits_parameters_and_moments_alike(name, local):
    placed = state_shardings(make_mesh(MESHES[name]), TINY, OPTIMIZER, CFG)
    arrays = [placed.params["layers"]["gate"]]  # [L, D, F]: width over fsdp, mlp over tensor
    arrays += [
        x["layers"]["gate"]
        for x in jax.tree.leaves(placed.opt_state, is_leaf=lambda x: isinstance(x, dict))
        if isinstance(x, dict)
    ]
    assert len(arrays) == 3 and {x.shard_shape((2, 16, 16)) for x in arrays} == {local}


def test_metrics_mean_what_their_names_say():
    batch, params = BATCHES[0], random_params(TINY)
    out, names = trained(None)[0][0], set(trained(None)[0][0])
    assert names >= {
        "reward/mean",
        "reward/std",
        "advantage/abs_mean",
        "chain/length",
        "chain/truncated",
        "answer/log_prob",
        "answer/perplexity",
        "loss/policy",
        "loss/answer",
        "loss/kl",
        "grad/norm",
        "policy/entropy",
        "policy/self_certainty",
        "ratio/mean",
        "ratio/max",
        "ratio/kl",
        *(f"reward/{name}" for name in OBJECTIVES),
    }
    assert all(np.ndim(x) == 0 and np.isfinite(x) for x in out.values())

    table = reference_log_distributions(params, TINY, batch)
    logp = np.take_along_axis(table, batch.completion[..., None], -1)[..., 0]
    total, n = np.where(batch.scored, logp, 0).sum(-1), batch.scored.sum(-1)
    bound = np.log(np.exp(total).mean(-1))
    difference = bound[:, None] - total[:, ::-1]  # of two rows, without i is the other's
    chain, sampled = batch.segment == CHAIN, np.isin(batch.segment, (CHAIN, SAMPLED))
    ratio = np.exp(logp - batch.sampler_logp)[chain]
    kl = reference_log_probs(random_params(TINY, 1), TINY, batch)
    kl = np.where(chain, (logp - kl) ** 2 / 2, 0).sum(-1).mean()
    expected = {
        "reward/log_prob": total.mean(),
        "reward/avg_log_prob": (total / n).mean(),
        "reward/prob": np.exp(total).mean(),
        "reward/avg_prob": (np.where(batch.scored, np.exp(logp), 0).sum(-1) / n).mean(),
        "reward/geo_mean_prob": np.exp(total / n).mean(),
        "reward/jepo": bound.mean(),
        "reward/mean": total.mean(),
        "reward/std": total.std(-1, ddof=1).mean(),
        "advantage/abs_mean": np.abs(2 * difference).mean(),
        "answer/log_prob": total.mean(),
        "answer/perplexity": np.exp(-(total / n).mean()),
        "chain/length": (chain | (batch.segment == TAG)).sum(-1).mean(),
        "chain/truncated": batch.truncated.mean(),
        "loss/policy": -(difference * np.where(chain, logp, 0).sum(-1)).sum(-1).mean(),
        "loss/answer": -bound.mean(),
        "loss/kl": kl,
        "policy/entropy": -(np.exp(table) * table).sum(-1)[sampled].mean(),
        "policy/self_certainty": (-table.mean(-1) - np.log(24))[sampled].mean(),
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "ratio/kl": (ratio - 1 - np.log(ratio)).mean(),
        "ratio/ess": ratio.sum() ** 2 / (ratio.size * (ratio**2).sum()),
    }
    for name, x in expected.items():
        assert out[name] == pytest.approx(x, rel=3e-4, abs=1e-5), name


def test_the_step_applies_the_optimizer_to_the_gradient_and_reports_its_norm():
    cfg = cfg_of("log_prob")
    grads, *_ = step_gradients(PARAMS, (None, None), BATCH, MODEL, cfg)
    updates, _ = jax.jit(OPTIMIZER.update)(grads, OPTIMIZER.init(PARAMS), PARAMS)
    state = jax.tree.map(jnp.array, init_state(PARAMS, OPTIMIZER, cfg))
    after, out, _ = make_step(MODEL, cfg, OPTIMIZER, one_device(), BATCH)(state, None, BATCH)
    norm = float(optax.tree.norm(grads))
    assert norm > 1.0, "clipping acts, and the norm is the one before it"
    assert float(out["grad/norm"]) == pytest.approx(norm, rel=1e-5)
    expected = optax.apply_updates(PARAMS, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)


GOLDEN = Path(__file__).with_name("golden_step.json")
RENEW = "python -m tests.learner.test_step"


def golden():
    """Losses of three steps, and the root mean square of some parameters' changes over each."""
    history, _, params = trained(None)
    params = [random_params(TINY), *params]
    picks = {
        "embed": lambda p: p["embed"],
        "final_norm": lambda p: p["final_norm"],
        "layers/q": lambda p: p["layers"]["q"],
        "layers/down": lambda p: p["layers"]["down"],
    }
    steps = []
    for out, before, after in zip(history, params, params[1:], strict=False):
        row = {name: float(out[name]) for name in ("loss/policy", "loss/answer", "loss/kl", "grad/norm", "reward/mean")}
        row |= {f"update_rms/{name}": float(np.sqrt(((f(after) - f(before)) ** 2).mean())) for name, f in picks.items()}
        steps.append(row)
    return steps


def test_golden_step():
    for i, (got, golden_row) in enumerate(zip(golden(), json.loads(GOLDEN.read_text()), strict=True)):
        assert got.keys() == golden_row.keys()
        for name, x in golden_row.items():
            assert got[name] == pytest.approx(x, rel=1e-3, abs=1e-6), (
                f"step {i}: {name} was {x} and is {got[name]}: the same parameters, batch and settings train "
                f"differently now. If that is what your change is for, renew the numbers with `{RENEW}`, "
                "and say why in the commit."
            )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")


def test_unstacked_layers_have_the_gradients_of_layers_in_a_stack():
    """scan_layers=False cuts the stack before the loop over micro-batches, and puts gradients together after it."""
    cfg, looped = rewarded("log_prob", micro_batch_prompts=2, two_branches=True), tiny(layers=3)
    params = random_params(looped, 4)
    both = [gradients(params, (None, None), BATCH, tiny(layers=3, scan_layers=scan), cfg)[0] for scan in (True, False)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *both)
