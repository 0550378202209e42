"""NuminaProof: the theorem-proof items of NuminaMath-1.5; the answer is the whole proof. 1,000 are held out.

Kept are rows whose question_type or answer is "proof", without hyperlinks or images. Texts are sanitised:
markdown head marks, labels such as "Problem 3." or "Solution:", contest codes such as "A1 (ROU)" and runs of
trailing dots go, and so do control characters.

Published numbers (Kwiatkowski et al. 2602.03979) are in experiments/paper_nonverifiable.py. The paper keeps chains from
collapsing with loss.kl=k3 and a loss.kl_coef of 0.01 or so. Prepare with --max_chars=3000 (formulas have about two
characters a token).

Not run on the real files; their format (parquet with problem, solution, answer, question_type, ...) is their
authors'.
"""

import re
import unicodedata

from rl_likelihood.datasets.common import WRITTEN, DataSet, Location, Row, Skipped, text
from rl_likelihood.shapes import Example

_LINK = re.compile(r"https?:|\bwww\.|!\[[^\]]*\]\(|<img\b|<a\b|\\href\b|\\includegraphics\b", re.I)
_HEAD = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.M)  # "#A = 5" is a cardinality
_LABELS = "problem|task|exercise|question|example|solution|proof"
_NUMBERED = r"(?:[ \t]+(?:no\.?[ \t]*)?(?:\d+(?:\.\d+|[ \t]*[-–][ \t]*\d+)*|[ivx]+)\b)?"  # "3", "2.1", "3 - 010523"
# Only what cannot be the beginning of a sentence: "A1." and "(ROU)" are codes, "ABC is a triangle" is not.
_OPENINGS = (
    re.compile(rf"\**(?:{_LABELS}){_NUMBERED}\**[ \t]*(?:[.:)]\**[ \t]*|\n)\**\s*", re.I),
    re.compile(r"\**[ACGN]\d{1,2}(?:[.:)]|[ \t]*(?=\([A-Z]{3}\d?\)))\**[ \t]*"),
    re.compile(r"\**\([A-Z]{3}\d?\)[.:]?\**[ \t]*"),
)


def parse(record: dict, location: Location) -> Row | Skipped:
    problem, solution = text(record, "problem"), text(record, "solution")
    kinds = {text(record, "question_type").lower(), text(record, "answer").lower()}
    if "proof" not in kinds:
        return Skipped("not a proof")
    if _LINK.search(problem) or _LINK.search(solution):
        return Skipped("hyperlink or image")
    source = record.get("source") or ""
    return Row(Example(location.id, clean(problem), clean(solution), task="proof"), extra={"source": str(source)})


def clean(value: str) -> str:
    """A text without what the collection put around it."""
    value = unicodedata.normalize("NFC", value.replace("\r\n", "\n").replace("\r", "\n"))
    value = "".join(c for c in value if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
    value = _HEAD.sub("", value).strip()
    shorter = True
    while shorter:
        before = value
        for opening in _OPENINGS:
            match = opening.match(value)
            value = value[match.end() :].lstrip() if match else value
        shorter = value != before
    value = re.sub(r"[ \t]+$", "", value, flags=re.M)
    value = re.sub(r"\n{3,}", "\n\n", value)
    end = value.rstrip(". \t\n")
    if value[len(end) :].count(".") > 1 and not end.endswith((",", "+")):  # "1, 2, 3, ..." means its dots
        value = f"{end}."
    return value.strip()


DATASET = DataSet(
    name="numina_proof",
    parse=parse,
    fetch="the parquet files of NuminaMath-1.5",
    addresses=("hf:AI-MO/NuminaMath-1.5@1b05109f9e5c1ad06c0663519502416c30b300f8",),
    split="train",
    heldout=1000,
    heldout_split="validation",
    grader="none",
    max_prompt=1536,
    max_answer=1536,
    max_chain=1024,
    instruction=WRITTEN,
)
