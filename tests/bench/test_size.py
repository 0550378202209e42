"""The measures of `bench.size`, on a small tree whose offenders are known."""

import pytest

from bench import size

SOURCE = """import pkg.mesh as meshes
from rl_likelihood import other as another, value as v, other
import jax.numpy as jnp


class C:
    def narrow(self, a, b, c, d, e, f):
        return a  # EXCEPTION: X1

    def wide(self, a, b, c, *, d, e, f=0, **g):
        return "noqa"


def long():
BODY
    x = 1


def short():
BODY
""".replace("BODY", "\n".join(["    x = 1"] * 59)).replace("EXCEPTION", "noqa")


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "rl_likelihood").mkdir()
    (tmp_path / "rl_likelihood" / "other.py").write_text("x = 1\n" * 401)
    (tmp_path / "rl_likelihood" / "mixed.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_other.py").write_text("x = 1\n" * 401)
    return tmp_path


def test_each_offender_is_named_by_file_and_line(tree):
    assert size.long_functions(tree) == ["rl_likelihood/mixed.py:14 long (61 lines)"]
    assert size.wide_functions(tree) == ["rl_likelihood/mixed.py:10 wide (7 parameters)"]
    assert size.long_files(tree) == ["rl_likelihood/other.py:1 (401 lines)", "tests/test_other.py:1 (401 lines)"]
    assert size.module_aliases(tree) == ["rl_likelihood/mixed.py:2 rl_likelihood.other as another"]
    assert size.comments("noqa", tree) == ["rl_likelihood/mixed.py:8"]
