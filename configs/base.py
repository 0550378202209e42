"""Every field there is, with its default. Other configs start from here and override; nothing else adds fields.

python -m rl_likelihood.train --config=configs/base.py --workdir=DIR --config.model.path=... --print_config
"""

from ml_collections import ConfigDict

from rl_likelihood.config import parse_arg


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. Takes no arguments: what comes after the colon is refused."""
    parse_arg(arg)
    c = ConfigDict()
    c.seed = 0  # of sampling, data order and random initial weights

    c.model = ConfigDict()
    c.model.path = ""  # Hugging Face folder, .gguf file, workdir of another run, or "smollm2-135m-instruct"
    c.model.preset = ""  # instead of a path: random weights of this size ("tiny", 1.6 M parameters) over bytes
    # auto (bfloat16 on accelerators, float32 on CPU) | float32 | bfloat16; parameters, log-probs and losses are
    # always float32
    c.model.compute_dtype = "auto"
    # scan (compile one layer and loop) | unroll (compile all: faster on a CPU, BENCHMARKS.md, and longer to
    # compile) | auto (unroll on a CPU, scan elsewhere)
    c.model.layers = "auto"
    c.model.attention = "auto"  # auto (splash on a TPU whose kernel takes the heads) | dense | splash
    # none | dots | attention | full: how much the backward pass computes again to save memory, the least first.
    c.model.remat = "none"
    # KiB of a TPU's vector memory that one operation of the learner's step may use; -1: what plan's estimates are best
    # with (mesh.SCRATCH), 0: the compiler's own
    c.model.scratch_kib = -1

    c.mesh = ConfigDict()  # the learner's devices = data x fsdp x tensor
    # data: copies of everything; of several TPU slices only data runs from one to the next. fsdp: parameters and
    # optimizer split. 0: what the others leave; both 0: the most fsdp that the batch divides by.
    c.mesh.data = 0
    c.mesh.fsdp = 0
    c.mesh.tensor = 1  # heads, MLP and vocabulary split, within a host

    c.pod = ConfigDict()
    c.pod.heartbeat = 30.0  # seconds in which the death of another process is noticed

    c.data = ConfigDict()
    c.data.source = "reasoning_gym"  # reasoning_gym | jsonl | prepared (by rl_likelihood.datasets.prepare)
    # reasoning_gym: presets (one_operation, basic_arithmetic, chain_sum) and any of its data sets, as "leg_counting" or
    # "leg_counting(min_animals=1, max_animals=2)"; rl_likelihood/datasets/procedural.py says more
    c.data.tasks = ("basic_arithmetic",)
    c.data.train_path = ""  # jsonl, lines {"prompt", "answer"[, "chain", "id", "task"]} or {"messages", "answer"}
    # prepared: train_path is the folder; its splits are train, and validation or test, unless named here
    c.data.train_split = ""
    c.data.heldout_split = ""
    c.data.fast_split = ""  # prepared: another split for the fast evaluations during training; empty: the held-out one
    c.data.heldout_path = ""  # jsonl; without it heldout_size rows of train_path, by a hash of the question
    c.data.train_size = 2000  # questions; for jsonl 0 means all
    c.data.heldout_size = 100
    c.data.seed = 0
    c.data.skip_bad_rows = False  # leave out, count and name bad rows, and training rows that are too long

    c.prompt = ConfigDict()
    c.prompt.instruction = ""  # how to answer; empty: the standard one (data/prompts.py)
    c.prompt.use_system = True  # instruction as system message; False puts it before the question
    c.prompt.examples = 0  # worked examples before the question
    c.prompt.score_delims = "close"  # what counts besides the answer: none | close (the "</" after it) | both
    c.prompt.think_open = "<think>"  # the prompt ends in it
    c.prompt.think_close = "</think>"
    c.prompt.answer_open = "<answer"  # without its ">": the seam where the reference answer is spliced in
    c.prompt.answer_close = "</answer"
    c.prompt.max_prompt = 128  # tokens
    c.prompt.width_multiple = 0  # a batch's prompts padded to a multiple of this (as for rows, below); 0: max_prompt
    c.prompt.max_answer = 16  # tokens, delimiters included

    c.sampler = ConfigDict()
    c.sampler.group_size = 8  # chains per prompt (G)
    c.sampler.max_chain = 64  # sampled tokens of a chain at most, its closing tags included
    c.sampler.max_sampled_answer = -1  # tokens; 0: no answer is sampled, -1: prompt.max_answer if the reward reads it
    c.sampler.temperature = 1.0  # the policy is the distribution at this temperature
    # Rows decoded at one time: those that stop make room for the next ones. 0: all of a step's, or of an evaluation's
    # batch, at once. Changes no sample but by rounding, where a draw lies that near.
    c.sampler.slots = 0
    c.sampler.width_multiple = 0  # rows padded to a multiple of this (each width compiles once); 0: as wide as can be
    c.sampler.max_staleness = 0  # updates a rollout may be behind; 0 is strictly on-policy and reproducible
    c.sampler.queue_depth = 2  # rollouts waiting at most
    # shared (sampler and learner take turns on the same devices), or "4": the last 4 of each process are its own
    c.sampler.devices = "shared"
    c.sampler.tensor = 1  # devices that hold the sampler's weights together: 1, or mesh.tensor where one is too small

    # A published method by name, which sets what its paper sets in reward, loss, filter and sampler
    # (rl_likelihood/presets.py lists them); the command line overrides it.
    c.preset = "none"

    c.reward = ConfigDict()
    # A term, or a weighted sum as "0.9*rlpr + 0.1*format" or "self_certainty/std + exact_match/std", of
    #   likelihood of the reference answer: log_prob avg_log_prob prob avg_prob geo_mean_prob jepo | rlpr
    #   no reference: self_certainty[_raw] token_entropy[_sum] trajectory[_sum] majority_vote random
    #   rules: exact_match numeric math countdown[_tinyzero] multiple_choice telemath tool_call code_output code_tests
    #     reasoning_gym base_rl format format_open_r1 tag_count
    #   NOVER: nover_rank nover_efficiency; shaping: length overlong repetition
    # or sft alone: supervised on the reference answer.
    c.reward.name = "log_prob"
    c.reward.truncated = "force_close"  # chain without answer tag: force_close | floor | drop
    c.reward.floor = -10.0  # log-prob of each answer token after a truncated chain, for truncated="floor"
    c.reward.base_rl = (1.0, 0.1, 0.0)  # right, wrong but in the format, not in the format (ratio 100:10:0 of KW)
    c.reward.baseline = "none"  # taken off by rlpr: none | frozen (initial model, no chain) | live (current model)
    c.reward.length_min = 100.0  # tokens below which `length` = min(tokens - this, 0) is negative
    c.reward.overlong_max = 0.0  # `overlong` is -1 beyond so many sampled tokens; 0: as many as there is room for,
    c.reward.overlong_cache = 0.0  # and falls to that from so many fewer; 0: a quarter of them
    c.reward.entropy_base = "e"  # e | 2: unit of entropy and trajectory rewards
    c.reward.vote_train = 0  # rows of each group trained on; majority_vote counts all of them. 0: all
    c.reward.sft_chain = "none"  # sft: none (the answer alone) | answer (after the data's chain) | both (on it too)

    c.filter = ConfigDict()  # groups left out of baseline, scale and loss
    c.filter.mode = "none"  # none | std_zero | std_below (of threshold) | ema (RLPR: beta times its running mean)
    c.filter.threshold = 0.0
    c.filter.beta = 0.5

    c.proxy = ConfigDict()  # NOVER's scoring model
    c.proxy.every = 100  # steps between its moves towards the policy
    c.proxy.decay = 0.9  # what it keeps of itself

    c.loss = ConfigDict()
    c.loss.answer_term = 1.0  # coefficient of the reward's own gradient; 1 is exact, 0 leaves it out
    c.loss.span = "auto"  # what the policy term covers: chain | response (and the sampled answer) | auto, by the reward
    c.loss.advantage = "loo"  # loo | mean | std | std_clip
    c.loss.aggregation = "seq_sum"  # seq_sum | seq_mean | token_mean | const
    # Truncated importance weights for stale rollouts: none | token | sequence. They correct the policy term; the
    # answer term of a stale chain stays as it is.
    c.loss.ratio = "none"
    c.loss.ratio_cap = 2.0
    c.loss.clip_low = 0.0  # PPO clip of the ratio to [1 - low, 1 + high]; 0 leaves that side open
    c.loss.clip_high = 0.0
    c.loss.kl = "none"  # to the initial model: none | k1 | k2 | k3 in the loss | reward_k1, in the reward
    c.loss.kl_coef = 0.0

    c.optim = ConfigDict()
    c.optim.lr = 1e-5
    c.optim.schedule = "cosine"  # cosine | constant
    c.optim.warmup_steps = 20
    c.optim.final_lr_fraction = 0.0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 1.0  # of the global gradient norm; 0: no clip
    c.optim.momentum_dtype = "float32"  # float32 | bfloat16, which saves two bytes a parameter

    c.train = ConfigDict()
    c.train.steps = 200
    c.train.prompts_per_step = 8  # P; a step sees P x group_size chains
    # Prompts per forward. 0: all at once, on one CPU about as many as have 1,000 completion tokens; -1: the fastest,
    # measured by the run and kept in its workdir. Results are the same but for rounding, by which two runs with -1 may
    # differ.
    c.train.micro_batch_prompts = 0
    # Tokens whose logits exist at one time on a device, more being faster on a TPU; 0: 512, on a CPU what caches hold.
    c.train.head_chunk = 0
    c.train.eval_every = 0  # steps between evaluations; 0: before and after only
    c.train.eval_first = True  # evaluate before the first step; the runs of a sweep that start alike need it once
    c.train.checkpoint_every = 50
    c.train.keep_checkpoints = 2  # the last ones
    c.train.keep_every = 0  # and every so many steps one for good; 0: none

    # Before the first RL step, optionally: supervised steps on chains, to teach a format or a start policy.
    c.warm_start = ConfigDict()
    c.warm_start.steps = 0
    c.warm_start.chains = "own"  # own: the model's own, greedy with worked examples | given: the data's "chain"
    c.warm_start.examples = 2  # worked examples in the prompt with which own chains are sampled
    c.warm_start.prompts = 128  # training questions whose own chains are sampled
    c.warm_start.prompts_per_step = 32
    c.warm_start.lr = 1e-5

    c.eval = ConfigDict()
    c.eval.prompts = 100  # held-out questions used
    # exact_match numeric math countdown multiple_choice telemath tool_call code_output code_tests reasoning_gym
    c.eval.grader = "exact_match"  # none: no answers are sampled or graded, reference answers are only scored
    c.eval.grader_workers = 2  # processes that grade what may hang or crash, here and in rewards; 0: one a core
    c.eval.grader_seconds = 10.0  # for one answer; then the process is ended, and the answer a counted failure
    c.eval.unsafe_code = False  # run programs (code_tests) even where Linux keeps neither network nor files from them
    # Chains at temperature 1 per question, beside the greedy one; N give log_prob_mcN, pass@k and majority@k up to N.
    # 0: greedy answers alone, nothing is scored.
    c.eval.samples = 1
    c.eval.max_sampled_answer = 0  # tokens of the sampled answer; 0: prompt.max_answer
    c.eval.batch_prompts = 50  # questions decoded at one time; changes no number
    # Full evaluations also give what only many chains give (log_prob_mc32, pass@32, majority@32 for 32), from so many
    # chains of each of the first mc_prompts questions (0: of all). 0: what eval.samples gives.
    c.eval.mc_samples = 0
    c.eval.mc_prompts = 0
    # Between the first and the last evaluation of a run, every train.eval_every steps:
    c.eval.fast_prompts = 0  # the first so many of the questions; 0: eval.prompts
    c.eval.fast_samples = -1  # chains sampled for each; -1: eval.samples

    c.report = ConfigDict()
    c.report.no_chain = True  # score each answer without a chain too, every step; no gradient runs through it
    # Counted in the chains, per hundred words.
    c.report.transition_words = ("wait", "but", "however", "let me check", "hmm", "alternatively", "actually")
    c.report.samples_every = 1  # steps between entries in samples.jsonl; 0: none
    c.report.sample_prompts = 1  # prompts written each time, with all their chains
    c.report.console_samples = 20  # steps between chains shown on the console; 0: none
    c.report.wandb = "off"  # off | offline | online
    c.report.wandb_project = "rl_likelihood"
    return c.lock()  # a field that is not here is a misspelling
