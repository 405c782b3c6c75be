"""Two real processes build a zoo together: the same bytes as one process with as many devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pdiff import config as config_lib
from pdiff.system import files
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.zoo import build, store
from tests.zoo.test_store import StopsAfter

REPOSITORY = Path(__file__).parents[2]
WORKER = """
import sys
from pathlib import Path
from pdiff import config as config_lib
from pdiff.system import dist, processes
index, port, where = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
processes.initialize(f"localhost:{port}", 2, index)
from tests.zoo import test_processes
from pdiff.system.stopping import Interrupted
config = config_lib.read(where / "config.json")
mesh = dist.make_mesh()
assert mesh.devices.size == 4
try:
    test_processes.make(config, where, mesh, 1)
except Interrupted:
    pass
processes.barrier("stopped")
made = sorted(p.name[:22] for p in where.rglob("rows_*"))
zoo = test_processes.make(config, where, mesh, -1)
if index == 0:
    import json
    (where / "made.json").write_text(json.dumps([made, len(zoo["seen"])]))
processes.barrier("done")
"""


def make(config, where, mesh, chunks):
    """Builds a zoo, in several shards; stopped after some chunks, if they are not negative."""
    store.SHARD_NETWORKS = 3
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    return build.build(family, target, config, where, mesh, StopsAfter(chunks))


@pytest.mark.slow
def test_two_processes_write_the_bytes_that_one_writes(tiny_config, mesh4, tmp_path, monkeypatch):
    """About 20 s: two processes start, build a chunk, stop together, and go on."""
    monkeypatch.setattr(store, "SHARD_NETWORKS", 3)
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.tasks.update(dict(num_seen=4, num_interp=1, num_unseen=1, num_validation=1, num_gaps=1))
        config.tasks.validation_gaps = (10.0,)
        config.zoo.update(dict(steps=3, pretrain_steps=3, chunk_size=8, keep_last=2, reference_seeds=1))
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    config_lib.write(together / "config.json", config)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(REPOSITORY)}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(i), str(port), str(together)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        make(config, alone, mesh4, -1)
        output = [w.communicate(timeout=150)[0] for w in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [w.returncode for w in workers] == [0, 0], output
    # 8 jobs a chunk, 2 rows a job, half of them on each process; what neither had finished was made afterwards.
    made, seen = json.loads((together / "made.json").read_text())
    assert made == ["rows_00000000_00000008", "rows_00000008_00000016"] and seen == 16
    name = config_lib.zoo_fingerprint(config)
    digests = [files.read_manifest(store.location(d, name), store.KIND, "") for d in (together, alone)]
    assert digests[0] == digests[1]
    assert sum("-seen.array_record" in n for n in digests[0]) == 6
    assert not list(together.rglob("*.parts"))
