"""Imported networks as the zoo of a run, checked as a whole and written to a new workdir or not at all."""

import base64
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import scenario
from pdiff.errors import Faults, PdiffError
from pdiff.imports import gauge, source, tasks
from pdiff.imports.arrays import shown
from pdiff.imports.columns import Columns
from pdiff.scenario import Facts
from pdiff.system import claim, files, processes
from pdiff.system.logs import log
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.tasks.base import SPLITS
from pdiff.weights import codec
from pdiff.weights.spec import flatten, make_spec
from pdiff.zoo import build, score, store
from pdiff.zoo.networks import Networks


def read(config: ConfigDict, folder: Path, manifest: Path | None, workdir: Path) -> tuple[source.Source, Facts]:
    """The networks of a folder, and what is known of their tasks; what does not fit into memory lies beside `workdir`.

    Raises:
      PdiffError: something is wrong with them, or with the config for them.
    """
    if config.zoo.dir:
        allowed = "allowed with --mode=import: '', its zoo lies in the workdir"
        raise PdiffError(f"zoo.dir: got {config.zoo.dir!r}; {allowed}")
    imported = source.read(folder, config.zoo.import_mb, manifest, _disk_of(workdir), config.zoo.rank)
    for note in imported.notes:
        log.warning("import: %s", note)
    gathered = tasks.gathered(imported.rows, str(folder))
    if config.tasks.family == scenario.IMPORTED:
        described, factor_names = tasks.described(gathered, config)
    else:
        described, factor_names = _of_family(gathered, config)
    leaves = {p: [list(v.shape), v.dtype, v.place.name, v.place.transform] for p, v in imported.leaves.items()}
    accuracies: dict[str, list] = {split: [] for split in SPLITS}
    for task in described:
        accuracies[task["split"]] += [imported.rows[i].accuracy for i in task["rows"]]
    accuracies = {split: values for split, values in accuracies.items() if values and None not in values}
    facts = Facts(
        digest=imported.digest,
        source=str(folder),
        tasks=described,
        factor_names=factor_names,
        leaves=leaves,
        adapter=imported.adapter and dataclasses.asdict(imported.adapter),
        accuracies=accuracies,
        metadata=imported.metadata,
        constants=packed(imported.constants),
        beside=imported.beside,
        has_base=imported.base is not None,
    )
    return imported, facts


def packed(constants: dict[str, np.ndarray]) -> dict[str, list]:
    """Arrays as JSON: shape, dtype, and their bytes as base64."""
    return {n: [list(v.shape), str(v.dtype), base64.b64encode(v.tobytes()).decode()] for n, v in constants.items()}


def _of_family(gathered: dict, config: ConfigDict) -> tuple[list[dict], list[str]]:
    """Those tasks of a family of pdiff's that have networks, by split, with the family's descriptions and factors."""
    family = scenario.family_and_target_of(config, None)[0]
    wrong = [n for n, t in gathered.items() if t["factors"] or t["descriptions"] or t["split"]]
    if wrong:
        reason = f"says factors, descriptions or a split, which the family {family.name} has already"
        raise Faults("manifest", [f"task {shown(n)}: {reason}" for n in wrong])
    chosen = [t for split in SPLITS for t in family.split(split) if t.name in gathered]
    scenario.restricted(family, list(gathered))  # refuses strange names
    described = [
        {"name": t.name, "split": t.split, "factors": list(t.factors), "descriptions": list(t.descriptions)}
        | {"rows": gathered[t.name]["rows"]}
        for t in chosen
    ]
    for split in SPLITS:
        counts = {t["name"]: len(t["rows"]) for t in described if t["split"] == split}
        if len(set(counts.values())) > 1:
            few, many = min(counts, key=counts.get), max(counts, key=counts.get)
            unequal = f"{many} has {counts[many]} networks and {few} has {counts[few]}"
            raise PdiffError(f"{split} tasks: {unequal}; allowed: as many each")
    return described, list(family.factor_names)


def write(
    config: ConfigDict, imported: source.Source, facts: Facts, family: Family, target: Target, workdir: Path
) -> dict[str, int]:
    """Writes the zoo, the facts and, last, the config into `workdir`; returns the networks of each split.

    Raises:
      PdiffError: the networks are not the target's, or another process writes there.
    """
    networks = _networks(config, imported, facts, family, target)
    with claim.claimed(workdir, f"--workdir: {workdir}"):
        if not check_workdir(workdir, facts):  # else another process has done it just now
            files.remove_partial(workdir)
            store.write(build.directory(config, workdir), config_lib.zoo_fingerprint(config), networks)
            scenario.save(facts, workdir)
            config_lib.write(workdir / "config.json", config)
    return {split: len(n) for split, n in networks.items() if split in SPLITS}


def check_workdir(workdir: Path, facts: Facts | None = None) -> bool:
    """Whether `workdir` holds the import of these facts already; without `facts`, always False.

    What a killed import has left counts as nothing.

    Raises:
      PdiffError: it holds anything else.
    """
    if processes.count() > 1:
        raise PdiffError("--mode=import: runs in one process; allowed: --num_processes=1")
    if not workdir.exists():
        return False
    if workdir.is_dir():
        names = {p.name for p in workdir.iterdir() if p.suffix != ".partial"}
        if names <= {claim.FOLDER, scenario.IMPORTED, "zoo"}:
            return False
        known = scenario.load(workdir)
        if known is not None and (facts is None or facts.digest == known.digest):
            return facts is not None
    raise PdiffError(f"--workdir: {workdir} is not empty; allowed: a new one, or one of the very same networks")


def _disk_of(workdir: Path) -> Path:
    """The nearest folder above a workdir that is there."""
    return next(p for p in workdir.absolute().parents if p.is_dir())


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Networks of a split that stay in columns; slices of them are brought into memory. Accuracies are unknown: NaN.

    Attributes:
      rows: of the columns.
      task, seed: of each.
    """

    columns: Columns
    rows: list[int]
    task: list[int]
    seed: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Networks:
        params = {p: self.columns.read(p, self.rows[part]) for p in self.columns.shapes}
        return _stacked(params, self.task[part], self.seed[part])


def _networks(
    config: ConfigDict, imported: source.Source, facts: Facts, family: Family, target: Target
) -> dict[str, store.Slices]:
    columns, base = imported.columns, imported.base
    rows = {split: [i for t in facts.tasks if t["split"] == split for i in t["rows"]] for split in SPLITS}
    if config.zoo.align == "balanced" and facts.adapter is not None:
        base = gauge.of_all(columns, np.array(rows["seen"]), base)
    if config.tasks.family != scenario.IMPORTED:
        base = _base_of_family(columns, base, rows["seen"], target)
    base = base or _mean(columns, rows["seen"])
    if set(columns.shapes) - set(base) or any(base[p].shape != shape for p, shape in columns.shapes.items()):
        raise PdiffError("base: is another tree than the networks; allowed: their arrays and shapes")
    networks: dict[str, store.Slices] = {"base": _stacked({p: v[None] for p, v in base.items()}, [-1], [0])}
    task_and_seed = {row: (i, seed) for i, t in enumerate(facts.tasks) for seed, row in enumerate(t["rows"])}
    for split in (s for s in SPLITS if rows[s]):
        task, seed = map(list, zip(*(task_and_seed[i] for i in rows[split]), strict=True))
        networks[split] = _Rows(columns, rows[split], task, seed)
    if config.zoo.align == "weight_matching":
        by_split = {split: n[:] for split, n in networks.items() if split != "base"}
        networks |= build.aligned(by_split, target.generated_permutations("zoo.align"))
    if config.tasks.family == scenario.IMPORTED:
        return networks
    return _measured(config, family, target, {split: n[:] for split, n in networks.items()})


def _mean(columns: Columns, rows: list[int]) -> dict[str, np.ndarray]:
    return {path: columns.mean(path, rows) for path in columns.shapes}


def _stacked(params: dict[str, np.ndarray], task: Sequence[int], seed: Sequence[int]) -> Networks:
    """Networks whose accuracy is unknown: NaN."""
    unknown = np.full(len(task), np.nan, np.float32)
    return Networks(
        params=traverse_util.unflatten_dict(params, sep="/"),
        task=np.array(task, np.int32),
        seed=np.array(seed, np.int32),
        step=np.zeros(len(task), np.int32),
        validation_accuracy=unknown,
        test_accuracy=unknown,
    )


def _base_of_family(columns: Columns, base: dict | None, seen: list[int], target: Target) -> dict[str, np.ndarray]:
    """The whole tree of a target's base, after a check that the networks are the generated part of such a tree."""
    abstract = dict(flatten(target.abstract()))
    spec = make_spec(target.abstract(), generate=target.generate)
    generated = {leaf.path: leaf.shape for leaf in spec.leaves}
    odd = sorted(set(columns.shapes) ^ set(generated))
    if odd:
        which = "not generated by" if odd[0] in columns.shapes else "missing, and generated by"
        raise PdiffError(
            f"{shown(odd[0])} is {which} the target {target.name} "
            f"(target.generate = {target.generate!r}); a layout.json renames arrays (docs/importing.md)"
        )
    for path, shape in columns.shapes.items():
        if shape != generated[path]:
            shapes = f"shape {shape}; the target {target.name} has {generated[path]}"
            raise PdiffError(f"{shown(path)} has {shapes}")
    if base is None:
        rest = sorted(set(abstract) - set(generated))
        if rest:
            reason = f"{shown(rest[0])} is not generated, so it has to come from a base.safetensors"
            raise PdiffError(f"base: missing; {reason}")
        return _mean(columns, seen)
    wrong = [p for p, v in abstract.items() if p not in base or base[p].shape != v.shape]
    wrong += sorted(set(base) - set(abstract))
    if wrong:
        raise PdiffError(f"base: {shown(wrong[0])} is not as in the target {target.name}")
    return base


def _measured(config: ConfigDict, family: Family, target: Target, networks: dict[str, Networks]) -> dict[str, Networks]:
    """The same with accuracies on the family's images, and with a control of the zoo's own, trained on all tasks."""
    base = jax.tree.map(lambda a: a[0], networks["base"].params)
    spec = make_spec(target.abstract(), generate=target.generate)
    log.info("import: measuring accuracies, and training the task-blind control")
    accuracy = {f"{part}_accuracy": _accuracy(family, target, spec, base, part) for part in ("validation", "test")}
    measured = {
        split: dataclasses.replace(n, **{field: measure(n.params, n.task) for field, measure in accuracy.items()})
        for split, n in networks.items()
        if split != "base"
    }
    whole = build.without_task(family, target, networks["base"].params, np.zeros(1, np.int32), 0)
    return {"base": whole, "task_blind": build.task_blind(family, target, config, base)} | measured


def _accuracy(family: Family, target: Target, spec, base: PyTree, part: str) -> Callable:
    images = family.data[part]

    @jax.jit
    def accuracies(params, variables):
        def one(pair):
            network = codec.complete(spec, pair[0], base)
            shared = family.shared(pair[1], images.x, images.y)
            return score.right(target.apply, family.labelled, network, pair[1], *shared).mean()

        return jax.lax.map(one, (params, variables))

    def measure(params: PyTree, task: np.ndarray) -> np.ndarray:
        variables = jax.tree.map(lambda v: jnp.asarray(v)[task], family.variables)
        return np.asarray(accuracies(params, variables), np.float32)

    return measure
