"""Packed batches: gradients, rewards and metrics are those of padded rows, and how chains are put together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_likelihood.learner import packing
from rl_likelihood.learner.batching import alternatives_of, answers_after, scored_mask
from rl_likelihood.learner.measures import metrics
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.packing import balanced, first_fit, pack
from rl_likelihood.learner.posterior import PosteriorConfig
from rl_likelihood.learner.step import filtered, gradients, init_state
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import by_prompt, make_mesh, put
from rl_likelihood.model import splash
from rl_likelihood.model.architecture import shardings
from rl_likelihood.model.lora import LoraConfig, as_base, base_specs, trained_specs
from rl_likelihood.planning.aot import count_flops
from rl_likelihood.rewards.group_filter import FilterConfig
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import CHAIN, ENV, PAD, REFERENCE, SAMPLED, NoChainRows, Prompts, ShownPrompts, rounded
from tests.model.test_lora import random_adapters
from tests.small import random_batch, random_params, reference_log_probs, rewarded, tiny

MODEL = tiny(layers=2)
PARAMS = random_params(MODEL)
P, G, T = 4, 5, 24
ONE, TWO = (random_batch(8, P, G, t=T, sampled=sampled) for sampled in (False, True))


def conversations():
    """Rows of one to three turns: the reference of a message, the message, the environment's reply."""
    rng = np.random.default_rng(5)
    segment = np.zeros((P, G, T), np.int32)
    for i, j in np.ndindex(P, G):
        kinds = []
        for _ in range(rng.integers(1, 4)):
            lengths = rng.integers(1, 4, 3) * [1, 1, bool(kinds)]
            reply, reference, message = lengths[2], lengths[0], lengths[1]
            kinds += [ENV] * reply + [REFERENCE] * reference + [CHAIN] * message
        segment[i, j, : min(T, len(kinds))] = kinds[:T]
    return ONE.replace(
        segment=segment, scored=segment == REFERENCE, host_rewards={"environment": ONE.host_rewards["math"]}
    )


def without_chains():
    """The batch with the answers after an empty chain beside it."""
    rng = np.random.default_rng(6)
    answer, length = rng.integers(0, 24, (P, 3)), rng.integers(1, 4, P)
    asked = Prompts(ONE.prompt, ONE.prompt_length, answer, length, np.arange(3) < length[:, None], np.arange(P))
    rows = answers_after(asked, (7, 8), 0)
    return ONE.replace(no_chain=NoChainRows(rows.completion, rows.segment, scored_mask(rows.segment, asked)))


def with_others():
    """The batch with other answers that are as good: two of one prompt, one of the next, none of the others."""
    answers = [[(np.array([3, 2, 0]), np.ones(3, bool)), (np.array([2, 1]), np.ones(2, bool))]]
    answers += [[(np.array([4, 0]), np.array([True, False]))], [], []]
    return ONE.replace(alternatives=alternatives_of(answers, 2, 7, 0))


KL = LossConfig(kl="k3", kl_coef=0.3, aggregation="token_mean")
BOTH = {"two_branches": True, "policy_span": "response"}
COMMON = TWO.replace(prompt=np.c_[TWO.prompt[[0] * P, :2], TWO.prompt], prompt_length=TWO.prompt_length + 2, common=2)
SHOWN = ONE.replace(shown=ShownPrompts(TWO.prompt, TWO.prompt_length))
WEIGHTS = {"weight": np.array([0.4, 1.6, 1.2, 0.8], np.float32), "critic": np.arange(P) % 2 == 1}  # raro's two roles
CASES = {
    "one branch": (ONE, rewarded("log_prob")),
    "two branches": (TWO, rewarded("jepo", **BOTH)),
    "reference": (TWO, rewarded("avg_prob", loss=KL, temperature=0.7, **BOTH)),
    "text": (TWO, rewarded("math", **BOTH)),
    "crossed answers": (TWO, rewarded("cer", **BOTH)),
    "environment": (conversations(), rewarded("environment + avg_log_prob", two_branches=True)),
    "without a chain": (without_chains(), rewarded("rlpr", baseline="live")),
    "other answers": (with_others(), rewarded("log_prob_any", two_branches=True)),
    "second prompt": (SHOWN, rewarded("log_prob", posterior=PosteriorConfig(distill=1.0))),
    "common beginning": (COMMON, rewarded("avg_prob", loss=KL, **BOTH)),
    "micro-batches": (TWO, rewarded("jepo", loss=KL, micro_batch_prompts=2, **BOTH)),
    "groups left out": (TWO.replace(counted=np.arange(P) != 1), rewarded("jepo", micro_batch_prompts=2, **BOTH)),
    "raro": (TWO.replace(**WEIGHTS), rewarded("math", micro_batch_prompts=2, **BOTH)),
    "adapters": (TWO, rewarded("jepo", loss=KL, lora=LoraConfig(rank=3, alpha=6.0), **BOTH)),
}


def results(batch, cfg, model=MODEL, mesh=None):
    """Gradients, metrics and values of rows; what padding has is 0. On one device, or over a mesh that is in use."""
    params, initial = random_params(model), random_params(model, 1)
    if cfg.lora.rank:
        params, initial = random_adapters(cfg.lora, model), as_base(initial, cfg.lora)
    models = (initial if cfg.with_reference else None, None, *[initial] * (cfg.lora.rank > 0))

    def run(params, models, batch):
        grads, sums, per_row = gradients(params, models, batch, model, cfg)
        return grads, metrics(sums, per_row, batch), per_row

    if mesh is not None:
        params = put(params, shardings(trained_specs(model, cfg.lora), mesh))
        at = shardings(base_specs(model, cfg.lora), mesh)
        models, batch = tuple(x and put(x, at) for x in models), put(batch, by_prompt(mesh, batch))
    grads, out, per_row = jax.device_get(jax.jit(run)(params, models, batch))
    real = np.asarray(batch.segment) != PAD
    return grads, out, {k: v[real] if v.shape == real.shape else v for k, v in per_row.items()}


def assert_close(padded, packed):
    def one(a, b):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=1e-5 + 1e-5 * np.abs(a).max(initial=0))

    jax.tree.map(one, padded, packed)


@pytest.mark.parametrize("name", CASES)
def test_a_packed_batch_is_the_padded_one(name):
    batch, cfg = CASES[name]
    packed = pack(batch, cfg)
    size = packed.packing
    assert size.tokens < size.prompts * batch.completion[0].size, "some padding is left out"
    assert (size.start % size.width > 0).any(), "chains share rows"
    assert_close(results(batch, cfg), results(packed, cfg))


def test_order_makes_micro_batches_alike_and_rows_keep_theirs():
    """Two long prompts, one after the other in what would be one micro-batch."""
    segment = np.array(ONE.segment)
    segment[[0, 2], :, :20] = CHAIN
    segment[[0, 2], :, 20:23] = REFERENCE
    batch, cfg = ONE.replace(segment=segment, scored=segment == REFERENCE), rewarded("jepo", micro_batch_prompts=2)
    order = pack(batch, cfg).packing.order
    assert sorted(order) == [0, 1, 2, 3] and {i in (0, 2) for i in order[::2]} == {True, False}
    assert_close(results(batch, cfg), results(pack(batch, cfg), cfg))


def test_filtered_groups_are_those_of_the_padded_batch():
    rewards = np.where(ONE.scored, reference_log_probs(PARAMS, MODEL, ONE), 0).sum(-1)
    least = float(np.median(rewards.std(-1, ddof=1)))
    cfg = rewarded("log_prob", filter=FilterConfig(mode="std_below", threshold=least), micro_batch_prompts=1)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = init_state(params, make_optimizer(OptimizerConfig()), cfg)
    run = jax.jit(lambda state, batch: filtered(state, (None, None), batch, MODEL, cfg)[0].counted)
    counted = [run(state, batch).tolist() for batch in (ONE, pack(ONE, cfg))]
    assert counted[0] == counted[1] and len(set(counted[0])) == 2


def of_equal_lengths(lengths, t):
    """A batch whose chains all have their prompt's number of tokens: a chain, a sampled answer, a reference."""
    batch = random_batch(9, len(lengths), G, t=t, sampled=True)
    left = np.broadcast_to(np.asarray(lengths)[:, None, None] - np.arange(t), batch.segment.shape)
    segment = np.select([left > 5, left > 2, left > 0], [CHAIN, SAMPLED, REFERENCE], PAD)
    logp = np.where((segment == CHAIN) | (segment == SAMPLED), batch.sampler_logp, 0)
    return batch.replace(segment=segment, scored=segment == REFERENCE, sampler_logp=logp)


@pytest.mark.parametrize("shape, parts", [((8, 1, 1), 1), ((2, 2, 2), 2)], ids=["data", "mixed"])
def test_eight_devices_are_one(shape, parts):
    """The long groups come first, so the first device had the most tokens."""
    roles = {name: np.tile(x, 4) for name, x in WEIGHTS.items()}
    batch, devices = of_equal_lengths(range(24, 8, -1), T).replace(**roles), shape[0] * shape[1]
    cfg = rewarded("jepo", loss=KL, micro_batch_prompts=16 // parts, **BOTH)
    mesh, tokens = make_mesh(shape), packing.real_tokens(batch).sum(-1)
    with using(mesh):
        packed = pack(batch, cfg)
        before, pools = (x.reshape(devices, -1, parts).sum(1) for x in (tokens, tokens[packed.packing.order]))
        assert pools.max() <= packed.packing.tokens < before.max()
        eight = results(packed, cfg, mesh=mesh)
    assert_close(results(batch, cfg), eight)


def test_a_micro_batch_is_filled_though_groups_are_uneven():
    batch, cfg = of_equal_lengths([100, 90, 30, 30, 20, 20, 20, 20], 100), rewarded("jepo", loss=KL, **BOTH)
    packed = pack(batch, cfg)
    assert packed.packing.prompts == 4, "of 2 prompts, the mean pool would have 82 tokens a chain, the largest 120"
    assert_close(results(batch, cfg), results(packed, cfg))


@pytest.mark.parametrize("groups, group, prompts", [(8, 100, 8), (64, 100, 8), (6, 256, 2), (4, 5000, 1)])
def test_of_equal_groups_a_micro_batch_has_about_1000_tokens(groups, group, prompts):
    assert packing.packed_prompts(np.full(groups, group), rewarded("log_prob"), groups) == prompts


@pytest.mark.parametrize("seed", range(4))
def test_pools_are_filled_but_for_a_twentieth(seed):
    """Groups of 16 chains of equal length, as long as solutions of GSM8K."""
    tokens = 16 * np.random.default_rng(seed).integers(40, 400, 64)
    size = packing.packed_prompts(tokens, rewarded("log_prob"), 64)
    computed = {k: 64 // k * balanced(tokens, 1, 64 // k)[1] for k in (size // 2, size)}
    assert computed[size] <= 1.05 * tokens.sum() < computed[size // 2]
    assert computed[size] / (64 // size) <= 2.5 * tokens.max()


KERNEL = {
    "two branches": (TWO, rewarded("log_prob", **BOTH)),
    "other answers": (with_others(), rewarded("log_prob_any", two_branches=True)),
    "environment": (conversations(), rewarded("avg_log_prob", two_branches=True, turns=3)),
}


@pytest.mark.parametrize("kind", KERNEL)
def test_attention_by_the_kernel_has_a_row_for_each_chain(monkeypatch, kind):
    """The splash kernel, interpreted, as a TPU has it: several answers, and chains that begin at rows' beginnings."""
    batch, cfg = KERNEL[kind]
    attend = splash.attention
    monkeypatch.setattr(splash, "attention", lambda *a, **k: attend(*a, **k, interpret=True))
    model = tiny(layers=1, head_dim=64, attention="splash")
    params = random_params(model)
    packed = pack(batch, cfg, shared=False)
    assert packed.packing.start.tolist() == [[packed.packing.width * j for j in range(G)]] * P

    def grads(batch, model):
        return jax.jit(lambda p, b: gradients(p, (None, None), b, model, cfg)[0])(params, batch)

    dense = dataclasses.replace(model, attention="dense")
    assert_close(jax.device_get(grads(batch, dense)), jax.device_get(grads(packed, model)))


def test_padding_costs_nothing():
    """Operations of the padded step grow with the width of rows, those of the packed one do not."""
    cfg = rewarded("log_prob")

    def operations(batch):
        traced = jax.jit(lambda p, b: gradients(p, (None, None), b, MODEL, cfg)[0]).trace(PARAMS, batch)
        return count_flops(traced.jaxpr.jaxpr)

    narrow = random_batch(8, P, G, t=24)
    wide = packing.resized(narrow, 96)
    assert operations(wide) > 3 * operations(narrow)
    assert operations(pack(wide, cfg)) == operations(pack(narrow, cfg)) < 0.7 * operations(narrow)


lengths_of_group = st.lists(st.integers(0, 40), min_size=1, max_size=24).map(np.array)


@settings(deadline=None, derandomize=True)
@given(lengths_of_group, st.integers(0, 20))
def test_every_chain_is_in_one_row_whole(lengths, more):
    width = max(1, int(lengths.max()) + more)
    start, rows = first_fit(lengths, width)
    used = np.zeros((rows + 1, width), int)  # a chain of no tokens may begin after the last row
    for at, n in zip(start, lengths, strict=True):
        row, begin = divmod(int(at), width)
        assert n == 0 or begin + n <= width, "none is cut"
        used[row, begin : begin + n] += 1
    assert used.max(initial=0) <= 1 and used.sum() == lengths.sum(), "each token has a place of its own"
    halves = np.sort(used[:rows].sum(1))[:2]
    assert rows < 2 or halves.sum() > width, "no two rows fit into one"
    again, _ = first_fit(lengths.copy(), width)
    assert (start == again).all()


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_every_prompt_is_in_one_pool_of_the_right_size(devices, parts, size, seed):
    tokens = np.random.default_rng(seed).integers(0, 100, devices * parts * size)
    order, largest = balanced(tokens, devices, parts)
    assert sorted(order) == list(range(len(tokens)))
    pools = [tokens[own[j::parts]].sum() for own in np.split(order, devices) for j in range(parts)]
    assert max(pools) == largest and largest - min(pools) <= tokens.max(), "no two differ by more than a prompt"
    assert (order == balanced(tokens, devices, parts)[0]).all()


def test_sizes_are_few():
    sizes = {rounded(n, 8, 10**6) for n in range(1000, 2000)}
    assert len(sizes) <= 9 and all(n <= rounded(n, 8, 10**6) < n * 2 ** (1 / 8) + 8 for n in range(1, 3000))
    assert rounded(1000, 4, 1010) == 1010 and rounded(64, 1, 999) == 64 and rounded(0, 4, 5) == 1


def test_prompts_have_few_widths_after_their_common_beginning():
    assert {packing.packed_prompt_width(n, 0, 200) for n in range(129, 257)} == {184, 200}
    assert {packing.packed_prompt_width(n, 140, 999) for n in range(150, 180)} == {
        140 + 16,
        140 + 24,
        140 + 32,
        140 + 48,
    }


def test_padding_is_cut_and_rows_are_no_wider_than_allowed():
    cfg, longest = rewarded("log_prob"), int(packing.real_tokens(ONE).max())
    wide = packing.resized(ONE, 3 * T)
    assert (wide.segment[..., :T] == ONE.segment).all() and not wide.segment[..., T:].any()
    assert pack(wide, cfg).completion.shape[-1] == rounded(longest, packing.WIDTHS, 3 * T) < T
    narrow = packing.resized(ONE, longest)
    assert pack(narrow, cfg).completion.shape[-1] == longest
    allowed = packing.Whole(np.arange(P), P, 3 * T)
    assert pack(narrow, cfg, whole=allowed).completion.shape[-1] == rounded(longest, packing.WIDTHS, 3 * T)
