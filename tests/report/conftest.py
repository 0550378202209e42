"""A grid of the tests here."""

import pytest

from rl_likelihood.report.table import Run
from tests.report.grids import evaluation, write_run


@pytest.fixture
def runs(tmp_path):
    """Two rewards on two data sets with two seeds; one run of `prob` on proofs has not finished."""
    out = []
    for data in ("math", "proofs"):
        for reward, level in (("log_prob", 0.4), ("prob", 0.6)):
            for seed in (0, 1):
                workdir = tmp_path / f"{data}{reward}{seed}"
                unfinished = (data, reward, seed) == ("proofs", "prob", 1)
                final = evaluation(level + 0.1 * seed, 2.0 + seed)
                write_run(workdir, final, done=not unfinished, samples=6, seed=seed)
                out.append(Run({"data": data, "reward": reward, "seed": str(seed)}, workdir))
    return out
