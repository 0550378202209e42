"""Data sets by name. A data set is one file here: how its original files become examples, how it is split, asked and
graded. `DATASETS` holds every `DataSet` that a file of this package makes; nothing else lists them.
"""

import importlib
import pkgutil

from rl_likelihood.datasets.common import DataSet

# Modules that work on data sets. They read DATASETS, so it cannot be made from them.
_TOOLS = {"common", "documents", "files", "prepare", "procedural", "questions", "settings", "sources", "splitting"}


def _data_sets() -> dict[str, DataSet]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _TOOLS)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, DataSet)}


DATASETS = _data_sets()
