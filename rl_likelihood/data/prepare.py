"""The old name of the command `python -m rl_likelihood.datasets.prepare`."""

import sys

from rl_likelihood.datasets.prepare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
