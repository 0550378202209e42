"""How a short command ends."""

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


def test_any_other_error_is_a_traceback():
    @exits
    def main() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        main()
