"""The page in a real Chromium: keys, the mouse, choices, links, the theme, and what it takes at ten thousand chains."""

import json
import time

import numpy as np
import pytest

from rl_likelihood.report import metrics, page, plots, table
from rl_likelihood.report.table import Run
from rl_likelihood.runtime import run_files
from tests.report.grids import evaluation, sample, write_run
from tests.report.page import chromium
from tests.report.page.test_page import NASTY, nasty_run, write

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="no chromium")
REWARDS = tuple(f"reward{i}" for i in range(9))  # more runs, 18, than a tip once had lines
STEPS = (1, 5, 10)
NO_CHAINS = 3  # number of the run that has written none


def answer_logp(run, step, chain, token):
    return -(run + step / 100 + chain / 10 + token)


def write_grid(folder):
    runs = []
    for i, (reward, seed) in enumerate((r, s) for r in REWARDS for s in (0, 1)):
        workdir = folder / f"{reward}-{seed}"
        with metrics.MetricsWriter(workdir, 10) as writer:
            if i in (0, 1):
                writer.eval(0, {"stage": "untouched", "greedy_success": 0.1, "perplexity": 9.0})
            for step in range(1, 11):
                writer.metrics(step, {"reward/mean": i - step, "answer/perplexity": 4.0 + i, "chain/length": 30.0 + i})
                for q in (f"q{seed}-{step}", "shared") if step in STEPS and i != NO_CHAINS else ():
                    for c in range(2):
                        writer.samples(
                            step,
                            [
                                {
                                    "id": q,
                                    "prompt": f"prompt of {q}",
                                    "chain": f"chain {c} of run {i} at {step} for {q}",
                                    "forced": "",
                                    "sampled_answer": "",
                                    "answer_tokens": ["4", "2"],
                                    "scored": [1, 1],
                                    "answer_logp": [answer_logp(i, step, c, t) for t in (0, 1)],
                                    "answer_logp_no_chain": [-0.5, -0.25],
                                    "reward": -float(c),
                                    "reward/log_prob": -float(c),
                                    "advantage": 0.5 - c,
                                    "truncated": False,
                                }
                            ],
                        )
            writer.eval(10, {"stage": "after 10 steps", "greedy_success": (i + 1) / 20, "perplexity": 2.0 + i})
            writer.status("done", 10)
        runs.append(Run({"reward": reward, "seed": str(seed)}, workdir))
    return runs


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    runs = write_grid(folder)
    figure = plots.figure({"a run": runs[0].workdir})
    contents = page.Contents("grid", "", "reward", table.blocks(runs), {"curves": figure})
    page.write(folder / "report.html", contents, runs)
    return f"file://{folder / 'report.html'}"


def opened(browser, address, width=1280, height=900, **media):
    browser.screen(width, height, **{"still": True} | media)  # a click lands where it was aimed at
    browser.open(address)


def shown(browser):
    """(run, step, prompt) of the chains that stand on the page, from their text."""
    text = browser.js("document.querySelector('.view .chain .text')?.textContent ?? 'none'").split()
    return (int(text[4]), int(text[6]), text[8]) if len(text) > 8 else None


def test_keys_walk_through_steps_and_runs_and_the_step_is_kept(browser, address):
    opened(browser, address)
    assert shown(browser) == (0, 10, "q0-10") and browser.js("location.hash") == ""
    browser.key("ArrowLeft")
    assert shown(browser) == (0, 5, "q0-5") and "run=0&step=5" in browser.js("location.hash")
    for _ in range(NO_CHAINS):
        browser.key("ArrowRight", shift=True)
    assert shown(browser) is None and "has written no chains" in browser.js("$('rollouts').textContent")
    browser.key("ArrowRight", shift=True)
    assert shown(browser) == (4, 5, "q0-5"), "the step was the reader's, not the run's"
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert shown(browser) == (4, 10, "q0-10"), "no further than the last"


def test_a_link_of_the_table_leads_there_every_time_and_an_address_to_what_it_names(browser, address):
    opened(browser, address)
    link = '#table a[href="#run=2"]'
    for _ in range(2):
        browser.click(link)
        assert browser.waits("$('run').value === '2'")
        assert shown(browser) == (2, 10, "q0-10")
        browser.key("ArrowRight", shift=True)
        browser.key("ArrowRight", shift=True)
        assert shown(browser)[0] == 4
    for _ in range(2):  # the second time it is there already: down to the chains again
        browser.click(link)
        assert browser.waits("$('run').value === '2' && $('chains').getBoundingClientRect().y < innerHeight / 2")
    browser.open(f"{address}#run=5&step=5&prompt=shared&beside=6")
    assert shown(browser) == (5, 5, "shared")
    assert browser.js("document.querySelectorAll('.view').length") == 2
    browser.open(f"{address}#run=99")
    assert shown(browser) == (0, 10, "q0-10")


def test_runs_are_compared_by_choosing_from_the_keyboard(browser, address):
    opened(browser, address)
    browser.js("$('step').focus()")
    browser.text("5")
    assert shown(browser)[1] == 5
    browser.js("$('prompt').focus()")
    browser.text("prompt of s")
    assert shown(browser) == (0, 5, "shared")
    browser.js("$('beside').focus()")
    browser.text("reward reward7, seed 1")
    views = browser.js("[...document.querySelectorAll('.view')].map(v => v.querySelector('.chain .text').textContent)")
    assert views == ["chain 0 of run 0 at 5 for shared", "chain 0 of run 15 at 5 for shared"]
    assert "beside=15" in browser.js("location.hash")
    left, right = browser.js("[...document.querySelectorAll('.view')].map(v => v.getBoundingClientRect().x)")
    assert right > left + 300, "side by side on a desk"


def test_a_token_s_numbers_are_read_by_keys_and_by_the_mouse(browser, address):
    opened(browser, address)
    browser.js("$('later').focus()")
    browser.key("Tab")
    told = lambda: browser.js("$('token').textContent")
    assert told().startswith('"4"  log-prob -0.500') and "without a chain" in told()
    browser.key("ArrowDown")
    first = answer_logp(0, 10, 0, 0)
    after = f"log-prob {first:.3f}, probability {np.exp(first):.3f} after this chain"
    assert told() == f'"4"  {after}; -0.500 without a chain'
    browser.key("ArrowRight")
    assert told().startswith(f'"2"  log-prob {answer_logp(0, 10, 0, 1):.3f}')
    browser.key("ArrowDown")
    assert told().startswith(f'"2"  log-prob {answer_logp(0, 10, 1, 1):.3f}') and shown(browser)[1] == 10
    browser.key("Escape")
    assert told() == ""
    browser.click(".view .chain:last-child .tok")
    assert told().startswith(f'"4"  log-prob {answer_logp(0, 10, 1, 0):.3f}')
    browser.js("$('later').focus()")
    assert told() == "", "it is there as long as its token has the focus"
    stops = "[...document.querySelectorAll('.answer')].map(a => a.querySelectorAll('[tabindex=\"0\"]').length)"
    assert browser.js(stops) == [1, 1, 1], "Tab stops once at each answer"


def test_a_chart_tells_the_numbers_of_all_runs(browser, address):
    opened(browser, address)
    titles = browser.js("[...document.querySelectorAll('#charts .chart')].map(c => c.getAttribute('aria-label'))")
    assert "Reward in training" not in titles, "rewards of different units share no axis"
    assert titles == ["Greedy success", "Perplexity of the answer", "Chain length with tags, tokens"]
    n = titles.index("Perplexity of the answer") + 1
    tip = f"#charts .chart:nth-child({n}) .tip"
    rows = f"[...document.querySelectorAll('{tip} tr')].map(r => [...r.children].map(c => c.textContent))"
    width = browser.js(f"document.querySelector('#charts .chart:nth-child({n}) svg').clientWidth")
    browser.hover(f"#charts .chart:nth-child({n}) svg", right=width / 2 - 12)
    assert browser.js(rows)[0] == ["step 10", "training", "held-out"]
    assert browser.js(rows)[1:] == [
        [f"\u25cf reward{i}", f"{4.0 + 2 * i:.3f}  {5.0 + 2 * i:.3f}", f"{2.0 + 2 * i:.3f}  {3.0 + 2 * i:.3f}"]
        for i in reversed(range(9))
    ]
    browser.hover("h1")
    assert browser.js(f"document.querySelector('{tip}').hidden")
    browser.js(f"document.querySelector('#charts .chart:nth-child({n - 1})').focus()")
    browser.key("Tab")
    browser.key("Home")
    assert browser.js(rows)[0] == ["step 0", "held-out"] and len(browser.js(rows)) == 10, "all begin at step 0"
    browser.key("ArrowRight")
    assert browser.js(rows)[0][0] == "step 1" and shown(browser)[1] == 10, "the chart's key is not the chains'"
    browser.key("Escape")
    assert browser.js(f"document.querySelector('{tip}').hidden")
    for i in range(2, 10):
        browser.click(f"#legend label:nth-child({i}) input")
    assert browser.js("document.querySelector('#charts h3').textContent") == "Reward in training"
    assert browser.js("document.querySelector('#charts .chart:nth-child(2)').querySelectorAll('path').length") == 2


def test_light_and_dark_follow_the_system_until_the_button(browser, address):
    ground = "getComputedStyle(document.body).backgroundColor"
    opened(browser, address)
    light = browser.js(ground)
    assert browser.js("getComputedStyle(document.querySelector('details img')).filter") == "none"
    opened(browser, address, dark=True)
    dark = browser.js(ground)
    assert dark != light and "invert" in browser.js("getComputedStyle(document.querySelector('details img')).filter")
    browser.click("#theme")
    assert browser.js(ground) == light
    browser.screen(1280, 900, dark=False)
    browser.click("#theme")
    assert browser.js(ground) == dark
    scroll = "getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.js(scroll) == "smooth"
    browser.screen(1280, 900, still=True)
    assert browser.js(scroll) == "auto"


def test_a_phone_reads_charts_at_their_size_and_scrolls_no_page_sideways(browser, address):
    opened(browser, address, 390, 844)
    scale = "(e => e.clientWidth / e.viewBox.baseVal.width)(document.querySelector('#charts svg'))"
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.js(scale) == pytest.approx(1, abs=0.01), "text of 12 px is 12 px"
    browser.screen(844, 390)
    assert browser.waits(f"Math.abs({scale} - 1) < 0.01 && innerWidth === 844"), "drawn anew when the phone is turned"


def test_tokens_of_an_answer_are_coloured_by_their_weights_if_the_reader_wants(browser, tmp_path):
    folder = write_run(tmp_path / "r3", evaluation(0.5, 2.0), steps=1)
    rows = [sample("q", -5.0, 2, "a") | {"answer_weights": [0.25, 1.0]}, sample("q", -1.0, 2, "b")]
    (folder / run_files.SAMPLES).write_text("".join(json.dumps({"step": 1} | row) + "\n" for row in rows))
    write(tmp_path, [Run({"reward": "r3", "seed": "0"}, folder)])
    opened(browser, f"file://{tmp_path / 'report.html'}")
    tokens = "[...document.querySelectorAll('.chain .tok')]"
    opacity = f"{tokens}.map(t => +getComputedStyle(t).backgroundColor.match(/[\\d.]+(?=\\))/)[0])"
    # By log-prob: -5 has the full colour, 0.75, and -1 a fifth of it. The likelier answer stands first.
    assert browser.js(opacity) == pytest.approx([0.15, 0.15, 0.75, 0.75], abs=0.005)
    browser.js("$('colour').focus()")
    browser.text("weight")
    assert browser.js("$('colour').value") == "weight"
    assert browser.js(opacity) == pytest.approx([0.15, 0.15, 0.1875, 0.75], abs=0.005), "an answer without weights"


def test_the_curve_of_trace_is_drawn_over_parts_of_the_chain(browser, tmp_path):
    curve = {f"trace@{k}": -2.0 + k / 100 for k in (0, 25, 50, 75, 100)}
    runs = [Run({"reward": "r3", "seed": "0"}, write_run(tmp_path / "r3", evaluation(0.5, 2.0) | curve))]
    write(tmp_path, runs)
    opened(browser, f"file://{tmp_path / 'report.html'}")
    chart = "#charts .chart[aria-label='Log-prob per token after parts of the chain, nats']"
    assert browser.js(f'document.querySelectorAll("{chart} circle").length') == 5
    browser.js(f'document.querySelector("{chart}").focus()')
    browser.key("Tab")
    browser.key("Tab", shift=True)
    browser.key("ArrowLeft")
    assert browser.js(f'document.querySelector("{chart} .tip th").textContent') == "after 75 %"


@pytest.mark.slow
def test_ten_thousand_chains_open_and_nothing_that_a_model_wrote_runs(browser, tmp_path):
    run = nasty_run(tmp_path / "run")
    with (run / run_files.SAMPLES).open("a") as f:
        for i in range(10_000):
            row = {
                "step": 3 + i // 16,
                "id": f"q{i // 8}",
                "prompt": "2+2?",
                "chain": f"chain number {i} " * 20,
                "forced": "",
                "sampled_answer": "",
                "answer_tokens": ["4"] * 30,
                "answer_logp": [-1.0] * 30,
                "scored": [1] * 30,
                "reward": -1.0,
                "reward/log_prob": -1.0,
                "advantage": 0.0,
                "truncated": False,
            }
            f.write(json.dumps(row) + "\n")
    write(tmp_path, [Run({"reward": "prob", "seed": "0"}, run)], title="the title")
    began = time.monotonic()
    opened(browser, f"file://{tmp_path / 'report.html'}#run=0&step=1")
    seconds = time.monotonic() - began
    for text in NASTY:
        text = text.encode("utf-8", "replace").decode()
        query = f"document.querySelector('.view').textContent.includes({json.dumps(text.split(chr(0))[0])})"
        prompt = json.dumps(f"id {text}")
        browser.js(f"$('prompt').value = {prompt}; $('prompt').dispatchEvent(new Event('change'))")
        assert browser.js(query), text
        assert browser.js("$('prompt').value") == f"id {text}", "an address names any prompt"
        browser.js("dispatchEvent(new HashChangeEvent('hashchange'))")
        assert browser.js("$('prompt').value") == f"id {text}"
    assert browser.js("document.title") == "the title", "nothing changed it"
    assert browser.js("document.querySelectorAll('script, img, iframe').length") == 2
    browser.open(f"file://{tmp_path / 'report.html'}#run=0&step=300")
    assert browser.js("document.querySelectorAll('.chain').length") == 8
    browser.key("ArrowRight")
    assert browser.js("$('step').value") == "301"
    print(f"opened in {seconds:.1f} s")


def test_held_out_texts_stand_side_by_side(browser, tmp_path):
    """Runs 0 and 2 have texts of two questions; run 1 has none."""
    runs = [Run({"reward": f"r{i}", "seed": "0"}, tmp_path / f"r{i}") for i in range(3)]
    for i, run in enumerate(runs):
        named = {} if i == 1 else {"records": "evaluations/last.jsonl"}
        write_run(run.workdir, {**evaluation(0.5, 2.0), **named})
        (run.workdir / "evaluations").mkdir()
        lines = [{"step": 4, "identity": {"tags": ["</think>"], "texts": ["prose"]}}]
        for q in range(2):
            sampled = {"text": f"chain {i} {q}</think>\n<answer>answer {i} {q}", "answer": f"answer {i} {q}"}
            texts = {"prompt": f"prompt {i} {q}", "reference": f"reference {i} {q}", "samples": [sampled]}
            lines.append({"step": 4, "index": q, **texts})
        path = run.workdir / "evaluations" / "last.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(tmp_path, runs)
    opened(browser, f"file://{tmp_path / 'report.html'}")
    said = lambda: browser.js("[...document.querySelectorAll('#text-rows .text')].map(e => e.textContent)")
    assert said() == ["reference 0 0", "chain 0 0", "answer 0 0"]
    places = browser.js("[...document.querySelectorAll('#text-rows .three>*')].map(e => e.getBoundingClientRect().x)")
    assert places[0] + 200 < places[1] < places[2] - 200, "side by side on a desk"
    assert browser.js("[...$('text-run').options].map(o => o.value)") == ["0", "2"]
    browser.js("$('text-question').focus()")
    browser.text("2")
    assert said() == ["reference 0 1", "chain 0 1", "answer 0 1"]
    browser.js("$('text-run').focus()")
    browser.text("reward r2")
    assert said() == ["reference 2 0", "chain 2 0", "answer 2 0"]
    assert browser.js("document.querySelector('#text-rows .question').textContent") == "prompt 2 0"
