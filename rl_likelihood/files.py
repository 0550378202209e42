"""Files: written whole; GGUF files found and opened, for their tokenizer (data) and their weights (weights)."""

import contextlib
from pathlib import Path

import numpy as np

from rl_likelihood.errors import UserError


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole: if that fails, the old file stays as it was."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that `path` names: itself, or the only one of a folder without config.json; else None."""
    if path.suffix == ".gguf":
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    if len(files) > 1:
        raise UserError(f"{path}: holds {len(files)} .gguf files ({files[0].name}, {files[1].name}, ...); name one")
    return files[0] if files else None


def gguf_reader(file: Path):
    """The GGUFReader of a file. UserError if it is missing or truncated."""
    from gguf import GGUFReader  # here because not every command needs it

    class Reader(GGUFReader):
        """Its views are plain arrays: a view of a memmap is a memmap, and making 500,000 of those takes seconds."""

        data = property(lambda self: self._data, lambda self, mapped: setattr(self, "_data", mapped.view(np.ndarray)))

    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .gguf file or a model folder with config.json")
    try:
        return Reader(file)
    except (ValueError, IndexError, KeyError, OverflowError) as e:  # what slicing past the end of the map raises
        raise UserError(f"{file}: truncated, or not a GGUF file ({e}); download it again") from None
