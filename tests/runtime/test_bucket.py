"""A workdir in a bucket: an upload counts as a whole, the newest start owns the run, refusals. The store is
tensorstore's in memory or, for a whole run, an emulator of Google Cloud Storage."""

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

from rl_likelihood.errors import UserError
from rl_likelihood.runtime import bucket, checkpoint
from tests.runs import config_file
from tests.runtime.test_kills import environment, text

ROOT = Path(__file__).parents[2]
ADDRESS = "gs://bucket/run"
IGNORED = {
    "LOCK": "7",
    "STATUS.part": "",
    "a/b.lock": "",
    "wandb/c": "",
    "checkpoints/3.orbax-checkpoint-tmp/a": "half",
}
FIRST = {"metrics.jsonl": "1\n", "config.json": "{}", "checkpoints/1/a": "a1", "checkpoints/1/b": ""}
SECOND = {"metrics.jsonl": "1\n2\n", "config.json": "{}", "checkpoints/2/a": "a2", "checkpoints/2/b": "b2"}


class Killed(BaseException):
    """The process is gone; its writes after this have no effect."""


class Dying:
    """A store whose process is killed before the write number `writes` after `arm`."""

    def __init__(self, store, writes: int = 10**6) -> None:
        self.store, self.left = store, writes

    def write(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.store.write(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.store, name)


class ListingAll(Dying):
    """A store that lists all names, whatever range is asked for, as the emulator does."""

    def list(self, _):
        return self.store.list()


@pytest.fixture
def store():
    return tensorstore.KvStore.open({"driver": "memory", "path": "run/"}).result()


def fill(folder: Path, files: dict[str, str]) -> None:
    shutil.rmtree(folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def names(store) -> set[str]:
    return {name.decode() for name in store.list().result()}


def started(store, folder):
    """The copy of a process that has begun to train."""
    copy = bucket.download(ADDRESS, store, folder)
    copy.own()
    return copy


def test_a_copy_is_the_folder_without_unfinished_files_and_what_is_deleted_goes(store, tmp_path):
    store.write("of another", b"").result()
    for files in (FIRST, SECOND):
        copy = started(ListingAll(store), tmp_path / "a")
        fill(copy.folder, files | IGNORED)
        copy.upload()
        assert content(started(store, tmp_path / "b").folder) == files
        assert names(store) == {*files, bucket.FILES, "of another"}


def test_a_run_killed_at_any_write_leaves_a_whole_checkpoint_and_no_line_less(tmp_path):
    steps = set()
    for writes in range(8):
        store = tensorstore.KvStore.open({"driver": "memory", "path": "run/"}).result()
        copy = started(store, tmp_path / "a")
        fill(copy.folder, FIRST)
        copy.upload()
        copy.store = Dying(store, writes)
        fill(copy.folder, SECOND)
        try:
            copy.upload()
        except Killed:
            pass
        else:
            assert writes == 7  # a kill before every other write was tried
        resumed = started(store, tmp_path / "b")
        files = content(resumed.folder)
        step = max(name.split("/")[1] for name in files if name.startswith("checkpoints/"))
        expected = {"1": FIRST, "2": SECOND}[step]
        assert files | {"metrics.jsonl": expected["metrics.jsonl"]} == expected
        assert files["metrics.jsonl"].startswith(expected["metrics.jsonl"])  # more lines are cut off on resume
        resumed.upload()
        assert names(store) == {*expected, bucket.FILES}  # an unfinished upload is deleted
        steps.add(step)
    assert steps == {"1", "2"}


def test_a_run_killed_in_its_first_upload_starts_again(store, tmp_path):
    copy = started(store, tmp_path / "a")
    fill(copy.folder, FIRST)
    copy.store = Dying(store, len(FIRST))  # before FILES.json
    with pytest.raises(Killed):
        copy.upload()
    assert content(started(store, tmp_path / "a").folder) == {}


def test_the_newest_start_owns_the_run(store, tmp_path):
    old = started(store, tmp_path / "a")
    fill(old.folder, FIRST)
    old.upload()
    new = started(store, tmp_path / "b")
    fill(old.folder, SECOND)
    with pytest.raises(bucket.NotOwner, match="started again by another process"):
        old.upload()
    with pytest.raises(bucket.NotOwner):  # the other start came after our read
        old.commit({})
    assert content(new.folder) == FIRST and names(store) == {*FIRST, bucket.FILES}
    new.upload()


def test_a_start_that_is_refused_takes_nothing_over(store, tmp_path, monkeypatch):
    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket, "open_store", lambda address: store)
    running = started(store, tmp_path / "a")
    with pytest.raises(UserError, match="another config"), bucket.opened(ADDRESS):
        raise UserError("another config")
    fill(running.folder, FIRST)
    with bucket.opened(ADDRESS) as (_, late):
        running.upload()
        with pytest.raises(UserError, match="changed while this process read it"):
            late.own()
    running.upload()
    assert names(store) == {*FIRST, bucket.FILES}


def test_files_that_cannot_be_uploaded_stay_on_the_disk(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket, "open_store", lambda address: store)
    with pytest.raises(bucket.NotOwner), bucket.opened(ADDRESS) as (folder, copy):
        copy.own()
        fill(folder, FIRST)
        started(store, tmp_path / "b")
    kept = folder.with_name(f"{folder.name}.not_uploaded")
    assert content(kept) == FIRST and str(kept) in capsys.readouterr().out


def test_a_write_that_is_sent_twice_is_no_other_owner(store, tmp_path):
    class Twice(Dying):
        def write(self, *args, **kwargs):
            self.store.write(*args, **kwargs).result()
            return self.store.write(*args, **kwargs)

    copy = started(Twice(store), tmp_path / "a")
    fill(copy.folder, FIRST)
    copy.upload()
    copy.upload()
    assert names(store) == {*FIRST, bucket.FILES}


def test_readers_get_one_checkpoint_and_a_temporary_folder(store, tmp_path, monkeypatch):
    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket, "open_store", lambda address: store)
    with pytest.raises(UserError, match="holds no checkpoint"), bucket.copied(ADDRESS, None):
        pass
    copy = started(store, tmp_path / "a")
    fill(copy.folder, FIRST | SECOND | {"initial/checkpoints/0/a": "base"})
    copy.upload()
    for step, other in ((None, "1"), (2, "1"), (1, "2")):
        with bucket.copied(ADDRESS, step) as folder:
            files = content(folder)
        assert files == {k: v for k, v in content(copy.folder).items() if not k.startswith(f"checkpoints/{other}/")}
        assert not folder.exists()
    with pytest.raises(UserError, match="no checkpoint of step 3; choose one of 1, 2"), bucket.copied(ADDRESS, 3):
        pass
    copy.upload()  # reading took nothing over


def test_what_cannot_be_a_run_is_refused_in_one_sentence(store, tmp_path, monkeypatch):
    store.write("config.json", b"{}").result()
    with pytest.raises(UserError, match="copied there by hand"):
        started(store, tmp_path / "a")
    store.write(bucket.FILES, json.dumps({"owner": "", "files": {"../b": 1}}).encode()).result()
    with pytest.raises(UserError, match=r"'\.\./b', which is no file of the run"):
        started(store, tmp_path / "a")
    store.write(bucket.FILES, json.dumps({"owner": "", "files": {"b": 1}}).encode()).result()
    with pytest.raises(UserError, match="run/b is missing"):
        started(store, tmp_path / "a")
    for address in ("gs://", "gs://bucket", "gs:///run"):
        with pytest.raises(UserError, match="as gs://bucket/run"):
            bucket.open_store(address)
    with pytest.raises(UserError, match="A_b!"):
        bucket.open_store("gs://A_b!/run")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="this one has 2"), bucket.opened(ADDRESS):
        pass


@pytest.mark.parametrize("code, words", [(401, "access was refused.*gcloud auth"), (404, "there is no such bucket")])
def test_no_credentials_and_no_bucket_are_one_sentence(code, words, tmp_path, monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match=f"^{ADDRESS}: {words}") as refusal, bucket.opened(ADDRESS):
            pass
        server.shutdown()
    assert "\n" not in str(refusal.value)


def test_a_run_killed_and_resumed_from_the_bucket_on_an_empty_disk_is_the_unbroken_run(tmp_path, monkeypatch):
    from gcp_storage_emulator.server import Response, create_server

    class Generation(Response):
        """The header that tensorstore reads and the emulator leaves out. The emulator checks no generation."""

        def write_file(self, *args, **kwargs):
            self["x-goog-generation"] = "1"
            super().write_file(*args, **kwargs)

    monkeypatch.setattr("gcp_storage_emulator.server.Response", Generation)
    settings = {"train.steps": 5, "eval.prompts": 2, "eval.samples": 1, "mesh.fsdp": 1, "mesh.tensor": 1}
    config = config_file(tmp_path, **settings, **{"train.keep_checkpoints": 1})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")

    def start(workdir, disk: str) -> subprocess.Popen:
        env = environment() | {"RL_LIKELIHOOD_CACHE": str(tmp_path / disk)}
        command = [sys.executable, "-m", "rl_likelihood.train", f"--config={config}", f"--workdir={workdir}"]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def in_bucket(name: str) -> bytes:
        with urllib.request.urlopen(f"{os.environ['TENSORSTORE_GCS_HTTP_URL']}/bucket/run/{name}") as answer:
            return answer.read()

    def saved() -> bool:
        try:
            return bool(re.search(rb"checkpoints/[234]/", in_bucket(bucket.FILES)))
        except OSError:
            return False

    try:
        whole = start(tmp_path / "whole", "disk")
        out, _ = whole.communicate()
        assert whole.returncode == 0, out
        killed = start(ADDRESS, "disk1")
        while not saved():
            assert killed.poll() is None, killed.stdout.read()
            time.sleep(0.01)
        killed.kill()
        killed.communicate()
        resumed = start(ADDRESS, "disk2")
        out, _ = resumed.communicate()
        assert resumed.returncode == 0 and f"bucket   {ADDRESS}" in out, out
        monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path / "disk3"))
        with bucket.copied(ADDRESS, None) as folder:
            for name in ("metrics.jsonl", "samples.jsonl", "eval.jsonl"):
                assert text(folder, name) == text(tmp_path / "whole", name), name
            assert json.loads((folder / "STATUS").read_text())["state"] == "done"
            trees = [jax.tree.leaves(checkpoint.restore_params(w)[1]) for w in (folder, tmp_path / "whole")]
            for a, b in zip(*trees, strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        server.stop()
