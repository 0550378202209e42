"""Write a trained policy as a Hugging Face folder that transformers loads as it is.

    python -m rl_likelihood.export --workdir=DIR --out=HF_DIR [--step=N] [--dtype=float32]

The folder holds config.json, model.safetensors, the tokenizer with its chat template, and
generation_config.json with the ids that end a text.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from rl_likelihood.cli.command import run_main
from rl_likelihood.data.tokenizer import save_tokenizer, vocab_bytes
from rl_likelihood.model.decoder import ModelConfig, Params, count
from rl_likelihood.runtime import checkpoint
from rl_likelihood.runtime.workdir import tokenizer_path
from rl_likelihood.shapes import UserError
from rl_likelihood.task import load_tokenizer
from rl_likelihood.weights import files


def export(
    cfg: ModelConfig,
    params: Params,
    model_path: str | os.PathLike,
    out: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Write `params` to the folder `out`, with the tokenizer that belongs to `model_path`.

    UserError when that tokenizer does not fit the vocabulary, or when `out` holds other weights.
    """
    if Path(out).resolve() == Path(model_path).resolve():
        raise UserError(f"--out={out} is the folder that the run started from; choose another")
    tokenizer, stop = load_tokenizer(str(model_path))
    vocab_bytes(tokenizer, cfg.vocab_size)  # refuses a tokenizer of another model
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop[0] if len(stop) == 1 else list(stop) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # The weights first: they refuse a folder of other weights before anything in it is touched.
    files.save(out, cfg, params, dtype, generation)
    save_tokenizer(tokenizer, out)


def main() -> None:
    flag = flags.FLAGS
    for name in ("workdir", "out"):
        if not flag[name].value:
            raise UserError(f"--{name} is missing; write --workdir=DIR --out=HF_DIR")
    cfg, params, step, model_path = checkpoint.restore_params(flag.workdir, flag.step)
    export(cfg, params, tokenizer_path(Path(flag.workdir), model_path), flag.out, flag.dtype)
    print(f"{flag.out}: step {step}, {count(params) / 1e6:.1f} M parameters, {flag.dtype}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the training run")
    flags.DEFINE_string("out", None, "folder to write")
    flags.DEFINE_integer("step", None, "which checkpoint; the newest by default")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "type of the written weights")
    run_main(main, config_file=False)
