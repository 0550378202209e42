"""Warnings during a run: one sentence each, with the remedy, raised once.

    alarms = Alarms(c.reward.terms, c.reward.truncated)
    for sentence in alarms.check(step, metrics): say(sentence)

A metric that is missing raises no alarm. After a resume an alarm may be raised again.
"""

import collections
import dataclasses
import math
import numbers
import statistics
from collections.abc import Callable

from rl_likelihood.grading.graders import GRADERS
from rl_likelihood.learner.adversarial import NAME
from rl_likelihood.report.metrics import success_of
from rl_likelihood.rewards.reward import Term

# Two alarms compare with the start of the run, the mean of its first values, and are not raised before it is known.
FIRST_STEPS = 5
FIRST = ("policy/entropy", "chain/length")

# Entropy falls in every run that learns. It has collapsed if it is far below the start and also near 0: then the
# likeliest token has a probability of about 0.99, and the chains of a group are copies of each other.
ENTROPY_SHARE, ENTROPY_NATS = 0.1, 0.05
# Under log-prob rewards chains first get shorter. Where they recover they stay above this share of the start; where
# they do not, they end near ten tokens (Kwiatkowski et al. 2602.03979, sec. 3.4).
LENGTH_SHARE = 1 / 3
# Above these shares of chains, groups and rows, a step loses most of its data, or a part whose loss biases it.
OPEN_SHARE, SAME_REWARD_SHARE, UNDERFLOW_SHARE = 0.5, 0.5, 0.1
SOLVED = 0.5  # of a 0/1 reward, or of the answer's probability
# On-policy ratios are 1; an effective sample size of 0.5 means that half the tokens' weight is gone.
RATIO_MAX, RATIO_ESS = 10.0, 0.5

# A judge's reward is over-optimised if over so many steps it rose and the known success fell, against as many before,
# each by more than so many standard errors.
WINDOW, ERRORS = 20, 2.0
# A critic that is right on this share of the pairs for WINDOW steps teaches the policy little.
RECOGNISED, CRITIC, TIE = 0.95, "critic/accuracy", "critic/tie"


@dataclasses.dataclass
class Alarms:
    """The alarms of one run: `terms` are those of the reward, none where it is supervised; `truncated` is
    reward.truncated; `parts_earn`: parts of a chain earn more than its reward (env.credit=turn, posterior.distill).

    `raised` names the alarms that have been raised, `first` holds the first values of the metrics in FIRST, `recent`
    the last ones of a judge's reward and of the known success.
    """

    terms: tuple[Term, ...]
    truncated: str
    parts_earn: bool = False
    raised: set[str] = dataclasses.field(default_factory=set)
    first: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    recent: dict[str, collections.deque[float]] = dataclasses.field(default_factory=dict)

    def check(self, step: int, metrics: dict[str, float]) -> list[str]:
        """The sentences of the alarms that `step` raises for the first time, in the order of ALARMS."""
        values = {k: v for k, v in metrics.items() if isinstance(v, numbers.Real) and not math.isnan(v)}
        # Supervision samples no chains: what its steps report of chains is the data's.
        alarms = {"grader failures": GRADER_FAILURES} if not self.terms else ALARMS
        for metric in (*self.judged, success_of(values), CRITIC, TIE):
            if metric in values:
                self.recent.setdefault(metric, collections.deque(maxlen=2 * WINDOW)).append(values[metric])
        new = []
        for name, alarm in alarms.items():
            if name not in self.raised and (sentence := alarm(self, values)):
                self.raised.add(name)
                new.append(f"step {step}: {sentence}")
        for metric in FIRST:
            first = self.first.setdefault(metric, [])
            if metric in values and len(first) < FIRST_STEPS:
                first.append(values[metric])
        return new

    @property
    def floored(self) -> bool:
        """Whether reward.floor acts on a term."""
        return any(t.reward.floored for t in self.terms)

    @property
    def judged(self) -> list[str]:
        """The metrics of a judge's rewards. A critic is none: it learns, so its score does not measure progress."""
        return [f"reward/{t.name}" for t in self.terms if t.reward.judges_alone and t.name != NAME]

    def moved(self, metric: str) -> float:
        """By how many standard errors the mean of the last WINDOW values is above that of as many before; 0 until there
        are so many."""
        values = list(self.recent.get(metric, ()))
        if len(values) < 2 * WINDOW:
            return 0.0
        before, last = values[:WINDOW], values[WINDOW:]
        error = math.sqrt((statistics.variance(before) + statistics.variance(last)) / WINDOW)
        return (statistics.fmean(last) - statistics.fmean(before)) / error if error > 0 else 0.0

    def start(self, metric: str) -> float | None:
        """Mean of the metric's first values; None until they are known."""
        first = self.first.get(metric, [])
        return sum(first) / FIRST_STEPS if len(first) == FIRST_STEPS else None


Values = dict[str, float]


def _entropy_collapse(run: Alarms, values: Values) -> str | None:
    entropy, start = values.get("policy/entropy", math.inf), run.start("policy/entropy")
    if start is None or entropy >= ENTROPY_SHARE * start or entropy >= ENTROPY_NATS:
        return None
    return (
        f"policy/entropy is {entropy:.2g} nats, {start:.2g} in the first {FIRST_STEPS} steps: the chains of a group "
        "become copies, so there is nothing to compare; lower optim.lr, or hold the policy near the initial model "
        "with loss.kl=k3 and loss.kl_coef=0.001 or more"
    )


def _chain_collapse(run: Alarms, values: Values) -> str | None:
    length, start = values.get("chain/length", math.inf), run.start("chain/length")
    if start is None or length >= LENGTH_SHARE * start:
        return None
    return (
        f"chain/length is {length:.1f} tokens, {start:.1f} in the first {FIRST_STEPS} steps: the policy stops "
        "reasoning and answers at once; hold it near the initial model with loss.kl=k3 and loss.kl_coef=0.001 or more, "
        "add a WEIGHT*length term to reward.name (reward.length_min), or start from given chains (warm_start.steps)"
    )


def _open_chains(run: Alarms, values: Values) -> str | None:
    share = values.get("chain/truncated", 0.0)
    if share <= OPEN_SHARE or "env/failures" in values:  # a conversation has no answer tag
        return None
    remedy = "raise sampler.max_chain, show worked examples (prompt.examples) or teach the format (warm_start.steps)"
    if run.truncated == "force_close" and run.floored:
        remedy += "; a forced tag costs the policy nothing: set reward.truncated=floor"
    if run.truncated == "drop":
        remedy += "; with reward.truncated=drop they are left out, so little is learned"
    return f"chain/truncated is {share:.0%}: most chains never open the answer tag; {remedy}"


def _ratio_tails(run: Alarms, values: Values) -> str | None:
    largest, ess = values.get("ratio/max", 1.0), values.get("ratio/ess", 1.0)
    if largest <= RATIO_MAX and ess >= RATIO_ESS:
        return None
    parts = [f"ratio/max is {largest:.3g}"] * (largest > RATIO_MAX) + [f"ratio/ess is {ess:.2f}"] * (ess < RATIO_ESS)
    return (
        f"{' and '.join(parts)}: the learner's policy is far from the one that sampled; lower "
        "sampler.max_staleness or optim.lr, or cap the weights with loss.ratio=token and loss.ratio_cap; if "
        "sampler.max_staleness is 0, the two differ by rounding: set model.compute_dtype=float32"
    )


def _underflow(run: Alarms, values: Values) -> str | None:
    share = values.get("reward/underflow", 0.0)
    if share <= UNDERFLOW_SHARE or not any(t.reward.underflows for t in run.terms):
        return None
    return (
        f"reward/underflow is {share:.0%}: this share of answers has probability 0 in float32 (below about -87 nats) "
        "and so no gradient; set reward.name=avg_log_prob, avg_prob or geo_mean_prob, which do not shrink with the "
        "answer's length"
    )


def _over_optimised(run: Alarms, values: Values) -> str | None:
    known = success_of(values)
    for proxy in run.judged:
        if proxy in values and run.moved(proxy) > ERRORS and run.moved(known) < -ERRORS:
            return (
                f"{proxy} rose over the last {WINDOW} steps while {known} fell: the policy pleases the judge but is "
                "right less often; stop, hold it near the initial model (loss.kl=k3 and loss.kl_coef), or train a "
                "better judge.model"
            )
    return None


def _critic(run: Alarms, values: Values) -> str | None:
    def always(metric: str) -> bool:
        last = list(run.recent.get(metric, ()))[-WINDOW:]
        return metric in values and len(last) == WINDOW and min(last) > RECOGNISED

    if always(TIE):
        return (
            f"{TIE} was over {RECOGNISED:.0%} for {WINDOW} steps: the critic no longer tries to distinguish answers "
            "from the data's, so all answers get the same reward; lower adversarial.tau_critic"
        )
    if not always(CRITIC):
        return None
    return (
        f"{CRITIC} was over {RECOGNISED:.0%} for {WINDOW} steps: the critic recognises nearly every sampled answer, so "
        "its score hardly shows how to improve; teach the format first (warm_start.steps), or lower adversarial.lr and "
        "adversarial.head_lr, in the form raro adversarial.critic_share"
    )


def _same_reward(run: Alarms, values: Values) -> str | None:
    """Not where answers are mostly right: then the groups without spread are those that are solved. Nor where parts of
    a chain earn more than its reward: then such groups teach too."""
    names = (*GRADERS, *["prob"] * run.floored)
    share = values.get("reward/zero_std_groups", 0.0)
    if (
        run.parts_earn
        or share <= SAME_REWARD_SHARE
        or any(values.get(f"reward/{name}", 0.0) > SOLVED for name in names)
    ):
        return None
    return (
        f"reward/zero_std_groups is {share:.0%}: in most groups every chain has the same reward, so none is preferred; "
        "raise sampler.group_size or sampler.temperature, or ask questions that are neither too easy nor too hard "
        "(data.tasks, data.train_path)"
    )


Alarm = Callable[[Alarms, Values], str | None]


def _above(metric: str, limit: float, words: str) -> Alarm:
    """The alarm of a metric above a limit: a share, or, with the limit 0, a number of failures."""

    def alarm(run: Alarms, values: Values) -> str | None:
        value = values.get(metric, 0.0)
        return f"{metric} is {value:{'.0%' if limit else 'g'}}: {words}" if value > limit else None

    return alarm


GRADER_FAILURES = _above(
    "grader/failures",
    0,
    "answers that could not be graded; they do not count as wrong; to read them in samples.jsonl set "
    "report.samples_every=1 and report.sample_prompts to the number of prompts of a step",
)
# A new alarm is a row of this table, and a function where `_above` is not enough.
ALARMS: dict[str, Alarm] = {
    "entropy collapse": _entropy_collapse,
    "chain collapse": _chain_collapse,
    "open chains": _open_chains,
    "same reward": _same_reward,
    "ratio tails": _ratio_tails,
    "underflow": _underflow,
    "grader failures": GRADER_FAILURES,
    "judge failures": _above(
        "judge/failures",
        0,
        "answers without a verdict, whose rows are left out; check that judge.model answers, or raise judge.timeout "
        "and judge.attempts",
    ),
    "over-optimisation": _over_optimised,
    "critic": _critic,
    "unparsable verdicts": _above(
        "critic/unparsable",
        OPEN_SHARE,
        "most of the critic's chains end in no verdict, so they and their answers are left out; raise "
        "sampler.max_chain, or start from a model that keeps the format",
    ),
    "cut conversations": _above(
        "env/out_of_turns",
        OPEN_SHARE,
        "most conversations never end; raise sampler.max_turns or sampler.max_chain, or teach the calls first "
        "(warm_start.steps with warm_start.chains=given)",
    ),
    "environment failures": _above(
        "env/failures",
        0,
        "conversations left out because the environment raised, returned something wrong, or was too slow; a warning "
        "above says why; if it only needs more time, raise env.seconds",
    ),
}
