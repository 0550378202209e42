"""The checks of judges, rubrics and critics."""

from __future__ import annotations

from rl_likelihood.errors import UserError
from rl_likelihood.fields import refuse_others
from rl_likelihood.learner.rows import CriticConfig
from rl_likelihood.settings import Config


def validate_judge(c: Config) -> None:
    """Refuse a judged reward without its model, a model without its reward, and a `judge.where` that does not fit."""
    j, reward = c.judge, c.reward
    judged = [t.name for t in reward.terms if t.reward.kind == "judge"]
    if len(judged) > 1:
        raise UserError(f"reward.name is {reward.name!r}; a run has one judge, so keep one of {judged[:2]}")
    without_task = ("reward_model", "similar_share", *(["adversarial"] if c.adversarial.form == "head" else []))
    if j.task and judged and judged[0] in without_task:
        raise UserError(f"judge.task is {j.task!r}, but {judged[0]} reads only question and answer; leave it empty")
    if judged == ["adversarial"]:
        validate_adversarial(c)
        return
    if judged and not j.model:
        raise UserError(f"reward.name has {judged[0]!r}, but judge.model is empty; name the model that judges")
    if j.model and not judged:
        raise UserError(
            f"judge.model is {j.model!r}, but no term of reward.name = {reward.name!r} uses it; add a term such as "
            "judge or reward_model to the reward, or leave judge.model empty"
        )
    if j.remote and judged[0] in ("reward_model", "similar_share"):
        raise UserError(f"judge.model is {j.model!r}, a server, but {judged[0]} needs weights; set reward.name=judge")
    combined = judged and judged[0] in ("rubric", "pairwise", "similar_share")
    if combined and (j.where == "step" or j.model == "initial"):
        raise UserError(
            f"judge.model is {j.model!r} and judge.where {j.where!r}, but the numbers of {judged[0]} are combined "
            "before the step; set judge.where=outside and name a model"
        )
    validate_rubric(c, judged)
    if j.remote and j.where == "step":
        raise UserError(f"judge.where is 'step', but judge.model is {j.model!r}, a server; set judge.where=outside")
    if j.remote and not j.name:
        raise UserError("judge.name is empty; set it to the name of the model on the judge's server")
    if j.normalise != "none" and judged != ["reward_model"]:
        raise UserError(f"judge.normalise is {j.normalise!r}, which is only for reward_model; set it to none")
    if j.model == "initial" and j.where != "step":
        raise UserError("judge.model is 'initial', which is available only in the step; set judge.where=step")
    if j.model == "initial" and judged == ["reward_model"]:
        raise UserError("judge.model is 'initial', which is no reward model; set reward.name to judge")
    if j.model == "initial" and j.template != "model":
        raise UserError(
            f"judge.template is {j.template!r}, but judge.model=initial has the run's own template; set prompt.template"
        )
    if j.model == "initial" and c.lora.rank:
        raise UserError(f"judge.model is 'initial', but lora.rank is {c.lora.rank}; name another model")
    if j.model == "initial" and not c.step.with_reference:
        raise UserError(
            "judge.model is 'initial', but the run has no reference model; set loss.kl=k3 with a loss.kl_coef, "
            "or name another model"
        )
    if j.model and j.where == "step" and c.filter.resample:
        raise UserError(
            f"filter.resample is {c.filter.resample}, which needs the judge's numbers before the step; set "
            "judge.where to outside or filter.resample=0"
        )


def validate_rubric(c: Config, judged: list[str]) -> None:
    """Refuse rubrics without their reward, the reward without rubrics, and settings of rubrics that do not fit."""
    if (judged == ["rubric"]) != bool(c.rubric.path):
        raise UserError(
            f"rubric.path is {c.rubric.path!r} but reward.name is {c.reward.name!r}; set rubric.path if and only if "
            "reward.name is rubric"
        )
    if c.rubric.low > c.rubric.high:
        raise UserError(f"rubric.low is {c.rubric.low:g}, more than rubric.high = {c.rubric.high:g}; lower rubric.low")
    if c.rubric.retriever == "bm25" and c.rubric.store != "numpy":
        raise UserError(
            f"rubric.store is {c.rubric.store!r}, but rubric.retriever=bm25 compares no vectors; set it to "
            "numpy, or another retriever"
        )


def validate_adversarial(c: Config) -> None:
    """Refuse what does not go with a critic that learns beside the policy."""
    only = {"judge.model": "", "sampler.max_staleness": 0, "filter.resample": 0, "filter.mode": "none"}
    only |= {"reward.vote_train": 0, "posterior.share": 0}
    only |= {"judge.where": "outside", "judge.normalise": "none", "judge.template": "model", "rubric.path": ""}
    unused = {"head": ["tau_critic", "tau_policy", "critic_share"], "label": ["reward", "critic_share"]}
    replay = [] if c.adversarial.replay else ["replay_share"]
    for name in [*unused.get(c.adversarial.form, ["reward"]), *replay]:
        only[f"adversarial.{name}"] = getattr(CriticConfig, name)  # its default
    if c.raro:
        only |= {"posterior.distill": 0, "adversarial.steps": 1}
        others = [t.name for t in c.reward.terms if t.name != "adversarial" and set(t.reward.reads) - {"chain"}]
        if others:
            raise UserError(
                f"reward.name has {others[0]!r}, which reads more than the chain; with adversarial.form=raro add only "
                "terms such as format"
            )
    else:
        only["lora.rank"] = 0
    refuse_others(c, f"adversarial.form={c.adversarial.form}", {name: [value] for name, value in only.items()}, repr)
