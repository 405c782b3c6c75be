"""Training batches as a pure function of (seed, step), through grain."""

import functools
from collections.abc import Callable, Iterator

import grain
import numpy as np
from jaxtyping import Int

from pdiff import rng
from pdiff.zoo.networks import Networks, StoredNetworks

AHEAD = 2  # batches that wait for their step


def training_batches(
    networks: Networks | StoredNetworks,
    wordings: int,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rows: Int[np.ndarray, " rows"] | None = None,
    place: Callable[[dict], dict] = lambda batch: batch,
    params: bool = True,
    practice: Int[np.ndarray, " tasks"] | None = None,
) -> Iterator[dict]:
    """Batches of steps `start` … `stop - 1`, which a background thread prepares and lays out over devices by `place`.

    Each holds stacked `params`, `task` ids, the `wording` of the description to use, and `index`, the example's number
    in the global batch. Step n is the same batch whatever `start` is. Every network is seen once before any is seen
    twice. With `rows`, only those of the batch are read, as a process does for its own devices. Without `params`, no
    network is read.

    Tasks `practice` have no networks and come as if each had one: with the parameters of another task's, and `fitted`
    of the batch, there wherever `params` are, says which examples have their own.
    """
    index = np.arange(batch_size) if rows is None else rows
    count = len(networks)
    tasks = np.concatenate([networks.task, np.zeros(0, np.int32) if practice is None else practice.astype(np.int32)])

    @functools.lru_cache(2)  # a batch may begin in one epoch and end in the next
    def order(epoch: int) -> Int[np.ndarray, " examples"]:
        return rng.on_host(seed, "data/order", epoch).permutation(len(tasks))

    def load(step: int) -> dict:
        epochs, places = np.divmod(step * batch_size + index, len(tasks))
        chosen = np.array([order(e)[p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)])
        batch = {"params": networks[chosen % count].params, "fitted": chosen < count} if params else {}
        wording = rng.on_host(seed, "data/wording", step).integers(wordings, size=batch_size, dtype=np.int32)
        batch |= {"task": tasks[chosen], "wording": wording[index], "index": index.astype(np.int32)}
        return place(batch)

    return _ahead(load, start, stop)


def numbered_batches(
    *,
    batch_size: int,
    start: int,
    stop: int,
    rows: Int[np.ndarray, " rows"] | None = None,
    place: Callable[[dict], dict] = lambda batch: batch,
) -> Iterator[dict]:
    """The same for steps that draw their examples themselves: batches that hold nothing but `index`."""
    index = np.arange(batch_size) if rows is None else rows
    return _ahead(lambda step: place({"index": index.astype(np.int32)}), start, stop)


def _ahead(load: Callable[[int], dict], start: int, stop: int) -> Iterator[dict]:
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options))


def fingerprint(networks: Networks | StoredNetworks, zoo: str, seed: int, batch_size: int) -> dict:
    """What a resumed run's batches must agree on."""
    size = networks.params_bytes
    return {"zoo": zoo, "networks": len(networks), "bytes": size, "seed": seed, "batch_size": batch_size}
