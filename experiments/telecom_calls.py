"""The next tool call on tau2 telecom: a likelihood reward beside a rule, SmolLM2-135M-Instruct, 20 steps, two seeds.

    python -m rl_likelihood.datasets.prepare --dataset=tau2_telecom_turns --source=FOLDER --out=data
    python -m rl_likelihood.sweep experiments/telecom_calls.py --run
    python -m rl_likelihood.sweep experiments/telecom_calls.py --table

A row shows the policy, the ticket and the calls so far with the environment's replies: 880 to 1,553 tokens. The answer
is the next reference call. `avg_log_prob` is how likely the model finds it after its chain; the rule `tool_call` is 1
for the same call and 0 otherwise.

Hardware: two x86-64 CPU cores and 12 GB of memory. Time: 35 minutes for a run.
docs/results.md has the numbers.

What to expect: without a worked example this model does not open the answer tag, so the rule pays nothing and its runs
stay where they are. The likelihood reward has a signal in every chain. It learns the calls, and its chains vanish.
"""

from __future__ import annotations

from rl_likelihood.sweeps.grid import Overrides, named, product, sweep

RESOURCES = {"CPU": 2}

TASK: Overrides = {
    "config": "configs/prepared.py:name=tau2_telecom_turns,model=smollm2-135m-instruct,group=8,steps=20",
    "model.compute_dtype": "auto",
    "model.remat": "none",
    "model.layers": "scan",
    "lora.rank": 16,  # as in configs/quickstart.py
    "prompt.max_prompt": 1664,
    "prompt.width_multiple": 128,
    "prompt.max_answer": 56,  # the longest call has 50 tokens
    "sampler.group_size": 8,  # the preset of avg_log_prob has 32
    "sampler.max_chain": 48,
    "sampler.width_multiple": 16,
    "loss.kl": "none",
    "loss.kl_coef": 0.0,
    "optim.lr": 3e-4,
    "optim.warmup_steps": 4,
    "train.prompts_per_step": 1,
    "train.micro_batch_prompts": 1,
    "train.eval_every": 0,
    "train.checkpoint_every": 5,
    "train.keep_checkpoints": 1,
    "eval.prompts": 16,
    "eval.batch_prompts": 8,
    "report.samples_every": 1,
}
REWARDS: dict[str, Overrides] = {
    "avg_log_prob": {"preset": "kw_avg_log_prob"},
    # A rule over the sampled answer: the response is trained, and there is no answer term. The start is that of above.
    "tool_call": {
        "reward.name": "tool_call",
        "loss.answer_term": 0.0,
        "loss.span": "response",
        "train.eval_first": False,
    },
}


def get_sweep() -> list[Overrides]:
    return product(sweep("seed", (0, 1)), [TASK], named("reward", REWARDS))
