"""The one jitted step: forward -> rewards -> leave-one-out differences -> surrogate -> update.

A micro-batch holds whole groups. So one forward with gradients gives the rewards, the differences and both gradient
terms. Only a group filter needs another forward before it, because it decides from the rewards of all groups.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from rl_likelihood.learner import measures, posterior, reward_step, surrogate
from rl_likelihood.learner.adversarial import optimizers_of, update_critic
from rl_likelihood.learner.judge import Judge, JudgeParams, ValueHead, judge_batch
from rl_likelihood.learner.micro_batches import accumulate, as_given, in_parts, ordered, split, unstacked, whole
from rl_likelihood.learner.observation import Forward, Models, observe
from rl_likelihood.learner.optimizer import moment_shardings
from rl_likelihood.learner.rows import RowStats, StepConfig, policy_masks, row_stats
from rl_likelihood.learner.surrogate import Counts, by_weight
from rl_likelihood.mesh import by_prompt, jitted, on_cpu, replicated, row_shards
from rl_likelihood.model.architecture import ModelConfig, Params, Spec, param_specs, shardings
from rl_likelihood.model.lora import LoraConfig, as_base, base_specs, effective, trained_specs
from rl_likelihood.rewards import group_filter, likelihood, reward_sum, shaping, weighted
from rl_likelihood.shapes import CHAIN, TAG, Batch, TrainState

# Completion tokens per forward on a CPU. More tokens take memory and save no time (docs/benchmarks.md).
ENOUGH = 1024


def _k1_in_reward(params_logp, ref_logp, mask, cfg: StepConfig) -> Float[Array, "P G"]:
    """-beta sum_t (log pi - log ref) for each row: RLOO's KL as a part of the reward. It has no gradient."""
    d = jnp.where(mask, params_logp - ref_logp, 0.0).sum(-1)
    return -cfg.loss.kl_coef * jax.lax.stop_gradient(d)


def _rewards(params, probe, models: Models, batch: Batch, model: ModelConfig, cfg: StepConfig):
    """(the forward, the result of `reward_sum.objective`)."""
    params = effective(models[2], params, cfg.lora) if len(models) == 3 else params
    forward = observe(params, models, model, batch, cfg, probe)
    return forward, reward_sum.objective(forward.observation, cfg.reward, _kl_in_reward(forward, cfg))


def _kl_in_reward(forward: Forward, cfg: StepConfig) -> Float[Array, "P G"] | float:
    """What a KL adds to each row's reward: a constant, 0 without one."""
    if forward.chains is not None and cfg.posterior.kl:
        return -cfg.posterior.kl * jax.lax.stop_gradient(posterior.kl_rows(forward.chains, cfg.posterior.target))
    if cfg.loss.kl == "reward_k1":
        rows, mask = forward.rows, forward.observation.policy.mask
        return _k1_in_reward(rows.stats.log_prob, forward.reference_logp, mask, cfg)
    return 0.0


def _loss(differentiated, models: Models, batch: Batch, model: ModelConfig, cfg: StepConfig, counts: Counts):
    """(loss of one micro-batch, (sums for metrics, values of each row)). `differentiated`: the parameters and the probe
    of `row_stats`."""
    loss = cfg.loss
    forward, (f, reward, terms) = _rewards(*differentiated, models, batch, model, cfg)
    rows, keep, ref = forward.rows, forward.observation.keep, forward.reference_logp
    mask = forward.observation.policy.mask
    mixed = forward.chains is not None and cfg.posterior.share > 0
    advantages, policy, answer = (_posterior_terms if mixed else _policy_and_answer)(
        forward, f, reward, batch, cfg, counts
    )
    kl = jnp.float32(0)
    if ref is not None and loss.kl != "none":
        kind = loss.kl if loss.kl in ("k1", "k2", "k3") else "k3"
        per_token = surrogate.kl_estimate(kind, rows.stats.log_prob, ref)
        kl = surrogate.aggregate(by_weight(per_token, batch.weight), mask, keep, loss, counts)
    kl_weight = 0.0 if loss.kl == "reward_k1" else loss.kl_coef
    total = loss.policy_term * policy + loss.answer_term * answer + kl_weight * kl
    extra_sums = {}
    if loss.format_term:
        extra_sums = {"loss/format": _format_loss(rows.stats.log_prob, batch, keep) / counts.prompts}
        total = total + loss.format_term * extra_sums["loss/format"]

    per_row = {"reward": reward, **advantages, **{f"reward/{k}": v for k, v in terms.items()}}
    weights = reward_sum.token_weights(forward.observation, cfg.reward)
    if weights is not None:
        per_row["answer_weights"] = weights
    if forward.chains is not None:
        batch = batch.replace(sampler_logp=posterior.as_after_question(batch.sampler_logp, forward.chains))
        # The KL is left out: it is larger for chains after the answer, and would hide what showing the answer gains.
        earned = reward - _kl_in_reward(forward, cfg)
        posterior_sums = posterior.measured(forward.chains, earned, cfg.posterior)
        extra_sums |= jax.lax.stop_gradient({k: v / counts.prompts for k, v in posterior_sums.items()})
    sums, measured = measures.of_rows(forward, batch, cfg)
    sums |= {"loss/policy": policy, "loss/answer": answer, "loss/kl": kl, **extra_sums}
    return total, (sums, per_row | measured)


def _policy_and_answer(forward: Forward, f, reward, batch: Batch, cfg: StepConfig, counts: Counts):
    """({"advantage": each row's [P, G]; with credit by turn also "turn_advantage": each message's [P, G, K]}, policy
    term, answer term). Both terms are losses, to be minimised."""
    loss, rows, keep = cfg.loss, forward.rows, forward.observation.keep
    logp, mask = forward.observation.floored_logp, forward.observation.policy.mask
    difference = surrogate.leave_one_out(f, jax.lax.stop_gradient(logp), batch.scored, keep)
    advantage = surrogate.advantages(difference, keep, loss.advantage)
    advantages, token_advantage = {"advantage": advantage}, advantage
    if cfg.turn_credit:
        constant = jax.lax.stop_gradient(logp)
        gains = surrogate.turn_gains(constant, batch.scored, batch.segment, keep, cfg.turns)
        advantages["turn_advantage"] = advantage[..., None] + gains
        token_advantage = surrogate.by_token(advantages["turn_advantage"], batch.segment)
    if forward.chains is not None:
        distillation = posterior.distilled(forward.chains, cfg.posterior.distill_clip)
        token_advantage = advantage[..., None] + cfg.posterior.distill * distillation
    paid = by_weight(token_advantage, batch.weight)  # policy_loss is linear in it
    policy = surrogate.policy_loss(rows.stats.log_prob, batch.sampler_logp, paid, mask, keep, loss, counts)
    # Supervision of a given chain is the same objective with the chain among the scored tokens.
    answer_mask = batch.scored | (batch.segment == CHAIN) if cfg.supervise_chain else batch.scored
    return advantages, policy, -by_weight(f(logp, answer_mask, keep), batch.weight).sum() / counts.prompts


def _posterior_terms(forward: Forward, f, reward, batch: Batch, cfg: StepConfig, counts: Counts):
    """As `_policy_and_answer`, for groups with chains from both prompts. The policy term includes posterior.kl."""
    chains, p, logp = forward.chains, cfg.posterior, forward.observation.floored_logp
    w = posterior.weights(chains, p)
    advantage = posterior.advantages(reward, w, chains)
    log_target = posterior.token_target(chains.plain, chains.shown, p.target)
    policy = surrogate.policy_loss(
        log_target, batch.sampler_logp, advantage, chains.mask, chains.keep, cfg.loss, counts
    )
    if p.kl:
        kl_surrogate = likelihood.kept_mean(w * posterior.kl_rows(chains, p.target), chains.keep)
        policy = policy + p.kl * kl_surrogate.sum() / counts.prompts
    if p.answer_rows == "positive":
        w = jnp.where(chains.from_shown, 0.0, advantage > 0)
    row_rewards = posterior.of_each_row(f, logp, batch.scored, chains.keep)
    return {"advantage": advantage}, policy, -likelihood.kept_mean(w * row_rewards, chains.keep).sum() / counts.prompts


def _format_loss(logp: Float[Array, "P G T"], batch: Batch, keep: Bool[Array, "P G"]) -> Float[Array, ""]:
    """Minus the mean log-prob of a row's forced tags, averaged over a group's kept rows and summed over prompts."""
    tags = batch.segment == TAG
    rows = -jnp.where(tags, logp, 0.0).sum(-1) / jnp.maximum(tags.sum(-1), 1)
    return by_weight(likelihood.kept_mean(rows, keep), batch.weight).sum()


def group_spreads(params: Params, models: Models, batch: Batch, model: ModelConfig, cfg: StepConfig):
    """The spread of each group [P], which the filter compares with its threshold."""
    (params,), models = unstacked(model, params), unstacked(model, *models)

    def spread(batch):
        forward, (_, reward, _) = _rewards(params, 0.0, models, batch, model, cfg)
        logp, keep = forward.observation.floored_logp, forward.observation.keep
        by_token = cfg.filter.mode == "token_spread"
        return weighted.largest_spread(logp, batch.scored, keep) if by_token else shaping.group_std(reward, keep)

    return as_given(whole(jax.lax.map(spread, split(ordered(batch), prompts_per_forward(batch, cfg)))), batch)


def filtered(state: TrainState, models: Models, batch: Batch, model: ModelConfig, cfg: StepConfig):
    """(the batch with the groups that the filter accepts marked in `counted`, the filter's next state). With
    filter.resample, the groups were marked when they were drawn."""
    if cfg.filter.mode == "none" or batch.counted is not None:
        return batch, state.filter
    std = group_spreads(state.params, models, batch, model, cfg)
    counts = group_filter.filter_groups(std, cfg.filter, state.filter, state.step)
    return batch.replace(counted=counts), group_filter.update(state.filter, state.step, std.mean(), cfg.filter)


def prompts_per_forward(batch: Batch, cfg: StepConfig) -> int:
    """Prompts per forward: of the batch's packing, else `micro_batch_prompts`, else (0) all prompts.

    On one CPU, 0 means the largest divisor of P whose prompts have fewer than `ENOUGH` completion tokens (at least 1).
    If that gives less than half of `ENOUGH`, the next divisor is taken, unless it gives more than twice `ENOUGH`.
    Prompt tokens are not counted. The mesh in use decides which case applies.
    """
    p, g, t = batch.completion.shape
    if batch.packing is not None:
        return batch.packing.prompts
    if cfg.micro_batch_prompts:
        return cfg.micro_batch_prompts
    if not on_cpu() or row_shards() > 1:
        return p
    sizes = [k for k in range(1, p + 1) if p % k == 0]
    below = max(k for k in sizes if k * g * t < ENOUGH or k == 1)
    above = [k for k in sizes if k > below and k * g * t <= 2 * ENOUGH]
    return min(above, default=below) if below * g * t < ENOUGH // 2 else below


def gradients(params, models: Models, batch: Batch, model: ModelConfig, cfg: StepConfig):
    """(gradient of the loss over the whole batch, sums for metrics, values of each row), in micro-batches."""
    p, size = batch.prompt.shape[0], prompts_per_forward(batch, cfg)
    policy_mask, keep = policy_masks(batch, cfg)
    counts = Counts(
        prompts=jnp.maximum(by_weight(keep.any(-1), batch.weight).sum(), 1).astype(jnp.float32),
        policy_tokens=by_weight(policy_mask & keep[..., None], batch.weight).sum().astype(jnp.float32),
    )
    if cfg.loss.aggregation == "delta_l_batch":
        row_weights = by_weight(surrogate.length_weights(policy_mask, keep, cfg.loss), batch.weight)
        counts = counts._replace(row_weights=row_weights.sum())

    def micro_batch(trained, batch):  # reads models when called, after `unstacked`
        tokens = batch.completion.shape if batch.packing is None else (row_shards(), batch.packing.tokens)
        probe = jnp.zeros((*tokens, model.width), model.compute_dtype)
        grad = jax.value_and_grad(_loss, has_aux=True)
        (_, (sums, per_row)), (grads, grad_hidden) = grad((*trained, probe), models, batch, model, cfg, counts)
        return (grads,), (sums | measures.hidden_grad_norms(grad_hidden, batch, cfg), per_row)

    if size >= p:
        (grads,), (sums, per_row) = micro_batch((params,), ordered(batch))
        return grads, sums, as_given(per_row, batch)
    models = unstacked(model, *models)
    (grads,), (sums, per_row) = accumulate(micro_batch, model, (params,), split(ordered(batch), size))
    sums = {k: v.max(0) if k.startswith("max/") else v.sum(0) for k, v in sums.items()}
    return grads, sums, as_given(whole(per_row), batch)


@jax.jit
def all_finite(params: Params) -> Bool[Array, ""]:
    """Whether no parameter is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]))


def init_state(params: Params, optimizer: optax.GradientTransformation, cfg: StepConfig) -> TrainState:
    """The state at step 0."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        filter=group_filter.init_filter(),
        # Copies, because the state is donated and a buffer can be donated only once.
        proxy=jax.tree.map(jnp.copy, params) if cfg.needs("proxy") else None,
        reference=jax.tree.map(jnp.copy, params) if cfg.moving_reference else None,
        critic=cfg.critic and reward_step.init_state(jax.tree.map(jnp.copy, params), optimizers_of(cfg.critic)),
    )


def state_shardings(
    mesh: Mesh, model: ModelConfig, optimizer: optax.GradientTransformation, cfg: StepConfig
) -> TrainState:
    """Shardings of the state: parameters and their moments by `mesh.RULES`, everything else replicated."""
    specs, everywhere = trained_specs(model, cfg.lora), replicated(mesh)
    params = shardings(specs, mesh)
    return TrainState(
        step=everywhere,
        params=params,
        opt_state=moment_shardings(mesh, optimizer, specs),
        filter=jax.tree.map(lambda _: everywhere, jax.eval_shape(group_filter.init_filter)),
        proxy=params if cfg.needs("proxy") else None,
        reference=params if cfg.moving_reference else None,
        critic=cfg.critic and reward_step.state_shardings(mesh, model, optimizers_of(cfg.critic)),
    )


def models_of(state: TrainState, ref_params: Params | None, cfg: StepConfig) -> Models:
    """The models that a step reads besides the policy."""
    if not cfg.lora.rank:
        return ref_params if state.reference is None else state.reference, state.proxy
    moving, proxy = (slow and effective(ref_params, slow, cfg.lora) for slow in (state.reference, state.proxy))
    return moving or (ref_params if cfg.with_reference else None), proxy, ref_params


def reference_shardings(mesh: Mesh, model: ModelConfig, lora: LoraConfig | None = None) -> Params:
    """Shardings of a model that is not trained. Its layers are `unstacked`, unless it is the base of adapters. Each
    layer is split as in the policy's stack."""
    specs = base_specs(model, lora) if lora and lora.rank else param_specs(model)
    if not model.scan_layers and not (lora and lora.rank):
        layer = {name: Spec(s.shape[1:], s.axes[1:], s.init) for name, s in specs["layers"].items()}
        specs |= {"layers": (layer,) * model.layers}
    return shardings(specs, mesh)


def init_reference(params: Params, mesh: Mesh, model: ModelConfig, cfg: StepConfig) -> Params | None:
    """The reference model or the base of adapters, as `make_step` takes it; None if the step needs neither.

    A reference never changes, so its layers are unstacked and its numbers rounded to `model.compute_dtype` once. The
    policy's are in every step.
    """
    if not cfg.with_frozen:
        return None
    if cfg.lora.rank:
        if cfg.lora.base_dtype != "int8":
            return as_base(params, cfg.lora)
        at = reference_shardings(mesh, model, cfg.lora)
        return jax.jit(lambda p: as_base(p, cfg.lora), out_shardings=at)(params)
    if model.scan_layers and model.compute_dtype == "float32":
        return params
    stored = lambda p: jax.tree.map(lambda x: x.astype(model.compute_dtype), unstacked(model, p)[0])
    return jax.jit(stored, out_shardings=reference_shardings(mesh, model))(params)


def judge_shardings(mesh: Mesh, model: ModelConfig, by_words: bool) -> JudgeParams:
    """Shardings of a judge, whose decoder is `unstacked`. `by_words`: it replies with a word and has no value head."""
    everywhere = replicated(mesh)
    return JudgeParams(reference_shardings(mesh, model), None if by_words else ValueHead(everywhere, everywhere))


def make_step(
    model: ModelConfig,
    cfg: StepConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch: Batch,
    judge: Judge | None = None,
):
    """The jitted step(state, ref_params, batch) -> (state, metrics, per-row values [P, G, ...]).

    `state` is donated. With LoRA its parameters are the adapters. `ref_params` comes from `init_reference`; without a
    reference model the program has no second forward. The shapes of `batch` decide how groups are split over the mesh.
    A `judge` reads `batch.judged`. Its `JudgeParams` are then a fourth argument, sharded by `judge_shardings`. A critic
    takes the judge's place; it is updated before the policy.
    """

    def step(state: TrainState, ref_params: Params | None, batch: Batch, judge_params: JudgeParams | None = None):
        size, critic_state, judged = prompts_per_forward(batch, cfg), None, {}
        if judge is not None:
            batch, judged["judge/failures"] = judge_batch(judge_params, judge, batch, size)
        elif cfg.critic is not None:
            critic_state, batch, judged = update_critic(state.critic, batch, model, cfg.critic, size)
        models = models_of(state, ref_params, cfg)
        batch, filter_state = filtered(state, models, batch, model, cfg)
        grads, sums, per_row = gradients(state.params, models, batch, model, cfg)
        with jax.named_scope("update"):  # the name that runtime/profile.py looks for
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        out = measures.metrics(sums, per_row, batch) | {"grad/norm": optax.tree.norm(grads)} | judged
        next_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            filter=filter_state,
            proxy=_moved(state.proxy, params, state.step + 1, cfg.proxy.every, cfg.proxy.decay),
            reference=_moved(
                state.reference, params, state.step + 1, cfg.loss.reference_every, cfg.loss.reference_decay
            ),
            critic=critic_state,
        )
        return next_state, out, per_row

    state_at = state_shardings(mesh, model, optimizer, cfg)
    reference_at = reference_shardings(mesh, model, cfg.lora) if cfg.with_frozen else None
    judge_at = () if judge is None else (judge_shardings(mesh, judge.model, bool(judge.words)),)
    return jitted(step, mesh, model.scratch_kib, (state_at, reference_at, by_prompt(mesh, batch), *judge_at))


def _moved(slow: Params | None, params: Params, step, every: int, decay: float) -> Params | None:
    """A slow copy of the policy after a step. Once every `every` steps: decay * copy + (1 - decay) * policy."""
    if slow is None:
        return None
    towards = jnp.where(step % every == 0, 1 - decay, 0.0)
    return jax.tree.map(lambda old, new: old + towards * (new - old), slow, params)


@functools.lru_cache(maxsize=4)  # so that a run compiles each scorer once
def make_score(model: ModelConfig, cfg: StepConfig, mesh: Mesh | None = None):
    """The jitted score(params, batch) -> RowStats, for evaluation: only the step's forward.

    It scores `prompts_per_forward` prompts at a time, split over `mesh` as in the step. Every process gets all results.
    """

    def score(params: Params, batch: Batch) -> RowStats:
        if mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, by_prompt(mesh, batch))
        run = lambda params, part: row_stats(params, model, part, cfg)
        return in_parts(run, model, params, batch, prompts_per_forward(batch, cfg))

    return jax.jit(score, out_shardings=None if mesh is None else replicated(mesh))
