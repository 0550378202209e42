"""The JobSet manifest."""

import re
from pathlib import Path

import yaml

from tests.tpu_setup.scripts import script

ROOT = Path(__file__).parents[2]


def pod_of(manifest: str) -> dict:
    return yaml.safe_load(manifest)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_keys_come_from_a_secret_of_the_cluster():
    (container,) = pod_of(script("jobset.sh", "x", IMAGE="i", CLAIM="c", SECRET="keys").stdout)["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}] and container["command"][-1] == "x"
    (container,) = pod_of(script("jobset.sh", "x", IMAGE="i", CLAIM="c").stdout)["containers"]
    assert "envFrom" not in container


def test_jobset_speaks_of_the_same_slice():
    values = {"IMAGE": "r/i:t", "CLAIM": "disk", "SLICES": "2", "TOPOLOGY": "v5e:4x8", "TPU_NAME": "mine"}
    text = script("jobset.sh", "python", "-c", 'print("a\\b")\nx', "$$1$ and $(HOME)", **values).stdout
    for line in (
        'name: "mine"',
        "replicas: 2",
        "parallelism: 8",
        "completions: 8",
        "google.com/tpu: 4",
        'claimName: "disk"',
        "gke-tpu-topology: 4x8",
        "gke-tpu-accelerator: tpu-v5-lite-podslice",
        'gke-spot: "true"',
        'image: "r/i:t"',
    ):
        assert line in text, line
    reserved = pod_of(script("jobset.sh", "x", **values, PRICING="reserved", RESERVATION="ours").stdout)
    assert reserved["nodeSelector"]["cloud.google.com/reservation-name"] == "ours"
    assert "cloud.google.com/gke-spot" not in reserved["nodeSelector"]
    for wrong in ("0", "3", "8", "64", "x"):
        (line,) = script("jobset.sh", "x", **values, CHIPS_PER_HOST=wrong, check=2).stderr.splitlines()
        assert line.endswith(f"CHIPS_PER_HOST is '{wrong}'; a machine of v5e:4x8 has 4 chips")
    for given, hosts, chips in (({}, 1, 8), ({"CHIPS_PER_HOST": "4"}, 2, 4)):
        small = script("jobset.sh", "x", **{**values, **given, "TOPOLOGY": "v5e:2x4"}).stdout
        assert f"parallelism: {hosts}" in small and f"google.com/tpu: {chips}" in small
    assert pod_of(text)["containers"][0]["command"] == [
        "bash",
        "tpu_setup/worker.sh",
        "once",
        "python",
        "-c",
        'print("a\\b")\nx',
        "$$$$1$$ and $$(HOME)",  # Kubernetes makes $ of $$, and reads $(NAME)
    ]


def test_the_name_of_a_slice_is_a_text():
    text = script("jobset.sh", "x", IMAGE="i", CLAIM="c", TPU_NAME="true").stdout
    assert yaml.safe_load(text)["metadata"]["name"] == "true"


def test_control_characters_are_refused():
    values = {"IMAGE": "i", "CLAIM": "c", "SECRET": "s", "RESERVATION": "r"}
    for name in values:
        for mark in ("\x01", "\x7f", "\n", "\t"):
            (line,) = script("jobset.sh", "x", **{**values, name: f"a{mark}b"}, check=2).stderr.splitlines()
            assert line.startswith(f"error: {name} is $'a\\") and "control character" in line
    for mark in ("\x1b", "\r"):
        done = script("jobset.sh", "python", f"a{mark}b", **values, check=2)
        assert done.stdout == "" and "the command has $'a\\" in done.stderr and len(done.stderr.splitlines()) == 1
    assert pod_of(script("jobset.sh", "a\tb\nc", **values).stdout)["containers"][0]["command"][-1] == "a\tb\nc"


def test_jobset_does_not_try_a_refused_command_again():
    spec = yaml.safe_load(script("jobset.sh", "x", IMAGE="i", CLAIM="c", RESTARTS="7").stdout)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (name,) = (container["name"] for container in job["template"]["spec"]["containers"])
    # Exit code 2 fails the Job at once, with a reason by which the JobSet knows it; all else is run again.
    refused = {"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "In", "values": [2]}}
    assert job["podFailurePolicy"] == {"rules": [refused]}
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    rule = {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"] == {"maxRestarts": 7, "rules": [rule]}


def test_the_image_holds_what_the_manifest_runs():
    copied = re.findall(r"^COPY (\S+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    done = script("jobset.sh", "python", "-m", "rl_likelihood.train", "--config=configs/tiny.py", IMAGE="i", CLAIM="c")
    paths = [word for word in re.findall(r"[\w./]+", done.stdout) if (ROOT / word).exists() and "/" in word]
    assert paths and {path.partition("/")[0] for path in paths} <= {*copied}
