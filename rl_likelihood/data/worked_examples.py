"""The worked examples that few-shot prompts show."""

from __future__ import annotations

Shots = tuple[tuple[str, str, str], ...]  # (question, chain, answer)

# Task -> (question, chain of thought, answer), hand-written in the wording of `procedural.PRESETS`. `sources.load`
# removes these questions from its sets, so that no prompt contains the answer to its own question.
WORKED_EXAMPLES: dict[str, Shots] = {
    "one_operation": (
        ("Calculate 8 * 3.", "8 * 3 = 24.", "24"),
        ("Calculate 7 + 4 - 5.", "7 + 4 = 11. Then 11 - 5 = 6.", "6"),
        ("Calculate 3 - 9.", "9 is 6 more than 3, so 3 - 9 = -6.", "-6"),
    ),
    "basic_arithmetic": (
        ("Calculate 8 * 3.", "8 * 3 = 24.", "24"),
        ("Calculate 7 + 4 - 5.", "7 + 4 = 11. Then 11 - 5 = 6.", "6"),
        ("Calculate 9 - 2 * 4.", "The product comes first: 2 * 4 = 8. Then 9 - 8 = 1.", "1"),
        ("Calculate 3 - 9.", "9 is 6 more than 3, so 3 - 9 = -6.", "-6"),
    ),
    "chain_sum": (
        (
            "State the final answer to the following arithmetic problem: 27 + 35 - 14.",
            "27 + 35 = 62. Then 62 - 14 = 48.",
            "48",
        ),
        ("State the final answer to the following arithmetic problem: 46 + 17.", "46 + 17 = 63.", "63"),
        (
            "State the final answer to the following arithmetic problem: 31 - 58.",
            "58 is 27 more than 31, so 31 - 58 = -27.",
            "-27",
        ),
        (
            "State the final answer to the following arithmetic problem: 6 - 2 + 9.",
            "6 - 2 = 4. Then 4 + 9 = 13.",
            "13",
        ),
    ),
}
