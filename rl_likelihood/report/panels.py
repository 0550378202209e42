"""What the panels of figures and of the page show: a metric of training beside one of evaluation."""

from typing import NamedTuple

from rl_likelihood.report.metric_table import Metric, metric


class Panel(NamedTuple):
    """A metric of metrics.jsonl, drawn as a line, and one of eval.jsonl, drawn as points; "" for none."""

    train: str
    heldout: str

    @property
    def metric(self) -> Metric:
        """The row of the table that names the panel and its unit."""
        return metric(self.heldout or self.train)


REWARD = Panel("reward/mean", "")  # only for runs of one reward: others have other units
GREEDY = Panel("", "greedy_success")
SAMPLED = Panel("", "sampled_success")
PERPLEXITY = Panel("answer/perplexity", "perplexity")
PERPLEXITY_NO_CHAIN = Panel("", "perplexity_no_chain")
LENGTH = Panel("chain/length", "chain_length")
TRUNCATED = Panel("chain/truncated", "truncated")
GAIN = Panel("answer/chain_gain", "chain_gain")
TRACE = Panel("", "trace_area")
TRACE_CURVE = Panel("", "trace@{k}")  # of the last evaluation: parts of the chain instead of steps
WORDS = Panel("chain/transition_words", "transition_words")
ENTROPY = Panel("policy/entropy", "")
ANSWER_SHARE = Panel("grad/answer_share", "")

RUNS = (REWARD, GREEDY, PERPLEXITY, LENGTH)  # of the command report.plots
GRID = (GREEDY, SAMPLED, PERPLEXITY, LENGTH, GAIN, WORDS)
OFF_POLICY = (Panel("queue/lag", ""), Panel("ratio/max", ""), Panel("ratio/ess", ""))
PAGE = (
    REWARD,
    GREEDY,
    SAMPLED,
    PERPLEXITY,
    PERPLEXITY_NO_CHAIN,
    LENGTH,
    TRUNCATED,
    GAIN,
    TRACE,
    TRACE_CURVE,
    WORDS,
    ENTROPY,
    ANSWER_SHARE,
)
