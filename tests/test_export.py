"""The export command, from a run's checkpoint to a folder that loads. That transformers reads it: tests/parity."""

import base64
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rl_likelihood.config import build
from rl_likelihood.data.byte_tokenizer import BYTES, byte_tokenizer
from rl_likelihood.data.tokenizer import load_tokenizer, save_tokenizer
from rl_likelihood.errors import UserError
from rl_likelihood.export import export, export_adapters, refuse_another, refuse_local_base, refuse_workdir, run_id
from rl_likelihood.model.architecture import ModelConfig
from rl_likelihood.model.lora import LoraConfig, merged
from rl_likelihood.runtime import checkpoint
from rl_likelihood.shapes import TrainState
from rl_likelihood.task import load_model
from rl_likelihood.weights import files
from tests.commands import run_each
from tests.model.test_lora import random_adapters
from tests.runs import small_config
from tests.servers import hub
from tests.weights.make_checkpoints import BASE, CONFIGS, random_params, write


def run(*args, **env):
    command = [sys.executable, "-m", "rl_likelihood.export", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env={**os.environ, **env}
    )


def save_run(tmp_path):
    """A checkpoint at step 3 in tmp_path / run, of a model that came from tmp_path / base."""
    cfg, _ = write("qwen3", tmp_path / "base")
    params = random_params(cfg, 11)
    state = TrainState(step=jnp.int32(3), params=jax.tree.map(jnp.asarray, params), opt_state={})
    meta = {"model_config": dataclasses.asdict(cfg), "model_path": str(tmp_path / "base")}
    checkpoint.close(checkpoint.save_initial(tmp_path / "run", state, meta))
    (tmp_path / "run" / "config.json").write_text('{"seed": 0}\n')  # as every run has one, which is no model's
    return cfg, params


def test_command(tmp_path):
    cfg, params = save_run(tmp_path)

    done = run(f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "step 3" in done.stdout
    loaded_cfg, loaded = files.load(tmp_path / "out")
    assert loaded_cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    ours, base = load_tokenizer(tmp_path / "out"), load_tokenizer(tmp_path / "base")
    assert ours.get_vocab() == base.get_vocab() and ours.chat_template == base.chat_template
    stop = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == {
        "workdir": str((tmp_path / "run").resolve()),
        "run": run_id(tmp_path / "run"),
        "initial_model": "",
        "step": 3,
        "dtype": "float32",
    }
    assert stop == {"bos_token_id": None, "eos_token_id": base.eos_token_id, "pad_token_id": base.pad_token_id}


def lora_run(folder, cfg, base_dtype="float32", of_folder="", warm_start=1, model="model"):
    """(its architecture, its adapters) of a run of adapters in `folder`. `of_folder`: the type of the Hugging Face
    folder `model` that has its base; without it, the base is a random model."""
    write("qwen3", folder / model, of_folder or "float32")
    params = files.load(folder / model)[1] if of_folder else random_params(cfg, 1)
    lora = LoraConfig(rank=2, targets=("q", "up"), base_dtype=base_dtype)
    adapters = random_adapters(lora, cfg)
    name = "org/small" if model.startswith("models--") else str(folder / model)
    config = {"warm_start.steps": warm_start, "model.path": name}
    save_lora_run(folder, params, adapters, lora, saved_meta(cfg, folder / model, config))
    return cfg, adapters


def saved_meta(cfg, model_path, config):
    return {"model_config": dataclasses.asdict(cfg), "model_path": str(model_path), "config": config}


def save_lora_run(folder, params, adapters, lora, meta):
    of_adapters = {"lora": dataclasses.asdict(lora)}
    for path, tree, more in ((folder / checkpoint.INITIAL, params, {}), (folder, adapters, of_adapters)):
        stored = jax.tree.map(functools.partial(jnp.asarray, dtype="float32" if more else lora.stored_dtype), tree)
        state = TrainState(step=jnp.int32(0), params=stored, opt_state={})
        checkpoint.close(checkpoint.save_initial(path, state, meta | more))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_and_their_base_are_written_in_the_type_asked_for(dtype, tmp_path):
    export_adapters(tmp_path / "run", *lora_run(tmp_path / "run", CONFIGS["qwen3"]), tmp_path / "out", dtype)
    for file in ("adapter_model.safetensors", "base/model.safetensors"):
        assert {str(x.dtype) for x in load_file(tmp_path / "out" / file).values()} == {dtype}


@pytest.mark.parametrize(
    "base_dtype, of_folder, written",
    [
        ("float32", "float32", False),
        ("float32", "bfloat16", False),
        ("bfloat16", "float32", True),
        ("bfloat16", "bfloat16", False),
        ("int8", "bfloat16", True),
    ],
)
def test_adapters_stand_on_the_base_that_they_were_trained_on(base_dtype, of_folder, written, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    cfg, adapters = lora_run(folder, CONFIGS["qwen3"], base_dtype, of_folder, warm_start=0)
    export_adapters(folder, cfg, adapters, out)
    base = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str((out / "base" if written else folder / "model").resolve())
    added = merged(files.load(base)[1], adapters, LoraConfig(rank=2, targets=("q", "up")))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), added, checkpoint.restore_params(folder)[1])


@pytest.mark.parametrize("source, old", [("initial", False), (".", True), (".", False)])
def test_adapters_of_a_run_that_began_with_a_workdir_bring_their_base(source, old, tmp_path):
    """`old`: a workdir of a version that kept no tokenizer there."""
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    cfg, adapters = lora_run(first, CONFIGS["qwen3"])
    if not old:
        save_tokenizer(load_tokenizer(first / "model"), first / "tokenizer")
    _, params, path = load_model(build(small_config(model__preset="", model__path=str(first / source))))
    config = {"warm_start.steps": 0, "model.path": str(first / source)}
    lora = LoraConfig(rank=2, targets=("q", "up"))
    save_lora_run(second, params, adapters, lora, saved_meta(cfg, path, config))
    export_adapters(second, cfg, adapters, out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(out / "base")
    jax.tree.map(np.testing.assert_array_equal, files.load(out / "base")[1], params)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_adapters_are_not_written_beside_a_whole_model(name, tmp_path):
    cfg, adapters = lora_run(tmp_path / "run", CONFIGS["qwen3"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("")
    with pytest.raises(UserError, match=f"out: already holds {name}"):
        export_adapters(tmp_path / "run", cfg, adapters, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_adapters_that_peft_cannot_load_are_refused_before_their_base_is_written(tmp_path):
    phi = ModelConfig("phi3", kv_heads=2, **BASE)
    cfg, adapters = lora_run(tmp_path / "run", phi)
    with pytest.raises(UserError, match="phi3 files hold several matrices"):
        export_adapters(tmp_path / "run", cfg, adapters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_workdir_is_no_folder_to_export_to(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=f"--out={run} is the run's own workdir"):
        refuse_workdir(run, run, "org/name")
    with pytest.raises(UserError, match=f"--out={run} is the workdir of another run"):
        refuse_workdir(run, tmp_path, "org/name")
    with pytest.raises(UserError, match="the folder that the run started from"):
        refuse_workdir(tmp_path / "base", run, str(tmp_path / "base"))
    refuse_workdir(tmp_path / "out", run, "org/name")


def test_another_model_is_written_over_only_when_told_to(tmp_path):
    out, run_a, run_b = tmp_path / "out", str(tmp_path / "a"), str(tmp_path / "b")
    refuse_another(out, Path(run_a))
    out.mkdir()
    refuse_another(out, Path(run_a))
    names = ("config.json", "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    for name in names:  # of nobody knows what
        (out / name).write_text("{}")
        with pytest.raises(UserError, match="holds another model, or an unfinished export.*--force"):
            refuse_another(out, Path(run_a))
        (out / name).unlink()
    (out / "export.json").write_text(json.dumps({"workdir": run_b}))
    (out / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"holds the model of {run_b}.*--force"):
        refuse_another(out, Path(run_a))
    refuse_another(out, Path(run_b))
    (tmp_path / "a").mkdir()
    for name in ("config.json", "inputs.json"):
        (tmp_path / "a" / name).write_text('{"seed": 1}')
    (out / "export.json").write_text(json.dumps({"workdir": "/elsewhere", "run": run_id(tmp_path / "a")}))
    refuse_another(out, tmp_path / "a")  # it has moved since
    (tmp_path / "a" / "config.json").write_text('{"seed": 2}')
    with pytest.raises(UserError, match="holds the model of /elsewhere"):
        refuse_another(out, tmp_path / "a")
    (out / "export.json").write_text("half a li")
    with pytest.raises(UserError, match="holds another model"):
        refuse_another(out, Path(run_b))


def test_another_run_in_the_same_workdir_is_another_run(tmp_path):
    """A workdir was deleted and its path used again, with another model."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    for folder in (workdir, out):
        folder.mkdir()
    (out / "config.json").write_text("{}")
    (workdir / "config.json").write_text('{"seed": 1}')
    origin = {"workdir": str(workdir.resolve()), "run": "0123456789abcdef", "initial_model": "a"}
    for kept, exported, refused in (("a", "a", False), ("b", "a", True), ("", "a", False), ("b", "", False)):
        (workdir / "inputs.json").write_text(json.dumps({"initial_model": kept} if kept else {}))
        (out / "export.json").write_text(json.dumps(origin | {"initial_model": exported}))
        if refused:
            with pytest.raises(UserError, match=f"the model of {workdir}, from a run that began with another.*--force"):
                refuse_another(out, workdir)
        else:
            refuse_another(out, workdir)


def test_a_folder_that_cannot_be_made_is_refused_in_words(tmp_path):
    cfg, _ = write("llama", tmp_path / "base")
    state = TrainState(step=jnp.int32(1), params=jax.tree.map(jnp.asarray, random_params(cfg, 1)), opt_state={})
    meta = {"model_config": dataclasses.asdict(cfg), "model_path": str(tmp_path / "base")}
    checkpoint.close(checkpoint.save_initial(tmp_path / "run", state, meta))
    failed = run(f"--workdir={tmp_path / 'run'}", "--out=/proc/nowhere/out")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and "--out=/proc/nowhere/out: cannot be written" in failed.stderr


def test_a_damaged_config_is_refused_before_anything_is_written(tmp_path):
    save_run(tmp_path)
    for torn in ('{"seed": ', "", "null", "[]"):
        (tmp_path / "run" / "config.json").write_text(torn)
        with pytest.raises(UserError, match="run/config.json: not JSON, or not an object"):
            run_id(tmp_path / "run")
    done = run(f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/run/config.json: not JSON, or not an object; delete it" in done.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "run" / "config.json").unlink()
    assert run_id(tmp_path / "run") == ""


def test_refusal_is_one_line_and_exit_code_2(tmp_path):
    failed = run(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and "no checkpoint here" in failed.stderr
    assert not (tmp_path / "out").exists()


def test_model_with_the_byte_tokenizer(tmp_path):
    tokenizer = byte_tokenizer()
    cfg = ModelConfig(family="llama", kv_heads=2, **{**BASE, "vocab_size": len(tokenizer)})
    params = random_params(cfg, 1)
    export(cfg, params, BYTES, tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "<think>1 + 1 = 2</think>\n<answer>2</answer>"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    jax.tree.map(np.testing.assert_array_equal, files.load(tmp_path)[1], params)


def without_template(model):
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = None
    (model / "chat_template.jinja").unlink()
    save_tokenizer(tokenizer, model)
    assert load_tokenizer(model).chat_template is None


def test_a_base_model_without_a_chat_template_is_exported(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    cfg, adapters = lora_run(folder, CONFIGS["qwen3"])
    without_template(folder / "model")
    export(cfg, random_params(cfg, 1), folder / "model", out)
    export_adapters(folder, cfg, adapters, tmp_path / "adapters")
    for written in (out, tmp_path / "adapters" / "base"):
        assert load_tokenizer(written).chat_template is None
        assert load_tokenizer(written).get_vocab() == load_tokenizer(folder / "model").get_vocab()
        jax.tree.map(np.testing.assert_array_equal, files.load(written)[1], random_params(cfg, 1))


def test_a_sequence_classifier_needs_a_chat_template(tmp_path):
    cfg, params = write("qwen3", tmp_path / "base")
    without_template(tmp_path / "base")
    with pytest.raises(UserError, match="no chat template.*judge.template=plain"):
        export(cfg, {**params, "score": None}, tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_of_another_model(tmp_path):
    write("llama", tmp_path / "base")
    cfg = ModelConfig(family="llama", kv_heads=2, **{**BASE, "vocab_size": 100})
    with pytest.raises(UserError, match="ids up to"):
        export(cfg, random_params(cfg, 1), tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def uploaded(requests):
    """(the lines of the one commit, its files, the paths that it deletes)."""
    (commit,) = [body.decode() for path, _, body in requests if "/commit/" in path]
    lines = [json.loads(line)["value"] for line in commit.splitlines()]
    sent = {value["path"]: value["content"] for value in lines[1:] if "content" in value}
    return lines, sent, {value["path"] for value in lines[1:] if "content" not in value}


def test_adapters_of_a_model_of_the_hub_name_it_and_are_pushed(tmp_path):
    snapshot = "models--org--small/snapshots/0"
    lora_run(tmp_path / "hub", CONFIGS["qwen3"], of_folder="float32", warm_start=0, model=snapshot)
    lora_run(tmp_path / "folder", CONFIGS["qwen3"], of_folder="float32", warm_start=0)
    lora_run(tmp_path / "int8", CONFIGS["qwen3"], "int8", "float32", warm_start=0, model=snapshot)
    lines = [[f"--workdir={tmp_path / n}", f"--out={tmp_path / 'out' / n}"] for n in ("hub", "folder", "int8")]
    with hub() as (address, requests):
        env = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret"}
        done, *refused = run_each("export", [[*line, "--adapters", "--push=me/model"] for line in lines], **env)
    assert done.returncode == 0, done.stderr
    sent = uploaded(requests)[1]
    assert set(sent) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(base64.b64decode(sent["adapter_config.json"]))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/small", "0")
    for other, words in zip(refused, (f"{tmp_path}/folder/model, not", "a folder that --out will hold"), strict=True):
        assert other.returncode == 2 and words in other.stderr and "leave out --adapters" in other.stderr
    assert not (tmp_path / "out" / "folder").exists()


def test_adapters_of_a_model_of_the_hub_name_it_on_a_machine_without_its_files(tmp_path):
    folder, snapshot = tmp_path / "run", "models--org--small/snapshots/0"
    cfg, adapters = lora_run(folder, CONFIGS["qwen3"], of_folder="float32", warm_start=0, model=snapshot)
    shutil.rmtree(folder / snapshot)
    refuse_local_base(folder)
    export_adapters(folder, cfg, adapters, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/small"
    assert not (tmp_path / "out" / "base").exists()


def test_whether_a_missing_folder_of_the_hub_is_in_bfloat16_is_unknown(tmp_path):
    folder, snapshot = tmp_path / "run", "models--org--small/snapshots/0"
    lora_run(folder, CONFIGS["qwen3"], "bfloat16", "bfloat16", warm_start=0, model=snapshot)
    refuse_local_base(folder)
    shutil.rmtree(folder / snapshot)
    with pytest.raises(UserError, match=f"without {folder / snapshot} it is unknown whether org/small is"):
        refuse_local_base(folder)


def test_a_folder_is_pushed_to_the_hub_with_the_token_and_without_what_names_this_machine(tmp_path):
    save_run(tmp_path)
    to = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--push=me/model"]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    others = ["README.md", "adapter/model.safetensors"]
    old = {first, second, "model.safetensors.index.json", "adapter_model.safetensors", "adapter_config.json"}
    there = [*old, "model.safetensors", *others]
    with hub(there) as (address, requests):
        done = run(*to, HF_ENDPOINT=address, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert f"{address}/me/model/commit/1" in done.stdout
    assert {token for _, token, _ in requests} == {"Bearer hf_secret"}
    (created,) = [json.loads(body) for path, _, body in requests if path == "/api/repos/create"]
    assert created["organization"] == "me" and created["name"] == "model" and created["visibility"] == "private"
    lines, sent, deleted = uploaded(requests)
    assert deleted == old, "old weights, unless uploaded again"
    assert set(sent) == {path.name for path in (tmp_path / "out").iterdir()} - {"export.json"}
    assert base64.b64decode(sent["config.json"]) == (tmp_path / "out" / "config.json").read_bytes()
    assert lines[0]["summary"].startswith("Step 3")


def test_a_hub_that_refuses_and_a_name_that_is_none_are_one_sentence(tmp_path):
    with hub(refuse=True) as (address, _):
        code = "import sys; from rl_likelihood.export import push; push(sys.argv[1], 'me/model', 'message')"
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": "hf_secret"},
        )
    assert "UserError: --push=me/model" in done.stderr and "403" in done.stderr and "HF_TOKEN" in done.stderr
    assert "hf_secret" not in done.stderr
    done = run(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--push=model")
    assert done.returncode == 2 and "--push is 'model'" in done.stderr
