"""The documents: links, paths, commands, fields and names exist, and numbers are those of the result files."""

import importlib
import importlib.util
import inspect
import json
import re
import statistics
from pathlib import Path

import pytest

from configs import writing
from experiments import base_rates, chain_lengths, reward_model
from rl_likelihood.config import all_fields, apply_preset, build
from rl_likelihood.datasets import procedural
from rl_likelihood.presets import PRESETS
from rl_likelihood.report import alarms, table_text
from rl_likelihood.report.alarms import ALARMS
from rl_likelihood.rollouts import samples
from rl_likelihood.shapes import Outcomes
from rl_likelihood.tables import reward_table

ROOT = Path(__file__).parents[1]
# CHANGELOG.md names what is gone, so it is not held to what is there.
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "experiments" / "README.md"])
DOCUMENTS.remove(ROOT / "CHANGELOG.md")
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in DOCUMENTS}
README, RESULTS = TEXTS["README.md"], TEXTS["docs/results.md"]
RUNS = ROOT / "experiments" / "results"
by_document = pytest.mark.parametrize("name", TEXTS)


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table whose header begins so."""
    lines = text[text.index(heading) :].splitlines()
    rows = lines[2 : next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("name, most", [("README.md", 150), ("docs/benchmarks.md", 120)])
def test_the_first_pages_are_short(name, most):
    assert len(TEXTS[name].splitlines()) <= most


@by_document
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", re.sub(r"`[^`\n]*`", "code", TEXTS[name])):
        assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), target


@by_document
def test_files_that_are_named_exist(name):
    for path in re.findall(
        r"\b(?:rl_likelihood|configs|experiments|bench|docs|tests)/[\w/]+\.(?:py|md|json|png)\b", TEXTS[name]
    ):
        if not path.endswith("/NAME.py") and path != "rl_likelihood/datasets/capitals.py":
            assert (ROOT / path).exists(), path


@by_document
def test_commands_and_fields_exist(name):
    for module in set(re.findall(r"python -m ([\w.]+)", TEXTS[name])) - {"pytest"}:
        assert importlib.util.find_spec(module), module
    own = {"reward.name", "a.b"}  # a.b is a placeholder
    for field in set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)=", TEXTS[name])) - own:
        assert field in all_fields(), field


def test_commands_of_prepared_data_name_a_model():
    """The default of configs/prepared.py is a folder that readers do not have."""
    for name, text in {**TEXTS, "reward_model": (ROOT / "configs" / "reward_model.py").read_text()}.items():
        for argument in re.findall(r"rl_likelihood\.train\s+--config=configs/prepared\.py:(\S+)", text):
            assert "model=" in argument, (name, argument)


def test_the_settings_of_the_commands_of_the_page_on_writing_fit_together():
    command = r"`python -m rl_likelihood\.\w+ --config=configs/writing\.py:(\S+)(.*?)`"
    commands = re.findall(command, TEXTS["docs/writing.md"])
    assert len(commands) >= 5
    for argument, overrides in commands:
        c, values = writing.get_config(argument), dict(re.findall(r"--config\.([\w.]+)=(\S+)", overrides))
        c.update_from_flattened_dict(values)
        apply_preset(c, list(values))
        build(c)


def test_the_table_of_rewards_has_every_name_once():
    names = re.findall(r"`(\w+)`", " ".join(row[0] for row in cells(README, "| `reward.name`")))
    assert sorted(names) == sorted([*reward_table(), "sft"])


def test_every_preset_is_named():
    listed = README.split("a whole published method:")[1].split(".\n")[0]
    assert sorted(re.findall(r"\w+", listed)) == sorted(PRESETS)


def test_every_preset_of_questions_is_named():
    rows = cells(TEXTS["docs/data.md"], "| preset | questions")
    assert [row[0].strip("`") for row in rows] == list(procedural.PRESETS)


def test_every_package_is_in_the_layout():
    named = set(
        re.findall(r"`(\w+)(?:/|\.py)`", "".join(row[0] for row in cells(TEXTS["docs/architecture.md"], "| package")))
    )
    package = ROOT / "rl_likelihood"
    there = {p.parent.name for p in package.glob("*/__init__.py")} | {p.stem for p in package.glob("*.py")}
    assert there - {"__init__"} <= named


def test_every_command_is_in_the_readme():
    """Every module with a main. Left out: parts of other commands, an old name, and what CONTRIBUTING.md names."""
    inner = {"cli.command", "grading.code", "grading.sandbox", "grading.worker", "weights.assets", "data.prepare"}
    inner |= {"config", "report.metric_table"}
    package = ROOT / "rl_likelihood"
    mains = (p.relative_to(package) for p in package.rglob("*.py") if '\nif __name__ == "__main__":' in p.read_text())
    names = {".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in mains}
    table = " ".join(row[0] for row in cells(README, "| command |"))
    assert sorted(re.findall(r"-m rl_likelihood\.([\w.]+)", table)) == sorted(names - inner)


def test_every_extra_is_in_its_table():
    extras = re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.M)
    assert len(extras) > 10
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in cells(TEXTS["docs/architecture.md"], "| extra |")))
    assert sorted(named) == sorted(extras)


def test_every_alarm_has_its_row():
    rows = cells(TEXTS["docs/troubleshooting.md"], "| warning |")
    assert [row[0] for row in rows] == list(ALARMS)
    source = inspect.getsource(alarms)
    for name, says, *_ in rows:
        assert all(metric in source for metric in re.findall(r"`(\w+/\w+)`", says)), name


def test_every_paper_that_is_cited_is_in_the_references():
    code = (path.read_text() for path in (ROOT / "rl_likelihood").rglob("*.py"))
    others = (text for name, text in TEXTS.items() if name != "docs/references.md")
    cited = set(re.findall(r"\b[12]\d{3}\.\d{5}\b", "".join([*others, *code])))
    rows = re.findall(r"^\| .+ \| \[(\S+)\]\(https://arxiv.org/abs/(\S+)\) \|", TEXTS["docs/references.md"], re.M)
    assert all(number == address for number, address in rows)
    assert sorted(number for number, _ in rows) == sorted(cited)


def test_the_settings_of_the_first_gpu_run_fit_together():
    page = TEXTS["docs/first_gpu_run.md"]
    runs = re.findall(r"RUN=\((.*?)\)\n", page, re.DOTALL)
    assert len(runs) == 2
    for run in runs:
        file, argument = re.search(r"--config=configs/(\w+)\.py:(\S+)", run).groups()
        c = importlib.import_module(f"configs.{file}").get_config(argument)
        values = {k: json.loads(v) if v[0].isdigit() else v for k, v in re.findall(r"--config\.([\w.]+)=(\S+)", run)}
        c.update_from_flattened_dict(values)
        build(c)
    for module, rest in re.findall(r"python -m (rl_likelihood[\w.]+)(.*)", page):
        source = Path(importlib.util.find_spec(module).origin).read_text()
        if module.endswith("report.page"):
            source = (ROOT / "rl_likelihood" / "report" / "page" / "__main__.py").read_text()
        for flag in re.findall(r" --(\w+)(?![\w.])", rest):
            assert flag == "config" or f'"{flag}"' in source or f'"--{flag}"' in source, (module, flag)


def test_the_files_and_fields_of_a_workdir_are_those_of_the_code():
    page = TEXTS["docs/architecture.md"]
    code = "".join(path.read_text() for path in (ROOT / "rl_likelihood").rglob("*.py"))
    files = re.findall(r"`([\w.]+)/?`", " ".join(row[0] for row in cells(page, "| file | contents")))
    assert len(files) > 15
    assert all(f'"{file}"' in code for file in set(files) - {"curves.png", "curves.svg"})  # made of two parts
    written = set(re.findall(r'"(\w+)(?:"\] = |": )', inspect.getsource(samples.sample_of)))
    written |= {"version", "step", *Outcomes.__annotations__}
    named = re.findall(r"`([\w/]+)`", " ".join(row[0] for row in cells(page, "| field | contents")))
    assert sorted(named) == sorted({*written, "reward/NAME"})


def test_no_document_outside_the_repository_is_pointed_to():
    code = (
        path
        for part in ("rl_likelihood", "configs", "experiments", "bench", "tests")
        for path in ROOT.glob(f"{part}/**/*.py")
    )
    for path in [*code, *DOCUMENTS]:
        if path != Path(__file__):
            assert not re.search(r"\bDESIGN\b|methods\.md|paper_tables\.md", path.read_text()), path


# ---------------------------------------------------------------------------------------- numbers


def test_claims_and_the_grid_are_those_of_the_result_files():
    claims = (RUNS / "cpu_grid" / "claims.md").read_text().splitlines()
    assert len(claims) > 20 and all(line in RESULTS for line in claims)
    short, long = (RUNS / "cpu_grid" / "table.md").read_text().split("### task long")
    tables = [{row[0]: row[1:] for row in cells(text, "| reward")} for text in (short, long)]
    for name, *shown in cells(RESULTS, "| reward | short"):
        one, other = (table[name.strip("`†")] for table in tables)
        measured = [one[0], one[1], one[4], one[6], other[0], other[2]]
        for cell, value in zip(shown, measured, strict=True):
            assert cell in (value.split(" (")[0], "-"), (name, cell, value)


def test_the_tables_of_base_rates_are_those_of_their_results():
    results = json.loads((RUNS / "base_rates.json").read_text())
    assert base_rates.tables({task: results[task] for task in base_rates.TASKS}) in RESULTS


@pytest.mark.parametrize(
    "page, name",
    [("results", "long_answers_long_seed_0"), ("writing", "writing_verse_seed_0"), ("writing", "writing_verse_seed_1")],
)
def test_the_tables_of_chain_lengths_are_those_of_their_results(page, name):
    shown = chain_lengths.table(json.loads((RUNS / f"{name}.json").read_text()))
    assert shown in TEXTS[f"docs/{page}.md"].replace("`sft`†", "`sft`")


def test_the_memory_of_the_plans_is_that_of_their_outputs():
    """GiB of the learner step, and of the largest of the sampler's programs."""
    pods = TEXTS["docs/pods.md"]
    for heading, label, step, file in (
        ("| micro-batch", "64 prompts", 3, "llama-3.1-8b_v5p-4x4x4_micro_64"),
        ("| micro-batch", "4 prompts (the default)", 3, "llama-3.1-8b_v5p-4x4x4_micro_4"),
        ("| micro-batch", "64 prompts, Qwen3-32B", 3, "qwen3-32b_v5p-4x4x4"),
        ("| mesh | prompts per", "1 x 4 x 4 x 1", 4, "llama-3.2-3b_32768_tokens_v5p-2x2x4"),
    ):
        output = (RUNS / "plans" / f"{file}.txt").read_text()
        line = r"(?m)^(learner step|prefill|sampling) .*?([\d.]+) +\d+ s  yes$"  # total, seconds of compilation, fits
        total = {program: float(gib) for program, gib in re.findall(line, output)}
        (row,) = [row for row in cells(pods, heading) if row[0] == label]
        sampler = max(total["prefill"], total["sampling"])
        assert [float(cell) for cell in row[step : step + 2]] == [round(total["learner step"], 1), round(sampler, 1)]


def test_the_tables_of_the_reward_model_are_those_of_its_results():
    results = json.loads((RUNS / "reward_model.json").read_text())
    judges = (ROOT / "docs" / "judges.md").read_text()
    assert set(results["done"]) == {"likelihoods", "letters", "yes", "pairs", "reward model"}
    for line in reward_model.table(results).splitlines():
        assert line in judges


def test_the_readme_shows_what_the_quickstart_prints():
    seed = json.loads((RUNS / "quickstart_seeds.json").read_text())["0"]
    printed = table_text.side_by_side({row["stage"]: row for row in seed})
    shown = README.split("```\n")[1]
    assert shown.startswith(printed + "\n")


def test_the_quickstarts_table_is_that_of_its_seeds():
    seeds = json.loads((RUNS / "quickstart_seeds.json").read_text()).values()
    examples = json.loads((RUNS / "worked_examples.json").read_text())
    fields = ("greedy_success", "sampled_success", "perplexity", "perplexity_no_chain", "chain_length", "truncated")
    rows = cells(RESULTS, "| 3 seeds")
    for row, field in zip(rows, fields, strict=True):
        share = "%" in row[1]
        digits = 2 if "perplexity" in field else 1
        shown = [[float(x) for x in re.findall(r"[\d.]+", cell)] for cell in row[1:]]
        for cell, stage in zip(shown[:2], (0, 1), strict=True):
            values = [seed[stage][field] * (100 if share else 1) for seed in seeds]
            expected = [round(statistics.mean(values), digits), round(statistics.stdev(values), digits)]
            assert cell == pytest.approx(expected, abs=0.1**digits * 0.51), field
        for cell, order in zip(shown[2:], ("two steps, then one", "one step"), strict=True):
            assert cell == pytest.approx([examples[order][field] * (100 if share else 1)], abs=0.1**digits * 0.51), (
                field
            )
