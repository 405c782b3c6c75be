"""Checkpoints: Orbax writes them, a sha256 manifest in each says that it is whole.

The manifest is written last, and only then is an older checkpoint removed. One without a manifest was cut short and is
not used; one that is damaged gives way to the one before it. Many processes save and restore together, each its part;
how many there were when it was saved does not matter.
"""

import itertools
import shutil
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from pdiff.errors import RERUN, PdiffError
from pdiff.system import files, processes
from pdiff.system.logs import log

OVERHEAD = 4 << 20  # bytes that Orbax writes beside the arrays, at most
KIND, ASIDE = "checkpoint", "damaged"
PARTS = ("params", "ema", "opt_state")  # each a tree of arrays


class Checkpoints:
    """The checkpoints of one run, by completed updates. Nothing is changed but by `prepare` and `save`.

    Args:
      directory: `prepare` makes it.
      keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory, self._keep = Path(directory).absolute(), keep
        trees = dict.fromkeys(PARTS, _tree_handler())
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler(data=ocp.JsonCheckpointHandler(), **trees))

    def prepare(self) -> None:
        """Makes the directory ready to be written to by this run alone: removes what was cut short in it."""

        def clean():
            self.directory.mkdir(parents=True, exist_ok=True)
            whole = {str(s) for s in self.steps()}
            for path in self.directory.iterdir():
                if path.name not in whole and path.name != ASIDE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

        processes.on_first(clean, "ready for checkpoints")

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending; `fault` tells whether one is intact."""
        finished = self.directory.glob(f"*/{files.MANIFEST}")
        return sorted(int(p.parent.name) for p in finished if p.parent.name.isdigit())

    def save(self, step: int, parts: dict[str, PyTree], data: dict) -> None:
        """Keeps the PARTS of a state, and `data` (JSON: what the input pipeline must agree on), under its step.

        Raises:
          PdiffError: the disk has no room for it.
        """
        if step in self.steps():
            return
        size = OVERHEAD + sum(x.nbytes for x in jax.tree.leaves(parts))
        what = f"the checkpoint of step {step}"
        processes.on_first(partial(files.require_space, self.directory, size, what), "ready for a checkpoint")
        trees = {name: ocp.args.PyTreeSave(parts[name]) for name in PARTS}
        args = ocp.args.Composite(data=ocp.args.JsonSave(data), **trees)
        self._orbax.save(self._folder(step), args=args)

        def finish():
            files.write_manifest(self._folder(step), KIND)
            for old in self.steps()[: -self._keep]:
                (self._folder(old) / files.MANIFEST).unlink()  # first: a half removed one does not count
                shutil.rmtree(self._folder(old))

        processes.on_first(finish, "done with a checkpoint")

    def restore(self, like: dict[str, PyTree], data: dict) -> tuple[int, dict[str, PyTree]] | None:
        """Step and parts of the newest intact state, laid out as `like` is, or None when there is none at all.

        Damaged ones, newer or older, are set aside, in the folder `damaged`.

        Raises:
          PdiffError: all are damaged, or the newest intact one was saved with other `data`.
        """
        if not self.steps():
            return None
        step = self.newest()
        processes.on_first(partial(self._set_aside, step), "ready to restore")
        restored = self.read(step, **like)
        saved = self._orbax.restore(self._folder(step), args=ocp.args.Composite(data=ocp.args.JsonRestore())).data
        if saved != data:
            raise PdiffError(
                f"{self._folder(step)}: made with other data; there {saved}, here {data}; use another --workdir"
            )
        return step, {name: restored[name] for name in like}

    def restore_part(self, part: str, like: PyTree) -> tuple[int, PyTree]:
        """Step and one part (`params`, or their average, `ema`) of the newest intact checkpoint, alone.

        Raises:
          PdiffError: there is no checkpoint, or all are damaged.
        """
        step = self.newest()
        return step, self.read(step, **{part: like})[part]

    def newest(self) -> int:
        """The step of the newest checkpoint that is intact; of newer ones a warning names the damaged file.

        Raises:
          PdiffError: there is none.
        """
        steps = self.steps()[::-1]
        for step, older in itertools.zip_longest(steps, steps[1:]):
            fault = self.fault(step) if processes.is_first() else ""
            if processes.all_hold(not fault):
                return step
            if older is not None:
                log.warning("warning: %s; going back to the checkpoint of step %d", fault, older)
        if not steps:
            raise PdiffError(f"{self.directory}: no checkpoint; allowed: a --workdir with a trained generator")
        fault = self.fault(steps[0])
        raise PdiffError(f"{fault}; no other checkpoint is intact; delete {self.directory} to train from the beginning")

    def read(self, step: int, **trees: PyTree):
        """Those parts of a checkpoint, as `trees` are laid out."""
        args = {}
        for name, tree in trees.items():
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            args[name] = ocp.args.PyTreeRestore(abstract, restore_args=restore_args)
        return self._orbax.restore(self._folder(step), args=ocp.args.Composite(**args))

    def close(self) -> None:
        self._orbax.close()

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def fault(self, step: int) -> str:
        """What is wrong with a checkpoint; '' if nothing is.

        Raises:
          PdiffError: it is of another format.
        """
        return files.fault(self._folder(step), KIND)

    def _set_aside(self, newest: int) -> None:
        """Moves all but the intact checkpoints out of the way; `newest` is the newest of these."""
        for step in self.steps():
            fault = self.fault(step) if step < newest else ""
            if fault:
                log.warning("warning: %s; the checkpoint of step %d is newer, and intact", fault, newest)
            if fault or step > newest:
                shutil.rmtree(self.directory / ASIDE, ignore_errors=True)
                self._folder(step).rename(self.directory / ASIDE)


def _tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Has one device write a replicated array. By default Orbax has each of them write a slice, and compiles a program
    for each slice of each array."""
    kinds = ocp.type_handlers
    arrays, plain = kinds.ArrayHandler(use_replica_parallel=False), kinds.NumpyHandler()
    registry = kinds.create_type_handler_registry((jax.Array, arrays), (np.ndarray, plain))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def verify(directory: Path) -> None:
    """Raises PdiffError, naming the file, if any finished checkpoint in `directory` is damaged."""
    with closing(Checkpoints(directory, 1)) as checkpoints:
        for step in checkpoints.steps()[::-1]:
            if fault := checkpoints.fault(step):
                raise PdiffError(f"{fault}; {RERUN}: it goes on from the checkpoint before")
