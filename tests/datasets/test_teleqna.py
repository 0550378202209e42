"""TeleQnA: choices, free answers and pairs, from the original file and its archive."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest

from rl_likelihood.datasets import DATASETS
from rl_likelihood.datasets.common import Row, Skipped
from rl_likelihood.errors import UserError
from tests.datasets.reading import HERE, parsed, rows

TELE = {
    "question": "What does A stand for?",
    "option 1": "One",
    "option 2": "Two",
    "option 3": "All of the above",
    "answer": "option 2: Two",
    "explanation": "Because.",
    "category": "Lexicon",
}


def test_teleqna_choice_and_free_form():
    choice, free = parsed("teleqna", TELE).example, parsed("teleqna_free", TELE).example
    assert choice.answer == "B" and choice.prompt.startswith("What does A stand for?\n\nA. One\nB. Two\nC. All")
    assert (free.prompt, free.answer, free.chain) == ("What does A stand for?", "Two", "Because.")
    shuffled = parsed("teleqna", TELE | {"option 1": "two", "option 2": "One"})
    other = parsed("teleqna", TELE | {"option 1": "Three"})
    assert parsed("teleqna", TELE).key == shuffled.key != other.key  # another question, on the same side
    assert parsed("teleqna", TELE).group == other.group == parsed("teleqna_free", TELE).key
    # The number decides where the repeated text differs from the option in a letter.
    assert parsed("teleqna_free", {**TELE, "answer": "option 1: Ona"}).example.answer == "One"
    assert parsed("teleqna", {**TELE, "answer": "option 3: Two"}).example.answer == "B"  # and the text where it is one
    with pytest.raises(ValueError, match="n from 1 to 3"):
        parsed("teleqna", {**TELE, "answer": "option 4: Two"})


@pytest.mark.parametrize(
    "answer, is_row",
    [
        ("All of the above", False),
        ("All of the above are true.", False),
        ("None of the above", False),
        ("Both option 1 and option 2", False),
        ("Both 1 and 2", False),
        ("Neither A nor B", False),
        ("Option 4 and more", False),
        ("Both", False),
        ("All", False),
        ("All devices", True),
        ("Both 15 kHz and 3.75 kHz", True),
        ("Any entity that forwards", True),
        ("None is sent", True),
        ("(1) Send the model. (2) Each device trains.", True),
    ],
)
def test_teleqna_free_leaves_out_answers_about_other_options(answer, is_row):
    row = DATASETS["teleqna_free"].parse({**TELE, "option 2": answer, "answer": f"option 2: {answer}"}, HERE)
    assert isinstance(row, Row) == is_row


@pytest.mark.parametrize(
    "question, is_row",
    [
        ("Which of the following is a RIC?", False),
        ("What is true of these: a RIC?", True),
        ("Which of these is a RIC?", False),
        ("Research Papers", False),
        ("What procedure occurs following each RSS?", True),
        ("What is DHCP option 82?", True),
    ],
)
def test_teleqna_free_leaves_out_questions_that_need_options(question, is_row):
    assert isinstance(DATASETS["teleqna_free"].parse({**TELE, "question": question}, HERE), Row) == is_row


def test_teleqna_pairs_have_the_other_options_as_rejected():
    row = parsed("teleqna_pairs", TELE | {"option 3": "Three"})
    assert row.example.answer == "Two" and row.example.prompt == parsed("teleqna_free", TELE).example.prompt
    assert "Two" not in row.extra["rejected"] and "One" in row.extra["rejected"] and not row.extra["refers"]
    assert row.group == parsed("teleqna", TELE).group and row.example.chain == ""
    assert parsed("teleqna_pairs", TELE).extra["refers"]
    equal = DATASETS["teleqna_pairs"].parse(TELE | {"option 1": "Two"}, HERE)
    assert isinstance(equal, Skipped)


def test_teleqna_reads_the_object_of_questions(tmp_path):
    (tmp_path / "TeleQnA.txt").write_text(json.dumps({"question 0": TELE, "question 1": {**TELE, "question": "B?"}}))
    assert [r.example.id for r in rows("teleqna", tmp_path).rows] == ["question 0", "question 1"]


def test_teleqna_opens_the_encrypted_archive(tmp_path):
    pyzipper = pytest.importorskip("pyzipper")
    kind = {"compression": pyzipper.ZIP_DEFLATED, "encryption": pyzipper.WZ_AES}
    for password in (b"teleqnadataset", b"another"):
        with pyzipper.AESZipFile(tmp_path / f"{password.decode()}.zip", "w", **kind) as archive:
            archive.setpassword(password)
            archive.writestr("TeleQnA.txt", json.dumps({"question 0": TELE}))
    assert [r.example.answer for r in rows("teleqna", tmp_path / "teleqnadataset.zip").rows] == ["B"]
    with pytest.raises(UserError, match="another.zip: the password of teleqna does not open it"):
        rows("teleqna", tmp_path / "another.zip")


def test_an_encrypted_archive_without_its_package_says_what_to_do(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "TeleQnA.zip", "w") as archive:
        archive.writestr("TeleQnA.txt", "{}")
    data = bytearray((tmp_path / "TeleQnA.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the directory's mark of an encrypted member
    (tmp_path / "TeleQnA.zip").write_bytes(data)
    monkeypatch.setitem(sys.modules, "pyzipper", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[data\]'.*teleqnadataset"):
        rows("teleqna", tmp_path / "TeleQnA.zip")
