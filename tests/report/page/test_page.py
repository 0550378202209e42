"""The page: one file that asks for nothing, shows whatever models wrote, and runs none of it."""

import base64
import gzip
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from rl_likelihood.evaluation.trace import PERCENT
from rl_likelihood.report import metrics, page, panels, table
from rl_likelihood.report.page import chains
from rl_likelihood.report.page.__main__ import main
from rl_likelihood.report.table import Run
from rl_likelihood.runtime import run_files
from tests.report.grids import evaluation, sample, write_run

NASTY = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!-- <script>",
    "]]> &amp; & \u2028 \u2029 \x00 {{ 7*7 }} {% raw %} ${1} `",
    "\ud83d half of an emoji, \ufffd, \U0001f600, \u202e right to left",
)


class Parsed(HTMLParser):
    """Tags, addresses and the texts of script elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.scripts, self.ids, self._inside = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[k] for k in ("src", "href", "action", "data") if k in values]
        self.ids += [values["id"]] if "id" in values else []
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


def nasty_run(workdir):
    """A run in which everything that a model or a data set writes is nasty."""
    with metrics.MetricsWriter(workdir, 2) as writer:
        for step in (1, 2):
            writer.metrics(step, {"reward/mean": float(step), "answer/perplexity": float("nan"), "chain/length": 3.0})
            for i, text in enumerate(NASTY):
                text = text.encode("utf-8", "replace").decode()  # what reaches a file is UTF-8
                row = sample(f"id {text}", -1.0 - i, 1, text)
                row |= {"prompt": text, "answer_tokens": [text], "sampled_answer": text, "forced": text, "start": text}
                writer.samples(step, [row])
        writer.eval(2, {"stage": NASTY[0], **evaluation(0.5, 2.0)})
        writer.status("done", 2)
    return workdir


def data_of(text):
    return json.loads(gzip.decompress(base64.b64decode(Parsed(text).scripts[0])))


def write(tmp_path, runs, **kwargs):
    path = tmp_path / "report.html"
    contents = page.Contents(kwargs.pop("title", "a grid"), "what it is", "reward", table.blocks(runs))
    page.write(path, contents, runs, **kwargs)
    return path.read_text()


def test_what_models_write_is_data_and_nothing_else(tmp_path):
    runs = [Run({"reward": NASTY[1], "seed": "0"}, nasty_run(tmp_path / "run"))]
    text = write(tmp_path, runs, title=NASTY[0])
    parsed = Parsed(text)
    assert parsed.tags.count("script") == 2 and "img" not in parsed.tags
    groups = data_of(text)["runs"][0]["groups"]
    assert len(groups) == 2 * len(NASTY)
    expected = [t.encode("utf-8", "replace").decode() for t in NASTY]
    assert [g["prompt"] for g in groups[: len(NASTY)]] == [g["start"] for g in groups[: len(NASTY)]] == expected
    assert [g["chains"][0]["chain"] for g in groups[: len(NASTY)]] == expected
    assert "owned" not in parsed.scripts[1]


def test_nothing_is_fetched_and_only_the_page_s_own_script_may_run(tmp_path):
    text = write(tmp_path, [Run({"reward": "prob", "seed": "0"}, write_run(tmp_path / "a", evaluation(0.5, 2.0)))])
    parsed = Parsed(text)
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    allowed = re.search(r"script-src '(sha256-[^']+)'", text).group(1)
    assert allowed == "sha256-" + base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in text
    assert len(parsed.ids) == len(set(parsed.ids))
    used = set(re.findall(r'\$\("([a-z-]+)"\)', parsed.scripts[1]))
    assert used <= set(parsed.ids), "the script looks for what the page has"


def test_numbers_of_the_page_are_those_of_the_files(tmp_path):
    runs = []
    for reward, seed in (("prob", 0), ("prob", 1), ("jepo", 0), ("jepo", 1)):
        workdir = write_run(tmp_path / f"{reward}{seed}", evaluation(0.5, 2.0), samples=3)
        runs.append(Run({"reward": reward, "seed": str(seed)}, workdir))
    text = write(tmp_path, runs)
    data = data_of(text)
    assert [r["row"] for r in data["runs"]] == ["prob", "prob", "jepo", "jepo"]
    first = data["runs"][0]
    assert first["train"]["reward/mean"] == [[1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0]]
    assert first["heldout"]["greedy_success"] == [[0, 4], [0.25, 0.5]]
    assert (first["state"], first["step"], first["chains"]) == ("done", "4/4", 12)
    rows = run_files.read(tmp_path / "prob0" / "samples.jsonl")
    chain = first["groups"][0]["chains"][0]
    assert chain["reward"] == rows[0]["reward"] and chain["rewards"]["prob"] == rows[0]["reward/prob"]
    assert chain["logp"] == [round(rows[0]["answer_logp"][0], 3)]
    assert "50.0 ± 0.0 (2.0)" in text and 'href="#run=2"' in text
    assert [p["title"] for p in data["panels"]] == [
        p.metric.title
        for p in panels.PAGE
        if p in (panels.REWARD, panels.GREEDY, panels.PERPLEXITY, panels.LENGTH) or p == panels.PERPLEXITY_NO_CHAIN
    ]
    assert 'title="Share of questions whose greedy answer is right."' in text, "a heading tells what it means"
    assert all(p["train"] != "policy/entropy" for p in data["panels"]), "a panel that no run fills is left out"


def test_long_curves_are_means_over_stretches():
    rows = [{"step": s, "x": float(s)} for s in range(1, 1001)]
    steps, values = page.curve(rows, "x")
    assert len(steps) <= page.POINTS and steps == sorted(steps)
    assert values[0] == 3.0 and steps[0] == 3, "the mean of 1 to 5"
    assert page.curve([{"step": 1, "x": None}, {"step": 2, "x": 4.0}], "x") == [[1, 2], [None, 4.0]]


def test_chains_are_grouped_and_what_they_share_is_said_once():
    rows = [sample("a", -1.0, 2, "x") | {"step": 1}, sample("a", -2.0, 2, "y") | {"step": 1}]
    rows += [sample("a", -3.0, 2, "z") | {"step": 2, "answer_logp_no_chain": [-0.1234, None]}]
    one, two = chains.groups_of(rows)
    assert [c["chain"] for c in one["chains"]] == ["x", "y"] and one["no_chain"] is None
    assert (two["step"], two["no_chain"]) == (2, [-0.123, -1000.0])


def test_a_grid_that_has_not_begun_is_a_page_too(tmp_path):
    runs = [Run({"reward": "prob", "seed": "0"}, tmp_path / "none")]
    text = write(tmp_path, runs)
    assert data_of(text)["runs"][0]["state"] == "new" and data_of(text)["panels"] == []


def test_held_out_texts_of_the_last_evaluation_reach_the_page(tmp_path):
    """Reference, chain and sampled answer; of an evaluation that is not of texts there are none."""
    folder = write_run(tmp_path / "a", {"records": "evaluations/last.jsonl", **evaluation(0.5, 2.0)})
    (folder / "evaluations").mkdir()

    def records(**identity):
        of = {"prompt": NASTY[0], "reference": NASTY[1], "greedy": {"text": "greedy", "answer": None}, "samples": []}
        sampled = {"text": f" a plan </think>\n<answer>{NASTY[2]}", "answer": NASTY[2]}
        rows = [of | {"index": 0, "samples": [sampled, {"answer": "x"}]}, of | {"index": 1}]
        rows += [of | {"index": i} for i in range(2, 30)]
        first = {"step": 4, "identity": {"tags": ["</think>", "<answer", "</answer"], **identity}}
        lines = [first, *({"step": 4, **row} for row in rows)]
        (folder / "evaluations" / "last.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    runs = [Run({"reward": "r3", "seed": "0"}, folder)]
    records(texts=["prose"])
    text = write(tmp_path, runs)
    shown = data_of(text)["runs"][0]["texts"]
    asked = {"prompt": NASTY[0], "reference": NASTY[1]}
    assert shown[:2] == [asked | {"chain": "a plan", "answer": NASTY[2]}, asked | {"chain": "greedy", "answer": ""}]
    assert len(shown) == chains.HELDOUT and '<section id="texts">' in text and 'href="#texts"' in text
    records()
    text = write(tmp_path, runs)
    assert data_of(text)["runs"][0]["texts"] == [] and '<section id="texts" hidden>' in text
    (folder / "evaluations" / "last.jsonl").unlink()
    assert data_of(write(tmp_path, runs))["runs"][0]["texts"] == []


def test_the_command(tmp_path, capsys):
    write_run(tmp_path / "a", evaluation(0.5, 2.0), samples=2)
    out = tmp_path / "page.html"
    assert main([str(tmp_path / "a"), f"--out={out}"]) == 0
    assert "after 4 steps" in out.read_text() and capsys.readouterr().out.strip() == str(out)
    assert main([str(tmp_path / "none"), f"--out={out}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_run_begins_at_the_untouched_model_of_its_seed(tmp_path):
    first = {"greedy_success": 0.1, "perplexity": 9.0}
    one = write_run(tmp_path / "one", evaluation(0.5, 2.0), first)
    other = write_run(tmp_path / "other", evaluation(0.6, 3.0))
    rows = [row for row in run_files.read(other / run_files.EVAL) if row["step"] > 0]
    (other / run_files.EVAL).write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [Run({"reward": "prob", "seed": "0"}, one), Run({"reward": "jepo", "seed": "0"}, other)]
    greedy = [r["heldout"]["greedy_success"] for r in data_of(write(tmp_path, runs))["runs"]]
    assert greedy == [[[0, 4], [0.1, 0.5]], [[0, 4], [0.1, 0.6]]]
    alone = data_of(write(tmp_path, runs, one_start=False))["runs"]
    assert alone[1]["heldout"]["greedy_success"] == [[4], [0.6]], "runs that are no grid share nothing"


def test_what_a_run_was_trained_on_is_its_config_s(tmp_path):
    workdir = write_run(tmp_path / "a", evaluation(0.5, 2.0))
    run = Run({"reward": "with a filter", "seed": "0"}, workdir)
    assert data_of(write(tmp_path, [run]))["runs"][0]["reward"] == "with a filter"
    (workdir / "config.json").write_text(json.dumps({"reward.name": "rlpr"}))
    assert data_of(write(tmp_path, [run]))["runs"][0]["reward"] == "rlpr"


def test_chains_are_shared_out_among_runs_and_steps():
    assert chains.level([10, 20, 30], 60) == 30 and chains.level([], 60) == 0
    assert chains.level([100, 100, 100], 60) == 20
    assert chains.level([4, 100, 100], 60) == 28, "what the short run leaves"
    steps = {s: 10 for s in range(1, 11)}
    assert chains.steps_shown(steps, 100) == set(steps)
    assert chains.steps_shown(steps, 40) == {1, 4, 7, 10}
    assert chains.steps_shown(steps, 3) == {10}, "a step is never cut: its chains are compared"
    assert chains.steps_shown({}, 3) == set()


def test_a_page_of_too_many_chains_takes_even_steps_and_says_so(tmp_path):
    runs = []
    for reward, samples in (("prob", 1), ("jepo", 8)):
        workdir = write_run(tmp_path / reward, evaluation(0.5, 2.0), steps=9, samples=samples)
        runs.append(Run({"reward": reward, "seed": "0"}, workdir))
    text = write(tmp_path, runs, limit=33)
    few, many = data_of(text)["runs"]
    assert (few["chains"], few["written"]) == (9, 9)
    assert (many["chains"], many["written"]) == (24, 72)
    assert sorted({g["step"] for g in many["groups"]}) == [1, 5, 9]
    shown = " ".join(text.split())
    assert "33 sampled chains of 81, those of evenly spaced steps" in shown and "<td>24 of 72</td>" in shown
    assert "evenly spaced" not in write(tmp_path, runs, limit=81)


def test_a_run_is_in_the_page_once_and_in_all_its_tables(tmp_path):
    folders = [write_run(tmp_path / name, evaluation(0.5, 2.0), samples=2) for name in "abc"]
    labels = ({"reward": "prob", "kl": "0"}, {"reward": "prob", "kl": "1"}, {"reward": "sft"})
    runs = [Run({**label, "seed": "0"}, workdir) for label, workdir in zip(labels, folders, strict=True)]
    data = data_of(write(tmp_path, runs))["runs"]
    assert len(data) == 3
    blocks = {r["name"]: r["blocks"] for r in data}
    for run in runs:
        grouped = table.grouped(runs, "reward").items()
        of_run = [table.title_of(dict(s)) for s, lines in grouped if any(run in group for group in lines.values())]
        assert blocks[table.title_of(run.labels)] == of_run and of_run


def test_a_model_that_was_trained_without_chains_is_asked_without_them_and_the_page_says_so(tmp_path):
    workdir = write_run(tmp_path / "a", evaluation(0.5, 2.0) | {"perplexity_no_chain": 1.5})
    run = Run({"reward": "answers alone", "seed": "0"}, workdir)
    assert "asked without a chain, as it was trained, of" not in write(tmp_path, [run])
    (workdir / "config.json").write_text(json.dumps({"reward.name": "sft"}))
    text = write(tmp_path, [run])
    assert "asked without a chain, as it was trained, of: answers alone." in " ".join(text.split())
    assert data_of(text)["runs"][0]["heldout"]["perplexity"] == [[4], [1.5]]


def test_the_curve_of_trace_is_that_of_the_last_evaluation(tmp_path):
    """Beside the panel of its area by step, and only for runs whose chains were scored in parts."""
    of = lambda *curve: {f"trace@{k}": v for k, v in zip(PERCENT, curve, strict=True)} | {"trace_area": curve[-1] / 10}
    last = evaluation(0.5, 2.0) | of(-2.0, -1.5, -1.25, -1.0, -0.5)
    runs = [
        Run({"reward": name, "seed": "0"}, write_run(tmp_path / name, last, of(-3.0, -3.0, -3.0, -3.0, -3.0)))
        for name in ("r3", "sft")
    ]
    runs += [Run({"reward": "prob", "seed": "0"}, write_run(tmp_path / "prob", evaluation(0.5, 2.0)))]
    data = data_of(write(tmp_path, runs, one_start=False))
    r3, sft, prob = (r["heldout"] for r in data["runs"])
    assert r3["trace@{k}"] == [[0, 25, 50, 75, 100], [-2.0, -1.5, -1.25, -1.0, -0.5]]
    assert r3["trace_area"] == [[0, 4], [-0.3, -0.05]]
    assert sft["trace@{k}"] == prob["trace@{k}"] == [[], []], "sft is asked without a chain"
    panel = {p["title"]: p for p in data["panels"]}["Log-prob per token after parts of the chain, nats"]
    assert panel["trace"] and panel["heldout"] == "trace@{k}" and "empty chain" in panel["definition"]
    titles = [p["title"] for p in data["panels"]]
    assert titles.index(panel["title"]) == titles.index("What parts of the chain add, nats") + 1
    alone = data_of(write(tmp_path, runs[2:], one_start=False))
    assert all("trace" not in p for p in alone["panels"])


def in_node(name, first, last, stand_ins, call):
    """What `call` prints with the part of a script of the page from `first` to before `last`, and stand-ins for the
    rest."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    source = (page.FILES / name).read_text(encoding="utf-8")
    part = source[source.index(first) : source.index(last)]
    program = f"{stand_ins}{part}\nconsole.log({call});"
    return subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("panel, words", [({}, "step 25"), ({"trace": True}, "after 25 %")])
def test_a_chart_says_what_its_numbers_are_after(panel, words):
    """The script's function `reading`, in node, with stand-ins for the page's elements."""
    stand_ins = (
        "const make = (tag, of, ...inside) => ({style: {}, toString: () => inside.flat().join(' ')});\n"
        "const short = x => x.toFixed(2), colour = r => '';\n"
    )
    lines = [{"r": {"row": "r3", "seed": "0"}, "kind": "heldout", "steps": [0, 25], "values": [-2.0, -1.5]}]
    call = f"String(reading({json.dumps(panel)}, {json.dumps(lines)}, 25))"
    said = in_node("curves.js", "function range(", "function scaleOf(", stand_ins, call)
    assert said.startswith(words) and "-1.50" in said


def test_weights_of_answer_tokens_reach_the_page(tmp_path):
    rows = [sample("a", -3.0, 1, "z") | {"answer_weights": [0.002449, 12.5]}, sample("a", -2.0, 1, "y")]
    rows = [row | {"step": 1} for row in rows]
    (group,) = chains.groups_of(rows)
    assert [c["weights"] for c in group["chains"]] == [[0.00245, 12.5], None]


def test_verdicts_of_a_rubric_reach_the_page():
    verdicts = [{"criterion": "names it", "points": 5.0, "met": None}]
    rows = [sample("a", -3.0, 1, "z") | {"verdicts": verdicts, "step": 1}, sample("a", -2.0, 1, "y") | {"step": 1}]
    (group,) = chains.groups_of(rows)
    assert [c.get("verdicts") for c in group["chains"]] == [verdicts, None]


def test_a_conversation_s_messages_are_labelled_and_their_gain_is_named():
    """The script's function `talk`, in node, with stand-ins for the page's elements."""
    stand_ins = (
        "const make = (tag, of, ...inside) => `<${tag}>${inside.flat().join(' ')}</${tag}>`;\n"
        "const short = x => x.toFixed(2);\n"
        "const answer = (m, logp, where) => `[${where}]`;\n"
    )
    of = {"tokens": ["a"], "scored": [True]}
    messages = [
        {"role": "assistant", "text": "first", **of, "logp": [math.log(0.25)], "advantage": 0.3},
        {"role": "environment", "text": "reply"},
        {"role": "assistant", "text": "second", **of, "logp": [math.log(0.75)]},
    ]
    call = f"talk({json.dumps(messages)}).join('\\n')"
    lines = in_node("chains.js", "const signed", "function verdicts(", stand_ins, call).splitlines()
    assert (
        "message 1, advantage +0.30" in lines[0]
        and "first" in lines[0]
        and "message 2" in lines[3]
        and "second" in lines[3]
    )
    assert lines[2].startswith("<details><summary>") and lines[2].endswith("<p>reply</p></details>"), "folded"
    assert "0.25" in lines[1] and "gain" not in lines[1]
    assert "0.75" in lines[4] and "gain of the message before +0.50" in lines[4]
