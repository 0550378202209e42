"""Settings of judges, rubrics and critics that do not fit together are refused, before anything is loaded."""

import contextlib

import pytest

from rl_likelihood.config import build
from rl_likelihood.data.judged_text import JudgeSettings
from rl_likelihood.errors import UserError
from rl_likelihood.rollouts.endpoint import Endpoint
from rl_likelihood.rollouts.judges import form_for, refuse_judge
from rl_likelihood.rollouts.local_judge import HEAD, load_head
from rl_likelihood.training.dry_run import dry_run
from tests.runs import small_config
from tests.servers import serving

CRITIC = {"reward__name": "adversarial"}
LABEL = {**CRITIC, "adversarial__form": "label"}
INITIAL = {"reward__name": "judge", "judge__model": "initial", "judge__where": "step"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reward__name": "rubric", "judge__model": "x"}, "rubric.path"),
        ({"rubric__path": "x"}, "rubric.path is 'x'"),
        ({"reward__name": "rubric", "judge__model": "initial", "rubric__path": "x"}, "judge.model is 'initial'"),
        ({"reward__name": "pairwise", "judge__model": "x", "judge__where": "step"}, "judge.where 'step'"),
        ({"rubric__low": 0.9, "rubric__high": 0.1}, "rubric.low is 0.9"),
        ({"rubric__store": "faiss"}, "rubric.store is 'faiss'"),
        ({"reward__name": "reward_model", "judge__model": "x", "judge__task": "A story."}, "judge.task is 'A story.'"),
        ({"reward__name": "adversarial", "judge__task": "A story."}, "judge.task .* adversarial"),
        ({"reward__name": "judge"}, "judge.model is empty"),
        ({"judge__model": "x"}, "no term of reward.name"),
        ({"reward__name": "judge + reward_model", "judge__model": "x"}, "one judge"),
        ({"reward__name": "reward_model", "judge__model": "http://h/v1", "judge__name": "m"}, "reward.name=judge"),
        ({"reward__name": "judge", "judge__model": "http://h/v1"}, "judge.name is empty"),
        ({"reward__name": "judge", "judge__model": "x", "judge__normalise": "whiten"}, "judge.normalise"),
        ({"reward__name": "judge", "judge__model": "initial"}, "set judge.where=step"),
        ({**INITIAL, "reward__name": "reward_model", "loss__kl": "k3"}, "no reward model; set reward.name"),
        ({**CRITIC, "adversarial__replay_share": 0.1}, "adversarial.replay_share is 0.1"),
        ({**INITIAL, "judge__template": "plain"}, "judge.template is 'plain'.*prompt.template"),
        ({**CRITIC, "judge__template": "plain"}, "judge.template is 'plain', .*must be 'model'"),
        ({**CRITIC, "adversarial__tau_critic": 0.3}, "tau_critic is 0.3, but with adversarial.form=head .*0.55"),
        ({**CRITIC, "adversarial__tau_policy": 0.3}, "adversarial.tau_policy is 0.3"),
        ({**CRITIC, "adversarial__critic_share": 0.3}, "adversarial.critic_share is 0.3"),
        ({**LABEL, "adversarial__critic_share": 0.3}, "adversarial.critic_share is 0.3"),
        ({**LABEL, "adversarial__reward": "gail"}, "adversarial.reward is 'gail', .*form=label it must be 'gan'"),
        ({**CRITIC, "adversarial__form": "raro", "adversarial__reward": "gail"}, "adversarial.reward is 'gail'"),
        ({"reward__name": "judge", "judge__model": "initial", "judge__where": "step"}, "reference model; set loss.kl"),
        (
            {"reward__name": "judge", "judge__model": "http://h/v1", "judge__name": "m", "judge__where": "step"},
            "judge.where is 'step'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        build(small_config(**changes))


def test_judges_with_words_to_reply_read_the_task():
    for changes in ({"judge__model": "x"}, {"reward__name": "adversarial", "adversarial__form": "label"}):
        c = build(small_config(**{"reward__name": "judge", "judge__task": "A story.", **changes}))
        assert form_for(c).asking("Q").startswith("A story.\n\n")


@pytest.mark.parametrize("reward", ["judge", "reward_model", "similar_share"])
def test_a_model_that_is_none_is_named_with_its_setting(reward, tmp_path):
    for model, words in (
        ("smollm2", "judge.model 'smollm2' is neither"),
        ("localhost:8000/v1", "judge.model.*http://"),
    ):
        with pytest.raises(UserError, match=words):
            refuse_judge(build(small_config(reward__name=reward, judge__model=model)), tmp_path)


def test_a_dry_run_refuses_the_judge_first(tmp_path):
    about = {"reward__name": "judge", "judge__model": str(tmp_path / "gone"), "judge__where": "step"}
    with pytest.raises(UserError, match="gone"):
        dry_run(build(small_config(**about, model__preset="", model__path="nowhere")))


def test_a_judge_s_prompt_has_the_date_of_the_run():
    for changes in ({"reward__name": "judge"}, {"reward__name": "reward_model"}):
        config = build(small_config(**changes, judge__model="x", prompt__date="2024-02-29"))
        assert form_for(config).date == "2024-02-29"


def test_a_refused_key_is_named_though_the_server_says_it_in_a_broken_encoding(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    broken = lambda handler: handler.reply(401, b"no gzip", [("Content-Encoding", "gzip")])
    with (
        serving(None, get=broken) as (url, _),
        contextlib.closing(Endpoint(JudgeSettings(url, name="m"))) as endpoint,
        pytest.raises(UserError, match="refuses the key .status 401"),
    ):
        endpoint.refuse_unreachable()


def test_a_broken_head_is_written_again_without_training(tmp_path):
    (tmp_path / HEAD).write_bytes(b"broken")
    with pytest.raises(UserError, match=f"{HEAD}: cannot be read.*reward_model with --evaluate"):
        load_head(tmp_path)
