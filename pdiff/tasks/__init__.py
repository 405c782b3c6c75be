"""What a network must do: tasks, and the families that they come from.

`get_family` finds a family by the name of its module in `families/`, so a new family is one new file.
"""

import importlib
import pkgutil

from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks import families
from pdiff.tasks.base import Family
from pdiff.tasks.data.dataset import DataSet


def get_family(config: ConfigDict, data: DataSet | None = None) -> Family:
    """Builds the family `config.family` (the `tasks` part of a run's config) and checks its splits.

    `data` stands in for the images that `config.data` names, where the family has such.

    Raises:
      PdiffError: there is no such family, or its tasks or data are not sound.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(families.__path__))
    if config.family not in names:
        raise PdiffError(f"tasks.family: got {config.family!r}; allowed: {', '.join(names)}")
    make = importlib.import_module(f"{families.__name__}.{config.family}").make_family
    family = make(config) if data is None else make(config, data)
    family.check()
    return family
