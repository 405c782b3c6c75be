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

from launch import common
from pdiff.errors import PdiffError

# label of the nodes: (dimensions of its topologies, what XPK calls it)
ACCELERATORS = {
    "tpu-v4-podslice": (3, "v4"),
    "tpu-v5-lite-podslice": (2, "v5litepod"),
    "tpu-v5p-slice": (3, "v5p"),
    "tpu-v6e-slice": (2, "v6e"),
}
CONTAINER, JOB = "pdiff", "slice"
LABEL = (r"[a-z]([a-z0-9-]*[a-z0-9])?", "a-z, 0-9, -; a letter first, no - last")
# No cached metadata: what one process writes, the others must see.
FUSE_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"


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
    count = hosts(values.accelerator, values.topology, int(values.chips_per_node))
    job = {
        "completionMode": "Indexed",
        "parallelism": count,
        "completions": count,
        "backoffLimit": 0,  # a slice works as a whole: the first failure of a pod is that of its Job
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [common.USAGE, 143]},
                },
            ]
        },
        "template": _pod(values, passed),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": values.name,
            "namespace": values.namespace,
            # each Job gets a node pool, that is a slice, to itself
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": values.name},  # JobSet makes the headless service
            "failurePolicy": {
                "maxRestarts": values.max_restarts,
                "restartStrategy": "BlockingRecreate",  # never two runs in one workdir
                "rules": _failure_rules(),
            },
            "replicatedJobs": [{"name": JOB, "replicas": values.slices, "template": {"spec": job}}],
        },
    }


def _failure_rules() -> list[dict]:
    """What ended a Job stands only in its message: "Container pdiff for pod … failed with exit code 2 matching …"."""
    return [
        {
            "name": "usage",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [f".*exit code {common.USAGE} matching.*"],
        },
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        },
    ]


def _pod(values: flags.FlagValues, passed: list[str]) -> dict:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": values.accelerator,
        "cloud.google.com/gke-tpu-topology": values.topology,
    }
    spec: dict = {"nodeSelector": selector}
    if values.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spec["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    volume: dict = {"name": "workdir", "persistentVolumeClaim": {"claimName": values.pvc}}
    if values.gcs_bucket:
        attributes = {"bucketName": values.gcs_bucket, "mountOptions": FUSE_OPTIONS}
        volume = {"name": "workdir", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
    container = {
        "name": CONTAINER,
        "image": values.image,
        # Kubernetes puts variables in for $(NAME), and reads $$ as $
        "command": [value.replace("$", "$$") for value in common.pdiff_main(passed)],
        "env": [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}, *_megascale(values)],  # fails where no TPU is
        "resources": {"limits": {"google.com/tpu": int(values.chips_per_node)}},
        "volumeMounts": [{"name": "workdir", "mountPath": common.MOUNT}],
    }
    # No hostNetwork: with it neither the bucket nor the account that may read it is to be had.
    spec |= {
        "restartPolicy": "Never",
        "serviceAccountName": values.service_account,
        "terminationGracePeriodSeconds": 120,  # to save; spot nodes give less
        "containers": [container],
        "volumes": [volume],
    }
    annotations = {"gke-gcsfuse/volumes": "true"} if values.gcs_bucket else {}
    return {"metadata": {"annotations": annotations}, "spec": spec}


def _megascale(values: flags.FlagValues) -> list[dict]:
    """What JAX reads to join slices (jax/_src/clusters/cloud_tpu_cluster.py)."""
    if values.slices == 1:
        return []
    index = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}}
    return [
        {"name": "MEGASCALE_NUM_SLICES", "value": str(values.slices)},
        {"name": "MEGASCALE_SLICE_ID", "valueFrom": index},
        {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": f"{values.name}-{JOB}-0-0.{values.name}"},
    ]


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
