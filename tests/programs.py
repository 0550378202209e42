"""Programs of a model, in tests: not every machine, and few containers, can keep all from them that ours can."""

import pytest

from rl_likelihood.grading.run_code import isolation

isolated = pytest.mark.skipif(
    len(isolation()) < 3, reason="this machine has no namespaces for network, processes and files, so nothing is run"
)
