r"""A run on TPU slices of a GKE cluster: writes a JobSet and applies it with kubectl.

    python -m launch.gke --name=pdiff --accelerator=tpu-v5-lite-podslice --topology=4x4 --chips_per_node=4 \
        --image=us-docker.pkg.dev/my-project/pdiff/pdiff:1 --gcs_bucket=my-bucket -- \
        --config=configs/interp.py --workdir=/mnt/pdiff/runs/interp

The image is made from launch/Dockerfile. The shared workdir lies on a volume at /mnt/pdiff: a bucket (through Cloud
Storage FUSE; its directories must be renamed at once, so make it with a hierarchical namespace) or a claim that many
nodes may write (Filestore). The cluster needs JobSet 0.10 or later.

A slice is a Job of one pod for each of its hosts; GKE tells the pods their TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, and
with more than one slice they are told the MEGASCALE variables, from which JAX finds the rest.

How it resumes, always by the very same command, with all pods of all slices made anew after the last old one is gone:
- A pod is disrupted (preemption, eviction, a drained or lost node: condition DisruptionTarget, whatever the exit code)
  or was told to stop and saved (143): without limit and without being counted.
- Any other failure, 134 and 137 among them: at most --max_restarts times. 137 without a disruption is a process that
  ran out of memory, which would do so for ever.
- Exit code 2 (the flags make no sense) fails the JobSet at once.
"""

import math

import yaml
from absl import flags

from launch import common, jobset
from pdiff.errors import PdiffError

# label of the nodes: (dimensions of its topologies, what XPK calls it)
ACCELERATORS = {
    "tpu-v4-podslice": (3, "v4"),
    "tpu-v5-lite-podslice": (2, "v5litepod"),
    "tpu-v5p-slice": (3, "v5p"),
    "tpu-v6e-slice": (2, "v6e"),
}
LABEL = (r"[a-z]([a-z0-9-]*[a-z0-9])?", "a-z, 0-9, -; a letter first, no - last")


def define(values: flags.FlagValues) -> None:
    short = (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "at most 40 of a-z, 0-9, -; a letter first, no - last")
    common.text(values, "name", "pdiff", "Name of the JobSet.", *short)
    common.text(values, "namespace", "default", "Namespace.", *LABEL)
    common.text(values, "image", None, "Container image.", r"[\w./:@-]+", "a reference without spaces", required=True)
    flags.DEFINE_enum("accelerator", "tpu-v5-lite-podslice", sorted(ACCELERATORS), "TPU.", flag_values=values)
    common.text(values, "topology", "4x4", "Of a slice.", r"[1-9]\d*(x[1-9]\d*){1,2}", "as 4x4 or 2x2x2")
    flags.DEFINE_enum("chips_per_node", "4", ["1", "4", "8"], "TPU chips of a node.", flag_values=values)
    common.positive(values, "slices", 1, "Slices, which JAX joins to one run.")
    common.text(values, "pvc", None, "Claim of the shared volume.", r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "a-z, 0-9, . -")
    common.text(values, "gcs_bucket", None, "Bucket as shared volume.", r"[a-z0-9][a-z0-9._-]+", "a name without gs://")
    common.text(values, "service_account", "default", "Kubernetes account that may use the bucket.", *LABEL)
    common.positive(values, "max_restarts", 10, "How many failures other than preemptions are tried again.")
    flags.DEFINE_boolean("spot", False, "On spot nodes.", flag_values=values)
    flags.mark_flags_as_mutual_exclusive(["pvc", "gcs_bucket"], required=True, flag_values=values)


def hosts(accelerator: str, topology: str, chips_per_node: int) -> int:
    """Nodes of a slice.

    Raises:
      PdiffError: the accelerator has no such topologies, or its chips do not fill whole nodes.
    """
    sides = [int(side) for side in topology.split("x")]
    dimensions = ACCELERATORS[accelerator][0]
    if len(sides) != dimensions:
        raise PdiffError(f"--topology: got {topology}; allowed for {accelerator}: {dimensions} numbers")
    chips = math.prod(sides)
    if chips % chips_per_node:
        raise PdiffError(f"--chips_per_node: got {chips_per_node}; allowed for {topology}: what divides {chips} chips")
    return chips // chips_per_node


def manifest(values: flags.FlagValues, passed: list[str]) -> dict:
    """The JobSet.

    Raises:
      PdiffError: see `hosts`; or the workdir is not on the shared volume.
    """
    where = common.workdir(passed)
    if where is None or not where.startswith(f"{common.MOUNT}/"):
        raise PdiffError(f"--workdir: got {where}; allowed: on the shared volume, as {common.MOUNT}/runs/interp")
    return jobset.manifest(values, hosts(values.accelerator, values.topology, int(values.chips_per_node)), passed)


def xpk(values: flags.FlagValues, passed: list[str]) -> str:
    """About the same on a cluster made with XPK, to which the volume was added as the storage "pdiff"."""
    options = {
        "workload": values.name,
        "tpu-type": f"{ACCELERATORS[values.accelerator][1]}-{values.topology}",
        "num-slices": values.slices,
        "docker-image": values.image,
        "storage": "pdiff",
        "max-restarts": values.max_restarts,
        "restart-on-exit-codes": 1,
        "command": common.quoted(common.pdiff_main(passed)),
    }
    return common.quoted(["xpk", "workload", "create", *(f"--{n}={v}" for n, v in options.items())])


def main(argv: list[str]) -> int:
    if (parsed := common.parse(argv, define, __doc__)) is None:
        return 0
    made = yaml.safe_dump(manifest(*parsed), sort_keys=False, allow_unicode=True, width=math.inf)
    if parsed[0].dry_run:
        print(f"# With XPK, add --cluster=NAME: {xpk(*parsed)}\n{made}", end="")
        return 0
    return common.feed(["kubectl", "apply", "-f", "-"], made)


if __name__ == "__main__":
    common.start(main)
