"""What a network must do: tasks, and the families that they come from.

`get_family` finds a family by the name of its module, so a new family is one new file.
"""

import importlib
import pkgutil

from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks.base import Family

_NOT_FAMILIES = {"base", "fashion_mnist", "images", "prepared", "regions", "support"}


def get_family(config: ConfigDict) -> Family:
    """Builds the family `config.family` (the `tasks` part of a run's config) and checks its splits.

    Raises:
      PdiffError: there is no such family, or its tasks or data are not sound.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_FAMILIES)
    if config.family not in names:
        raise PdiffError(f"tasks.family: got {config.family!r}; allowed: {', '.join(names)}")
    family = importlib.import_module(f"{__name__}.{config.family}").make_family(config)
    family.check()
    return family
