"""Downloads of data sets: once, whole or not at all, with their progress."""

from __future__ import annotations

import dataclasses
import io
import sys
import types
from pathlib import Path

import pytest

from rl_likelihood import progress
from rl_likelihood.datasets import DATASETS, files, prepare
from rl_likelihood.datasets.sources import OWN
from rl_likelihood.errors import UserError
from tests.datasets.reading import lines
from tests.datasets.test_prepare import gsm8k
from tests.servers import slow_server


def test_public_files_are_fetched_once(tmp_path):
    gsm8k(tmp_path / "public")
    with slow_server(tmp_path / "public", lambda: True) as address:
        addresses = (f"{address}/train.jsonl", f"{address}/test.jsonl")
        dataset = dataclasses.replace(DATASETS["gsm8k"], addresses=addresses)
        paths = files.download(dataset, tmp_path / "downloads")
        missing = dataclasses.replace(dataset, addresses=(f"{address}/train.txt",))
        with pytest.raises(UserError, match=r"train\.txt .*\(File not found\).* train\.jsonl"):
            files.download(missing, tmp_path / "downloads")
    assert [Path(p).read_text() for p in paths] == [
        (tmp_path / "public" / f"{split}.jsonl").read_text() for split in ("train", "test")
    ]
    assert files.download(dataset, tmp_path / "downloads") == paths  # nobody answers any more
    with pytest.raises(UserError, match=r"\(.*refused\).* train\.jsonl .*--source"):
        files.download(dataset, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").rglob("*.jsonl"))


def test_a_download_says_how_much_is_there(tmp_path, monkeypatch):
    """The server sends a third of the file, and the rest once the line has come."""
    (tmp_path / "train.jsonl").write_bytes(content := b"1" * 6_000_000)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    with slow_server(tmp_path, lambda: "fetched 2 of 6 MB" in said.getvalue()) as address:
        dataset = dataclasses.replace(DATASETS["gsm8k"], addresses=(f"{address}/train.jsonl",))
        (path,) = files.download(dataset, tmp_path / "downloads")
    assert Path(path).read_bytes() == content
    assert said.getvalue().startswith(f"fetching {address}/train.jsonl (6.0 MB)\n")


def test_a_data_set_of_the_hub_is_a_source(tmp_path, monkeypatch):
    """What their library is asked for, and what becomes of the folder that it answers with."""
    main, other = (gsm8k(tmp_path / "snapshot" / name) for name in ("main", "socratic"))
    assert main != other
    asked = []

    def snapshot_download(repository, repo_type, revision, allow_patterns):
        if repository == "owner/absent":
            raise OSError("404\nnot found")
        asked.append((repository, repo_type, revision, allow_patterns))
        if repository == "owner/csv":  # no file fits the patterns, so the library makes no folder
            return str(tmp_path / "snapshot" / "csv")
        if repository == "owner/described":
            lines(tmp_path / "described" / "dataset_infos.json", {})
            return str(tmp_path / "described")
        return str(tmp_path / "snapshot")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    report = prepare.prepare("gsm8k", "hf:owner/name/main", str(tmp_path / "out"))
    assert report.splits == {"train": 20, "test": 5} and report.duplicates == report.repeats == ()
    prepare.prepare("gsm8k", "hf:owner/name@v1/main", str(tmp_path / "pinned"))
    prepare.prepare("gsm8k", "hf:owner/name@refs/convert/parquet/main", str(tmp_path / "converted"))
    assert [a[:3] for a in asked] == [("owner/name", "dataset", r) for r in (None, "v1", "refs/convert/parquet")]
    assert asked[2][3] == asked[0][3]
    assert "main/*.parquet*" in asked[0][3]
    for source, words in (
        ("hf:owner/name", "asks the 5 test questions of main/test.jsonl again, .*: hf:owner/name/main or hf:.*/s"),
        ("hf:owner/absent", r"hf:owner/absent cannot be fetched \(404\); give train\.jsonl"),
        ("hf:owner/name/none", "owner/name has no folder 'none' with data"),
        ("hf:owner/csv", "^hf:owner/csv has no JSON or parquet file; .* try hf:owner/csv@refs/convert/parquet"),
        ("hf:owner/described", "^--source=hf:owner/described holds no file of gsm8k"),
        ("hf:name", "'hf:name' names no data set of the hub; write hf:owner/name"),
        ("hf:owner/../x", "names no data set of the hub"),
    ):
        with pytest.raises(UserError, match=words):
            prepare.prepare("gsm8k", source, str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"owner/absent cannot be fetched \(404\); give .* with data.train_path"):
        files.locate(["hf:owner/absent"], OWN, "data.train_path")
