"""Rewards as text: what is read, what is refused; names that everybody agrees on."""

import operator

import pytest

from rl_likelihood.config import apply_preset, build
from rl_likelihood.errors import UserError
from rl_likelihood.grading.graders import GRADERS
from rl_likelihood.presets import PRESETS
from rl_likelihood.rewards.table import REWARDS
from rl_likelihood.tables import parse_reward, reward_table
from tests.runs import small_config


def term(name, weight=1.0, per_std=False):
    return name, weight, per_std


@pytest.mark.parametrize(
    "text, terms",
    [
        ("log_prob", [term("log_prob")]),
        ("0.9*rlpr + 0.1*format + repetition", [term("rlpr", 0.9), term("format", 0.1), term("repetition")]),
        ("0.9*rlpr+0.1*format", [term("rlpr", 0.9), term("format", 0.1)]),
        ("base_rl+trajectory+format", [term("base_rl"), term("trajectory"), term("format")]),
        (" self_certainty/std + 2 * math / std ", [term("self_certainty", 1.0, True), term("math", 2.0, True)]),
        ("log_prob + -1e-3*length", [term("log_prob"), term("length", -1e-3)]),
        ("1e+2*exact_match", [term("exact_match", 100.0)]),
        (".5*prob", [term("prob", 0.5)]),
        ("2*max_rl( math ) + max_rl(exact_match)", [term("max_rl(math)", 2.0), term("max_rl(exact_match)")]),
    ],
)
def test_a_weighted_sum_is_read(text, terms):
    assert [(t.name, t.weight, t.per_std) for t in parse_reward(text)] == terms


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "write a name"),
        ("log_prob +", "cannot be read from ''"),
        ("1e400*log_prob", "weight of log_prob"),
        ("log_prob format", "cannot be read from 'log_prob format'"),
        ("log_prob * 2", "cannot be read"),
        ("2*log_prob - 1*format", "cannot be read from"),
        ("log_prob/mean", "cannot be read"),
        ("selfcertainty", "did you mean 'self_certainty'"),
        ("prob + 0.5*prob", "names a term twice"),
        ("sft + format", "reward.name has 'sft'"),
    ],
)
def test_what_is_no_sum_of_terms_is_refused(text, words):
    with pytest.raises(UserError) as error:
        parse_reward(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_every_grader_is_a_reward_and_every_row_says_what_it_is():
    table = reward_table()
    assert set(table) == set(REWARDS) | set(GRADERS)
    for name, reward in table.items():
        assert reward.about and "\n" not in reward.about, f"{name}: one line"
        assert (reward.function is None) == (reward.kind in ("grader", "judge")), name
        assert set(reward.reads) <= {"chain", "answer", "reference", "group"}, name


def applied(name, overridden=()):
    c = small_config()
    c.preset = name
    apply_preset(c, overridden)
    return c


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_config(name):
    step = build(applied(name)).step
    assert step.loss.kl == PRESETS[name]["loss.kl"]
    assert step.loss.advantage == PRESETS[name]["loss.advantage"]


def test_the_command_line_wins_over_the_preset():
    c = applied("rlpr", ["filter.beta", "loss.clip_high"])
    assert (c.filter.beta, c.loss.clip_high, c.loss.clip_low) == (0.5, 0.0, 0.2)
    assert applied("intuitor", ["loss.kl_coef"]).loss.kl_coef == 0.0


def test_an_unknown_preset_is_refused_before_it_sets_anything():
    with pytest.raises(UserError, match="preset is 'rplr'; did you mean 'rlpr'"):
        applied("rplr")


# advantage, aggregation, clip (low, high), KL, group size, temperature, as the papers have them.
AS_PUBLISHED = {
    "kw_log_prob": ("loo", "seq_sum", (0, 0), ("k3", 0.001), 32, 1.0),
    "kw_jepo": ("loo", "seq_sum", (0, 0), ("k3", 0.001), 4, 1.0),
    "verifree": ("loo", "seq_sum", (0, 0), ("none", 0), 8, 1.0),
    "jepo_tang": ("std_clip", "seq_sum", (0, 0), ("k3", 0.001), 4, 1.0),
    "rlpr": ("std", "token_mean", (0.2, 0.27), ("none", 0), 8, 1.0),
    "nover": ("mean", "token_mean", (0.1, 0.2), ("k3", 0.1), 8, 0.6),
    "intuitor": ("std", "seq_mean", (0.2, 0.2), ("k3", 0.005), 7, 0.9),
    "ttrl": ("std", "seq_mean", (0.2, 0.2), ("none", 0), 64, 1.0),
    "rloo": ("loo", "seq_sum", (0, 0), ("reward_k1", 0.001), 3, 1.0),
    "dr_grpo": ("mean", "const", (0.2, 0.2), ("none", 0), 3, 1.0),
    "dapo": ("std", "token_mean", (0.2, 0.28), ("none", 0), 16, 1.0),
    "latro": ("loo", "seq_sum", (0, 0), ("reward_k1", 0.05), 16, 1.0),
    "latro_code": ("loo", "seq_sum", (0, 0), ("reward_k1", 0.05), 16, 1.0),
    "vr_cli": ("std", "seq_mean", (0.2, 0.2), ("k3", 1e-6), 8, 1.0),
    "nrt": ("loo", "seq_sum", (0, 0), ("none", 0), 3, 1.0),
    "dro": ("std", "seq_mean", (0.2, 0.2), ("k3", 0.001), 16, 1.0),
    "rent": ("std", "seq_mean", (0.2, 0.2), ("k3", 0.001), 3, 1.0),
    "empo": ("std", "seq_mean", (0.2, 0.2), ("k3", 0.001), 3, 1.0),
    "cer": ("std", "seq_mean", (0.2, 0.2), ("k3", 0.001), 3, 1.0),
    "gspo": ("std", "seq_mean", (3e-4, 4e-4), ("none", 0), 3, 1.0),
    "cispo": ("std", "token_mean", (0, 0), ("none", 0), 3, 1.0),
    "dppo": ("mean", "token_mean", (0, 0), ("none", 0), 3, 1.0),
    "delta_l": ("std", "delta_l_batch", (0.2, 0.2), ("none", 0), 3, 1.0),
    "gdpo": ("mean", "seq_mean", (0.2, 0.2), ("k3", 0.001), 3, 1.0),
    "max_rl": ("loo", "seq_sum", (0, 0), ("none", 0), 3, 1.0),
    "rlp": ("loo", "seq_mean", (0.2, 0.2), ("none", 0), 16, 0.7),
    "rpt": ("std", "seq_mean", (0.2, 0.2), ("none", 0), 3, 1.0),
    "covrl": ("loo", "seq_sum", (0, 0), ("none", 0), 8, 1.0),
    "ravr": ("loo", "seq_sum", (0, 0), ("none", 0), 8, 1.0),
    "opsd": ("loo", "token_mean", (0, 0), ("none", 0), 3, 1.1),
    "em_rl_sequence": ("loo", "seq_sum", (0, 0), ("k3", 0.001), 4, 1.0),
}


# With the whole answer term.
EXACT = ("kw_log_prob", "kw_jepo", "verifree", "jepo_tang", "latro", "nrt", "covrl", "ravr")
# The policy term covers the chain alone; elsewhere also the sampled answer.
CHAIN_ALONE = (*EXACT, "latro_code", "vr_cli", "dro", "rlp", "opsd")
# What else a method is known by.
OWN = {
    "latro": {"reward.name": "log_prob"},
    "latro_code": {"reward.name": "log_prob"},
    "rlpr": {"filter.mode": "ema", "filter.beta": 0.5, "filter.resample": 9, "reward.baseline": "frozen"},
    "dapo": {"filter.mode": "std_zero", "filter.resample": 9, "reward.name": "2*exact_match + overlong"},
    "vr_cli": {"reward.name": "vr_cli", "reward.baseline": "frozen"},
    "nrt": {"reward.name": "nrt/std", "reward.token_weights": "neg_log", "loss.format_term": 0.3},
    "dro": {"reward.name": "r3"},
    "rent": {"reward.name": "token_entropy"},
    "empo": {"reward.name": "vote_share"},
    "cer": {"reward.name": "cer"},
    "gspo": {"loss.clip_per": "sequence"},
    "cispo": {"loss.ratio": "token", "loss.ratio_cap": 1.28},
    "dppo": {"loss.ratio": "token", "loss.mask_move": 0.2},
    "delta_l": {"loss.delta_l_alpha": 1.0},
    "gdpo": {"reward.name": "exact_match/std + format/std"},
    "rlp": {"reward.name": "log_prob", "prompt.score_delims": "none"},
    "rpt": {"reward.name": "prefix_token"},
    "covrl": {
        "reward.name": "log_prob",
        "posterior.share": 0.5,
        "posterior.target": 0.5,
        "posterior.kl": 1.0,
        "posterior.weight_cap": 2.0,
        "posterior.answer_rows": "positive",
    },
    "ravr": {"reward.name": "log_prob", "posterior.share": 0.5, "posterior.target": 1.0, "posterior.kl": 1.0},
    "opsd": {
        "reward.name": "0*log_prob",
        "posterior.distill": 1.0,
        "posterior.distill_clip": 5.0,
        "sampler.temperature": 1.1,
    },
    "max_rl": {"reward.name": "max_rl(exact_match)"},
}


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_a_preset_is_the_published_method_whatever_the_config_had(name):
    c = small_config(loss__clip_low=0.5, filter__mode="std_zero", filter__resample=2, loss__kl="k2", loss__kl_coef=9.0)
    c.preset = name
    apply_preset(c)
    got = (c.loss.advantage, c.loss.aggregation, (c.loss.clip_low, c.loss.clip_high), (c.loss.kl, c.loss.kl_coef))
    assert (*got, c.sampler.group_size, c.sampler.temperature) == AS_PUBLISHED[name]
    if name not in ("rlpr", "dapo"):
        assert (c.filter.mode, c.filter.resample) == ("none", 0)
    assert c.loss.answer_term == (1.0 if name in EXACT else 0.0)
    assert c.loss.span == ("chain" if name in CHAIN_ALONE else "response")
    for field, value in OWN.get(name, {}).items():
        assert operator.attrgetter(field)(c) == value, field
