"""Export a trained policy to a Hugging Face folder that transformers loads directly.

    python -m rl_likelihood.export --workdir=DIR --out=HF_DIR [--step=N] [--dtype=float32] [--force] [--adapters]
                                    [--push=OWNER/NAME [--public]]

The folder has config.json, model.safetensors, the tokenizer with its chat template, generation_config.json with the ids
that end a text, and export.json, which names the run. Another model is overwritten only with --force. A run with LoRA
is exported as one model, or with --adapters as a folder of adapters for peft. A reward model is exported as a sequence
classifier with one label, whose logit is the score. --push uploads the folder to a repository of the Hugging Face Hub
(private unless --public), with the token in HF_TOKEN or of `hf auth login`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from safetensors import SafetensorError

from rl_likelihood import fields
from rl_likelihood.cli.command import required, run_main
from rl_likelihood.data.tokenizer import save_tokenizer, vocab_bytes
from rl_likelihood.errors import UserError
from rl_likelihood.learner.judge import ValueHead
from rl_likelihood.model.architecture import ModelConfig, Params, count
from rl_likelihood.model.lora import LoraConfig, merged
from rl_likelihood.rollouts.local_judge import load_head, save_head
from rl_likelihood.runtime import bucket, checkpoint
from rl_likelihood.runtime.run_files import read_object
from rl_likelihood.runtime.workdir import CONFIG as RUN_CONFIG
from rl_likelihood.runtime.workdir import INPUTS, digest_of_beginning, tokenizer_path
from rl_likelihood.task import load_tokenizer
from rl_likelihood.weights import files
from rl_likelihood.weights.hugging_face import CONFIG, INDEX, WEIGHTS, is_bfloat16

if TYPE_CHECKING:  # over a second to import
    from transformers import PreTrainedTokenizerBase

ORIGIN = "export.json"  # in an exported folder: the run that it came from
# The weights of an earlier upload, perhaps in another number of files. They are not deleted if they are uploaded again.
OLD_WEIGHTS = [WEIGHTS, "model-?????-of-?????.safetensors", INDEX, files.ADAPTERS, "adapter_config.json"]


def export(
    cfg: ModelConfig,
    params: Params,
    model_path: str | os.PathLike,
    out: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Writes `params` to the folder `out`, with the tokenizer at `model_path`.

    UserError if the tokenizer does not match the vocabulary, or if `out` contains other weights.
    """
    # A policy may have been trained on raw text. A sequence classifier reads conversations.
    tokenizer, stop = load_tokenizer(str(model_path), "model" if "score" in params else "raw", "judge.template")
    if "score" in params:
        pad_unlike_the_end(tokenizer)
    vocab_bytes(tokenizer, cfg.vocab_size)  # refuses a tokenizer of another model
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop[0] if len(stop) == 1 else list(stop) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # The weights first: this refuses a folder with other weights before anything in it changes.
    files.save(out, cfg, params, dtype, generation)
    save_tokenizer(tokenizer, out)


def pad_unlike_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets a padding id that differs from the id that ends a conversation, because transformers scores the last id that
    is not padding."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    end = tokenizer(tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False)["input_ids"][-1]
    candidates = [i for i in (tokenizer.pad_token_id, *tokenizer.all_special_ids) if i not in (None, end)]
    if candidates:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(candidates[0])


def with_head(workdir: Path, params: Params, step: int, head: ValueHead) -> Params:
    """The parameters of a sequence classifier: a reward model's parameters with its value head as `score`."""
    if step != checkpoint.latest_step(workdir):
        raise UserError(f"--step={step}: the value head is of the newest checkpoint only; leave --step out")
    if head.bias != 0:
        raise UserError(f"{workdir}: the value head has a bias, but a sequence classifier has none; train it again")
    return {**params, "score": head.weight[None]}


def lora_of(workdir: Path, meta: dict[str, Any]) -> LoraConfig:
    if not meta.get("lora"):
        raise UserError(f"--adapters: {workdir} is a run without LoRA (lora.rank is 0); leave the flag out")
    return fields.read(LoraConfig, meta["lora"], "lora.")


def hub_model(model_path: str, name: str) -> tuple[str, str]:
    """(name, commit) of the model of the Hugging Face Hub at `model_path`, from the path alone: the files may be gone.
    `name`: model.path. ("", "") if the path is not that model's in the Hub's cache."""
    cache, parts = f"models--{name.replace('/', '--')}", Path(model_path).parts
    return (name, parts[parts.index(cache) + 2]) if cache in parts else ("", "")  # cache/snapshots/COMMIT


def published_base(workdir: Path) -> tuple[str, str, str]:
    """Where peft finds exactly the base of a run's adapters: (a name of the Hub, its commit, ""), (a folder, "", "").
    ("", "", "") if it is in neither, and ("", "", a name of the Hub) if only that model's folder, which is missing,
    would show whether it is the base."""
    model_path, meta = checkpoint.describe(workdir)[2:]
    kind, folder, config = lora_of(workdir, meta).base_dtype, Path(model_path), meta["config"]
    there, (name, commit) = (folder / CONFIG).exists(), hub_model(model_path, config["model.path"])
    if config["warm_start.steps"] or kind == "int8":
        return "", "", ""
    if kind == "bfloat16" and not (there and is_bfloat16(folder)):
        return "", "", "" if there else name
    if name:
        return name, commit, ""
    # A run that began with a workdir has another model.path: `folder` is only where its tokenizer came from.
    same = Path(config["model.path"]).expanduser().resolve() == folder.resolve()
    return str(folder.resolve()) if there and same else "", "", ""


def refuse_local_base(workdir: Path) -> None:
    """UserError unless the `published_base` is a model of the Hub."""
    base, commit, unknown = published_base(workdir)
    if unknown:
        raise UserError(
            f"--push with --adapters: lora.base_dtype is 'bfloat16', and without {checkpoint.describe(workdir)[2]} it "
            f"is unknown whether {unknown} is stored in bfloat16; export on a machine with that folder, or leave out "
            "--adapters, which pushes one model"
        )
    if not commit:
        raise UserError(
            f"--push with --adapters: the base of these adapters is {base or 'a folder that --out will hold'}, not a "
            "model of the Hugging Face Hub; leave out --adapters, which pushes one model"
        )


def export_adapters(workdir: Path, cfg: ModelConfig, adapters: Params, out: Path, dtype: str = "float32") -> None:
    """Writes the adapters to a folder for peft. Also writes their base model, rounded as in training, to `out`/base,
    unless it is the `published_base`."""
    files.refuse_adapters(out, cfg.family)
    (base, commit, _), (model_path, meta) = published_base(workdir), checkpoint.describe(workdir)[2:]
    lora = lora_of(workdir, meta)
    if not base:
        base = str((out / "base").resolve())
        params = checkpoint.restore_base(workdir, lora)
        export(cfg, merged(params, {"layers": {}}, lora), tokenizer_path(workdir, model_path), base, dtype)
    files.save_adapters(out, adapters, lora, base, dtype, commit)


def main() -> None:
    flag = flags.FLAGS
    address, out = required("workdir", "runs/first"), required("out", "exported")
    if flag.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", flag.push):
        raise UserError(f"--push is {flag.push!r}; give a repository of the Hugging Face Hub, as owner/name")
    with bucket.copied(address, flag.step) as workdir:
        write(workdir, Path(out))


def write(workdir: Path, out: Path) -> None:
    """Exports the run in `workdir` to `out`, as the flags say."""
    flag, run, initial = flags.FLAGS, run_id(workdir), digest_of_beginning(workdir)
    refuse_workdir(out, workdir, checkpoint.describe(workdir)[2])
    if not flag.force:
        refuse_another(out, workdir)
    if flag.push and flag.adapters:
        refuse_local_base(workdir)
    cfg, params, step, model_path = checkpoint.restore_params(workdir, flag.step, alone=flag.adapters)
    try:
        if flag.adapters:
            export_adapters(workdir, cfg, params, out, flag.dtype)
            what = f"adapters of {count(params):,} parameters, {flag.dtype}"
        else:
            scoring = load_head(workdir)
            tree = params if scoring is None else with_head(workdir, params, step, scoring[0])
            export(cfg, tree, tokenizer_path(workdir, model_path), out, flag.dtype)
            if scoring is not None:
                save_head(out, *scoring)  # with the spread of its scores, for this package's judges
            what = f"{count(params):,} parameters, {flag.dtype}"
        address = flag.workdir if bucket.is_address(flag.workdir) else str(workdir.resolve())
        origin = {"workdir": address, "run": run, "initial_model": initial, "step": step, "dtype": flag.dtype}
        (out / ORIGIN).write_text(json.dumps(origin) + "\n")
    except (OSError, SafetensorError) as e:
        raise UserError(f"--out={out}: cannot be written ({getattr(e, 'strerror', None) or e})") from e
    print(f"{out}: step {step}, {what}", flush=True)
    if flag.push:
        print(push(out, flag.push, f"Step {step}: {what}", flag.public))


def push(folder: Path, repository: str, message: str, public: bool = False) -> str:
    """Uploads an exported folder to the Hugging Face Hub. Returns the commit's address. export.json is not uploaded,
    because it names a folder of this machine."""
    from huggingface_hub import HfApi  # slow to import

    try:
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=[ORIGIN],
            delete_patterns=OLD_WEIGHTS,
        )
    except Exception as e:  # raised by one of several libraries
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(
            f"--push={repository}: the Hugging Face Hub refused {folder} ({reason}); the folder itself is complete; "
            "check the name and HF_TOKEN, which must be allowed to write"
        ) from None
    return done.commit_url


def run_id(workdir: Path) -> str:
    """An id of a run that does not depend on the workdir's path: a hash of its config (without train.steps) and its
    inputs. "" if one of them is missing. UserError for a damaged config."""
    if not (workdir / RUN_CONFIG).exists():
        return ""
    config = read_object(workdir / RUN_CONFIG, "delete it: an export needs only the checkpoint") | {"train.steps": 0}
    if not (workdir / INPUTS).exists():
        return ""
    inputs = (workdir / INPUTS).read_bytes()
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + inputs).hexdigest()[:16]


def refuse_workdir(out: Path, workdir: Path, model_path: str) -> None:
    """UserError if `out` is a run's folder, whose config.json a model's would replace, or the folder of the model that
    the run started from."""
    if out.resolve() == Path(model_path).resolve():
        raise UserError(f"--out={out} is the folder that the run started from; choose another")
    if (out / checkpoint.FOLDER).is_dir():
        whose = "the run's own workdir" if out.resolve() == workdir.resolve() else "the workdir of another run"
        raise UserError(f"--out={out} is {whose}; choose another folder")


def refuse_another(out: Path, workdir: Path) -> None:
    """UserError if the folder `out` contains a model that was not exported from this run.

    Two runs in one workdir, one after the other, differ if they began with different models."""
    try:
        origin = json.loads((out / ORIGIN).read_text()) if (out / ORIGIN).exists() else {}
        origin_workdir = origin.get("workdir", "")
    except (OSError, ValueError, AttributeError):
        origin, origin_workdir = {}, ""
    known = {origin.get("initial_model"), digest_of_beginning(workdir)} - {None, ""}  # runs of old versions have none
    same_folder = origin_workdir == str(workdir.resolve())
    same_run = same_folder and len(known) < 2 or (bool(origin.get("run")) and origin["run"] == run_id(workdir))
    if not same_run and any((out / name).exists() for name in (ORIGIN, CONFIG, WEIGHTS, INDEX, files.ADAPTERS)):
        description = f"the model of {origin_workdir}" if origin_workdir else "another model, or an unfinished export"
        description += ", from a run that began with another model" if same_folder else ""
        raise UserError(f"--out={out} holds {description}; choose another folder, or write over it with --force")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the training run, or gs://BUCKET/RUN")
    flags.DEFINE_string("out", None, "folder to write")
    flags.DEFINE_integer("step", None, "which checkpoint; the newest by default")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "type of the written weights")
    flags.DEFINE_bool("adapters", False, "export only the adapters of a run with LoRA, for peft")
    flags.DEFINE_string("push", None, "repository of the Hugging Face Hub, owner/name, to upload the folder to")
    flags.DEFINE_bool("public", False, "a repository that --push makes can be read by everybody")
    flags.DEFINE_bool("force", False, "write over another model")
    run_main(main, config_file=False, in_bucket=True)
