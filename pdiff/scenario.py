"""What an import leaves in a workdir beside the zoo, and the family and the target of a run there.

`imported/import.json` lists the tasks and the names of the leaves. Where the config's family is `imported`, nothing
else is known: there are no images and no forward pass, so networks are compared by their weights. Any other family is
one of pdiff's own, restricted to the tasks of the imported networks.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.system import files
from pdiff.targets import Target, get_target
from pdiff.tasks import Family, get_family
from pdiff.tasks.base import Task

IMPORTED = "imported"  # the family and the target without images, and the folder in a workdir
FACTS = "import.json"
REMEDY = "import the networks again, into a new --workdir"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What an import knows beside the networks themselves; all of it is JSON.

    Attributes:
      digest: sha256 of everything that was read.
      source: the folder, as the user gave it.
      tasks: name, split, factors, descriptions and rows (numbers of networks) of each task, by id.
      factor_names: one per factor.
      leaves: by path: [shape, dtype in the file, name in the file, transform to its layout here].
      adapter: how the networks came, where they are adapters: `imports.lora.Adapter` as JSON.
      accuracies: those in the manifest, by split, in the order of its tasks and networks, where it has all of them.
      metadata: of safetensors, what all networks share.
      constants: arrays of whole numbers, the same in all networks, which are written as they came: by name in the file
        [shape, dtype, bytes as base64].
      beside: config.json of transformers, where each network has one beside it.
      has_base: whether the base that the networks started from was among them; else the zoo's base is their mean.
    """

    digest: str
    source: str
    tasks: list[dict[str, Any]]
    factor_names: list[str]
    leaves: dict[str, list]
    adapter: dict[str, Any] | None
    accuracies: dict[str, list[float]]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    constants: dict[str, list] = dataclasses.field(default_factory=dict)
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_base: bool = False

    @property
    def scales(self) -> dict[str, float]:
        """By how much the B A of each module of adapters counts, by the module's path; 1 where it is not there."""
        modules = (self.adapter or {}).get("modules", {})
        return {f"lora/{name}": module["scale"] for name, module in modules.items()}


def save(facts: Facts, workdir: Path) -> None:
    """Keeps the facts in `workdir`."""
    where = Path(workdir) / IMPORTED
    where.mkdir(parents=True, exist_ok=True)
    files.write_json(where / FACTS, dataclasses.asdict(facts))


def load(workdir: Path) -> Facts | None:
    """The facts of the import in `workdir`; None if there was none.

    Raises:
      PdiffError: they are damaged.
    """
    path = Path(workdir) / IMPORTED / FACTS
    if not path.exists():
        return None
    try:
        return Facts(**files.read_json(path, REMEDY))
    except TypeError as e:
        raise PdiffError(f"{path}: holds other fields than an import of this pdiff writes; {REMEDY}") from e


def family_and_target(config: ConfigDict, workdir: Path) -> tuple[Family, Target]:
    """The tasks and the target network of a run in `workdir`.

    Raises:
      PdiffError: the family is `imported` and nothing has been imported; or as `get_family` and `get_target`.
    """
    return family_and_target_of(config, load(workdir))


def family_and_target_of(config: ConfigDict, facts: Facts | None) -> tuple[Family, Target]:
    """As `family_and_target`, of facts that are not in a workdir yet."""
    if config.tasks.family != IMPORTED:
        family = get_family(config.tasks)
        if facts is not None:
            family = restricted(family, [t["name"] for t in facts.tasks])
        return family, get_target(config.target, family.image_shape, family.num_classes)
    if facts is None:
        remedy = "--mode=import --source=DIR comes first"
        raise PdiffError(f"tasks.family: got 'imported', and nothing is imported here; {remedy}")
    _check_without_images(config)
    return _family(facts), _target(facts)


def _check_without_images(config: ConfigDict) -> None:
    """Raises PdiffError, naming the field, if a config asks for images that an imported family does not have."""
    if config.target.name != IMPORTED:
        raise PdiffError(f"target.name: got {config.target.name!r}; allowed with tasks.family=imported: imported")
    if config.mean.functional_weight:
        raise PdiffError(
            f"mean.functional_weight: got {config.mean.functional_weight:g}; allowed with "
            "tasks.family=imported: 0, as there are no images to run the networks on"
        )
    if "background" in config.condition.use:
        raise PdiffError(f"condition.use: got {config.condition.use}; an imported family has no background images")


def restricted(family: Family, names: Sequence[str]) -> Family:
    """The family with the tasks of these names alone, in this order.

    Raises:
      PdiffError: it has no task of one of the names.
    """
    known = {t.name: t for t in family.tasks}
    strange = [n for n in names if n not in known]
    if strange:
        raise PdiffError(
            f"task {strange[0]!r}: the family {family.name} has none of that name ({len(strange)} such); it has "
            f"{len(known)}, such as {', '.join(list(known)[:3])}"
        )
    rows = np.array([known[n].id for n in names])
    chosen = dataclasses.replace(
        family,
        tasks=tuple(dataclasses.replace(known[n], id=i) for i, n in enumerate(names)),
        variables=jax.tree.map(lambda v: v[rows], family.variables),
        backgrounds=None if family.backgrounds is None else family.backgrounds[rows],
        arcs={s: a for s, a in family.arcs.items() if any(known[n].split == s for n in names)},
    )
    chosen.check()
    return chosen


def _family(facts: Facts) -> Family:
    tasks = tuple(
        Task(t["name"], i, t["split"], tuple(t["factors"]), tuple(t["descriptions"]), ())
        for i, t in enumerate(facts.tasks)
    )

    def render(variables, x):
        raise PdiffError("an imported family has no images")

    family = Family(
        name=IMPORTED,
        factor_names=tuple(facts.factor_names),
        factor_periods=(0.0,) * len(facts.factor_names),
        num_classes=0,
        image_shape=(0,),
        data={},
        tasks=tasks,
        variables=np.zeros((len(tasks), 0), np.float32),
        render=render,
        describe=None,
    )
    family.check()
    return family


def _target(facts: Facts) -> Target:
    shapes = {path: tuple(shape) for path, (shape, *_) in facts.leaves.items()}

    def init(key):
        return traverse_util.unflatten_dict({p: jnp.zeros(s, jnp.float32) for p, s in shapes.items()}, sep="/")

    def apply(tree, x):
        raise PdiffError("an imported target is known by its weights alone and cannot be run here")

    return Target(IMPORTED, init, apply)
