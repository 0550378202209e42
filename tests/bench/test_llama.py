"""The file of weights that llama.cpp is timed with has the shape of the model that we are timed with."""

import dataclasses

from bench import llama, work
from rl_likelihood.weights import files


def test_the_file_holds_the_workload_s_model(tmp_path):
    model = dataclasses.replace(work.MODELS["W10"], vocab_size=64, layers=2)
    llama.write_file(model, tmp_path / "files.gguf")
    found, params = files.load(tmp_path / "files.gguf")
    shape = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "rope_theta", "norm_eps", "tied")
    assert {k: getattr(found, k) for k in shape} == {k: getattr(model, k) for k in shape}
    assert params["layers"]["gate"].shape == (2, model.width, model.mlp)
