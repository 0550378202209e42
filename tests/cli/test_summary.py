"""What an evaluation came to, for people."""

from rl_likelihood.cli.summary import evaluation_text


def test_an_evaluation_says_what_was_asked_its_numbers_and_what_could_not_be_graded():
    row = {"step": 20, "data": "chain_sum", "questions": 24, "samples": 4, "seconds": 61.2, "grader_failures": 2}
    row |= {"greedy_success": 0.5, "ci95": {"greedy_success": [0.3, 0.7]}, "records": "evaluations/20.jsonl"}
    first, *_, failures, _, records = evaluation_text(row).splitlines()
    assert first == "step 20, chain_sum: 24 questions, 1 greedy and 4 sampled chains each, 61 s"
    assert any(
        line.split()[-5:] == ["50.0%", "30.0%", "to", "70.0%", "24"] for line in evaluation_text(row).splitlines()
    )
    assert failures.startswith("2 answers could not be graded") and records.split() == [
        "records",
        "evaluations/20.jsonl",
    ]
    quiet = evaluation_text({k: v for k, v in row.items() if k not in ("records", "grader_failures")})
    assert "graded" not in quiet and "records" not in quiet
