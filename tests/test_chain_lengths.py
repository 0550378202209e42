"""experiments/chain_lengths.py: what it takes from the runs, and that it loses no number that it has."""

import json

from experiments import chain_lengths
from rl_likelihood.runtime import run_files


def evaluation(stage, value):
    measured = {name: value for name in chain_lengths.NUMBERS if name not in ("stage", "questions")}
    ends = {name: [value - 1, value + 1] for name in measured} | {"other": [0, 1]}
    few = {"chain_swap_drop": 3, "other": 1}
    return {"step": 2, "stage": stage, "questions": 4, **measured, "other": 1, "ci95": ends, "questions_of": few}


def test_the_numbers_of_the_runs_at_hand_replace_theirs_and_the_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_lengths, "RESULTS", tmp_path)
    runs = tmp_path / "demo"
    for reward, rows in {
        "r3": [evaluation("untouched", 1.0), evaluation("after 2 steps of r3", 2.0)],
        "nrt": [evaluation("untouched", 1.0)],  # has not ended
    }.items():
        folder = runs / f"reward={reward},seed=0,task=verse-abc"
        folder.mkdir(parents=True)
        run_files.append(folder / "eval.jsonl", *rows)
        run_files.append(folder / "metrics.jsonl", *({"step": i, "chain/length": 10.0 * i} for i in (1, 2)))
    out = tmp_path / "demo_verse_seed_0.json"
    out.write_text(json.dumps({"sft": evaluation("after 2 steps of sft", 9.0), "r3": {"old": 1}}))
    chain_lengths.main([f"--runs={runs}", "--task=verse", "--seed=0"])
    results = json.loads(out.read_text())
    assert list(results) == ["untouched", "r3", "sft"]
    r3 = results["r3"]
    assert set(r3) == {*chain_lengths.NUMBERS, "ci95", "questions_of", chain_lengths.LENGTHS}
    assert r3["trace@25"] == r3["chain_swap_drop"] == 2 and r3["ci95"]["chain_swap_drop"] == [1, 3]
    assert r3["questions_of"] == {"chain_swap_drop": 3} and r3[chain_lengths.LENGTHS] == [10, 20]
    assert results["sft"]["perplexity"] == 9 and results["untouched"]["perplexity"] == 1


def test_the_script_can_make_every_number_of_its_files():
    files = [*chain_lengths.RESULTS.glob("*_seed_?.json")]
    assert len(files) == 3
    for path in files:
        for row in json.loads(path.read_text()).values():
            assert set(row) <= {*chain_lengths.NUMBERS, "ci95", "questions_of", chain_lengths.LENGTHS}
