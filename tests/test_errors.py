"""How a short command ends."""

import os
import subprocess
import sys

import pytest

from rl_likelihood.errors import UserError, exits


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(UserError("give --out"), 2, "error: give --out\n"), (KeyboardInterrupt(), 130, "stopped\n")],
)
def test_a_short_command_ends_in_one_line(error, code, line, capsys):
    @exits
    def main(argv: list[str]) -> int:
        raise error

    assert main([]) == code and capsys.readouterr().err == line


@pytest.mark.parametrize("size", [1, 100_000])  # within and beyond the buffer of stdout
def test_a_short_command_is_silent_after_its_reader_has_gone(size):
    code = f"import sys; from rl_likelihood.errors import exits; sys.exit(exits(lambda: print('x' * {size}) or 0)())"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_any_other_error_is_a_traceback():
    @exits
    def main() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        main()
