"""The second model of a planned run: its memory, and its program where it is not part of the learner's step."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from rl_likelihood.learner.judge import Judge, JudgeParams, ValueHead, make_judge
from rl_likelihood.learner.micro_batches import unstacked
from rl_likelihood.learner.step import judge_shardings
from rl_likelihood.mesh import local_bytes
from rl_likelihood.model.architecture import ModelConfig, abstract, param_specs
from rl_likelihood.rollouts.local_judge import AT_ONCE
from rl_likelihood.settings import Config
from rl_likelihood.shapes import Judged


class PlannedJudge(NamedTuple):
    """A judge that this run computes, and its parameters as shapes; `unstacked` where the step has it."""

    judge: Judge
    params: JudgeParams


def planned_judge(c: Config, model: ModelConfig | None) -> PlannedJudge | None:
    """The config's judge, of this model; None where there is none or an address answers."""
    if model is None or not c.reward.judged:
        return None
    params = abstract(param_specs(model))
    if c.judge_in_step:
        params = jax.eval_shape(lambda p: unstacked(model, p)[0], params)
    if c.reward.judged == "reward_model":
        array = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
        head = ValueHead(array(model.width), array())
        return PlannedJudge(Judge("reward_model", model), JudgeParams(params, head))
    return PlannedJudge(Judge(c.reward.judged, model, words=((0,), (1,))), JudgeParams(params))


def held_by_judge(c: Config, judge: PlannedJudge | None, mesh: Mesh) -> int:
    """Bytes of its parameters on a device that has some: split over the learner's mesh, or whole on the sampler's first
    device. The reference model is counted by itself."""
    if judge is None or c.judge.model == "initial":
        return 0
    if c.judge_in_step:
        return local_bytes(judge.params, judge_shardings(mesh, judge.judge.model, judge.params.head is None))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(judge.params))


def texts_of_step(c: Config, questions: int) -> int:
    """How many texts the judge reads in a step, each with all answers to its question. A rubric's has a text for each
    criterion: rubric.items, as --make writes them. A file with more takes longer."""
    by_criterion = c.reward.judged == "rubric" and c.rubric.aggregate != "implicit"
    criteria = c.rubric.items + (c.rubric.aggregate == "checklist")  # which adds one
    return questions * (criteria if by_criterion else 1)


def trace_judge(c: Config, judge: PlannedJudge, device: Any, prompts: int, rows: int) -> Any:
    p, at, j = min(texts_of_step(c, prompts), AT_ONCE), SingleDeviceSharding(device), c.judge
    rows = 2 * (rows - 1) if c.reward.judged == "pairwise" else rows  # both orders
    array = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.int32, sharding=at)
    judged = Judged(array(p, j.max_prompt), array(p), array(p, rows, j.max_row), array(p, rows))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), judge.params)
    return make_judge(judge.judge).trace(params, judged)
