"""Training batches as a pure function of (seed, step), through grain."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int

from pdiff.zoo.networks import Networks, StoredNetworks


def training_batches(
    networks: Networks | StoredNetworks,
    wordings: int,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rows: Int[np.ndarray, " rows"] | None = None,
) -> Iterator[dict]:
    """Batches of steps `start` … `stop - 1`, prepared by a background thread.

    Each holds stacked `params`, `task` ids, the `wording` of the description to use, and `index`,
    the example's number in the global batch. Step n is the same batch whatever `start` is. Every
    network is seen once before any is seen twice. With `rows`, only those of the batch are read, as a process does
    for its own devices.
    """
    mine = np.arange(batch_size) if rows is None else rows
    order = grain.MapDataset.range(len(networks)).seed(seed).shuffle().repeat()

    def gather(row: int, random: np.random.Generator) -> dict:
        return {"row": np.int32(row), "wording": np.int32(random.integers(wordings))}

    def load(batch: dict) -> dict:
        chosen = networks[batch["row"][mine]]
        return {
            "params": chosen.params,
            "task": chosen.task,
            "wording": batch["wording"][mine],
            "index": mine.astype(np.int32),
        }

    batches = order.random_map(gather).batch(batch_size, drop_remainder=True).map(load)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(batches.slice(slice(start, stop)).to_iter_dataset(options))


def fingerprint(networks: Networks | StoredNetworks, zoo: str, seed: int, batch_size: int) -> dict:
    """What a resumed run's batches must agree on."""
    size = networks.params_bytes
    return {"zoo": zoo, "networks": len(networks), "bytes": size, "seed": seed, "batch_size": batch_size}
