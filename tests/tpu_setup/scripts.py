"""How the tests run a script of tpu_setup."""

import os
import shlex
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_setup"
CLOUD = {"PROJECT": "p", "ZONE": "z-a", "DRY_RUN": "1"}
WHERE = ["--project=p", "--zone=z-a"]


def script(name, *arguments, check=0, **values):
    """Output of a script, run from another folder with these environment variables and no others of its own."""
    clean = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
    done = subprocess.run(
        ["bash", str(SCRIPTS / name), *arguments],
        env={**clean, **values},
        capture_output=True,
        text=True,
        timeout=100,
        cwd="/",
    )
    assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def commands(done):
    """The printed commands as lists of words, as a shell would read them."""
    return [shlex.split(line) for line in done.stdout.splitlines()]


def gcloud(words):
    return ["gcloud", "compute", "tpus", *words.split()]


def wait_for(path, seconds=60):
    """Until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


# Appends a line to FILE at each run and sets n to the number of this one.
COUNTED = 'echo run >> "$FILE"; n=$(wc -l < "$FILE"); '


# A training run as babysit sees it: the first is asked to stop, and saves; the second is done.
TRAINING = (
    COUNTED
    + """
if ((n > 1)); then exit 0; fi
trap 'exit "${STOPPED_EXIT:-0}"' TERM; kill -TERM $$; exit 9"""
)
