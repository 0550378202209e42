"""Configs: what is refused, in which words; what is printed; what the settings become."""

import importlib
import math
import operator
import re
import typing
from pathlib import Path

import pytest

from configs import base
from rl_likelihood import fields
from rl_likelihood.config import (
    _FREE,
    all_fields,
    binding_differences,
    build,
    describe,
    differences,
    document,
    flatten,
    parse_arg,
    tree,
)
from rl_likelihood.errors import UserError
from rl_likelihood.settings import Config
from tests.runs import small_config

HALF = {"posterior__share": 0.5, "sampler__group_size": 4}
REFUSED = [
    ({"reward__name": "logprob"}, ["reward.name", "'logprob'", "did you mean 'log_prob'?"]),
    ({"reward__truncated": "skip"}, ["reward.truncated", "force_close, floor, drop"]),
    ({"sampler__group_size": 1}, ["sampler.group_size is 1", "leave-one-out", "at least 2"]),
    ({"sampler__group_size": 0}, ["sampler.group_size is 0", "at least 1"]),
    ({"sampler__temperature": 0.0}, ["sampler.temperature", "at least 0.001"]),
    ({"sampler__temperature": 1e-30}, ["sampler.temperature is 1e-30", "at least 0.001"]),
    ({"eval__temperature": 1e30}, ["eval.temperature is 1e+30", "at most 1000"]),
    ({"reer__temperature": 1e-30}, ["reer.temperature is 1e-30", "0 or at least 0.001"]),
    ({"eval__grader_seconds": 3e6}, ["eval.grader_seconds is 3000000.0", "at most 86400"]),
    ({"pod__heartbeat": 1e10}, ["pod.heartbeat is 10000000000.0", "at most 86400"]),
    ({"sampler__devices": "²"}, ["sampler.devices is '²'"]),
    ({"optim__lr": 1e30}, ["optim.lr is 1e+30", "at most 100"]),
    ({"warm_start__lr": 1e30}, ["warm_start.lr is 1e+30", "at most 100"]),
    ({"loss__kl": "k3", "loss__kl_coef": 1e30}, ["loss.kl_coef is 1e+30", "at most 1000000"]),
    ({"reward__name": "0*prob"}, ["reward.name is '0*prob'", "weights are 0"]),
    *(({"reward__name": f"{w}*prob"}, [f"'{w}*prob'", "at most 1000000"]) for w in ("1e-50", "1e-400", "1e7")),
    (
        {"train__prompts_per_step": 6, "train__micro_batch_prompts": 4},
        ["micro_batch_prompts is 4", "the 6 prompts", "is 3"],
    ),
    ({"reward__name": "base_rl", "sampler__max_sampled_answer": 0}, ["'base_rl'", "sampler.max_sampled_answer is 0"]),
    ({"model__path": "x"}, ["model.path", "model.preset", "exactly one"]),
    ({"model__preset": ""}, ["model.path", "model.preset", "exactly one"]),
    ({"model__preset": "huge"}, ["model.preset is 'huge'", "tiny"]),
    ({"eval__prompts": 7}, ["eval.prompts is 7", "data.heldout_size is 6"]),
    ({"loss__kl_coef": 0.1}, ["loss.kl_coef is 0.1", "k2, k3 or reward_k1"]),
    (
        {"loss__kl": "k3", "loss__kl_coef": 0.1, "loss__reference_decay": 0.99},
        ["loss.reference_decay is 0.99", "loss.reference_every is 0"],
    ),
    ({"reward__base_rl": (1.0, 0.0)}, ["reward.base_rl", "three numbers"]),
    ({"reward__base_rl": ("(nan,0,0)",)}, ["reward.base_rl is '(nan,0,0)'", "finite numbers"]),
    *(({"prompt__date": day}, [f"prompt.date is {day!r}"]) for day in ("30 Nov 2026", "20261128", "2026-W48-6")),
    ({"prompt__think_close": ""}, ["prompt.think_close is empty"]),
    ({"warm_start__steps": 1, "warm_start__prompts": 8}, ["warm_start.prompts is 8", "prompts_per_step"]),
    ({"optim__lr": -1.0}, ["optim.lr is -1.0", "at least 0"]),
    ({"optim__b2": 1.5}, ["optim.b2 is 1.5", "below 1"]),
    ({"optim__name": "adafactor", "optim__b1": 0.8}, ["optim.b1 is 0.8", "'adafactor'", "leave it at 0.9"]),
    ({"optim__name": "adafactor", "optim__momentum_dtype": "bfloat16"}, ["optim.momentum_dtype is 'bfloat16'"]),
    ({"optim__name": "sgd", "optim__b2": 0.9}, ["optim.b2 is 0.9", "'sgd'", "leave it at 0.999"]),
    ({"reward__floor": 5.0}, ["reward.floor is 5.0", "below 0"]),
    ({"reward__name": "sft", "loss__answer_term": 0.0}, ["loss.answer_term is 0.0", "this term alone"]),
    ({"eval__max_sampled_answer": 3}, ["eval.max_sampled_answer is 3", "prompt.max_answer = 10"]),
    ({"loss__kl": "k4"}, ["loss.kl is 'k4'", "k2, k3"]),
    ({"adversarial__reward": "airl"}, ["adversarial.reward is 'airl'; use gan, which is AIRL's reward"]),
    ({"adversarial__reward": "gali"}, ["adversarial.reward is 'gali'", "did you mean 'gail'?"]),
    ({"reward__name": "log_prob + 0.1*fromat"}, ["reward.name has 'fromat'", "did you mean 'format'?"]),
    ({"reward__name": "log_prob - format"}, ["cannot be read from 'log_prob - format' on", "NAME/std with + between"]),
    ({"reward__name": "format + format"}, ["names a term twice"]),
    ({"reward__name": "rlpr", "reward__sft_chain": "both"}, ["reward.sft_chain is 'both'", "'sft'"]),
    ({"reward__baseline": "live"}, ["reward.baseline is 'live'", "rlpr"]),
    ({"reward__name": "nover_rank"}, ["nover_rank", "term format", "format + nover_rank"]),
    ({"reward__vote_train": 2}, ["reward.vote_train is 2", "majority_vote"]),
    ({"reward__name": "majority_vote", "reward__vote_train": 9}, ["vote_train is 9", "group_size = 3"]),
    ({"reward__overlong_max": 100.0, "reward__overlong_cache": 256.0}, ["overlong_cache is 256.0", "max = 100.0"]),
    ({"reward__name": "rlpr", "reward__baseline": "frozen"}, ["prompt.score_delims is 'close'", "set it to none"]),
    ({"loss__ratio": "token", "loss__clip_high": 0.2}, ["loss.ratio is 'token'", "clips the ratio already"]),
    ({"filter__mode": "std_below"}, ["filter.threshold is 0"]),
    ({"filter__mode": "token_spread"}, ["filter.mode is 'token_spread'", "filter.threshold is 0"]),
    ({"reward__name": "weighted_log_prob"}, ["weighted_log_prob", "reward.token_weights is 'none'", "reward.baseline"]),
    ({"reward__name": "nrt", "reward__token_weights": "neg_log"}, ["reward.baseline is 'none'", "nrt", "live"]),
    (
        {"reward__name": "weighted_avg_prob", "reward__token_weights": "inverse"},
        ["reward.baseline is 'none'", "token_weights=inverse", "frozen"],
    ),
    ({"reward__name": "likelihood_gain"}, ["reward.baseline is 'none'", "likelihood_gain", "live or frozen"]),
    ({"reward__name": "nrt", "reward__token_weights": "spread"}, ["token_weights is 'spread'", "nrt", "neg_log"]),
    ({"reward__token_weights": "spread"}, ["token_weights is 'spread'", "'log_prob'", "none"]),
    ({"reward__name": "r3", "sampler__group_size": 2}, ["sampler.group_size is 2", "at least 3"]),
    ({"reward__name": "vr_cli", "reward__baseline": "live"}, ["reward.baseline is 'live'", "vr_cli", "frozen"]),
    ({"filter__resample": 2}, ["filter.resample is 2", "filter.mode is 'none'"]),
    ({"filter__mode": "std_zero", "reward__name": "sft"}, ["filter.mode is 'std_zero'", "reward.name is 'sft'"]),
    (
        {"filter__mode": "std_zero", "reward__name": "0*log_prob", "posterior__distill": 1.0},
        ["filter.mode is 'std_zero'", "reward.name is '0*log_prob'"],
    ),
    (
        {"loss__format_term": 0.3, "reward__truncated": "drop"},
        ["loss.format_term is 0.3", "truncated is 'drop'"],
    ),
    (
        {
            "filter__resample": 2,
            "filter__mode": "std_zero",
            "reward__name": "exact_match",
            "sampler__max_staleness": 1,
        },
        ["filter.resample is 2", "max_staleness is 1"],
    ),
    ({"loss__clip_per": "sequence"}, ["loss.clip_per is 'sequence'", "clip_high"]),
    ({"reward__name": "max_rl"}, ["'max_rl' alone", "max_rl(exact_match)"]),
    ({"reward__name": "max_rl(base_rl)"}, ["max_rl(base_rl)", "0 or 1", "max_rl(exact_match)"]),
    ({"reward__name": "max_rl(log_prob)"}, ["max_rl(log_prob)", "0 or 1"]),
    ({"reward__name": "max_rl(exactmatch)"}, ["reward.name has 'exactmatch'", "did you mean 'exact_match'?"]),
    ({"reward__name": "prob(exact_match)"}, ["prob(exact_match)", "write prob"]),
    ({"posterior__target": 1.0}, ["posterior.target is 1.0", "posterior.share is 0"]),
    ({"posterior__kl": 1.0}, ["posterior.kl is 1.0", "posterior.share is 0"]),
    ({"posterior__weight_cap": 2.0, "posterior__distill": 1.0}, ["posterior.weight_cap is 2.0", "share is 0"]),
    ({"posterior__answer_rows": "positive"}, ["posterior.answer_rows is 'positive'", "share is 0", "answer_rows=all"]),
    ({**HALF, "posterior__distill_clip": 1.0}, ["posterior.distill_clip is 1.0", "distill is 0", "distill_clip=5.0"]),
    ({"posterior__share": 0.5, "posterior__prompt": "Hint."}, ["posterior.prompt", "'Hint.'", "{answer}"]),
    ({"posterior__share": 0.5, "reward__name": "sft"}, ["posterior.share is 0.5", "'sft'"]),
    ({"posterior__share": 0.5}, ["posterior.share is 0.5", "sampler.group_size = 3", "at least two"]),
    ({"posterior__share": 0.25, "sampler__group_size": 4}, ["posterior.share is 0.25", "at least two"]),
    ({**HALF, "posterior__distill": 1.0}, ["posterior.distill is 1.0", "posterior.share = 0.5", "0.0"]),
    ({**HALF, "posterior__kl": 1.0}, ["posterior.kl is 1.0", "posterior.target is 0"]),
    ({**HALF, "loss__kl": "k3", "loss__kl_coef": 0.1}, ["loss.kl is 'k3'", "posterior.share = 0.5", "none"]),
    ({**HALF, "sampler__max_staleness": 1}, ["sampler.max_staleness is 1", "posterior.share = 0.5"]),
    (
        {"reward__name": "similar_share", "judge__model": "http://localhost/v1", "judge__name": "m"},
        ["judge.model is 'http://localhost/v1'", "similar_share"],
    ),
    (
        {"reward__name": "similar_share", "judge__model": "m", "judge__where": "step"},
        ["judge.where 'step'", "similar_share", "outside"],
    ),
    ({"reward__name": "similar_share"}, ["similar_share", "judge.model is empty"]),
    ({**HALF, "sampler__weights": "int8"}, ["sampler.weights is 'int8'", "posterior.share = 0.5", "compute"]),
    ({**HALF, "loss__aggregation": "token_mean"}, ["loss.aggregation is 'token_mean'", "posterior.share", "seq_sum"]),
    *(
        ({**HALF, "reward__name": name}, [f"reward.name has {name.split('/')[0]!r}", "posterior.share = 0.5"])
        for name in ("jepo", "log_prob/std", "exact_match", "r3")
    ),
    ({"loss__span": "response", "sampler__max_sampled_answer": 0}, ["loss.span is 'response'", "set it to -1"]),
]


@pytest.mark.parametrize("overrides, words", REFUSED, ids=[next(iter(o)) + str(i) for i, (o, _) in enumerate(REFUSED)])
def test_refusals_name_field_value_and_cure(overrides, words):
    with pytest.raises(UserError) as error:
        build(small_config(**overrides))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_sft_needs_no_group():
    settings = build(small_config(reward__name="sft", sampler__group_size=1))
    assert settings.step.loss.policy_term == 0 and settings.step.reward.has("log_prob")


@pytest.mark.parametrize("name", ["base_rl", "self_certainty", "0.9*rlpr + 0.1*format", "exact_match + log_prob"])
def test_rewards_of_an_answer_of_its_own_train_on_the_response(name):
    config = build(small_config(reward__name=name))
    assert config.step.policy_span == "response" and config.step.two_branches
    assert config.sampled_answer == 10, "prompt.max_answer"


@pytest.mark.parametrize("name", ["log_prob", "jepo", "avg_prob + 0.1*format + 0.01*length"])
def test_rewards_of_the_reference_answer_train_on_the_chain(name):
    step = build(small_config(reward__name=name)).step
    assert step.policy_span == "chain" and not step.two_branches


def test_staleness_switches_importance_ratios_on():
    assert build(small_config()).step.loss.ratio == "none"
    assert build(small_config(sampler__max_staleness=1)).step.loss.ratio == "token"


def test_every_field_of_base_is_printed_and_marked():
    c = small_config(optim__lr=0.5)
    text = describe(c, ["optim.lr"])
    lines = text.splitlines()
    assert "* optim.lr = 0.5" in lines
    assert '+ model.preset = "nano"' in lines
    assert "  loss.answer_term = 1.0" in lines
    assert {line[2:].split(" = ")[0] for line in lines if " = " in line} == set(flatten(base.get_config()))


def test_a_misspelt_field_in_a_config_file_is_refused():
    c = small_config()
    with pytest.raises(AttributeError, match="temperature"):
        c.sampler.temprature = 0.5


@pytest.mark.parametrize("name", [p.stem for p in Path(base.__file__).parent.glob("*.py") if p.stem != "base"])
def test_every_config_of_the_repository_is_valid(name):
    build(importlib.import_module(f"configs.{name}").get_config(""))


def test_one_sided_clips_stay_one_sided():
    loss = build(small_config(loss__clip_high=0.28)).step.loss
    assert loss.clip_low == 0 and loss.clip_high == 0.28


def numeric_fields():
    """(name, whether the field is a list, type of a number, bounds) of every field of numbers."""
    kinds = [
        (name, typing.get_args(kind), kind, item.metadata["bounds"]) for name, (kind, item) in all_fields().items()
    ]
    every = [(name, bool(inner), inner[0] if inner else kind, bounds) for name, inner, kind, bounds in kinds]
    return [row for row in every if row[2] in (int, float)]


def test_lists_of_numbers_are_among_the_numeric_fields():
    assert {name for name, is_list, *_ in numeric_fields() if is_list} == {"reward.base_rl", "report.profile"}


@pytest.mark.parametrize("name, is_list, kind, bounds", numeric_fields(), ids=[row[0] for row in numeric_fields()])
def test_a_number_that_is_not_finite_or_out_of_bounds_is_refused_by_name(name, is_list, kind, bounds):
    wrong = {"least": -1, "most": 1, "above": 0, "below": 0, "zero_or": -0.5e-3}
    values = [kind(limit + wrong[bound]) for bound, limit in bounds.items()]
    for value in values + ([math.nan, math.inf, -math.inf] if kind is float else []):
        c = tree()
        c.update_from_flattened_dict({name: (value,) if is_list else value})
        with pytest.raises(UserError, match=re.escape(f"{name}{'[0]' * is_list} is {value}")):
            fields.read(Config, c)


@pytest.mark.parametrize(
    "name, value",
    [("optim.lr", 1e300), ("sampler.temperature", 1e-40), ("train.steps", 10**15), ("eval.samples", 2**31)],
)
def test_a_number_that_no_device_has_is_refused(name, value):
    c = tree()
    c.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=re.escape(f"{name} is {value}; no number of 32 bits is")):
        fields.read(Config, c)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("train.steps", [1, 2], "train.steps is [1, 2]; it must be of type int"),
        ("train.steps", 10**400, "no number of 32 bits"),
        ("optim.lr", [1e-5], "optim.lr is [1e-05]; it must be of type float"),
        ("report.profile", ("a", 1), "report.profile[0] is 'a'; it must be of type int"),
        ("report.profile", (1.5, 2.5), "report.profile[0] is 1.5; it must be of type int"),
        ("report.transition_words", (1,), "report.transition_words[0] is 1; it must be of type str"),
        ("data.tasks", (1, 2), "data.tasks[0] is 1; it must be of type str"),
        ("data.tasks", "chain_sum", "data.tasks is 'chain_sum'; it must be a list"),
        ("model.path", None, "model.path is None; it must be of type str"),
        ("reward.base_rl", (1, None, 0), "reward.base_rl[1] is None"),
        ("optim.weight_decay", -1.0, "optim.weight_decay is -1.0; it must be at least 0"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name, value, words):
    c = tree()
    with c.ignore_type():
        c.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=re.escape(words)):
        fields.read(Config, c)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused_with_the_exact_limit(seed):
    c = tree()
    c.seed = seed
    with pytest.raises(
        UserError, match=f"seed is {seed}; it must be at {'least 0' if seed < 0 else 'most 4294967295'}$"
    ):
        fields.read(Config, c)


@pytest.mark.parametrize("name", [name for name, (kind, _) in all_fields().items() if fields.choices(kind)])
def test_a_value_that_is_no_choice_is_refused_with_the_nearest(name):
    c = tree()
    near = (default := operator.attrgetter(name)(c)) + "x"
    c.update_from_flattened_dict({name: near})
    with pytest.raises(UserError, match=re.escape(f"{name} is {near!r}; did you mean {default!r}?")):
        fields.read(Config, c)


def test_the_page_of_fields_is_up_to_date():
    page = Path(base.__file__).parents[1] / "docs" / "config.md"
    assert page.read_text() == document(), "run python -m rl_likelihood.config"


def test_defaults_are_settings_and_what_a_package_reads_is_the_same_declaration():
    assert flatten(fields.read(Config, tree())) == flatten(tree()) == flatten(base.get_config())
    assert flatten(Config()) == flatten(tree())


def test_arguments_of_a_config_file():
    a = parse_arg("reward=prob,group=4,own=true,lr=2", reward="log_prob", group=8, own=False, lr=1e-5)
    assert (a.reward, a.group, a.own, a.lr) == ("prob", 4, True, 2.0)
    with pytest.raises(UserError, match="'gruop' is unknown.*group"):
        parse_arg("gruop=4", group=8)
    with pytest.raises(UserError, match="not of type int"):
        parse_arg("group=many", group=8)
    with pytest.raises(UserError, match="no value"):
        parse_arg("group", group=8)
    with pytest.raises(UserError, match="'group' is given twice"):
        parse_arg("group=4,group=8", group=8)
    with pytest.raises(UserError, match="'reward' is unknown; this config takes no arguments"):
        base.get_config("reward=prob")


def test_another_place_to_run_is_the_same_run_and_another_computation_is_not():
    one = flatten(base.get_config())
    elsewhere = {
        "mesh.data": 4,
        "mesh.tensor": 2,
        "pod.heartbeat": 5.0,
        "sampler.devices": "2",
        "sampler.slots": 64,
        "train.micro_batch_prompts": 2,
        "model.remat": "full",
        "report.wandb": "online",
        "train.keep_optimizer": False,
    }
    other = {"model.compute_dtype": "bfloat16", "sampler.group_size": 4, "seed": 1, "train.prompts_per_step": 4}
    assert all(one[name] != value for name, value in (elsewhere | other).items())
    assert binding_differences(one, one | elsewhere) == []
    assert sorted(binding_differences(one, one | elsewhere | other)) == sorted(other)
    assert binding_differences(one | {"model.gone": True}, one) == ["model.gone"], "of an earlier version"
    # Every name in the list is a field, or a group of them.
    assert all(name in one or any(f.startswith(name) for f in one if name.endswith(".")) for name in _FREE)


def test_differences_see_through_lists_and_tuples():
    assert differences({"a": [1, 2], "b": 1}, {"a": (1, 2), "b": 2, "c": 3}) == ["b", "c"]


def test_a_path_below_the_home_folder_is_made_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(RULE)
    fields = {"reward__file": "~/mine.py", "data__train_path": "~/rows.jsonl", "judge__cache": "~/cache"}
    c = build(small_config(reward__name="log_prob + 0.1*brevity", prompt__instruction="Say ~ or ~/.", **fields))
    assert (c.reward.file, c.data.train_path) == (str(tmp_path / "mine.py"), str(tmp_path / "rows.jsonl"))
    assert c.judge.cache == str(tmp_path / "cache") and c.prompt.instruction == "Say ~ or ~/."
    assert differences({"model.path": "~/m"}, {"model.path": f"{tmp_path}/m"}) == [], "a workdir of before"


RULE = """
from rl_likelihood.rewards.reward import Reward

def brevity(text, tags):
    return -len(text.split()) / 100

REWARDS = {"brevity": Reward(brevity, "text", "minus words over 100", reads=("chain",))}
"""


def test_a_rule_of_the_users_file_counts_as_one_of_ours(tmp_path):
    """It changes neither what the policy term covers nor what is sampled."""
    (tmp_path / "mine.py").write_text(RULE)
    of_file, ours = (
        build(small_config(reward__name=f"log_prob + 0.1*{rule}", reward__file=str(tmp_path / "mine.py")))
        for rule in ("brevity", "format")
    )
    for config in (of_file, ours):
        assert (config.step.policy_span, config.sampled_answer) == ("chain", 0)
    assert [t.name for t in of_file.reward.terms] == ["log_prob", "brevity"]
    assert of_file.reward.terms[1].reward.function("a b c", None) == -0.03


@pytest.mark.parametrize(
    "source, words",
    [
        (None, ["reward.file", "no file"]),
        ("1 / 0", ["reward.file", "ZeroDivisionError"]),
        ("x = 1", ["reward.file", "REWARDS, GRADERS"]),
    ],
)
def test_a_users_file_that_cannot_be_used_is_refused(source, words, tmp_path):
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(UserError) as error:
        build(small_config(reward__file=str(path)))
    assert all(word in str(error.value) for word in words)
