"""Eight CPU devices for every test, set before anything imports jax, and one cache of compiled programs for all."""

import atexit
import os
import pathlib
import shutil
import tempfile

FLAG = "--xla_force_host_platform_device_count"
# The devices of a program meet at its collectives; one that comes 40 s late has it aborted. Here eight of them share
# one or two cores, with whatever else the machine does: then a late device is slow, not stuck.
_TIMEOUT = "--xla_cpu_collective_call_{}_timeout_seconds={}"
PATIENCE = f"{_TIMEOUT.format('warn_stuck', 120)} {_TIMEOUT.format('terminate', 300)}"
# As the mains have it (rl_likelihood.cli.command.in_order).
ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    # Programs here are tiny and run a few times: their time is compilation, and the second flag and
    # jax_disable_most_optimizations save four fifths of it.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8 --xla_cpu_use_fusion_emitters=false {PATIENCE} {ORDER}".strip()
    )
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Small runs compile the same programs again and again, also in subprocesses: keep them for the session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="rl_likelihood_compiled_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402 (after the settings above)
import pytest  # noqa: E402

# Tests of more than some seconds that `make test` leaves out and `make slow` runs, one a line, as pytest names them.
SLOW = frozenset((pathlib.Path(__file__).parent / "slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before pytest takes away what is marked slow. A name in slow.txt that a whole file lacks is an error."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)
    names = {item.nodeid for item in items}
    files = {name.partition("::")[0] for name in names}
    gone = sorted(name for name in SLOW - names if name.partition("::")[0] in files)
    if gone and not any("::" in arg for arg in config.args):
        raise pytest.UsageError(f"tests/slow.txt names {gone[0]!r}, which does not exist; mend the line")


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_module():
    """Compiled programs go with their module: thousands of them in one process are gigabytes, and memory maps of
    which Linux gives a process 65,530 before it aborts."""
    yield
    jax.clear_caches()
