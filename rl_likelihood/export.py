"""Write a trained policy as a Hugging Face folder that transformers loads as it is.

    python -m rl_likelihood.export --workdir=DIR --out=HF_DIR [--step=N] [--dtype=float32]

The folder holds config.json, model.safetensors (float32 or bfloat16), the tokenizer with its chat
template, and generation_config.json with the ids that end a text.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import app, flags

from rl_likelihood.data import tokenizer as tokenizers
from rl_likelihood.model import assets, weights
from rl_likelihood.model.decoder import ModelConfig, Params, count
from rl_likelihood.shapes import UserError


def export(
    cfg: ModelConfig,
    params: Params,
    model_path: str | os.PathLike,
    out: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Write `params` with the tokenizer of `model_path` (path or known name) to the folder `out`.

    UserError when the tokenizer does not fit the vocabulary or `out` holds other weights.
    """
    source = assets.resolve(model_path)
    tokenizer = tokenizers.load_tokenizer(source)
    tokenizers.vocab_bytes(tokenizer, cfg.vocab_size)  # refuses a tokenizer of another model
    stop = tokenizers.eos_ids(tokenizer, source)
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(stop) if len(stop) > 1 else stop[0] if stop else None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # The weights last: until they are complete the folder does not load.
    Path(out).mkdir(parents=True, exist_ok=True)
    tokenizers.save_tokenizer(tokenizer, out)
    weights.save(out, cfg, params, dtype, generation)


def main(argv: list[str]) -> None:
    from rl_likelihood.pod.checkpoint import restore_params  # orbax: seconds, not needed for --help

    flag = flags.FLAGS
    try:
        if len(argv) > 1:
            raise UserError(f"argument {argv[1]!r} is not understood; write --workdir=DIR --out=HF_DIR")
        for name in ("workdir", "out"):
            if not flag[name].value:
                raise UserError(f"--{name} is missing; write --workdir=DIR --out=HF_DIR")
        cfg, params, step, model_path = restore_params(flag.workdir, flag.step)
        export(cfg, params, model_path, flag.out, flag.dtype)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    print(f"{flag.out}: step {step}, {count(params) / 1e6:.1f} M parameters, {flag.dtype}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_integer("step", None, "Checkpoint to take; the last one by default.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the written weights.")
    app.run(main)
