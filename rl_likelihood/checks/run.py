"""The checks, and `validate`, which makes them all: settings that do not fit together are refused."""

from __future__ import annotations

from rl_likelihood.checks.judge import validate_judge
from rl_likelihood.data.prompts import validate_prompt
from rl_likelihood.errors import UserError
from rl_likelihood.fields import one_of, refuse_others
from rl_likelihood.learner.optimizer import UNREAD, OptimizerConfig
from rl_likelihood.learner.posterior import PosteriorConfig
from rl_likelihood.model.lora import check_lora
from rl_likelihood.settings import SIZES, Config, largest_divisor
from rl_likelihood.tables import environment_table, grader_table

# Likelihood rewards of a conversation: means over the tokens of all its references. A sum would pay longer
# conversations less.
OVER_TOKENS = ("avg_log_prob", "avg_prob", "geo_mean_prob", "rlpr")


def validate(c: Config) -> None:
    """Refuse, in one sentence, fields that do not fit together."""
    if bool(c.model.path) == bool(c.model.preset):
        both = "both are set" if c.model.path else "neither is set"
        raise UserError(f"model.path (weights) and model.preset (random weights): {both}; set exactly one of them")
    devices = c.sampler.devices
    if devices != "shared" and (not devices.isdecimal() or int(devices) < 1):
        raise UserError(
            f"sampler.devices is {devices!r}; it must be shared, or the number of devices of each process that only "
            "sample"
        )
    if c.model.preset:
        one_of("model.preset", c.model.preset, SIZES)
    check_lora(c.lora)
    validate_prompt(c.prompt)
    validate_optimizer(c)
    one_of("eval.grader", c.eval.grader, ("none", *grader_table(c.reward.file)))
    g, p, m = c.sampler.group_size, c.batch_prompts, c.train.micro_batch_prompts
    if g < 2 and not c.reward.supervised:
        raise UserError(
            f"sampler.group_size is {g}, but reward {c.reward.name!r} compares a chain with the others of its group "
            "(leave-one-out); it must be at least 2"
        )
    if m > 0 and p % m:
        near = largest_divisor(p, m)
        raise UserError(
            f"train.micro_batch_prompts is {m}, which does not divide the {p} prompts of a step "
            f"(train.prompts_per_step{f' x {c.prompts_per_question}' * c.raro}); the largest smaller value that "
            f"does is {near}"
        )
    validate_loop(c)
    validate_reward(c)
    validate_filter(c)
    validate_judge(c)
    validate_conversation(c)
    validate_loss(c)
    validate_posterior(c)
    if c.prompt.template == "raw" and c.worked_examples:
        raise UserError(
            f"prompt.template is 'raw', which cannot show worked examples, but {c.worked_examples} are asked for; set "
            "prompt.examples and warm_start.examples to 0"
        )
    if c.warm_start.steps and c.warm_start.prompts < c.warm_start.prompts_per_step:
        raise UserError(
            f"warm_start.prompts is {c.warm_start.prompts}, fewer than warm_start.prompts_per_step = "
            f"{c.warm_start.prompts_per_step}; it must be at least that"
        )
    validate_evaluation(c)


def validate_optimizer(c: Config) -> None:
    """Refuse fields that the optimizer does not read, and muon for adapters."""
    if c.lora.rank and c.optim.name == "muon":
        raise UserError(f"optim.name is 'muon', for whole matrices, but lora.rank is {c.lora.rank}; set it to adamw")
    for name in UNREAD.get(c.optim.name, ()):
        value, default = getattr(c.optim, name), getattr(OptimizerConfig, name)
        if value != default:
            raise UserError(
                f"optim.{name} is {value!r}, which optim.name = {c.optim.name!r} does not read; leave it at {default!r}"
            )


def validate_evaluation(c: Config) -> None:
    """Refuse evaluations that cannot measure what they should."""
    if c.eval.texts != "none" and c.eval.grader != "none":
        raise UserError(
            f"eval.texts is {c.eval.texts!r}, which measures answers and grades none, but eval.grader is "
            f"{c.eval.grader!r}; set it to none"
        )
    for name, value in (
        ("eval.max_sampled_answer", c.eval.max_sampled_answer),
        ("sampler.max_sampled_answer", c.sampler.max_sampled_answer),
    ):
        if 0 < value < c.prompt.max_answer:
            raise UserError(
                f"{name} is {value}, too short to write every answer of prompt.max_answer = "
                f"{c.prompt.max_answer} tokens; set it to at least that"
            )
    if c.eval.prompts > c.data.heldout_size > 0:
        raise UserError(
            f"eval.prompts is {c.eval.prompts} but data.heldout_size is {c.data.heldout_size}; "
            f"set eval.prompts to at most {c.data.heldout_size}"
        )


def validate_loop(c: Config) -> None:
    """Refuse what the loop cannot do."""
    if bool(c.train.best) > bool(c.train.eval_every and c.eval.prompts) or bool(c.train.patience) > bool(c.train.best):
        name, value = ("train.patience", c.train.patience) if c.train.patience else ("train.best", c.train.best)
        raise UserError(
            f"{name} is {value!r}, which needs train.best (a metric of eval.jsonl), train.eval_every and eval.prompts; "
            "set them"
        )
    profile, steps = c.report.profile, c.train.steps
    if profile and not (len(profile) == 2 and 1 <= profile[0] <= profile[1] <= steps):
        raise UserError(f"report.profile is {profile}; give a first and a last step up to train.steps = {steps}")


def validate_conversation(c: Config) -> None:
    """Refuse what does not go with an environment, and what needs one where there is none."""
    one_of("env.name", c.env.name, ("none", *environment_table(c.env.file)))
    if not c.converses:
        needing = [t.name for t in c.reward.terms if "conversation" in t.reward.needs]
        if needing:
            raise UserError(f"reward.name has {needing[0]!r}, but env.name is none; set it to an environment")
        if c.env.credit == "turn":
            raise UserError("env.credit is 'turn', but env.name is none: there are no turns; set it to outcome")
        return
    for t in c.reward.terms:
        r = t.reward
        without_answer = (
            "conversation" in r.needs or t.name in OVER_TOKENS or (r.kind == "step" and "reference" not in r.reads)
        )
        if not without_answer and t.name != "random":
            raise UserError(
                f"reward.name has {t.name!r}, which needs a single answer, but with env.name = {c.env.name!r} there "
                f"are several messages; choose environment, calls_f1 or one of {', '.join(OVER_TOKENS)}"
            )
    allowed: dict[str, list] = {
        "loss.span": ["auto", "chain"],
        "loss.format_term": [0.0],
        "reward.baseline": ["none"],
        "reward.truncated": ["force_close"],
        "filter.mode": ["none", "std_zero", "std_below", "ema"],
        "filter.resample": [0],
        "prompt.examples": [0],
        "eval.trace": [False],
    }
    allowed |= {"warm_start.chains": ["given"]} if c.warm_start.steps else {}
    allowed |= {"reward.sft_chain": ["both"]} if c.reward.supervised else {}
    refuse_others(c, f"env.name = {c.env.name!r}", allowed)
    if c.env.credit == "turn":
        refuse_others(c, "env.credit = 'turn'", {"loss.advantage": ["loo", "mean"]})
        refuse_others(c, "env.credit = 'turn', where groups with equal rewards teach too,", {"filter.mode": ["none"]})
        if c.sampler.max_turns < 2:
            raise UserError(
                f"sampler.max_turns is {c.sampler.max_turns}, but with env.credit = 'turn' it must be at least 2"
            )


def validate_posterior(c: Config) -> None:
    """Refuse what does not go with a second prompt, and fields of it where there is none."""
    p, g = c.posterior, c.sampler.group_size
    needs = dict.fromkeys(("target", "kl", "weight_cap", "answer_rows"), "share") | {"distill_clip": "distill"}
    for name, needed in needs.items():
        value, default = getattr(p, name), getattr(PosteriorConfig, name)
        if value != default and not getattr(p, needed):
            raise UserError(
                f"posterior.{name} is {value!r}, but posterior.{needed} is 0; set posterior.{needed} above 0, or "
                f"posterior.{name}={default}"
            )
    if not p.used:
        return
    if "{answer}" not in p.prompt:
        raise UserError(
            f"posterior.prompt is {p.prompt!r}, which does not show the reference answer; write {{answer}} where it "
            "belongs"
        )
    if c.reward.supervised or c.converses:
        why = "reward.name is 'sft'" if c.reward.supervised else f"env.name is {c.env.name!r}"
        raise UserError(f"posterior.share is {p.share}, posterior.distill {p.distill}, but {why}; set both to 0")
    if not p.share:
        return
    own = p.rows(g)
    if abs(own - p.share * g) > 1e-6 or own == 1 or g - own == 1:
        raise UserError(
            f"posterior.share is {p.share} of sampler.group_size = {g} chains; each of the two prompts must get a "
            "whole number of chains, 0 or at least two"
        )
    if p.kl and not p.target:
        raise UserError(f"posterior.kl is {p.kl}, but posterior.target is 0, so this KL is 0; set target or kl=0")
    allowed: dict[str, list] = {"loss.advantage": ["loo"], "loss.span": ["chain", "auto"], "loss.kl": ["none"]}
    allowed |= {"loss.aggregation": ["seq_sum"], "loss.ratio": ["none"], "loss.clip_low": [0.0]}
    allowed |= {"loss.clip_high": [0.0], "loss.mask_move": [0.0], "reward.vote_train": [0]}
    allowed |= {"sampler.max_staleness": [0], "sampler.weights": ["compute"], "posterior.distill": [0.0]}
    refuse_others(c, f"posterior.share = {p.share}", allowed)
    for t in c.reward.terms:
        by_group = t.per_std or "group" in t.reward.reads or t.reward.kind == "outcome" or c.reward.by_spread
        if by_group or t.reward.credits != "chain":
            raise UserError(
                f"reward.name has {t.name!r}, but with posterior.share = {p.share} a reward may read only one chain, "
                "as log_prob does: no /std, no group, no sampled answer"
            )


def validate_loss(c: Config) -> None:
    """Refuse switches of the loss that exclude one another."""
    if c.loss.ratio != "none" and (c.loss.clip_low or c.loss.clip_high):
        raise UserError(
            f"loss.ratio is {c.loss.ratio!r}, but loss.clip_low or loss.clip_high clips the ratio already; "
            "set loss.ratio=none, or both clips to 0"
        )
    if c.loss.clip_per == "sequence" and not (c.loss.clip_low or c.loss.clip_high):
        raise UserError(
            "loss.clip_per is 'sequence', but loss.clip_low and loss.clip_high are 0; set one, or clip_per=token"
        )
    if c.loss.format_term and c.reward.truncated == "drop":
        raise UserError(
            f"loss.format_term is {c.loss.format_term}, which trains chains with forced tags, but reward.truncated is "
            "'drop', which drops these chains; set loss.format_term=0 or another reward.truncated"
        )
    if c.loss.kl == "none" and c.loss.kl_coef:
        raise UserError(f"loss.kl_coef is {c.loss.kl_coef} but loss.kl is 'none'; choose k2, k3 or reward_k1")
    if c.loss.reference_every and (c.loss.kl == "none" or c.step.needs("initial")):
        why = "loss.kl is 'none'" if c.loss.kl == "none" else f"{c.reward.name} scores by the initial model"
        raise UserError(f"loss.reference_every is {c.loss.reference_every}, but {why}; set it to 0")
    if c.loss.reference_decay and not c.loss.reference_every:
        raise UserError(
            f"loss.reference_decay is {c.loss.reference_decay}, but loss.reference_every is 0: the reference stays the "
            "initial model; set loss.reference_every=1, or the decay to 0"
        )
    if c.loss.span == "response" and not c.reward.supervised and c.sampled_answer == 0:
        raise UserError(
            "loss.span is 'response', chain and sampled answer, but sampler.max_sampled_answer is 0; set it to -1"
        )


def validate_reward(c: Config) -> None:
    """Refuse rewards that need what the other fields do not give."""
    r, name = c.reward, c.reward.name
    if len(r.base_rl) != 3:
        raise UserError(f"reward.base_rl is {r.base_rl}; it must be three numbers: right, wrong, unreadable")
    if r.overlong_max and r.overlong_cache > r.overlong_max:
        raise UserError(
            f"reward.overlong_cache is {r.overlong_cache}, more than reward.overlong_max = {r.overlong_max}; lower it"
        )
    if r.vote_train > c.sampler.group_size or r.vote_train == 1:
        raise UserError(
            f"reward.vote_train is {r.vote_train}; set 0, or from 2 to sampler.group_size = {c.sampler.group_size}"
        )
    if r.supervised:
        refuse_others(c, "reward.name = 'sft', which trains by this term alone,", {"loss.answer_term": [1]})
        return
    if not (any(t.weight for t in r.terms) or c.posterior.distill):
        raise UserError(f"reward.name is {name!r}, whose weights are 0, so nothing trains; give a term a weight")
    if r.sft_chain != "none":
        raise UserError(f"reward.sft_chain is {r.sft_chain!r}, which goes with reward.name='sft', not {name!r}")
    if c.loss.span != "response" and c.samples_answer and c.sampled_answer == 0:
        raise UserError(
            f"reward.name is {name!r}, which reads a sampled answer, but sampler.max_sampled_answer is 0; "
            f"set it to -1, or to at least prompt.max_answer = {c.prompt.max_answer}"
        )
    if {t.reward.alternatives for t in r.terms} - {"", c.reads_alternatives}:
        raise UserError(f"reward.name is {name!r}; use log_prob_any or option_prob, not both")
    validate_token_weights(c)
    if r.baseline != "none" and not r.has("rlpr") and not r.reads_no_chain:
        raise UserError(
            f"reward.baseline is {r.baseline!r}, which terms such as rlpr and nrt read, but reward.name is {name!r}; "
            "set it to none"
        )
    if r.frozen_score and c.prompt.score_delims != "none":
        raise UserError(
            f"reward.baseline is 'frozen', a score of the answer alone, but prompt.score_delims is "
            f"{c.prompt.score_delims!r}; set it to none, so that both scores cover the same tokens"
        )
    if r.vote_train and not r.has("majority_vote"):
        raise UserError(f"reward.vote_train is {r.vote_train}, which goes with the term majority_vote; set it to 0")


def validate_filter(c: Config) -> None:
    """Refuse filters that would leave out every group or none, and settings that do not work with fresh prompts."""
    f, r = c.filter, c.reward
    if f.mode != "none" and not any(t.weight for t in r.terms):
        raise UserError(
            f"filter.mode is {f.mode!r}, which compares the rewards of a group, but reward.name is {r.name!r}; set "
            "filter.mode=none"
        )
    if f.mode in ("std_below", "token_spread") and not f.threshold:
        raise UserError(
            f"filter.mode is {f.mode!r} but filter.threshold is 0; set it to the smallest standard deviation to keep"
        )
    stale = c.sampler.max_staleness
    if f.resample and (f.mode == "none" or stale):
        why = f"sampler.max_staleness is {stale}" if stale else "filter.mode is 'none'"
        raise UserError(f"filter.resample is {f.resample}, but {why}; set filter.resample=0 or change the other field")


def validate_token_weights(c: Config) -> None:
    """Refuse token weights without their source, and sources that no reward reads."""
    r, by_base = c.reward, ("inverse", "neg_log")
    weighted = [t.name for t in r.terms if t.reward.no_chain == "weights" or t.name == "nrt"]
    if weighted and r.token_weights == "none":
        raise UserError(
            f"reward.name has {weighted[0]}, but reward.token_weights is 'none'; set it to inverse or neg_log with "
            f"reward.baseline=live or frozen{'' if r.has('nrt') else ', or to spread'}"
        )
    if r.token_weights != "none" and not weighted:
        raise UserError(
            f"reward.token_weights is {r.token_weights!r}, which weighted_log_prob, weighted_avg_prob and nrt read, "
            f"but reward.name is {r.name!r}; set it to none"
        )
    if r.has("nrt") and r.token_weights == "spread":
        raise UserError(
            "reward.token_weights is 'spread', but nrt weighs by the answer without a chain; set it to "
            "inverse or neg_log"
        )
    missing = [t.name for t in r.terms if t.reward.no_chain == "must"]
    missing += [f"reward.token_weights={r.token_weights}"] if r.token_weights in by_base else []
    if missing and r.baseline == "none":
        raise UserError(
            f"reward.baseline is 'none', but {missing[0]} reads the answer without a chain; set it to live or frozen"
        )
    if r.has("vr_cli") and r.baseline != "frozen":
        raise UserError(
            f"reward.baseline is {r.baseline!r}, but vr_cli compares two scores of the initial model; set it to frozen"
        )
    if r.by_spread and c.rows_per_prompt < 3:
        raise UserError(
            f"sampler.group_size is {c.rows_per_prompt}, but weights by spread need two other chains; set it to at "
            "least 3"
        )
