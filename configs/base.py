"""Every field there is, with its default: docs/config.md lists them. Other configs start from here and override.

python -m rl_likelihood.train --config=configs/base.py --workdir=DIR --config.model.path=... --print_config
"""

from ml_collections import ConfigDict

from rl_likelihood.config import parse_arg, tree


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. Takes no arguments: what comes after the colon is refused."""
    parse_arg(arg)
    return tree().lock()  # a field that is not here is a misspelling
