"""The step with a critic: it is the reward model's step and the policy's, one after the other."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood.config import build
from rl_likelihood.data import judged_text
from rl_likelihood.data.byte_tokenizer import byte_tokenizer
from rl_likelihood.data.judged_text import SCORE, Reader
from rl_likelihood.data.prompts import EncodedExample
from rl_likelihood.data.tokenizer import vocab_bytes
from rl_likelihood.errors import UserError
from rl_likelihood.learner import adversarial, reward_step
from rl_likelihood.learner.adversarial import optimizers_of
from rl_likelihood.learner.judge import Judge, JudgeParams, make_judge, word_logits
from rl_likelihood.learner.optimizer import OptimizerConfig, make_optimizer, schedule
from rl_likelihood.learner.reward_step import PreferenceConfig, make_reward_step
from rl_likelihood.learner.rows import CriticConfig
from rl_likelihood.learner.step import init_state, make_step, state_shardings
from rl_likelihood.learner.surrogate import LossConfig
from rl_likelihood.mesh import make_mesh
from rl_likelihood.rollouts.experts import Experts
from rl_likelihood.runtime.devices import using
from rl_likelihood.shapes import Compared, Example, Judged
from rl_likelihood.training.session import refuse_nan
from tests.runs import small_config
from tests.small import one_device, random_batch, random_params, rewarded, tiny

P, G = 4, 3
MODEL = tiny(layers=1)
OF_POLICY = OptimizerConfig(lr=1e-2, warmup_steps=0, total_steps=10)
OPTIMIZER = make_optimizer(OF_POLICY)
CRITIC = CriticConfig(
    lr=1e-3, head_lr=0.1, replay=8, replay_share=0.25, optimizer=dataclasses.replace(OF_POLICY, lr=1e-3)
)
BATCH = random_batch(8, P, G)


def read(seed, rows):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, MODEL.vocab_size, (P, rows, 5)).astype(np.int32)
    prompt = rng.integers(0, MODEL.vocab_size, (P, 4)).astype(np.int32)
    return Judged(prompt, np.full(P, 4, np.int32), ids, rng.integers(1, 6, (P, rows)).astype(np.int32))


FRESH, OLD = read(1, 1 + G), Compared(read(2, 2), np.ones((P, 2), bool))
PAIRS = Compared(FRESH, np.ones((P, 1 + G), bool))


def config(critic):
    cfg = rewarded("math")  # a reward that comes with the batch, under the critic's name
    term = dataclasses.replace(cfg.reward.terms[0], name=adversarial.NAME)
    return dataclasses.replace(cfg, reward=dataclasses.replace(cfg.reward, terms=(term,)), critic=critic)


def stepped(critic, batch, mesh):
    cfg = config(critic)
    state = init_state(random_params(MODEL), OPTIMIZER, cfg)
    step = make_step(MODEL, cfg, OPTIMIZER, mesh, batch)
    with using(mesh):
        return jax.tree.map(np.asarray, step(state, None, batch))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), a, b)


@pytest.mark.parametrize("steps", [1, 3])
def test_it_is_the_critics_updates_and_then_the_policys(steps):
    critic, mesh = dataclasses.replace(CRITIC, replay=0, steps=steps), one_device()
    state, out, rows = stepped(critic, BATCH.replace(host_rewards={}, compared=PAIRS), mesh)
    optimizers = optimizers_of(critic)
    alone = make_reward_step(MODEL, PreferenceConfig(), optimizers, mesh, PAIRS)
    with using(mesh):
        of_critic = reward_step.init_state(random_params(MODEL), optimizers)
        for _ in range(steps):
            of_critic, told = alone(of_critic, PAIRS)
    close(state.critic, of_critic)
    assert out["critic/loss"] == told["loss/preference"] and out["critic/accuracy"] == told["preference/accuracy"]
    judge = make_judge(Judge("critic", MODEL))
    scores = np.asarray(judge(JudgeParams(of_critic.params, of_critic.opt_state.head), FRESH))
    assert np.ptp(scores) > 1e-3
    close(rows["reward"], scores[:, 1:])
    cfg = config(None)
    paid = BATCH.replace(host_rewards={adversarial.NAME: scores[:, 1:]})
    policy = make_step(MODEL, cfg, OPTIMIZER, mesh, paid)
    with using(mesh):
        want, _, _ = policy(init_state(random_params(MODEL), OPTIMIZER, cfg), None, paid)
    close(state.params, want.params)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_critics_schedule_ends_with_the_policys(name):
    changes = {"adversarial__steps": 4, "adversarial__lr": 1e-3, "optim__schedule": name, "optim__warmup_steps": 5}
    c = build(small_config(reward__name="adversarial", train__steps=50, **changes))
    critic, policy = schedule(c.critic.optimizer), schedule(c.optimizer)
    shares = [(float(critic(4 * step)) / 1e-3, float(policy(step)) / c.optim.lr) for step in range(5, 50)]
    assert all(ours == pytest.approx(theirs, abs=1e-6) for ours, theirs in shares)
    assert float(critic(4 * 50 - 1)) > 0


@pytest.mark.parametrize("advantage", ["loo", "std"])
def test_a_critic_that_diverged_ends_the_run(advantage, tmp_path):
    """In the step in which it diverges, whose loss was still finite, and in one that begins with NaN."""
    cfg = config(dataclasses.replace(CRITIC, replay=0, head_lr=math.inf))
    cfg, mesh = dataclasses.replace(cfg, loss=LossConfig(advantage=advantage)), one_device()
    batch = BATCH.replace(host_rewards={}, compared=PAIRS)
    state, step = init_state(random_params(MODEL), OPTIMIZER, cfg), make_step(MODEL, cfg, OPTIMIZER, mesh, batch)
    for first in (True, False):
        with using(mesh):
            state, out, _ = step(state, None, batch)
        assert bool(np.isfinite(out["critic/loss"])) == first
        with pytest.raises(UserError, match=r"(critic/loss|reward/adversarial).* lower adversarial.lr and .*head_lr"):
            refuse_nan(2, out, tmp_path)


def test_earlier_answers_have_their_share_and_eight_devices_change_nothing():
    batch = BATCH.replace(host_rewards={}, compared=PAIRS, replayed=OLD)
    state, out, _ = stepped(CRITIC, batch, one_device())
    params = random_params(MODEL)
    head = jax.tree.map(jnp.zeros_like, state.critic.opt_state.head)

    def gradient(pairs):
        loss = functools.partial(reward_step.preference_loss, MODEL, PreferenceConfig())
        return reward_step.gradients((params, head), MODEL, loss, pairs, 0)[0]

    fresh, old = gradient(PAIRS), gradient(OLD)
    total = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, fresh, old)
    updates, _ = optimizers_of(CRITIC).head.update(
        total[1]._replace(bias=jnp.float32(0)), optimizers_of(CRITIC).head.init(head), head
    )
    close(state.critic.opt_state.head.weight, updates.weight)
    assert 0 <= out["critic/accuracy_replay"] <= 1
    nothing = batch.replace(replayed=OLD.replace(present=np.zeros_like(OLD.present)))
    assert np.isnan(stepped(CRITIC, nothing, one_device())[1]["critic/accuracy_replay"])
    again, _, _ = stepped(CRITIC, batch, make_mesh((2, 2, 2)))
    close(again.params, state.params)
    close(again.critic.opt_state.head, state.critic.opt_state.head)


def test_a_critic_of_labels_learns_by_its_expected_reward_and_pays_for_its_mistakes():
    critic = dataclasses.replace(CRITIC, form="label", replay=0, tau_critic=0.3)
    signs = np.where(np.arange(P * G).reshape(P, G) % 2, 1.0, -1.0).astype(np.float32)
    labels = np.tile(np.array([3, 5, 8], np.int32), (P, 1))
    pairs = Compared(read(3, G), np.ones((P, G), bool), signs, labels)
    state, out, rows = stepped(critic, BATCH.replace(host_rewards={}, compared=pairs), one_device())

    def says(params):
        logits = word_logits(params, MODEL, ((3,), (5,), (8,)), pairs.judged)
        first, second, tie = np.moveaxis(np.asarray(jax.nn.softmax(logits)), -1, 0)
        return np.where(signs > 0, first, second), np.where(signs > 0, second, first), tie

    expert, _, tie = says(random_params(MODEL))
    assert out["critic/loss"] == pytest.approx(-(expert + 0.3 * tie).mean(), abs=1e-5)
    after, policy, tie_after = says(state.critic.params)
    assert (after + 0.3 * tie_after).mean() > (expert + 0.3 * tie).mean(), "one update pays"
    close(rows["reward"], policy + 0.6 * tie_after)
    assert out["critic/tie"] == pytest.approx(tie_after.mean(), abs=1e-5)
    assert out["critic/first_bias"] == pytest.approx((signs * (after - policy)).mean(), abs=1e-5)
    again, _, _ = stepped(critic, BATCH.replace(host_rewards={}, compared=pairs), make_mesh((2, 2, 2)))
    close((again.params, again.critic.params), (state.params, state.critic.params))


def told(keep):
    """How much higher the critic scores the experts' usual answer than one that the policy gave in its first 30 steps
    and not in the next 50: after 30 and after 80 steps. One expert in four gives that answer."""
    text = byte_tokenizer()
    model = tiny(layers=1, vocab_size=len(text))
    reader = Reader(text, vocab_bytes(text, len(text)), SCORE, 40, 24)
    none = np.zeros(0, np.int32)
    rows = [EncodedExample(Example(str(i), "Q?", "aa" if i == 0 else "ee"), none, none, none) for i in range(P)]
    critic = dataclasses.replace(CRITIC, replay=keep, replay_share=0.5, head_lr=0.05, lr=1e-2)
    critic = dataclasses.replace(critic, optimizer=dataclasses.replace(OF_POLICY, total_steps=1000))
    cfg, experts, mesh = config(critic), Experts(reader, 0, keep), one_device()
    state = init_state(random_params(model), OPTIMIZER, cfg)
    judge, step, out = make_judge(Judge("critic", model)), None, []
    asked = judged_text.encode(reader, ["Q?"], [[("ee",), ("aa",)]]).judged
    for said, steps in (("aa", 30), ("bb", 50)):
        for _ in range(steps):
            compared, replayed, _ = experts.read(rows, [[said] * G] * P)
            batch = random_batch(8, P, G).replace(host_rewards={}, compared=compared, replayed=replayed)
            step = step or make_step(model, cfg, OPTIMIZER, mesh, batch)
            with using(mesh):
                state, _, _ = step(state, None, batch)
        usual, left = np.asarray(judge(JudgeParams(state.critic.params, state.critic.opt_state.head), asked))[0]
        out.append(usual - left)
    return out


def test_with_replay_the_critic_remembers_a_mode_that_the_policy_left():
    (knew, forgot), (knew_too, remembered) = told(0), told(64 * P)
    assert min(knew, knew_too) > 5
    assert forgot < 0.25 * knew and remembered > 0.5 * knew_too


def test_without_a_critic_the_state_has_none():
    cfg = rewarded("math")
    assert init_state(random_params(MODEL), OPTIMIZER, cfg).critic is None
    assert state_shardings(one_device(), MODEL, OPTIMIZER, cfg).critic is None
