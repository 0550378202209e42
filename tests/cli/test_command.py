"""What the mains settle before jax starts: XLA's flags and where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

from rl_likelihood.cli.command import in_order

ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"
SEVERAL = "--xla_force_host_platform_device_count=4"


def test_only_several_cpu_devices_are_put_in_order_and_a_user_s_word_stands():
    assert in_order("") == "" and in_order("--xla_cpu_max_isa=AVX2") == "--xla_cpu_max_isa=AVX2"
    assert in_order(SEVERAL).split() == [SEVERAL, f"{ORDER}=false"]
    assert in_order(f"{SEVERAL} {ORDER}=true").split() == [SEVERAL, f"{ORDER}=true"]


def kept_in(folder: Path, **environment: str) -> str:
    """The folder of compiled programs of a process with this environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "RL_LIKELIHOOD"))}
    code = (
        "import jax; from rl_likelihood.cli.command import keep_programs; keep_programs(); "
        "print(jax.config.jax_compilation_cache_dir); jax.jit(lambda x: x + 1).lower(1.0).compile()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"XDG_CACHE_HOME": str(folder)} | environment,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.strip()


def test_compiled_programs_are_kept_in_the_user_s_cache_unless_told_otherwise(tmp_path):
    assert kept_in(tmp_path) == str(tmp_path / "rl_likelihood" / "programs")
    assert kept_in(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
