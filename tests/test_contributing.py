"""Every example of CONTRIBUTING.md runs as it is written, and is all that has to be written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rl_likelihood import fields, train
from rl_likelihood.config import all_fields, build, tree
from rl_likelihood.errors import UserError
from rl_likelihood.grading.pool import Pool
from rl_likelihood.report.metric_table import unknown
from rl_likelihood.runtime import run_files
from rl_likelihood.tables import grader_table
from tests.runs import small_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def example(section: str, language: str = "python") -> str:
    """The code block under a heading."""
    under = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    (code,) = re.findall(rf"```{language}\n(.*?)```", under, re.DOTALL)
    return code


def file_of(section: str, folder: Path) -> Path:
    """The block as the file that its first line names, in `folder`."""
    code = example(section)
    path = folder / code.splitlines()[0].removeprefix("# ")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return path


def trained(workdir: Path, **overrides) -> tuple[dict, list[dict]]:
    """The metrics of one step, and its samples."""
    train.run(build(small_config(train__steps=1, eval__prompts=0, **overrides)), workdir)
    (metrics,) = run_files.read(workdir / "metrics.jsonl")
    return metrics, run_files.read(workdir / "samples.jsonl")


def test_every_section_with_code_is_tested_here():
    tested = set(re.findall(r'(?:example|file_of)\(\s*"([^"]+)"', Path(__file__).read_text()))
    assert {s.split("\n")[0] for s in PAGE.split("\n## ")[1:] if "```python" in s} == tested


def test_a_likelihood_reward_trains_through_both_terms(tmp_path):
    file = file_of("A reward from the likelihood of the answer", tmp_path)
    metrics, samples = trained(tmp_path / "run", reward__file=str(file), reward__name="worst_token")
    assert metrics["loss/answer"] == pytest.approx(-metrics["reward/mean"], rel=1e-4), "the answer term is f itself"
    assert metrics["grad/norm"] > 0 and 0 < metrics["grad/answer_share"] < 1
    for row in samples:
        logp = np.asarray(row["answer_logp"])[np.asarray(row["scored"], bool)]
        assert row["reward"] == pytest.approx(logp.min(), abs=1e-4)


def test_a_rule_that_reads_the_chain_leaves_the_objective_alone(tmp_path):
    file = file_of("A rule on the text", tmp_path)
    mixed = {"reward__file": str(file), "reward__name": "log_prob + 0.1*brevity"}
    config = build(small_config(**mixed))
    assert config.step.policy_span == "chain" and not config.samples_answer and config.sampled_answer == 0
    _, samples = trained(tmp_path / "run", **mixed)
    for row in samples:
        assert 0 <= row["reward/brevity"] <= 1
        assert row["reward"] == pytest.approx(row["reward/log_prob"] + 0.1 * row["reward/brevity"], abs=1e-3)


def test_a_rule_that_reads_the_answer_trains_the_response(tmp_path):
    file = file_of("A rule on the text", tmp_path)
    file.write_text(file.read_text().replace('reads=("chain",)', 'reads=("chain", "answer")'))
    config = build(small_config(reward__file=str(file), reward__name="log_prob + 0.1*brevity"))
    assert config.step.policy_span == "response" and config.sampled_answer == config.prompt.max_answer


def test_a_name_of_the_users_file_is_unknown_without_it_and_offered_with_it(tmp_path):
    file = file_of("A rule on the text", tmp_path)
    with pytest.raises(UserError, match=r"reward.name has 'brevity'"):
        build(small_config(reward__name="brevity"))
    with pytest.raises(UserError, match=r"'brevty'.*'brevity'"):
        build(small_config(reward__file=str(file), reward__name="brevty"))


def test_a_grader_grades_evaluations_and_trains(tmp_path):
    file = str(file_of("A grader", tmp_path))
    config = build(small_config(reward__file=file, reward__name="same_words", eval__grader="same_words"))
    assert config.step.policy_span == "response" and config.samples_answer
    with pytest.raises(UserError, match="eval.grader is 'same_words'"):
        build(small_config(eval__grader="same_words"))
    with Pool(table=grader_table(file)) as pool:
        assert pool.grade("same_words", ["a B"] * 3, ["b a", "a", None]) == [True, False, False]
    metrics, samples = trained(tmp_path / "run", reward__file=file, reward__name="same_words")
    assert metrics["grader/failures"] == 0
    assert all(row["reward"] == row["reward/same_words"] for row in samples)


def test_the_command_for_an_environment_runs_as_it_stands(package):
    file_of("An environment", package)
    (package / "rows.jsonl").write_text(example("An environment", "json"))
    program, *arguments = shlex.split(example("An environment", "sh").replace("\\\n", " "))
    assert program == "python"
    python(package, *arguments)
    metrics = run_files.read(package / "runs" / "guess" / "metrics.jsonl")
    assert [row["env/failures"] for row in metrics] == [0, 0, 0]


def test_an_environment_is_talked_to(tmp_path):
    rows = [{"prompt": f"number {n}", "answer": str(n), "environment": {"number": n}} for n in range(1, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics, samples = trained(
        tmp_path / "run",
        env__file=str(file_of("An environment", tmp_path)),
        env__name="guess",
        reward__name="environment + 0.1*avg_log_prob",
        eval__grader="none",
        data__source="files",
        data__train_path=str(tmp_path / "rows.jsonl"),
        data__train_size=6,
        data__heldout_size=2,
        prompt__max_prompt=64,
        sampler__max_turns=2,
        sampler__max_chain=4,
        sampler__max_env_tokens=24,
    )
    assert metrics["env/failures"] == 0 and not unknown(metrics)
    first = samples[0]
    assert "".join(first["answer_tokens"]) == first["reference_answer"] * int(first["turns"])
    assert {m["text"] for row in samples for m in row["messages"] if m["role"] == "environment"} <= {"higher", "lower"}


UNDECIDED = """

def undecided(reference, answer):
    return None


def hangs_or_crashes(reference, answer):
    while answer == "hang":
        pass
    if answer == "crash":
        import os

        os._exit(1)
    return same_words(reference, answer)


GRADERS = {"same_words": Grader(hangs_or_crashes, "the same words", quick=undecided)}
"""


def test_a_grader_of_the_users_file_works_in_the_pool_of_processes(tmp_path):
    path = file_of("A grader", tmp_path / "json")  # neither the folder nor the name may matter
    path = path.rename(path.with_name("math.py"))
    path.write_text(path.read_text() + UNDECIDED)
    with Pool(workers=1, deadline=2.0, table=grader_table(str(path))) as pool:
        answers = ["b a", "a", "hang", "crash"]
        assert pool.grade("same_words", ["a b"] * 4, answers) == [True, False, None, None]
        assert pool.counts["hangs"] == 1 and pool.counts["crashes"] == 1


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with the data set's file and the metric's row, and nothing else."""
    folder = tmp_path_factory.mktemp("package")
    for part in ("rl_likelihood", "configs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    file_of("A data set", folder)
    with (folder / "rl_likelihood" / "report" / "metrics.csv").open("a") as table:
        table.write(example("A metric", "csv"))
    return folder


def python(folder: Path, *arguments: str) -> str:
    """What Python says, with the package that is in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_data_set_is_one_file(package):
    countries = [{"country": f"Country {i}", "capital": f"City {i}"} for i in range(60)]
    rows = [*countries, {"country": "None", "capital": ""}]
    (package / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        "from configs.prepared import get_config\n"
        "from rl_likelihood.config import build\n"
        "from rl_likelihood.datasets import sources\n"
        "c = build(get_config('name=capitals,data=data/capitals'))\n"
        "train, heldout, _ = sources.load(c.data)\n"
        "print(len(train) + len(heldout), len(heldout), c.eval.grader, c.prompt.max_answer, train[0].prompt)\n"
    )
    prepare = ("rl_likelihood.datasets.prepare", "--dataset=capitals", "--source=capitals.jsonl", "--out=data")
    python(package, "-m", *prepare)
    total, held_out, grader, max_answer, question = python(package, "-c", code).split(" ", 4)
    assert (total, grader, max_answer) == ("60", "exact_match", "16") and 0 < int(held_out) < 20
    assert question.startswith("What is the capital of Country ")


def test_a_metric_is_a_number_and_a_row(package):
    names: dict = {}
    exec(example("A metric"), names)
    assert names["questions"](["a? b?", "c"]) == 1.0 and names["questions"]([]) == 0
    assert unknown({"chain/questions": 1.0}) == ["chain/questions"], "a number without a row is found"
    code = (
        "from rl_likelihood.report.metric_table import markdown, metric, unknown\n"
        "row = metric('chain/questions')\n"
        "print(unknown({row.name: 1.0}), row.heading, row.definition in markdown(), row.sampled)\n"
    )
    assert python(package, "-c", code) == "[] question marks in a chain True True"


def test_a_config_field_is_declared_once():
    names: dict = {}
    exec(example("A config field"), names)
    settings = names["TrainSettings"]
    assert tree(settings).to_dict() == {"patience": 0}
    assert all_fields(settings)["patience"][1].metadata["doc"].startswith("evaluations")
    assert fields.read(settings, {"patience": 3}) == settings(patience=3)
    for bad in (-1, "three"):
        with pytest.raises(UserError, match=rf"patience is {bad!r}"):
            fields.read(settings, {"patience": bad})
