"""What a run does not use is absent from its compiled step: no sort of answer tokens, no further forward."""

import functools
import re

import jax
import numpy as np

from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer
from rl_likelihood.learner.posterior import PosteriorConfig
from rl_likelihood.learner.rows import row_stats
from rl_likelihood.learner.step import init_state, make_step
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model.lora import LoraConfig
from rl_likelihood.shapes import ShownPrompts
from tests.small import one_device, random_batch, random_params, rewarded, tiny

MODEL = tiny(layers=1)
PARAMS = random_params(MODEL)
BATCH = random_batch(8, sampled=True)
BASE = BATCH.replace(baseline_logp=np.full((4, 5), -1.0, np.float32))
OPTIMIZER = make_optimizer(OptimizerConfig(lr=1e-2, warmup_steps=0, total_steps=10))


@functools.cache
def text(name, base=False, ref=False, shown=False, **changes):
    """The step as it goes to the compiler."""
    cfg = rewarded(name, two_branches=True, policy_span="response", **changes)
    state = jax.eval_shape(lambda p: init_state(p, OPTIMIZER, cfg), PARAMS)
    batch = BASE if base else BATCH
    if shown:
        batch = batch.replace(shown=ShownPrompts(BATCH.prompt, BATCH.prompt_length))
    return make_step(MODEL, cfg, OPTIMIZER, one_device(), batch).lower(state, PARAMS if ref else None, batch).as_text()


def dots(words):
    return words.count("stablehlo.dot_general")


def forward_dots():
    cfg = rewarded("log_prob", two_branches=True)
    of_tokens = jax.jit(lambda params: row_stats(params, MODEL, BATCH, cfg).stats.log_prob)
    return dots(of_tokens.lower(PARAMS).as_text())


def test_token_weights_sort_answers_and_other_rewards_do_not():
    plain = text("avg_log_prob")
    for name in ("log_prob", "jepo", "math", "max_rl(math)"):
        assert "stablehlo.sort" not in text(name), name
    weighted = text("nrt", base=True, baseline="frozen", token_weights="neg_log")
    assert "stablehlo.sort" in weighted and dots(weighted) == dots(plain), "weights take no matrix product more"
    assert "stablehlo.sort" in text("r3") and dots(text("r3")) == dots(plain)


def test_a_scorer_and_crossed_answers_are_forwards_of_those_who_ask():
    constant, forward = dots(text("math")), forward_dots()
    assert forward > 0 and dots(text("max_rl(math)")) == constant
    assert dots(text("vr_cli", base=True, ref=True, baseline="frozen")) == constant + forward
    assert dots(text("cer")) == constant + forward


def test_switches_at_their_defaults_are_not_there():
    plain = text("math")
    off = LossConfig(mask_move=0.0, format_term=0.0, clip_per="token", delta_l_alpha=0.5)
    assert text("math", loss=off) == plain
    on = text("math", loss=LossConfig(mask_move=0.2)), text("math", loss=LossConfig(format_term=0.3))
    assert all(len(words) > len(plain) for words in on)


def test_fields_of_lora_and_of_a_moving_reference_that_are_off_leave_no_trace():
    plain = text("math")
    assert text("math", lora=LoraConfig(rank=0, alpha=7.0, targets=("q",), base_dtype="bfloat16")) == plain
    assert text("math", loss=LossConfig(reference_every=0, reference_decay=0.5)) == plain
    kl = text("math", ref=True, loss=LossConfig(kl="k3", kl_coef=0.1))
    moving = text("math", loss=LossConfig(kl="k3", kl_coef=0.1, reference_every=5))
    assert dots(kl) == dots(moving) > dots(plain)


def test_a_second_prompt_is_a_forward_of_those_who_ask():
    plain, forward = text("log_prob"), forward_dots()
    off = PosteriorConfig(prompt="{answer}", max_prompt=9, distill_clip=1.0, answer_rows="positive", weight_cap=2.0)
    assert text("log_prob", posterior=off) == plain
    own = {"loss": LossConfig(answer_term=0.0)}
    distilled = text("log_prob", shown=True, posterior=PosteriorConfig(distill=1.0), **own)
    assert dots(distilled) == dots(text("log_prob", **own)) + forward


def test_prompt_weights_are_there_only_for_those_who_give_them():
    cfg = rewarded("math", two_branches=True, policy_span="response")
    state = jax.eval_shape(lambda p: init_state(p, OPTIMIZER, cfg), PARAMS)
    roles = {"weight": np.ones(4, np.float32), "critic": np.arange(4) > 0}
    batch = BATCH.replace(**roles)
    lowered = make_step(MODEL, cfg, OPTIMIZER, one_device(), batch).lower(state, None, batch).as_text()
    inputs = lambda lowered: len(re.findall(r"%arg\d+: tensor", lowered.partition("->")[0]))
    assert dots(lowered) == dots(text("math")) and inputs(lowered) == inputs(text("math")) + 2
