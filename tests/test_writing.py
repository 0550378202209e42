"""configs/writing.py: what it sets, its rewards in one step, and the experiment's settings."""

import gzip
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.writing import get_config
from experiments import writing
from rl_likelihood import sweep, train
from rl_likelihood.config import apply_preset, build
from rl_likelihood.errors import UserError
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.rollouts.judges import form_for
from rl_likelihood.runtime import run_files
from rl_likelihood.sweeps import grid


def poems(n: int) -> str:
    return "\n\n".join("\n".join(f"line {i} {j}" for j in range(4)) for i in range(n))


@pytest.mark.parametrize("preset", ["vr_cli", "dro", "nrt", "none"])
@pytest.mark.parametrize("form", ["next_passage", "verse"])
@pytest.mark.parametrize("size", ["135m", "3b"])
def test_the_rewards_of_the_papers_go_with_both_forms(preset, form, size):
    c = get_config(f"data=texts,form={form},size={size}")
    c.preset = preset
    apply_preset(c, ["preset"])
    settings = build(c)
    assert settings.data.documents.form == form
    assert ("novelist" if form == "next_passage" else "poet") in settings.prompt.instruction
    assert settings.reward.name == {"vr_cli": "vr_cli", "dro": "r3", "nrt": "nrt/std", "none": "avg_log_prob"}[preset]
    assert settings.eval.texts == ("prose" if form == "next_passage" else "verse")
    assert settings.eval.samples == 4, "self_bleu compares samples"


@pytest.mark.parametrize("form", ["next_passage", "verse"])
@pytest.mark.parametrize("reward, more", [("pairwise", ""), ("rubric", ",rubrics=rubrics.jsonl")])
def test_a_judge_reads_the_texts_and_what_they_are(reward, more, form):
    c = get_config(f"data=texts,form={form},reward={reward},judge=smollm2-135m-instruct{more}")
    settings = build(c)
    assert settings.reward.judged == reward and settings.rubric.path == more.partition("=")[2]
    assert ("story" if form == "next_passage" else "poem") in form_for(settings).task
    assert settings.judge.max_prompt > settings.prompt.max_prompt and settings.judge.max_row > 2 * c.prompt.max_answer


def test_other_forms_are_refused():
    with pytest.raises(UserError, match="form is 'prose'"):
        get_config("form=prose")


def test_a_run_with_all_its_rewards(tmp_path):
    (tmp_path / "poems.txt").write_text(poems(8))
    c = get_config(f"data={tmp_path}/poems.txt,form=verse,reward=avg_log_prob + vr_cli + r3 + nrt,steps=1")
    fields = {
        "model.path": "",
        "model.preset": "nano",
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 4,
        "data.documents.shown": 2,
        "data.documents.asked": 2,
        "data.heldout_size": 2,
        "prompt.max_prompt": 512,
        "prompt.max_answer": 40,
        "sampler.group_size": 3,
        "sampler.max_chain": 8,
        "reward.baseline": "frozen",
        "reward.token_weights": "neg_log",
        "train.prompts_per_step": 2,
        "train.eval_every": 0,
        "train.eval_first": False,
        "eval.prompts": 2,
        "eval.samples": 2,
        "eval.batch_prompts": 2,
    }
    c.update_from_flattened_dict(fields)
    train.run(build(c), tmp_path / "run")
    (step,) = run_files.read(tmp_path / "run" / run_files.METRICS)
    for name in ("avg_log_prob", "vr_cli", "r3", "nrt"):
        assert math.isfinite(step[f"reward/{name}"]), name
    (after,) = run_files.read(tmp_path / "run" / run_files.EVAL)
    assert "answered" in after and "no_chain/answered" in after and "perplexity_swapped" in after
    assert unknown(step) == unknown(after) == []


def test_one_loss_for_all_rewards_on_cpus_and_each_papers_on_pods(monkeypatch):
    monkeypatch.chdir(Path(writing.__file__).parents[1])
    settings = lambda name: {
        p.labels["reward"]: sweep.resolve(p)
        for p in grid.load(f"experiments/{name}.py").points
        if p.labels["seed"] == "0"
    }
    small = settings("writing")
    rewards = ("avg_log_prob", "vr_cli", "r3", "nrt")
    loop = lambda c: {k: v for k, v in c.train.items() if k != "eval_first"}
    same = lambda c: (c.loss, c.optim, c.sampler, c.filter, loop(c), c.reward.truncated, c.prompt.score_delims)
    assert len({repr(same(small[name])) for name in rewards}) == 1
    assert small["r3"].loss.kl == "none" and small["r3"].loss.answer_term == 1 and small["r3"].sampler.group_size == 4
    assert [name for name, c in small.items() if c.train.eval_first] == ["avg_log_prob"], "one start, evaluated once"
    assert [small[name].reward.name for name in rewards] == list(rewards) and small["sft"].reward.name == "sft"
    large = settings("writing_3b")
    of = lambda c: (c.sampler.group_size, c.train.prompts_per_step, c.optim.lr, c.loss.kl_coef)
    assert of(large["avg_log_prob"]) == (4, 8, 1e-5, 0) and of(large["vr_cli"]) == (8, 64, 5e-7, 1e-6)
    assert of(large["r3"]) == (16, 64, 1e-6, 0.001) and of(large["nrt"]) == (16, 64, 1e-6, 0)


def test_a_file_for_each_novel(tmp_path):
    novels = ["PRIDE AND PREJUDICE\n\nDarcy.\n", "SENSE AND SENSIBILITY\n\nElinor.\n", "EMMA\n\nDear EMMA\nwrote.\n"]
    (tmp_path / "sonnets.txt").write_text(poems(2))
    (tmp_path / "austen.txt.gz").write_bytes(gzip.compress("".join(novels).encode()))
    writing.write_texts(tmp_path, tmp_path / "data")
    assert (tmp_path / "data" / "sonnets.txt").read_text() == poems(2)
    names = ("pride_and_prejudice", "sense_and_sensibility", "emma")
    assert {p.stem: p.read_text() for p in (tmp_path / "data" / "novels").iterdir()} == dict(
        zip(names, novels, strict=True)
    )


def test_the_texts_are_written_in_utf8_on_any_machine(tmp_path):
    """With a locale of ASCII alone, as on a bare machine."""
    novels = ["PRIDE AND PREJUDICE\n\nDarcy’s.\n", "SENSE AND SENSIBILITY\n\nElinor.\n", "EMMA\n\nEmma.\n"]
    (tmp_path / "sonnets.txt").write_text(poems(2))
    (tmp_path / "austen.txt").write_bytes("".join(novels).encode())
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "experiments.writing", f"--texts={tmp_path}"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **plain}, check=True, capture_output=True)
    (novel,) = tmp_path.rglob("pride_and_prejudice.txt")
    assert novel.read_bytes() == novels[0].encode()


def test_texts_that_are_not_these_are_refused(tmp_path):
    def refused(words):
        with pytest.raises(UserError, match=words):
            writing.write_texts(tmp_path, tmp_path / "data")

    refused("sonnets.txt is not there")
    (tmp_path / "sonnets.txt").write_text(poems(2))
    refused("austen.txt is not there")
    lines = "PRIDE AND PREJUDICE, SENSE AND SENSIBILITY, EMMA"
    for titles in (["EMMA"], ["EMMA", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY"], [*lines.split(", "), "EMMA"]):
        (tmp_path / "austen.txt").write_text("".join(f"{title}\n\nA text.\n" for title in titles))
        refused(f"austen.txt must have each of these lines once, in this order: {lines}")
    assert not (tmp_path / "data").exists()
