"""llama.cpp is timed with a file of weights of the same shape as our model."""

import dataclasses

from bench import llama, work
from rl_likelihood.weights import files


def test_the_file_holds_the_workload_s_model(tmp_path):
    model = dataclasses.replace(work.MODELS["W10"], vocab_size=64, layers=2)
    llama.write_file(model, tmp_path / "files.gguf")
    loaded, params = files.load(tmp_path / "files.gguf")
    shape = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "rope_theta", "norm_eps", "tied")
    assert {k: getattr(loaded, k) for k in shape} == {k: getattr(model, k) for k in shape}
    assert params["layers"]["gate"].shape == (2, model.width, model.mlp)
