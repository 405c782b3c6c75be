"""Checkpoints: Orbax writes them, a sha256 manifest beside each says that it is whole.

The manifest is written last. A checkpoint without one was cut short and is not used. Many processes save and restore
together, each its part; how many there were when it was saved does not matter.
"""

import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from pdiff import dist, files, processes
from pdiff.errors import PdiffError
from pdiff.state import TrainState


class Checkpoints:
    """The checkpoints of one run, by completed updates.

    Args:
      directory: made if missing.
      keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = Path(directory).absolute()
        processes.on_first(self._clean, "ready for checkpoints")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
        )

    def _clean(self) -> None:
        """Makes the directory, and removes what was cut short in it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for step in self._found():
            if not (self.directory / str(step) / files.MANIFEST).exists():
                shutil.rmtree(self.directory / str(step))

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return [s for s in self._found() if (self.directory / str(s) / files.MANIFEST).exists()]

    def save(self, state: TrainState, data: dict) -> None:
        """Keeps `state` and `data` (JSON: what the input pipeline must agree on) under the state's step.

        Raises:
          PdiffError: the disk has no room for it.
        """
        step = int(state.step)
        if step in self.steps():
            return
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        what = f"the checkpoint of step {step}"
        processes.on_first(partial(files.require_space, self.directory, size, what), "ready for a checkpoint")
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                ema=ocp.args.StandardSave(state.ema),
                opt_state=ocp.args.StandardSave(state.opt_state),
                data=ocp.args.JsonSave(data),
            ),
            force=True,
        )
        if not saved:
            raise PdiffError(f"{self.directory}: the checkpoint of step {step} was not written")
        self._manager.wait_until_finished()
        processes.on_first(partial(files.write_manifest, self.directory / str(step)), "done with a checkpoint")

    def restore(self, like: TrainState, data: dict) -> TrainState | None:
        """The newest state with the structure and sharding of `like`, or None when there is none.

        Raises:
          PdiffError: it is damaged, or its `data` is not the given one.
        """
        if not self.steps():
            return None
        step = self.steps()[-1]
        self._verify(step)
        restored = self.read(step, params=like.params, ema=like.ema, opt_state=like.opt_state)
        saved = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore())).data
        if saved != data:
            raise PdiffError(
                f"{self.directory / str(step)}: made with other data; there {saved}, here {data}; use another --workdir"
            )
        number = dist.place(np.int32(step), like.step.sharding)
        return TrainState(number, restored.params, restored.ema, restored.opt_state)

    def restore_part(self, part: str, like: PyTree) -> tuple[int, PyTree]:
        """Step and one part (`params`, or their average, `ema`) of the newest checkpoint, alone.

        Raises:
          PdiffError: there is no checkpoint, or it is damaged.
        """
        if not self.steps():
            raise PdiffError(f"{self.directory}: no checkpoint; allowed: a --workdir with a trained generator")
        step = self.steps()[-1]
        self._verify(step)
        return step, self.read(step, **{part: like})[part]

    def close(self) -> None:
        self._manager.close()

    def _found(self) -> list[int]:
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def _verify(self, step: int) -> None:
        folder = self.directory / str(step)
        remedy = f"delete {folder} to go on from the checkpoint before it"
        processes.on_first(partial(files.verify_manifest, folder, remedy), "ready to restore")

    def read(self, step: int, **trees: PyTree):
        """Those parts of a checkpoint, as `trees` are laid out."""
        abstract = {k: jax.tree.map(ocp.utils.to_shape_dtype_struct, t) for k, t in trees.items()}
        args = {k: ocp.args.StandardRestore(t) for k, t in abstract.items()}
        return self._manager.restore(step, args=ocp.args.Composite(**args))
