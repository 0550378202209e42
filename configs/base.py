"""The defaults of every field. Other configs start from here. docs/config.md lists the fields.

python -m rl_likelihood.train --config=configs/base.py --workdir=DIR --config.model.path=... --print_config
"""

from ml_collections import ConfigDict

from rl_likelihood.config import parse_arg, tree


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. This config takes no arguments after a colon."""
    parse_arg(arg)
    return tree().lock()  # a field that does not exist is a misspelling
