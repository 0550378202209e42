"""Terms, sums, filters, NOVER's proxy and the row without a chain, inside the jitted step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.learner.measures import metrics
from rl_likelihood.learner.observation import observe
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.rows import ProxyConfig, row_stats
from rl_likelihood.learner.step import gradients, init_state, make_step
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.planning.aot import count_flops
from rl_likelihood.rewards import shaping
from rl_likelihood.rewards.group_filter import FilterConfig
from rl_likelihood.rewards.intrinsic import INTRINSIC
from rl_likelihood.rewards.reward import Observation, RewardConfig
from rl_likelihood.rewards.reward_sum import objective
from rl_likelihood.shapes import CHAIN, REFERENCE, SAMPLED, TAG, NoChainRows
from rl_likelihood.tables import parse_reward, reward_table
from tests.small import one_device, random_batch, random_params, reference_log_distributions, rewarded, tiny

P, G, S, T = 4, 3, 5, 10
MODEL = tiny(layers=1)
PARAMS = random_params(MODEL)
RNG = np.random.default_rng(0)
ON_HOST = [name for name, reward in reward_table().items() if reward.on_host]
BATCH = random_batch(8, P, G, S, T, sampled=True).replace(
    host_rewards={name: RNG.integers(0, 2, (P, G)).astype(np.float32) for name in ON_HOST}
)
BATCH.host_rewards["math"][0] = 1.0  # a group without spread
run = jax.jit(gradients, static_argnums=(3, 4))


def of(name, batch=BATCH, models=(None, None), **changes):
    cfg = rewarded(name, **{"two_branches": True, "policy_span": "response", "head_chunk": 40, **changes})
    return run(PARAMS, models, batch, MODEL, cfg)


def largest(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def close(a, b, tolerance=2e-5):
    """Trees equal up to rounding of their own size."""
    size = largest(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance * size + 1e-9), a, b)


def combined(a, x, b, y):
    return jax.tree.map(lambda p, q: a * p + b * q, x, y)


# ------------------------------------------------------------------ terms


# How the terms are written and set up that do not stand alone.
TEXTS = {"nover_rank": "format + nover_rank", "nover_efficiency": "format + nover_efficiency", "max_rl": "max_rl(math)"}
SET_UP = {
    "weighted_log_prob": {"baseline": "live", "token_weights": "neg_log"},
    "weighted_avg_prob": {"token_weights": "spread"},
    "nrt": {"baseline": "live", "token_weights": "inverse", "clip_gain": False},
    "likelihood_gain": {"baseline": "live"},
    "vr_cli": {"baseline": "live"},
}


@pytest.mark.parametrize("name", [name for name in reward_table() if name not in ON_HOST])
def test_every_term_gives_a_finite_gradient_and_a_row_number(name):
    text = TEXTS.get(name, name)
    reference = jax.tree.map(lambda x: x * 1.1, PARAMS)
    proxy = reference if name.startswith("nover") else None
    initial = reference if "initial" in reward_table()[name].needs else None
    batch = NO_CHAIN if name in SET_UP else BATCH
    grads, _, per_row = of(text, batch, models=(initial, proxy), **SET_UP.get(name, {}))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    values = per_row[f"reward/{text if name == 'max_rl' else name}"]
    assert np.isfinite(per_row["reward"]).all() and values.shape == (P, G)
    if name == "option_prob":  # these rows have no other option
        assert largest(grads) == 0
        return
    spread = np.ptp(np.asarray(per_row["reward"]), -1).max()
    assert (largest(grads) > 0) == (spread > 0 or reward_table()[name].differentiable)


def test_every_term_computed_on_the_host_comes_into_the_step_as_it_is():
    alone = [name for name in ON_HOST if name not in TEXTS]
    grads, _, per_row = of(" + ".join(alone))
    for name in alone:
        np.testing.assert_array_equal(per_row[f"reward/{name}"], BATCH.host_rewards[name], err_msg=name)
    np.testing.assert_allclose(per_row["reward"], sum(BATCH.host_rewards[name] for name in alone), rtol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads)) and largest(grads) > 0


def test_a_sum_has_the_gradients_of_its_terms_in_proportion():
    mixed, *_ = of("2*log_prob + -0.5*math + 0.1*token_entropy")
    parts = [of(name)[0] for name in ("log_prob", "math", "token_entropy")]
    expected = jax.tree.map(lambda a, b, c: 2 * a - 0.5 * b + 0.1 * c, *parts)
    close(mixed, expected)


def test_a_term_over_its_standard_deviation_is_scaled_in_each_group():
    _, _, rows = of("math")
    reward = np.asarray(rows["reward"])
    std = reward.std(-1, ddof=1)
    assert (std == 0).any() and (std > 0).any(), "a group without spread is among them"
    _, _, scaled = of("3*math/std")
    expected = np.where(std[:, None] > 0, 3 * reward / np.where(std > 0, std, 1)[:, None], 0)
    np.testing.assert_allclose(scaled["reward"], expected, rtol=1e-5)
    centred = reward - reward.mean(-1, keepdims=True)
    np.testing.assert_allclose(scaled["reward/math"], reward, err_msg="logged as it is")
    np.testing.assert_allclose(
        scaled["advantage"], expected - (expected.sum(-1, keepdims=True) - expected) / (G - 1), atol=1e-5
    )
    assert np.abs(centred).max() > 0


def test_overlong_counts_what_was_sampled_and_gives_cut_chains_the_least():
    cfg = RewardConfig(terms=parse_reward("overlong"), overlong_max=6.0, overlong_cache=4.0)
    step = dataclasses.replace(rewarded("overlong", policy_span="response"), reward=cfg)
    _, _, rows = run(PARAMS, (None, None), BATCH, MODEL, step)
    sampled = np.isin(BATCH.segment, (CHAIN, SAMPLED)).sum(-1)
    expected = np.where(BATCH.truncated, -1.0, np.clip((2.0 - sampled) / 4, -1, 0))
    np.testing.assert_allclose(rows["reward/overlong"], expected, atol=1e-6)
    answers = (BATCH.segment == SAMPLED).sum(-1)
    assert BATCH.truncated.any() and (answers[(expected > -1) & (expected < 0)] > 0).any()


def test_a_constant_reward_has_no_answer_term():
    with_term, *_ = of("self_certainty")
    without, *_ = of("self_certainty", loss=LossConfig(answer_term=0.0))
    jax.tree.map(np.testing.assert_array_equal, with_term, without)


@pytest.mark.parametrize("name", INTRINSIC)
def test_rewards_without_a_reference_read_the_distribution_that_gave_the_token(name):
    table = reference_log_distributions(PARAMS, MODEL, BATCH)
    mask = np.isin(BATCH.segment, (CHAIN, SAMPLED))
    logp = np.take_along_axis(table, BATCH.completion[..., None], -1)[..., 0]
    per_token = {
        "self_certainty": -table.mean(-1) - np.log(24),
        "self_certainty_raw": -table.mean(-1),
        "token_entropy": (np.exp(table) * table).sum(-1),
        "trajectory": logp,
    }[name.removesuffix("_sum")]
    total = np.where(mask, per_token, 0).sum(-1)
    expected = total if name.endswith("_sum") else total / mask.sum(-1)
    _, _, rows = of(name)
    np.testing.assert_allclose(rows["reward"], expected, rtol=2e-4, atol=1e-5)


def test_an_entropy_in_bits_is_one_in_nats_over_log_two():
    seen = observe(PARAMS, (None, None), MODEL, BATCH, rewarded("token_entropy", two_branches=True)).observation
    configs = [RewardConfig(terms=parse_reward("token_entropy"), entropy_base=base) for base in ("e", "2")]
    rows = [objective(seen, cfg)[1] for cfg in configs]
    np.testing.assert_allclose(rows[1], np.asarray(rows[0]) / np.log(2), rtol=1e-6)


# ------------------------------------------------------------------ the row without a chain, RLPR, NOVER


def with_no_chain_rows(batch, width=T - 3):
    """With rows without a chain, narrower than the chains: a tag, then the answer of the group's first row."""
    ids, kinds, scored = (np.zeros((P, 1, width), x) for x in (np.int32, np.int32, bool))
    for i in range(P):
        at = np.flatnonzero(batch.segment[i, 0] == REFERENCE)
        n = len(at)
        ids[i, 0, : n + 1] = [7, *batch.completion[i, 0, at]]
        kinds[i, 0, : n + 1] = [TAG] + [REFERENCE] * n
        scored[i, 0, 1 : n + 1] = batch.scored[i, 0, at]
    return batch.replace(no_chain=NoChainRows(ids, kinds, scored))


def no_chain_log_probs():
    """Those of NO_CHAIN's rows without a chain, as completions of their own."""
    keys = ("completion", "segment", "scored")
    alone = NO_CHAIN.replace(no_chain=None, **{k: getattr(NO_CHAIN.no_chain, k) for k in keys})
    return np.asarray(row_stats(PARAMS, MODEL, alone, rewarded("jepo", two_branches=True)).stats.log_prob)[:, 0]


NO_CHAIN = with_no_chain_rows(BATCH)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_prompts": 2}])
@pytest.mark.parametrize("model", [MODEL, tiny(layers=2, remat="full"), tiny(layers=2, scan_layers=False)])
def test_a_row_without_a_chain_is_scored_and_changes_nothing_else(model, changes):
    params = random_params(model)
    cfg = rewarded("jepo", two_branches=True, policy_span="response", head_chunk=40, **changes)
    a, b = (run(params, (None, None), batch, model, cfg) for batch in (BATCH, NO_CHAIN))
    close(b[0], a[0], 1e-6)
    for name in a[2]:
        np.testing.assert_allclose(b[2][name], a[2][name], atol=1e-5, err_msg=name)
    if model == MODEL:
        expected = np.where(NO_CHAIN.no_chain.scored[:, 0], no_chain_log_probs(), 0)
        np.testing.assert_allclose(b[2]["no_chain_log_prob"], expected.sum(-1), atol=1e-5)
        got = np.where(NO_CHAIN.no_chain.scored[:, 0], b[2]["no_chain_answer_logp"], 0)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("model", [MODEL, tiny(layers=2, remat="full"), tiny(layers=2, scan_layers=False)])
def test_the_backward_pass_has_no_trace_of_rows_without_a_chain(model):
    params, cfg = random_params(model), rewarded("jepo")

    def more(f):
        with_rows, without = (jax.make_jaxpr(functools.partial(f, batch=b))(params) for b in (NO_CHAIN, BATCH))
        return count_flops(with_rows.jaxpr) - count_flops(without.jaxpr)

    forward = more(lambda p, batch: row_stats(p, model, batch, cfg))
    assert more(lambda p, batch: gradients(p, (None, None), batch, model, cfg)) == forward > 0


def test_rlpr_takes_off_the_score_without_a_chain_and_clips():
    _, _, plain = of("rlpr", NO_CHAIN)
    score = np.asarray(plain["reward"])
    np.testing.assert_allclose(score, plain["reward/avg_prob"], rtol=1e-6)
    _, _, live = of("rlpr", NO_CHAIN, baseline="live")
    at = NO_CHAIN.no_chain.scored[:, 0]
    base = np.where(at, np.exp(no_chain_log_probs()), 0).sum(-1) / at.sum(-1)
    np.testing.assert_allclose(live["reward"], np.clip(score - base[:, None], 0, 1), atol=1e-6)
    assert (np.asarray(live["reward"]) == 0).any() and (np.asarray(live["reward"]) > 0).any()
    frozen = np.array([0.0, 0.5, 1.0, 0.01], np.float32)
    _, _, rows = of("rlpr", BATCH.replace(baseline=frozen), baseline="frozen")
    np.testing.assert_allclose(rows["reward"], np.clip(score - frozen[:, None], 0, 1), atol=1e-6)


def test_rlpr_has_no_gradient_through_the_reward():
    # Groups whose rewards are alike leave the policy term nothing; what is left could only be the reward's own.
    same = jax.tree.map(lambda x: np.repeat(x[:, :1], G, 1) if np.ndim(x) > 1 and x.shape[1] == G else x, BATCH)
    assert largest(of("rlpr", same)[0]) < 1e-6 * largest(of("avg_prob", same)[0])


@pytest.mark.parametrize("keep", [np.ones((P, G), bool), np.arange(P * G).reshape(P, G) % 4 != 1], ids=["all", "some"])
def test_nover_ranks_by_the_proxy_and_gates_by_the_format_among_kept_rows(keep):
    proxy = random_params(MODEL, 5)
    batch = BATCH.replace(keep=keep)
    _, _, rows = of("format + nover_rank + nover_efficiency", batch, models=(None, proxy))
    logp = np.asarray(row_stats(proxy, MODEL, BATCH, rewarded("log_prob", two_branches=True)).stats.log_prob)
    nll = -np.where(BATCH.scored, logp, 0).sum(-1) / BATCH.scored.sum(-1)
    length = np.isin(BATCH.segment, (CHAIN, TAG)).sum(-1)
    ppl = np.exp(nll / np.maximum(1, 1 + np.log10(length)))
    in_format = BATCH.host_rewards["format"] > 0
    valid = in_format & keep
    assert keep.all() or (in_format & ~keep).any()
    for i in range(P):
        m = valid[i].sum()
        for j in range(G):
            better = sum(valid[i, k] and ppl[i, k] < ppl[i, j] for k in range(G))
            rank = (m - better) / m if valid[i, j] else 0
            beaten = sum(valid[i, k] and length[i, j] < length[i, k] and ppl[i, j] < ppl[i, k] for k in range(G))
            gain = beaten / (m - 1) if valid[i, j] and m > 1 else 0
            assert float(rows["reward/nover_rank"][i, j]) == pytest.approx(rank)
            assert float(rows["reward/nover_efficiency"][i, j]) == pytest.approx(gain)
            assert float(rows["reward"][i, j]) == pytest.approx(in_format[i, j] + rank + gain)


OPTIMIZER = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=0, total_steps=10))


def steps_of(cfg, n, batch=BATCH, ref=None):
    state = jax.jit(lambda p: init_state(p, OPTIMIZER, cfg))(PARAMS)
    step = make_step(MODEL, cfg, OPTIMIZER, one_device(), batch)
    out = []
    for _ in range(n):
        state, measured, per_row = step(state, ref, batch)
        out.append((jax.device_get(jax.tree.map(jnp.copy, state)), jax.device_get(measured), jax.device_get(per_row)))
    return out


def test_the_proxy_follows_the_policy_at_its_own_pace():
    cfg = rewarded("format + nover_rank", two_branches=True, proxy=ProxyConfig(2, 0.75))
    first, second, third = (state for state, *_ in steps_of(cfg, 3))
    jax.tree.map(np.testing.assert_array_equal, first.proxy, PARAMS)
    expected = combined(0.75, PARAMS, 0.25, second.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), second.proxy, expected)
    jax.tree.map(np.testing.assert_array_equal, third.proxy, second.proxy)
    assert largest(combined(1, second.params, -1, PARAMS)) > 1e-3


def test_a_step_without_a_proxy_carries_none():
    assert steps_of(rewarded("log_prob", two_branches=True), 1)[0][0].proxy is None


@pytest.mark.parametrize("every, decay", [(2, 0.0), (1, 0.75)])
def test_a_reference_that_follows_the_policy_is_the_one_of_the_kl_term(every, decay):
    loss = LossConfig(kl="k3", kl_coef=0.1, reference_every=every, reference_decay=decay)
    cfg = rewarded("avg_log_prob", two_branches=True, loss=loss)
    assert not cfg.with_reference
    (first, out1, _), (second, _, _), (_, out3, _) = steps_of(cfg, 3)
    moved = combined(decay, PARAMS, 1 - decay, first.params) if every == 1 else PARAMS
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first.reference, moved)
    moved = combined(decay, moved, 1 - decay, second.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), second.reference, moved)
    assert float(out1["loss/kl"]) == pytest.approx(0, abs=1e-7)
    # The third step measures against what the second left: nothing where it became the policy.
    assert float(out3["loss/kl"]) == pytest.approx(0, abs=1e-7) if decay == 0 else float(out3["loss/kl"]) > 1e-6


# ------------------------------------------------------------------ filters


@pytest.mark.parametrize("micro", [0, 2])
def test_filtered_groups_are_as_if_they_were_not_there(micro):
    """DAPO's filter: groups all right or all wrong leave loss, counts and baseline."""
    reward = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], np.float32)
    batch = BATCH.replace(host_rewards={"math": reward})
    loss = LossConfig(advantage="std", aggregation="token_mean")
    cfg = rewarded("math", two_branches=True, policy_span="response", loss=loss, micro_batch_prompts=micro)
    filtered = dataclasses.replace(cfg, filter=FilterConfig(mode="std_zero"))
    state, metrics, per_row = steps_of(filtered, 1, batch)[0]
    assert per_row["keep"].tolist() == [[False] * 3, [True] * 3, [True] * 3, [False] * 3]
    assert metrics["keep/fraction"] == 0.5
    # Logs show what was sampled, filtered or not; a run that filters everything can be seen to.
    assert metrics["reward/zero_std_groups"] == 0.5 and metrics["reward/mean"] == pytest.approx(reward.mean())
    two = jax.tree.map(lambda x: x[1:3], batch)
    alone, _, _ = steps_of(dataclasses.replace(cfg, micro_batch_prompts=0), 1, two)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, alone.params)


def test_the_ema_filter_lives_in_the_state_and_drops_groups_once_it_has_started():
    cfg = rewarded(
        "log_prob", two_branches=True, filter=FilterConfig(mode="ema", beta=1.0, start=2, record_from=1, decay=0.5)
    )
    out = steps_of(cfg, 4)
    assert [m["keep/fraction"] for _, m, _ in out[:2]] == [1, 1]
    assert out[2][1]["keep/fraction"] < 1
    stds = [float(shaping.group_std(r["reward"], np.ones((P, G), bool)).mean()) for _, _, r in out]
    ema = np.mean(stds[:2])
    for i in (2, 3):
        counted = np.asarray(shaping.group_std(out[i][2]["reward"], np.ones((P, G), bool))) >= ema
        assert out[i][2]["keep"][:, 0].tolist() == counted.tolist()
        ema = 0.5 * ema + 0.5 * stds[i]
        assert float(out[i][0].filter.ema) == pytest.approx(ema, rel=1e-5)


# ------------------------------------------------------------------ KL in the reward, measures


def test_kl_in_the_reward_is_the_sequence_log_ratio_and_stays_out_of_the_loss():
    ref = random_params(MODEL, 3)
    loss = LossConfig(kl="reward_k1", kl_coef=0.2)
    _, sums, rows = of("math", models=(ref, None), loss=loss)
    ours, theirs = (
        np.take_along_axis(reference_log_distributions(p, MODEL, BATCH), BATCH.completion[..., None], -1)[..., 0]
        for p in (PARAMS, ref)
    )
    d = np.where(np.isin(BATCH.segment, (CHAIN, SAMPLED)), ours - theirs, 0).sum(-1)
    np.testing.assert_allclose(rows["reward"], BATCH.host_rewards["math"] - 0.2 * d, rtol=1e-4, atol=1e-4)
    constant = BATCH.replace(host_rewards={"math": np.asarray(rows["reward"])})
    close(of("math", models=(ref, None), loss=loss)[0], of("math", constant)[0])


def test_the_gradients_of_the_two_terms_are_measured_separately():
    (_, both, _), (_, policy, _) = of("log_prob"), of("log_prob", loss=LossConfig(answer_term=0.0))
    assert both["sum/answer_grad_squared"] > 0 and policy["sum/answer_grad_squared"] == 0
    assert float(both["sum/policy_grad_squared"]) == pytest.approx(float(policy["sum/policy_grad_squared"]), rel=1e-5)
    _, half, _ = of("log_prob", loss=LossConfig(answer_term=0.5))
    assert float(half["sum/answer_grad_squared"]) == pytest.approx(float(both["sum/answer_grad_squared"]) / 4, rel=1e-4)


def test_correlations_are_those_within_groups():
    _, out, rows = steps_of(rewarded("log_prob", two_branches=True), 1)[0]
    centre = lambda x: (x - x.mean(-1, keepdims=True)).ravel()
    for name, value in (("prob", rows["reward/prob"]), ("chain_length", rows["chain_tokens"])):
        expected = np.corrcoef(centre(rows["reward"]), centre(value))[0, 1]
        assert float(out[f"corr/{name}"]) == pytest.approx(expected, abs=1e-4)
    assert float(out["corr/log_prob"]) == pytest.approx(1, abs=1e-5)


def test_the_chain_s_gain_is_the_answer_s_log_prob_with_it_less_that_without():
    cfg = rewarded("log_prob", two_branches=True)
    _, sums, rows = run(PARAMS, (None, None), NO_CHAIN, MODEL, cfg)
    out = metrics(sums, rows, NO_CHAIN)
    without = np.where(NO_CHAIN.no_chain.scored[:, 0], no_chain_log_probs(), 0).sum(-1)
    assert float(out["answer/no_chain_log_prob"]) == pytest.approx(without.mean(), rel=1e-5)
    gain = np.asarray(rows["reward/log_prob"]).mean() - without.mean()
    assert abs(gain) > 0.01 and float(out["answer/chain_gain"]) == pytest.approx(gain, rel=1e-4)


def test_underflow_is_the_share_of_rows_whose_probability_is_zero_in_float32():
    sharp = jax.tree.map(lambda x: x * 30, PARAMS)
    cfg = rewarded("prob", two_branches=True)
    step = make_step(MODEL, cfg, OPTIMIZER, one_device(), BATCH)
    _, out, rows = step(jax.jit(lambda p: init_state(p, OPTIMIZER, cfg))(sharp), None, BATCH)
    share = float((np.asarray(rows["reward/prob"]) == 0).mean())
    assert share > 0 and float(out["reward/underflow"]) == pytest.approx(share)


def test_a_group_with_nothing_kept_gives_zero():
    e = observe(PARAMS, (None, None), MODEL, BATCH, rewarded("log_prob", two_branches=True)).observation
    nothing = Observation(*e)._replace(keep=jnp.zeros((P, G), bool))
    f, reward, _ = objective(nothing, RewardConfig(terms=parse_reward("log_prob + math/std")))
    assert np.isfinite(reward).all()
    np.testing.assert_array_equal(f(nothing.floored_logp, nothing.scored, nothing.keep), np.zeros(P))
