"""Groups that teach nothing are replaced by fresh prompts: bounded, counted, in the order of the stream, resumable."""

import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rl_likelihood import train
from rl_likelihood.config import build
from rl_likelihood.learner.step import filtered
from rl_likelihood.rewards import group_filter
from rl_likelihood.rollouts.batches import SamplerFailed
from rl_likelihood.rollouts.resample import Groups, by_host, chosen, host_groups
from rl_likelihood.rollouts.source import make_source
from rl_likelihood.runtime import distributed, run_files
from rl_likelihood.shapes import TrainState
from rl_likelihood.training.compiled_steps import StepPrograms
from tests.rollouts.test_batches import loaded
from tests.runs import small_config

# A coin stands for a grader: of two rows half of the groups are alike, of three a quarter.
COIN = {"reward__name": "random", "filter__mode": "std_zero"}


def logged(given):
    return given.logged | given.measured()


def test_accepted_groups_come_first_and_refused_ones_fill_up():
    yes, no = True, False
    assert chosen([np.array([no, yes]), np.array([yes, yes])]) == [1, 2]
    assert chosen([np.array([no, no]), np.array([no, yes])]) == [0, 3]
    assert chosen([np.array([yes, yes])]) == [0, 1]


def test_a_batch_is_filled_from_the_stream_and_all_of_it_counts(tmp_path):
    """Against the same stream drawn batch by batch, without replacement."""
    task, devices, params = loaded(**COIN, filter__resample=20, sampler__group_size=2)
    source, plain = make_source(task, devices, tmp_path, 0, None), []
    try:
        given = [source.next(step, params) for step in range(3)]
        state, total = source.state(), source.drawn
    finally:
        source.close()
    assert state == {"drawn": total} and 3 < total < 60
    task, devices, params = loaded(**COIN, sampler__group_size=2)
    source = make_source(task, devices, tmp_path, 0, None)
    try:
        plain = [source.next(step, params) for step in range(total)]
        assert source.state() == {}
    finally:
        source.close()
    reward = np.concatenate([x.batch.host_rewards["random"] for x in plain])
    uid = np.concatenate([x.rollout.prompts.uid for x in plain])
    counts, at, per_step = reward.std(1) > 0, 0, 2
    for x in given:
        n, taken = int(logged(x)["resample/batches"]), []
        span = slice(at * per_step, (at + n) * per_step)
        taken = uid[span][counts[span]][:per_step]
        assert x.rollout.prompts.uid.tolist() == taken.tolist(), "the first of the stream that count"
        assert (x.batch.host_rewards["random"].std(1) > 0).all()
        assert logged(x)["resample/refused"] == (~counts[span]).sum() and logged(x)["resample/filled"] == 1
        for j, u in enumerate(x.rollout.prompts.uid):
            of_plain = next(p for p in plain if u in p.rollout.prompts.uid)
            i = of_plain.rollout.prompts.uid.tolist().index(u)
            assert x.rows[j].example.id == of_plain.rows[i].example.id
            width = min(x.rollout.segment.shape[-1], of_plain.rollout.segment.shape[-1])
            np.testing.assert_array_equal(x.rollout.completion[j, :, :width], of_plain.rollout.completion[i, :, :width])
        at += n
    assert at == total


def test_it_ends_where_nothing_is_accepted(tmp_path):
    c = {**COIN, "reward__name": "exact_match"}
    task, devices, params = loaded(**c, filter__resample=2)
    source = make_source(task, devices, tmp_path, 0, None)
    try:
        given = source.next(0, params)
    finally:
        source.close()
    assert source.drawn == 3 and logged(given)["resample/filled"] == 0 and logged(given)["resample/refused"] == 6
    assert given.rollout.prompts.uid.tolist() == [0, 1]


def test_a_step_whose_sampler_failed_is_drawn_again_from_its_first_batch(tmp_path):
    task, devices, params = loaded(**{**COIN, "reward__name": "exact_match"}, filter__resample=2)
    source = make_source(task, devices, tmp_path, 0, {"drawn": 5})
    sample = source.batches.sample

    def failing(number, weights, version):
        if number == 6:
            raise RuntimeError("out of memory")
        return sample(number, weights, version)

    try:
        source.batches.sample = failing
        with pytest.raises(SamplerFailed):
            source.next(5, params)
        assert source.state() == {"drawn": 5}
    finally:
        source.close()


def test_a_resumed_run_draws_the_same_prompts(tmp_path):
    extra = {**COIN, "filter__resample": 3, "sampler__group_size": 2, "train__steps": 4, "eval__prompts": 0}

    def run(workdir):
        train.run(build(small_config(**extra)), workdir)
        return workdir

    def lines(workdir, name):
        timed = ("time/", "tokens_per_second")
        return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in run_files.read(workdir / name)]

    one, two = run(tmp_path / "one"), tmp_path / "two"
    shutil.copytree(one, two)
    for step in ("3", "4"):
        shutil.rmtree(two / "checkpoints" / step)
    run(two)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines(two, name) == lines(one, name)
    assert sum(row["resample/batches"] for row in run_files.read(one / "metrics.jsonl")) > 4


def test_the_host_judges_by_its_own_terms(tmp_path):
    """A coin and the length penalty: like DAPO, the filter reads only the answers. Weight 0 changes nothing."""
    name = "random + overlong + 0*max_rl(random)"
    task, devices, params = loaded(**{**COIN, "reward__name": name}, filter__resample=1)
    source = make_source(task, devices, tmp_path, 0, None)
    try:
        drawn = source._draw(params, 0)
        drawn.graded.values["random"][:] = [[1, 1, 1], [0, 1, 0]]
        assert host_groups(drawn, task.config).accepted.tolist() == [False, True]
        source._draw = lambda weights, step: drawn  # the refused groups of both draws fill the batch
        drawn.graded.values["random"][:] = [[1, 1, 1], [0, 0, 0]]
        given = source.next(0, params)
    finally:
        source.close()
    assert given.batch.counted.tolist() == [False, False] and given.spread is None


def test_processes_with_the_same_prompts_agree(monkeypatch):
    """In another process, which has prompts 4 and 7 too, a grader ran out of time for prompt 7."""
    theirs = {"uid": np.array([4, 7, 9]), "accepted": np.array([True, False, False])}
    monkeypatch.setattr(distributed, "gather", lambda own: {k: np.concatenate([own[k], theirs[k]]) for k in own})
    prompts = SimpleNamespace(uid=np.array([7, 4, 5]))
    graded = SimpleNamespace(values={"random": np.eye(3)}, keep=np.ones((3, 3), bool))
    drawn = SimpleNamespace(rollout=SimpleNamespace(prompts=prompts), graded=graded)
    assert host_groups(drawn, build(small_config(**COIN))).accepted.tolist() == [False, True, True]


@pytest.mark.parametrize(
    "name, mode, host",
    [
        ("exact_match + overlong", "std_zero", True),
        ("max_rl(exact_match)", "std_zero", True),
        ("exact_match + 0*log_prob", "std_zero", True),
        ("exact_match + log_prob", "std_zero", False),
        ("0*exact_match + log_prob", "std_zero", False),
        ("exact_match", "std_below", False),
    ],
)
def test_the_host_filters_only_what_it_knows(name, mode, host):
    threshold = 0.1 if mode == "std_below" else 0.0
    c = build(small_config(reward__name=name, filter__mode=mode, filter__threshold=threshold))
    assert by_host(c) == host


def test_the_learner_judges_what_only_it_knows(tmp_path):
    """Its verdicts choose the groups, its mean spread reaches the step, and the step does not filter again."""
    task, devices, params = loaded(filter__mode="ema", filter__resample=5)
    verdicts = [Groups(np.array(x), s) for x, s in (([False, True], 1.0), ([False, False], 2.0), ([True, True], 6.0))]
    batches, source = [], make_source(task, devices, tmp_path, 0, None)
    try:
        given = source.next(0, params, lambda batch: batches.append(batch) or verdicts[len(batches) - 1])
    finally:
        source.close()
    assert source.drawn == len(batches) == 3 and given.rollout.prompts.uid.tolist() == [1, 4]
    assert given.batch.counted.all() and given.spread == 3.0 and logged(given)["resample/refused"] == 3
    state = TrainState(step=jnp.int32(5), params=None, opt_state=(), filter=group_filter.init_filter())
    assert filtered(state, (None, None), given.batch, task.model, task.config.step) == (given.batch, state.filter)
    programs = StepPrograms(task, devices, None)
    programs._compiled[given.batch.prompt.shape[1], given.batch.completion.shape[2]] = lambda state, *_: state.filter
    after = programs.start(state, None, given.batch, given.spread)
    assert float(after.ema) == 3.0 and int(after.count) == 1, "RLPR's running mean takes the mean over all drawn groups"


def test_groups_below_the_threshold_of_the_learner_are_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(group_filter, "threshold", lambda *_: jnp.float32(9.0))
    extra = {"reward__name": "avg_prob", "filter__mode": "ema", "filter__resample": 1, "eval__prompts": 0}
    train.run(build(small_config(**extra, train__steps=1)), tmp_path / "run")
    (row,) = run_files.read(tmp_path / "run" / "metrics.jsonl")
    assert row["resample/batches"] == 2 and row["resample/refused"] == 4
    assert row["keep/fraction"] == row["grad/norm"] == 0 and row["reward/std"] > 0
