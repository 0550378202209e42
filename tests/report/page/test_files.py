"""The page's files: linted, and installed with the package."""

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl_likelihood.report import page

ROOT = Path(__file__).parents[3]
OXLINT = shutil.which("oxlint", path=str(Path(sys.executable).parent)) or shutil.which("oxlint")


@pytest.mark.skipif(OXLINT is None, reason="no oxlint")
def test_the_scripts_have_no_lint():
    done = subprocess.run([OXLINT, "--deny-warnings", str(page.FILES)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_every_file_is_package_data():
    patterns = re.search(r'"rl_likelihood\.report": \[(.*?)\]', (ROOT / "setup.py").read_text())[1]
    patterns = re.findall(r'"(.*?)"', patterns)
    report = page.FILES.parent
    files = [p for p in report.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert {p.suffix for p in files} == {".csv", ".html", ".css", ".js"}
    for path in files:
        assert any(fnmatch.fnmatch(str(path.relative_to(report)), pattern) for pattern in patterns), path
    assert {p.name for p in files if p.suffix == ".js"} == set(page.SCRIPTS)
