"""The JobSet manifest of gke.py (jobset.x-k8s.io/v1alpha2, JobSet 0.10 or later)."""

from absl import flags

from launch import common

CONTAINER, JOB = "pdiff", "slice"
# No cached metadata: what one process writes, the others must see.
FUSE_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"


def manifest(values: flags.FlagValues, hosts: int, passed: list[str]) -> dict:
    """The JobSet for slices of so many hosts; `values` are the flags of gke.py."""
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
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
