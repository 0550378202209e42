"""All settings of a run, frozen: the fields of every package, and what follows from several of them.

A field is declared once, here or beside the code that reads it (`rl_likelihood.fields`). `config.build` makes a
`Config` of a ConfigDict and checks it; nothing else reads the ConfigDict.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from rl_likelihood.data.judged_text import JudgeSettings
from rl_likelihood.data.prompts import PromptConfig
from rl_likelihood.datasets.sources import DataConfig
from rl_likelihood.envs.table import EnvConfig
from rl_likelihood.fields import field
from rl_likelihood.learner.optimizer import OptimizerConfig
from rl_likelihood.learner.posterior import PosteriorConfig
from rl_likelihood.learner.reward_step import PreferenceConfig
from rl_likelihood.learner.rows import CriticConfig, ProxyConfig, StepConfig
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.model.lora import LoraConfig
from rl_likelihood.rewards.group_filter import FilterConfig
from rl_likelihood.rewards.reward import RewardConfig, Term
from rl_likelihood.rewards.rubric import RubricSettings
from rl_likelihood.rewards.table import REWARDS
from rl_likelihood.sampler.decode import SamplerSettings
from rl_likelihood.search_settings import DistillSettings, ReerSettings

# Sizes with random weights, over bytes: width, layers, heads, key/value heads, MLP width.
SIZES: dict[str, tuple[int, int, int, int, int]] = {"tiny": (128, 6, 4, 2, 512), "nano": (32, 2, 2, 1, 64)}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which model, and how it is computed."""

    path: str = field("", 'Hugging Face folder or org/name, .gguf, workdir of a run, or "smollm2-135m-instruct"')
    preset: str = field(
        "", 'random weights over bytes instead of a path: "nano" (25 thousand parameters), "tiny" (1.6 million)'
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "auto: bfloat16 on accelerators, float32 on CPU; parameters, log-probs and losses are always float32"
    )
    layers: Literal["auto", "scan", "unroll"] = field(
        "auto",
        "scan: compile one layer and loop over it; unroll: compile every layer. auto: unroll on CPUs",
    )
    attention: Literal["auto", "dense", "splash"] = field(
        "auto", "splash: a TPU kernel; auto: splash if it supports the model, else dense"
    )
    remat: Literal["none", "dots", "attention", "full"] = field(
        "none", "what the backward pass recomputes to save memory, from nothing to everything"
    )
    scratch_kib: int = field(
        -1,
        "KiB of a TPU's vector memory for one operation of the step; -1: mesh.SCRATCH, 0: the compiler's default",
        least=-1,
    )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The learner's devices = data x fsdp x context x tensor."""

    data: int = field(0, "copies, the only axis across TPU slices; 0: chosen from the other axes", least=0)
    fsdp: int = field(0, "devices that parameters are split over; 0: those that the other axes leave", least=0)
    context: int = field(1, "devices of one machine that a chain's tokens are split over, for long chains", least=1)
    tensor: int = field(1, "devices of one machine that heads, MLP and vocabulary are split over", least=1)


@dataclasses.dataclass(frozen=True)
class PodSettings:
    """Several processes."""

    heartbeat: float = field(30.0, "seconds until the death of another process is noticed", least=1, most=86400)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    steps: int = field(200, "optimizer steps", least=0)
    prompts_per_step: int = field(8, "P: prompts per step, each with sampler.group_size chains", least=1)
    micro_batch_prompts: int = field(
        0,
        "prompts per micro-batch; 0: all, on one CPU as many as have about 1,000 completion tokens; -1: the fastest, "
        "measured by the run and stored in its workdir. Results are equal up to rounding",
        least=-1,
    )
    packing: bool = field(False, "compute little padding; results are equal up to rounding, more step sizes compile")
    head_chunk: int = field(
        0, "tokens whose logits a device holds at once; 0: 512, on a CPU as many as fit its caches", least=0
    )
    eval_every: int = field(0, "steps between evaluations; 0: before and after only", least=0)
    eval_first: bool = field(True, "evaluate before the first step")
    checkpoint_every: int = field(50, "steps between checkpoints", least=1)
    keep_checkpoints: int = field(2, "latest checkpoints to keep", least=1)
    keep_every: int = field(0, "also keep each checkpoint whose step is a multiple of this; 0: none", least=0)
    best: str = field("", "a metric of eval.jsonl: also keep the checkpoint with its best evaluation; empty: none")
    patience: int = field(0, "end the run after this many evaluations without a new best; 0: never", least=0)
    keep_optimizer: bool = field(
        True,
        "False: a finished run deletes its optimizer state, two thirds of its disk space, and cannot train further",
    )


@dataclasses.dataclass(frozen=True)
class WarmStartSettings:
    """Supervised steps on chains before the first RL step, to teach a format or a start policy."""

    steps: int = field(0, "supervised steps; 0: no warm start", least=0)
    chains: Literal["own", "given"] = field(
        "own", "own: the model's own greedy chains after worked examples; given: the data's \"chain\""
    )
    examples: int = field(2, "worked examples in the prompt for own chains", least=0)
    prompts: int = field(128, "training questions for own chains", least=1)
    prompts_per_step: int = field(32, "chains in a step", least=1)
    lr: float = field(1e-5, "constant learning rate", least=0, most=100)


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """Evaluations on held-out questions."""

    prompts: int = field(100, "held-out questions to evaluate", least=0)
    grader: str = field("exact_match", "a grader of docs/grading.md; none: no grades; answers only for eval.texts")
    grader_workers: int = field(2, "processes for graders that may hang or crash; 0: one per core", least=0)
    grader_seconds: float = field(
        10.0, "time limit for grading one answer; a timeout counts as failure", least=1, most=86400
    )
    unsafe_code: bool = field(
        False, "run programs (code_tests) even if Linux cannot cut them off from network and files"
    )
    samples: int = field(1, "sampled chains per question, N for pass@k and majority@k up to N; 0: greedy only", least=0)
    temperature: float = field(
        1.0, "temperature of sampled chains and answers; reference answers are scored at 1", least=1e-3, most=1e3
    )
    top_p: float = field(
        1.0, "sample from the smallest set of ids with this probability; training has no such cut", above=0, most=1
    )
    top_k: int = field(0, "sample from this many most likely ids; 0: all", least=0)
    min_p: float = field(0.0, "sample from ids with at least this share of the top id's probability", least=0, most=1)
    max_sampled_answer: int = field(0, "maximum tokens of a sampled answer; 0: prompt.max_answer", least=0)
    batch_prompts: int = field(50, "questions decoded at once; results do not depend on it", least=1)
    mc_samples: int = field(0, "chains for log_prob_mcN and pass@k up to N; 0: eval.samples", least=0)
    mc_prompts: int = field(0, "questions that get eval.mc_samples chains; 0: all", least=0)
    texts: Literal["none", "prose", "verse"] = field(
        "none", "measure sampled answers as prose or verse instead of grading them (docs/writing.md)"
    )
    by_initial: bool = field(
        False, "`evaluate --workdir`: also score the same chains and answers with the run's initial model"
    )
    trace: bool = field(False, "also score each answer after 25, 50 and 75 % of its question's first sampled chain")
    fast_prompts: int = field(0, "questions of each evaluation during training; 0: eval.prompts", least=0)
    fast_samples: int = field(-1, "sampled chains for each of these; -1: eval.samples", least=-1)


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    no_chain: bool = field(True, "every step, also score each answer without a chain; without a gradient")
    transition_words: tuple[str, ...] = field(
        ("wait", "but", "however", "let me check", "hmm", "alternatively", "actually"),
        "words counted in the chains, per hundred words",
    )
    samples_every: int = field(1, "steps between entries in samples.jsonl; 0: none", least=0)
    sample_prompts: int = field(1, "prompts per entry, each with all its chains", least=0)
    console_samples: int = field(20, "steps between chains printed on the console; 0: none", least=0)
    wandb: Literal["off", "offline", "online"] = field("off", "copy the metrics to wandb")
    wandb_project: str = field("rl_likelihood", "the project in wandb")
    tensorboard: bool = field(False, "copy the metrics to TensorBoard files in the workdir's tensorboard/")
    profile: tuple[int, ...] = field((), "first and last step of a profiler trace, written into the workdir's profile/")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every field there is, and what follows from several."""

    seed: int = field(0, "seed of sampling, data order and random initial weights", least=0, most=2**32 - 1)
    model: ModelSettings = ModelSettings()
    lora: LoraConfig = LoraConfig()
    mesh: MeshSettings = MeshSettings()
    pod: PodSettings = PodSettings()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    sampler: SamplerSettings = SamplerSettings()
    env: EnvConfig = EnvConfig()
    preset: str = field(
        "none",
        "a published method: sets what its paper sets (rl_likelihood/presets.py); the command line overrides it",
    )
    reward: RewardConfig = RewardConfig()
    judge: JudgeSettings = JudgeSettings()
    rubric: RubricSettings = RubricSettings()
    preference: PreferenceConfig = PreferenceConfig()
    filter: FilterConfig = FilterConfig()
    proxy: ProxyConfig = ProxyConfig()
    adversarial: CriticConfig = CriticConfig()
    posterior: PosteriorConfig = PosteriorConfig()
    loss: LossConfig = LossConfig()
    optim: OptimizerConfig = OptimizerConfig()
    train: TrainSettings = TrainSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    eval: EvalSettings = EvalSettings()
    reer: ReerSettings = ReerSettings()
    distill: DistillSettings = DistillSettings()
    report: ReportSettings = ReportSettings()

    @property
    def worked_examples(self) -> int:
        """The most worked examples that any prompt of the run shows."""
        w = self.warm_start
        return max(self.prompt.examples, w.examples if w.steps and w.chains == "own" else 0)

    @property
    def converses(self) -> bool:
        """Whether the model talks to an environment, instead of answering by itself."""
        return self.env.name != "none"

    @property
    def trains_chains(self) -> bool:
        """Whether supervised training reads the data's chains, which are no conversations."""
        return self.reward.supervised and self.reward.sft_chain != "none" and not self.converses

    @property
    def rows_per_prompt(self) -> int:
        """Rows of each prompt that the learner sees."""
        return 1 if self.reward.supervised else self.reward.vote_train or self.sampler.group_size

    @property
    def max_shown(self) -> int:
        """Tokens that a prompt which shows its answer may have; 0: there is none."""
        if not self.posterior.used:
            return 0
        return self.posterior.max_prompt or self.prompt.max_prompt + self.prompt.max_answer + 64

    @property
    def samples_answer(self) -> bool:
        """Whether reward or policy term ask for answers that the policy samples itself."""
        if self.reward.supervised or self.converses:
            return False
        if self.loss.span == "response" or any(t.reward.reads_answer for t in self.reward.terms):
            return True
        return self.loss.span == "auto" and any(t.reward.credits == "response" for t in self.reward.terms)

    @property
    def sampled_answer(self) -> int:
        """Tokens that a sampled answer may have in training; 0: none is sampled."""
        n = self.sampler.max_sampled_answer
        return n if n >= 0 else self.prompt.max_answer if self.samples_answer else 0

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy may sample in one row."""
        turns = self.sampler.max_turns if self.converses else 1
        return turns * self.sampler.max_chain + self.sampled_answer

    @property
    def conversation_tokens(self) -> int:
        """Tokens that a conversation's row may have: its own, and what each message should have been."""
        return self.spoken_tokens + self.sampler.max_turns * self.prompt.max_answer

    @property
    def spoken_tokens(self) -> int:
        """Tokens of a conversation: messages and the replies between them."""
        s = self.sampler
        return s.max_turns * s.max_chain + (s.max_turns - 1) * s.max_env_tokens

    @property
    def judge_in_step(self) -> bool:
        """Whether the learner's step computes a second model's reward."""
        return bool(self.reward.judged) and self.judge.where == "step"

    @property
    def critic(self) -> CriticConfig | None:
        """The critic of adversarial training that is another model; None without one."""
        if self.reward.judged != "adversarial" or self.raro:
            return None
        a, policy = self.adversarial, self.optimizer
        updates = {name: getattr(policy, name) * a.steps for name in ("warmup_steps", "total_steps")}
        return dataclasses.replace(a, optimizer=dataclasses.replace(policy, lr=a.lr, **updates))

    @property
    def raro(self) -> bool:
        """Whether the policy is its own critic (rollouts/raro.py)."""
        return self.reward.judged == "adversarial" and self.adversarial.form == "raro"

    @property
    def prompts_per_question(self) -> int:
        """Prompts of a batch that come from one question: the question, and those of a critic that is the policy."""
        return 1 + self.sampler.group_size * (1 + bool(self.adversarial.replay)) if self.raro else 1

    @property
    def batch_prompts(self) -> int:
        return self.train.prompts_per_step * self.prompts_per_question

    def own_prompts(self, questions: np.ndarray) -> np.ndarray:
        """The indices in the learner's batch of all prompts of these questions."""
        n = self.prompts_per_question
        return (questions[:, None] * n + np.arange(n)).ravel()

    @property
    def widest_prompt(self) -> int:
        """Tokens that a prompt of the learner's batch may have."""
        return max(self.prompt.max_prompt, self.judge.max_prompt + self.judge.max_row if self.raro else 0)

    @property
    def reads_alternatives(self) -> str:
        """The field of a row with the other answers that a reward reads; "" if none reads any."""
        return next((t.reward.alternatives for t in self.reward.terms if t.reward.alternatives), "")

    @property
    def eval_answer(self) -> int:
        """Tokens that evaluation lets a sampled answer have."""
        return self.eval.max_sampled_answer or self.prompt.max_answer

    @property
    def scores_no_chain(self) -> bool:
        """Whether each step also scores the reference answers without a chain."""
        if self.reward.supervised or self.converses:
            return False
        return self.report.no_chain or self.reward.baseline == "live"

    @functools.cached_property
    def step(self) -> StepConfig:
        supervised, sampled = self.reward.supervised, float(self.sampled_tokens)
        overlong_max = self.reward.overlong_max or sampled
        reward = dataclasses.replace(
            self.reward,
            terms=(Term("log_prob", REWARDS["log_prob"]),) if supervised else self.reward.terms,
            overlong_max=overlong_max,
            overlong_cache=self.reward.overlong_cache or overlong_max / 5,
        )
        off_policy = self.sampler.max_staleness > 0 or self.sampler.weights == "int8"
        loss = dataclasses.replace(
            self.loss,
            policy_term=0.0 if supervised else 1.0,
            max_tokens=self.sampled_tokens,
            ratio="token" if off_policy and self.loss.ratio == "none" else self.loss.ratio,
        )
        span = "response" if self.samples_answer else "chain"
        return StepConfig(
            reward=reward,
            loss=loss,
            filter=self.filter,
            proxy=self.proxy,
            critic=self.critic,
            lora=self.lora,
            posterior=self.posterior,
            policy_span=span if self.loss.span == "auto" else self.loss.span,
            supervise_chain=self.reward.sft_chain == "both",
            two_branches=self.sampled_answer > 0 or self.converses or bool(self.reads_alternatives),
            turn_credit=self.converses and self.env.credit == "turn",
            turns=self.sampler.max_turns if self.converses else 1,
            temperature=self.sampler.temperature,
            micro_batch_prompts=max(0, self.train.micro_batch_prompts),  # a run that measures sets its own
            sampled_answer=self.sampled_answer,
            reference_tokens=self.prompt.max_answer,
            head_chunk=self.train.head_chunk,
        )

    @functools.cached_property
    def warm_step(self) -> StepConfig:
        """The step of the warm start. A mean over tokens per row: chains of every length count alike."""
        rows = self.warm_start.prompts_per_step
        return StepConfig(
            reward=RewardConfig(terms=(Term("avg_log_prob", REWARDS["avg_log_prob"]),)),
            loss=LossConfig(policy_term=0.0),
            lora=dataclasses.replace(self.lora, base_dtype="float32"),  # adapters are added to the whole model
            supervise_chain=True,
            micro_batch_prompts=largest_divisor(rows, 8) if self.train.micro_batch_prompts else 0,
            head_chunk=self.train.head_chunk,
        )

    @property
    def optimizer(self) -> OptimizerConfig:
        return dataclasses.replace(self.optim, total_steps=self.train.steps)

    @property
    def warm_optimizer(self) -> OptimizerConfig:
        w = self.warm_start
        return dataclasses.replace(
            self.optim, lr=w.lr, schedule="constant", warmup_steps=2, total_steps=max(1, w.steps)
        )


def largest_divisor(n: int, most: int) -> int:
    """The largest number up to `most` that divides n."""
    return max(k for k in range(1, most + 1) if n % k == 0)
