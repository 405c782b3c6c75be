"""The JobSet, field by field, and the numbers of hosts."""

import re
import shlex

import pytest
import yaml

from launch import common, gke
from pdiff.errors import PdiffError
from tests.launch.conftest import PASSED, module

OWN = ["--name=run", "--image=us-docker.pkg.dev/p/r/pdiff:1"]
PVC = "--pvc=shared-claim"


def manifest(*own: str, passed=PASSED) -> dict:
    return gke.manifest(*common.parse([*OWN, *own, "--", *passed], gke.define, ""))


def parts(jobset: dict) -> tuple[dict, dict, dict]:
    """(the Job's spec, the pod's, the container)."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"], job["template"]["spec"]["containers"][0]


def expand(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a command: $(NAME) of a known variable is its value, $$ is $.

    Source: k8s.io/kubernetes/third_party/forked/golang/expansion/expand.go.
    """

    def one(match: re.Match) -> str:
        found = match[0]
        return "$" if found == "$$" else variables.get(found[2:-1], found)

    return re.sub(r"\$\$|\$\([^)]*\)", one, text)


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "count"),
    [
        ("tpu-v5-lite-podslice", "4x4", 4, 4),
        ("tpu-v5-lite-podslice", "2x2", 4, 1),
        ("tpu-v5-lite-podslice", "2x4", 8, 1),
        ("tpu-v5-lite-podslice", "16x16", 4, 64),
        ("tpu-v6e-slice", "1x1", 1, 1),
        ("tpu-v6e-slice", "8x16", 4, 32),
        ("tpu-v4-podslice", "2x2x2", 4, 2),
        ("tpu-v5p-slice", "4x4x8", 4, 32),
    ],
)
def test_the_hosts_of_a_slice_are_its_chips_by_those_of_a_node(accelerator, topology, chips, count):
    assert gke.hosts(accelerator, topology, chips) == count
    made = manifest(f"--accelerator={accelerator}", f"--topology={topology}", f"--chips_per_node={chips}", PVC)
    job, pod, container = parts(made)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (count, count, "Indexed")
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": topology,
    }  # fmt: skip


def test_the_jobset_itself():
    made = manifest(PVC, "--slices=3", "--namespace=team", "--max_restarts=7")
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert made["metadata"]["name"] == "run" and made["metadata"]["namespace"] == "team"
    topology = made["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert topology == "cloud.google.com/gke-nodepool"
    assert made["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "run"}
    (jobs,) = made["spec"]["replicatedJobs"]
    assert jobs["name"] == "slice" and jobs["replicas"] == 3
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert made["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


def outcome(made: dict, exit_code: int, disrupted: bool = False) -> str:
    """What Kubernetes and JobSet do when a pod ends so: the first rule that fits decides, in both."""
    job, _, container = parts(made)
    disruption = {"type": "DisruptionTarget", "status": "True"}
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        if codes and (codes["containerName"], codes["operator"]) == (container["name"], "In"):
            fits, what = exit_code in codes["values"], f"Container pdiff for pod a/b failed with exit code {exit_code}"
        else:
            fits, what = disrupted and disruption in conditions, "Pod a/b has condition DisruptionTarget"
        if fits:
            reason, message = "PodFailurePolicy", f"{what} matching FailJob rule at index {index}"
            break
    for rule in made["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (2, False, "FailJobSet"),
        (143, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, False, "RestartJobSet"),
        (134, False, "RestartJobSet"),
        (1, False, "RestartJobSet"),
        (20, False, "RestartJobSet"),
    ],
)
def test_preemptions_do_not_count_and_usage_errors_end_it(code, disrupted, action):
    made = manifest(PVC)
    assert parts(made)[0]["backoffLimit"] == 0 and parts(made)[1]["restartPolicy"] == "Never"
    assert outcome(made, code, disrupted) == action


def test_the_container_gets_exactly_what_was_passed():
    _, _, container = parts(yaml.safe_load(yaml.safe_dump(manifest(PVC, "--slices=2"))))
    variables = {e["name"]: "EXPANDED" for e in container["env"]} | {"HOME": "EXPANDED", "id": "EXPANDED"}
    assert [expand(c, variables) for c in container["command"]] == ["python", "-m", "pdiff.main", *PASSED]
    assert container["image"] == "us-docker.pkg.dev/p/r/pdiff:1" and "args" not in container


def test_slices_are_joined_by_the_variables_that_jax_reads():
    env = {e["name"]: e for e in parts(manifest(PVC, "--slices=2"))[2]["env"]}
    assert env["MEGASCALE_NUM_SLICES"]["value"] == "2"
    label = env["MEGASCALE_SLICE_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert label == "metadata.labels['jobset.sigs.k8s.io/job-index']"
    assert env["MEGASCALE_COORDINATOR_ADDRESS"]["value"] == "run-slice-0-0.run"  # <set>-<job>-<index>-<pod>.<subdomain>
    assert env["JAX_PLATFORMS"]["value"] == "tpu,cpu"
    assert [e["name"] for e in parts(manifest(PVC))[2]["env"]] == ["JAX_PLATFORMS"]


def test_the_workdir_is_on_a_claim_or_in_a_bucket():
    job, pod, container = parts(manifest(PVC))
    assert pod["volumes"] == [{"name": "workdir", "persistentVolumeClaim": {"claimName": "shared-claim"}}]
    assert container["volumeMounts"] == [{"name": "workdir", "mountPath": "/mnt/pdiff"}]
    assert job["template"]["metadata"]["annotations"] == {}
    job, pod, container = parts(manifest("--gcs_bucket=bucket-1", "--service_account=reader"))
    (volume,) = pod["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket-1"
    assert "metadata-cache:ttl-secs:0" in volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["serviceAccountName"] == "reader" and "hostNetwork" not in pod


def test_spot_nodes_are_asked_for_and_tolerated():
    assert "tolerations" not in parts(manifest(PVC))[1]
    pod = parts(manifest(PVC, "--spot"))[1]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"


@pytest.mark.parametrize("where", [[], ["--workdir=runs/a"], ["--workdir=/mnt/pdiffs/a"], ["--workdir", "gs://b/a"]])
def test_a_workdir_that_is_not_shared_is_refused(where):
    with pytest.raises(PdiffError, match="--workdir: got .*; allowed: on the shared volume, as /mnt/pdiff/runs/interp"):
        manifest(PVC, passed=["--config=c.py", *where])


def test_a_dry_run_prints_what_a_real_one_applies_and_the_command_for_xpk(stubs):
    stubs.add("kubectl", codes="7")
    arguments = [*OWN, PVC, "--slices=2", "--", *PASSED]
    dry = module("gke", ["--dry_run", *arguments], stubs.env)
    assert dry.returncode == 0 and stubs.calls("kubectl") == []
    assert module("gke", arguments, stubs.env).returncode == 7
    comment, _, text = dry.stdout.partition("\n")
    (call,) = stubs.calls("kubectl")
    assert call["argv"] == ["apply", "-f", "-"] and call["stdin"] == text
    assert yaml.safe_load(text) == manifest(PVC, "--slices=2")
    xpk = shlex.split(comment.partition(": ")[2])
    assert xpk[:3] == ["xpk", "workload", "create"] and "--tpu-type=v5litepod-4x4" in xpk and "--num-slices=2" in xpk
    (command,) = [o.removeprefix("--command=") for o in xpk if o.startswith("--command=")]
    assert shlex.split(command) == ["python", "-m", "pdiff.main", *PASSED]
