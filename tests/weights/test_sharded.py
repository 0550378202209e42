"""Weights onto a mesh, shard by shard: the same as whole, and a host reads what its devices hold and no more."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from rl_likelihood.mesh import make_mesh
from rl_likelihood.run_model import param_shardings
from rl_likelihood.weights import files, hugging_face
from tests.weights.make_checkpoints import CONFIGS, random_params, write
from tests.weights.test_gguf import write_gguf


@pytest.mark.parametrize("name, dtype", [(name, "float32") for name in sorted(CONFIGS)] + [("qwen2", "bfloat16")])
def test_every_family_comes_onto_the_mesh_as_it_is(name, dtype, tmp_path):
    write(name, tmp_path, dtype)
    at = functools.partial(param_shardings, make_mesh((2, 2, 2)))
    cfg, params = files.load(tmp_path, at=at)
    jax.tree.map(np.testing.assert_array_equal, params, files.load(tmp_path)[1])
    jax.tree.map(lambda x, where: x.sharding == where or pytest.fail(f"{x.sharding}"), params, at(cfg))


def test_gguf_comes_onto_the_mesh_as_it_is(tmp_path):
    cfg = CONFIGS["qwen2"]
    write_gguf(tmp_path / "m.gguf", cfg, random_params(cfg, 0))
    params = files.load(tmp_path / "m.gguf", at=functools.partial(param_shardings, make_mesh((1, 4, 2))))[1]
    jax.tree.map(np.testing.assert_array_equal, params, files.load(tmp_path / "m.gguf")[1])


class Piece(NamedTuple):
    name: str
    bytes: int


def test_of_a_matrix_each_shard_reads_its_rows_and_columns_once(tmp_path, monkeypatch):
    write("llama", tmp_path)
    read: list[Piece] = []
    opened = hugging_face.open_folder

    def counting(path):
        source = opened(path)

        def part(name, *cuts):
            x = source.read(name, *cuts)
            read.append(Piece(name, x.nbytes))
            return x

        return source._replace(read=part)

    monkeypatch.setattr(hugging_face, "open_folder", counting)
    files.load(tmp_path, at=functools.partial(param_shardings, make_mesh((1, 4, 2))))
    matrices = [p for p in read if "proj" in p.name]
    whole = {p.name: p.bytes for p in matrices}
    assert len(matrices) == 8 * len(whole), "eight shards of each"
    assert sum(p.bytes for p in matrices) == 8 * sum(whole.values())
    shapes = hugging_face.open_folder(tmp_path).shapes
    for name, size in whole.items():
        assert size == 4 * np.prod(shapes[name]) // 8, name
