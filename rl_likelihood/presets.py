"""The methods of the papers, as settings: `--config.preset=NAME`.

A preset sets what defines its method: reward, shaping, advantage, loss, filter, group size and temperature. Model,
data, lengths, batch and learning rate are up to the experiment; the comments give the papers' values. "Inferred" marks
a value that a paper does not state. The presets dapo and rlpr replace the groups that their filter refuses by
groups of fresh prompts. A step samples at most ten batches.
"""

from __future__ import annotations

from typing import Any

# Every preset resets these, whatever the config file has, unless its paper sets them.
_NEUTRAL = {
    "prompt.score_delims": "close",
    "reward.baseline": "none",
    "reward.token_weights": "none",
    "reward.clip_gain": True,
    "reward.vote_train": 0,
    "reward.sft_chain": "none",
    "reward.truncated": "force_close",
    "filter.mode": "none",
    "filter.resample": 0,
    "loss.ratio": "none",
    "loss.clip_low": 0.0,
    "loss.clip_high": 0.0,
    "loss.clip_per": "token",
    "loss.mask_move": 0.0,
    "loss.format_term": 0.0,
    "loss.kl": "none",
    "loss.kl_coef": 0.0,
    "posterior.share": 0.0,
    "posterior.target": 0.0,
    "posterior.kl": 0.0,
    "posterior.weight_cap": 0.0,
    "posterior.answer_rows": "all",
    "posterior.distill": 0.0,
    "sampler.temperature": 1.0,
}
_NO_KL = {"loss.kl": "none", "loss.kl_coef": 0.0}
_SMALL_KL = {"loss.kl": "k3", "loss.kl_coef": 0.001}
# The exact gradient of a likelihood reward: leave-one-out, sums over tokens, the answer term.
_EXACT = {
    "loss.answer_term": 1.0,
    "loss.span": "chain",
    "loss.advantage": "loo",
    "loss.aggregation": "seq_sum",
}
# The same for a reward of the sampled text.
_OF_TEXT = {**_EXACT, "loss.answer_term": 0.0, "loss.span": "response"}
# Kwiatkowski et al. 2602.03979, app. B: RLOO, exact answer term, G 32 (4 for jepo and on data that no rule verifies),
# 8 prompts, 1024 tokens, lr 1e-5 cosine, clip 1.0. KL k3 x 0.001 on verifiable data, none on other data.
_KW = {"sampler.group_size": 32, **_EXACT, **_SMALL_KL}
# Shao et al. 2402.03300: group-normalised reward, mean over each row's tokens, k3 in the loss. It departs in the KL's
# coefficient and the group's size: the paper has 0.04 and G 64; 0.001 is verl's default and Kwiatkowski's, and G is the
# config's. Clip 0.2 is the default of TRL and verl (inferred).
_GRPO = {
    "reward.name": "exact_match",
    "loss.answer_term": 0.0,
    "loss.span": "response",
    "loss.advantage": "std",
    "loss.aggregation": "seq_mean",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    **_SMALL_KL,
}
# Agarwal et al. 2505.15134: RLOO, G 4, KL 0.001 (estimator inferred), 512 prompts, lr 1e-6.
_EM_RL = {"sampler.group_size": 4, **_OF_TEXT, **_SMALL_KL}
_LATRO = {
    "reward.name": "log_prob",
    "sampler.group_size": 16,
    **_EXACT,
    "loss.kl": "reward_k1",
    "loss.kl_coef": 0.05,
}
# A variational bound on log p(y|x): half the chains are from the prompt that shows the answer. The group's size is
# inferred.
_BOUND = {"reward.name": "log_prob", "sampler.group_size": 8, "posterior.share": 0.5, "posterior.kl": 1.0, **_EXACT}

_METHODS: dict[str, dict[str, Any]] = {
    "kw_log_prob": {**_KW, "reward.name": "log_prob"},
    "kw_avg_log_prob": {**_KW, "reward.name": "avg_log_prob"},
    "kw_prob": {**_KW, "reward.name": "prob"},
    "kw_avg_prob": {**_KW, "reward.name": "avg_prob"},
    "kw_jepo": {**_KW, "reward.name": "jepo", "sampler.group_size": 4},
    "kw_base_rl": {**_KW, "reward.name": "base_rl", "reward.base_rl": (100.0, 10.0, 0.0), **_OF_TEXT},
    # Zhou et al. 2505.21493: G 8, 16 prompts, lr 1e-6 constant, no KL. A chain without an answer tag earns 0.
    "verifree": {
        "reward.name": "prob",
        "reward.truncated": "floor",
        "reward.floor": -100.0,
        "sampler.group_size": 8,
        **_EXACT,
    },
    # Tang et al. 2503.19618, app. B.2: n 4, 64 prompts, KL 1e-3 (k3 is inferred), answer term 1 on proofs. In the paper
    # a missing answer costs 10 in a separate loss; here such chains are dropped. Clipped advantages are averaged over
    # the group (inferred: the paper sums the unclipped ones).
    "jepo_tang": {
        "reward.name": "jepo",
        "reward.truncated": "drop",
        "sampler.group_size": 4,
        **_EXACT,
        "loss.advantage": "std_clip",
        **_SMALL_KL,
    },
    # Yu et al. 2506.18254: G 8, 768 prompts, lr 1e-6, 3072 tokens, baseline of the initial policy, filter beta 0.5
    # (Qwen; 0.9 for Llama, 1.0 for Gemma). `format` is stricter than theirs: no text is allowed around the two blocks.
    # Refused groups are replaced; the limit of ten batches is inferred.
    "rlpr": {
        "prompt.score_delims": "none",  # both scores of the difference cover the answer alone
        "reward.name": "0.9*rlpr + 0.1*format + repetition",
        "reward.baseline": "frozen",
        "reward.truncated": "floor",
        "reward.floor": -100.0,
        "sampler.group_size": 8,
        "filter.mode": "ema",
        "filter.beta": 0.5,
        "filter.resample": 9,
        "loss.answer_term": 0.0,
        "loss.span": "response",
        "loss.advantage": "std",
        "loss.aggregation": "token_mean",
        "loss.clip_low": 0.2,
        "loss.clip_high": 0.27,
    },
    # Liu et al. 2505.16022 and its code: n 8, lr 1e-5, T 0.6, beta 0.1. The two rewards contain the format gate, and
    # the perplexity covers the answer's tags.
    "nover": {
        "prompt.score_delims": "both",
        "reward.name": "format + nover_rank + nover_efficiency",
        "sampler.group_size": 8,
        "sampler.temperature": 0.6,
        "proxy.every": 100,
        "proxy.decay": 0.9,
        "loss.answer_term": 0.0,
        "loss.span": "response",
        "loss.advantage": "mean",
        "loss.aggregation": "token_mean",
        "loss.clip_low": 0.1,
        "loss.clip_high": 0.2,
        "loss.kl": "k3",
        "loss.kl_coef": 0.1,
    },
    # Zhao et al. 2505.19590: G 7, 128 prompts, lr 3e-6, T 0.9, beta 0.005 (their table says 0.0005).
    "intuitor": {
        **_GRPO,
        "reward.name": "self_certainty",
        "sampler.group_size": 7,
        "sampler.temperature": 0.9,
        "loss.kl_coef": 0.005,
    },
    # Zuo et al. 2504.16084: vote of 64, train on 32, 8 prompts, lr 5e-7. That there is no KL is inferred.
    "ttrl": {
        **_GRPO,
        "reward.name": "majority_vote",
        "sampler.group_size": 64,
        "reward.vote_train": 32,
        **_NO_KL,
    },
    "grpo": _GRPO,
    # Ahmadian et al. 2402.14740: sequence log-prob, KL in the reward. Its coefficient is grpo's (inferred).
    "rloo": {
        "reward.name": "exact_match",
        **_OF_TEXT,
        "loss.kl": "reward_k1",
        "loss.kl_coef": 0.001,
    },
    # Liu et al. 2503.20783: no division by the standard deviation or by lengths, no KL.
    "dr_grpo": {**_GRPO, "loss.advantage": "mean", "loss.aggregation": "const", **_NO_KL},
    # Yu et al. 2503.14476: G 16, clip 0.2 / 0.28, mean over all tokens. Groups all right or all wrong are replaced, in
    # at most ten batches (its released code's max_num_gen_batches).
    "dapo": {
        **_GRPO,
        "reward.name": "2*exact_match + overlong",
        "sampler.group_size": 16,
        "filter.mode": "std_zero",
        "filter.resample": 9,
        "loss.aggregation": "token_mean",
        "loss.clip_high": 0.28,
        **_NO_KL,
    },
    # Chen et al. 2411.04282: log p(y|x,z) - 0.05 sum (log pi - log ref), RLOO, G 16, lr 5e-7.
    "latro": _LATRO,
    # Its released code by default: sft_penalty 0 makes the answer term inert.
    "latro_code": {**_LATRO, "loss.answer_term": 0.0},
    # Gurung and Lapata 2503.22828: G 8, 64 prompts, lr 5e-7, k3 x 1e-6. Theirs hides the reasoning from the scorer and
    # shows it a plan; ours shows it the chain. Advantage and mean over tokens as GRPO's (inferred).
    "vr_cli": {
        **_GRPO,
        "reward.name": "vr_cli",
        "reward.baseline": "frozen",
        "loss.span": "chain",
        "sampler.group_size": 8,
        "loss.kl_coef": 1e-6,
    },
    # 2602.11549: probabilities weighted by -log p without a chain, gain clipped at 0 and over the group's standard
    # deviation, exact answer term, format loss 0.3. Inferred: the base is the initial model's, RLOO, sums over tokens,
    # no KL, and a deviation that divides the answer term too, which makes it large where chains nearly agree. A chain
    # worse than none earns 0 and its answer is not trained. A group of such chains trains the format alone.
    "nrt": {
        "reward.name": "nrt/std",
        "reward.baseline": "frozen",
        "reward.token_weights": "neg_log",
        "loss.format_term": 0.3,
        **_EXACT,
    },
    # 2506.13351: G 16, lr 1e-6, KL 0.001. Its w and the threshold of its filter are not stated. Its factor for
    # the length of a sampled answer is left out.
    "dro": {**_GRPO, "reward.name": "r3", "loss.span": "chain", "sampler.group_size": 16},
    # Prabhudesai et al. 2505.22660: minus the mean entropy of the response's tokens, by GRPO. Clip and KL as grpo's
    # (inferred).
    "rent": {**_GRPO, "reward.name": "token_entropy"},
    # Zhang et al. 2504.05812: the share of the group in the same cluster, by GRPO; a cluster is equal answers, as for
    # mathematics (with reward.name=similar_share, similar ones). Clip and KL as grpo's
    # (inferred).
    "empo": {**_GRPO, "reward.name": "vote_share"},
    # 2603.10624: by GRPO; clip and KL as grpo's are inferred.
    "cer": {**_GRPO, "reward.name": "cer"},
    # Zheng et al. 2507.18071: the clipped ratio is the geometric mean over the row, clip 3e-4 / 4e-4, no KL.
    "gspo": {**_GRPO, "loss.clip_per": "sequence", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4, **_NO_KL},
    # MiniMax-M1, 2506.13585: ratios capped above alone, mean over all tokens, no KL. It tunes the cap and states none;
    # 1.28 is Trinity-RFT's default.
    "cispo": {
        **_GRPO,
        "loss.aggregation": "token_mean",
        "loss.ratio": "token",
        "loss.ratio_cap": 1.28,
        "loss.clip_low": 0.0,
        "loss.clip_high": 0.0,
        **_NO_KL,
    },
    # prime-rl's default: tokens whose probability moved by more than 0.2 are left out, reward less the group's mean,
    # ratios are not capped, mean over all tokens. Without its penalty on squared log-ratios.
    "dppo": {
        **_GRPO,
        "loss.advantage": "mean",
        "loss.aggregation": "token_mean",
        "loss.ratio": "token",
        "loss.ratio_cap": 1e6,
        "loss.mask_move": 0.2,
        "loss.clip_low": 0.0,
        "loss.clip_high": 0.0,
        **_NO_KL,
    },
    # He et al. 2509.07558: rows weigh length^-alpha; alpha 1 on countdown, 0.75 on mathematics. GRPO without KL is
    # inferred.
    "delta_l": {**_GRPO, "loss.aggregation": "delta_l_batch", "loss.delta_l_alpha": 1.0, **_NO_KL},
    # 2601.05242: each reward is normalised in its group, then they are summed. Its further normalisation over the batch
    # is left out: it changes the step's size alone. Clip and KL as grpo's (inferred).
    "gdpo": {**_GRPO, "reward.name": "exact_match/std + format/std", "loss.advantage": "mean"},
    # 2602.02710: H_K - H_N. The exact gradient: sums over tokens, no clip, no KL (inferred); groups with none right
    # count.
    "max_rl": {"reward.name": "max_rl(exact_match)", **_OF_TEXT},
    # 2510.01265, on documents: G 16, T 0.7, mean over a thought's tokens, PPO clip (0.2 is inferred), no KL, batch 512,
    # lr 1e-6, thoughts of 2048 tokens. Its EMA term is a constant of the group and cancels.
    "rlp": {
        "reward.name": "log_prob",
        "prompt.score_delims": "none",  # the document's words alone; the answer ends at a random place
        "sampler.group_size": 16,
        "sampler.temperature": 0.7,
        "loss.answer_term": 0.0,
        "loss.span": "chain",
        "loss.advantage": "loo",
        "loss.aggregation": "seq_mean",
        "loss.clip_low": 0.2,
        "loss.clip_high": 0.2,
    },
    # 2506.08007, on documents: 1 if the answer is, in bytes, a prefix of the continuation that ends with one of its
    # tokens. GRPO without KL is inferred. Theirs is trained on tokens of high entropy alone.
    "rpt": {**_GRPO, "reward.name": "prefix_token", **_NO_KL},
    # Wen et al. 2512.12576: half the chains are from a prompt that shows the answer, the target is the average of both
    # policies token by token, weights are target over what was sampled, log p(y|x,z) less its mean, KL from the target
    # to the question's policy, answer term on the question's chains that did well. Inferred: coefficients of 1, sums
    # over tokens, and a cap of 2 where theirs clips as GRPO does.
    "covrl": {
        **_BOUND,
        "posterior.target": 0.5,
        "posterior.weight_cap": 2.0,
        "posterior.answer_rows": "positive",
    },
    # Lin et al. 2510.25206: E_q log p(y|x,z) - KL(q || p), chains after the answer judged against those after the
    # question. Inferred: shares of a half, coefficients of 1.
    "ravr": {**_BOUND, "posterior.target": 1.0},
    # Zhao et al. 2601.18734, in its form with sampled tokens: reverse KL to the same model that is shown the answer,
    # T 1.1, lr 2e-4 with LoRA. Its teacher is the initial model, ours the current one. The cut at 5 is inferred.
    "opsd": {
        "reward.name": "0*log_prob",
        "sampler.temperature": 1.1,
        "posterior.distill": 1.0,
        "posterior.distill_clip": 5.0,
        "loss.answer_term": 0.0,
        "loss.span": "chain",
        "loss.advantage": "loo",
        "loss.aggregation": "token_mean",
    },
    "em_rl_token": {**_EM_RL, "reward.name": "token_entropy_sum"},
    "em_rl_sequence": {**_EM_RL, "reward.name": "trajectory_sum"},
}

PRESETS = {name: {**_NEUTRAL, **values} for name, values in _METHODS.items()}
