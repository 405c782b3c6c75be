"""The command line as people type it, in processes of their own."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from PIL import Image

import pdiff
from pdiff import config as config_lib
from pdiff import results as results_lib
from pdiff import run
from pdiff import workdir as workdir_lib
from pdiff.ask import commands
from pdiff.errors import PdiffError
from pdiff.evaluation import audit as audit_lib
from pdiff.evaluation import closeup
from pdiff.measures.verdict import KINDS
from pdiff.system import files
from pdiff.system.checkpoint import Checkpoints
from pdiff.tasks.families.folder import read_support
from pdiff.training import stages
from pdiff.training.state import init_state, make_optimizer
from pdiff.zoo import build
from tests import complete
from tests.faults import children

ROOT = Path(__file__).parent.parent
SMALLER = (
    "--config=configs/smoke.py",
    "--config.zoo.steps=20",
    "--config.zoo.pretrain_steps=50",
    "--config.mean.steps=12",
    "--config.train.steps=12",
    "--config.train.warmup_steps=2",
    "--config.train.checkpoint_every=4",
    "--config.train.validate_every=12",
    "--config.tasks.unseen=40:80",
    # What takes time is compiling: one block, two samplers.
    "--config.model.depth=1",
    "--config.model.width=32",
    "--config.sample.samplers=('heun', 'posterior_mean')",
)


def environment():
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "pdiff.main", *map(str, args)],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def pdiff_main(*args):
    process = start(*args)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(arguments, file for what is printed) -> how the command ended, in a process that need not import anything."""
    children.start_server(tmp_path_factory.mktemp("compiled"))
    return children.run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run, smaller than the smoke scenario. Takes up to two minutes of processor time."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    code, _, err = pdiff_main(*SMALLER, f"--workdir={workdir}")
    assert code == 0, err
    return workdir


def test_every_module_can_be_imported_beside_the_command_line():
    """Programs of their own have flags of their own, which must not be defined where something imports them."""
    code = (
        "import importlib, pkgutil, pdiff, pdiff.main\n"
        "for m in pkgutil.walk_packages(pdiff.__path__, 'pdiff.'):\n"
        "    if not m.name.startswith('pdiff.convert'): importlib.import_module(m.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_run_leaves_complete_results_and_a_report(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert complete.check(results) == []
    assert results["config"]["train"]["steps"] == 12
    assert results["arcs"]["unseen"] == [[40, 80]]
    assert {"vague", "adaptation", "calibration"} <= set(results)
    assert (workdir / "report.html").stat().st_size > 10_000


def test_check_says_how_far_both_trainings_have_come_and_what_is_damaged(workdir, tmp_path):
    lines = list(workdir_lib.check(workdir))
    assert lines[2:4] == [f"training of the {name}: step 12 of 12" for name in ("mean", "prior")]
    copy = tmp_path / "w"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("zoo"))
    os.symlink(workdir / "zoo", copy / "zoo")
    shutil.rmtree(copy / stages.MEAN / "12")
    with pytest.raises(PdiffError, match="mean: training is at step 8 of 12; the command that started the run goes on"):
        list(workdir_lib.check(copy))
    shutil.rmtree(copy / stages.MEAN)
    with pytest.raises(PdiffError, match="mean: missing; the command that started the run trains"):
        list(workdir_lib.check(copy))


def test_a_run_leaves_closeups_and_shows_them(workdir):
    found = results_lib.read(workdir / closeup.FILE)
    assert set(found) == {"prompt", "plane", "averaging", "confusion", "images"}
    results, page = results_lib.read(workdir / "results.json"), (workdir / "report.html").read_text()
    chosen = results["selection"]["sampler"]
    for split, entry in results["splits"].items():
        assert found["averaging"][split][chosen]["averaged"] == entry["generated"][chosen]
        assert found["averaging"][split][chosen]["raw"] != entry["generated"][chosen]
    for part in ("answers", "novelty", "training", "rivals"):
        assert f'<section id="{part}">' in page
    drawn = {p.stem for p in (workdir / "plots").iterdir()}
    assert {"plane", "confusion", "against_finetuned"} <= drawn


def test_runs_are_compared_from_the_command_line(workdir, tmp_path):
    other, out = tmp_path / "other", tmp_path / "compare.html"
    other.mkdir()
    shutil.copy(workdir / "results.json", other)
    code, printed, err = pdiff_main("--mode=compare", f"--workdirs={workdir},{other}", f"--out={out}")
    assert code == 0, err
    assert "The configs are the same." in printed and printed.startswith("| test accuracy |")
    assert "2 runs side by side" in out.read_text()


def test_the_same_command_again_does_nothing(workdir):
    before = {p: p.stat().st_mtime_ns for p in (workdir / "results.json", workdir / "checkpoints")}
    code, _, err = pdiff_main(*SMALLER, f"--workdir={workdir}")
    assert code == 0 and "is finished" in err
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_config_is_refused_by_field(workdir):
    code, _, err = pdiff_main(*SMALLER, "--config.seed=7", f"--workdir={workdir}")
    assert code != 0 and "seed is 7 here and 0 there" in err and "Traceback" not in err


def test_sample_writes_networks_that_flax_can_use(workdir, tmp_path):
    out = tmp_path / "nets.safetensors"
    prompt = "digits rotated by 75 degrees"
    code, _, err = pdiff_main(
        f"--workdir={workdir}", "--mode=sample", f"--prompt={prompt}", "--num_samples=3", f"--out={out}"
    )
    assert code == 0, err
    arrays = safetensors.numpy.load_file(out)
    assert {k: v.shape for k, v in arrays.items()} == {
        "params/Dense_0/kernel": (3, 64, 32),
        "params/Dense_0/bias": (3, 32),
        "params/Dense_1/kernel": (3, 32, 10),
        "params/Dense_1/bias": (3, 10),
    }
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in arrays.values())
    assert re.search(
        r"expect 0\.\d+, 90% of (such tasks|its networks) between 0\.\d+ and [01]\.\d+ \(.*fine-tuned", err
    )
    loaded = pdiff.load(workdir)
    networks = loaded.sample(prompt=prompt, num_samples=3)
    # The same seed in another process, whose number of devices is another, gives the same networks.
    np.testing.assert_allclose(networks["params"]["Dense_0"]["kernel"], arrays["params/Dense_0/kernel"], atol=1e-4)
    assert loaded.accuracy(networks, loaded.family.tasks[0].name).shape == (3,)


def test_adapt_writes_one_network_for_a_folder_of_images(workdir, tmp_path):
    family = pdiff.load(workdir).family
    data, out = family.data["train"], tmp_path / "net.npz"
    for label, name in enumerate(family.classes):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in np.flatnonzero(data.y == label)[:2]:
            pixels = (data.x[i] * 255).round().astype(np.uint8).reshape(8, 8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i}.png")
    code, _, err = pdiff_main(
        f"--workdir={workdir}", "--mode=adapt", f"--support={tmp_path / 'mine'}", f"--out={out}", "--num_samples=8",
        "--steps=3", "--prompt=digits rotated by less than 20 degrees",
    )  # fmt: skip
    assert code == 0, err
    arrays = dict(np.load(out))
    assert arrays["params/Dense_0/kernel"].shape == (1, 64, 32)
    assert "1 network, the likeliest of 8 by 20 images" in err
    # As many labelled images of a class as the run was measured with, in the held-out split that did worst.
    assert re.search(
        r"expect 0\.\d+, 90% of such tasks between .* \(2 (interp|unseen) tasks from 2 labelled images", err
    )
    images, labels = read_support(tmp_path / "mine", family)
    asked = {"prompt": "digits rotated by less than 20 degrees", "num_samples": 8}
    expected = pdiff.load(workdir).adapt(images, labels, steps=3, **asked)
    np.testing.assert_allclose(expected["params"]["Dense_0"]["kernel"], arrays["params/Dense_0/kernel"], atol=1e-3)


def test_a_vague_prompt_samples_networks_of_its_set_and_says_so(workdir, tmp_path):
    out, prompt = tmp_path / "nets.safetensors", "digits rotated by between 200 and 260 degrees"
    code, _, err = pdiff_main(
        f"--workdir={workdir}", "--mode=sample", f"--prompt={prompt}", "--num_samples=3", f"--out={out}"
    )
    assert code == 0, err
    told = "any angle from 200 to 260 degrees (60 of 360)"
    assert f"read as {told}; each network is drawn" in err and re.search(r"expect 0\.\d+, 90% of ", err)
    assert len(re.findall(r"network \d: best for 'digits rotated by 2\d\d degrees', 0\.\d+ there", err)) == 3
    with safetensors.safe_open(out, "numpy") as file:
        facts = file.metadata()
    assert facts["understood"] == told and facts["sampler"] == "heun"  # not one call, whatever validation chose


def test_evaluate_again_gives_the_same_numbers(workdir):
    before = results_lib.read(workdir / "results.json")
    code, _, err = pdiff_main(f"--workdir={workdir}", "--mode=evaluate")
    assert code == 0, err
    after = results_lib.read(workdir / "results.json")
    assert after["created"] != before["created"]
    for split, entry in before["splits"].items():
        for kind in ("generated", "controls"):
            for name, s in entry[kind].items():
                assert after["splits"][split][kind][name]["mean"] == pytest.approx(s["mean"], abs=0.01)
    assert [v["said"] for v in after["vague"]] == [v["said"] for v in before["vague"]]
    for split, rows in before["adaptation"]["splits"].items():
        for old, new in zip(rows, after["adaptation"]["splits"][split], strict=True):
            assert new["accuracy"]["zoo"]["mean"] == pytest.approx(old["accuracy"]["zoo"]["mean"], abs=0.02)


@pytest.fixture(scope="module")
def audited(workdir):
    """What an audit of the run says on the command line."""
    code, _, err = pdiff_main(f"--workdir={workdir}", "--mode=audit")
    assert code == 0, err
    return err


def test_an_audit_is_complete_and_agrees_with_the_evaluation(workdir, audited):
    audit, results = (results_lib.read(workdir / n) for n in ("audit.json", "results.json"))
    assert audit["verdict"]["sentence"] in audited and audit["verdict"]["kind"] in KINDS
    assert all(set(audit[n]) == {"generated", "zoo"} for n in (*audit_lib.MEASURES, "spread", "disagreement"))
    assert all(set(audit[n]) == {"weights", "function"} for n in ("two_sample", "precision_recall"))
    assert [p["scale"] for p in audit["noise_curve"]] == list(audit_lib.NOISE_CURVE)
    assert [p["networks"] for p in audit["averaging_curve"]] == [2, 4, 8, 16]  # with neighbouring tasks' networks
    assert [x["path"] for x in audit["leaves"]] == [f"params/Dense_{i}/{k}" for i in (0, 1) for k in ("bias", "kernel")]
    assert len(audit["points"]) == audit["num_generated"] + audit["num_zoo"] == 24 + 24
    # The evaluation's networks, compared with the same ones.
    pairs = {"generated": ("max_iou_to_zoo", "nearest_l2"), "zoo": ("zoo_to_zoo_iou", "zoo_nearest_l2")}
    for who, (overlap, distance) in pairs.items():
        for ours, theirs in (("max_iou", overlap), ("nearest_l2", distance)):
            assert audit[ours][who]["mean"] == pytest.approx(results["novelty"][theirs]["mean"], rel=0.02)
    assert set(audit["rivals"]) == {"pca_flow"}
    for name, rival in audit["rivals"].items():  # all seen tasks are audited here, with the evaluation's samples
        scored = results["splits"]["seen"]["controls"][name]["mean"]
        assert rival["accuracy"]["generated"]["mean"] == pytest.approx(scored, abs=0.01)
        assert rival["verdict"]["kind"] in KINDS
    page = (workdir / "audit.html").read_text()
    assert page.count("pca flow") == 1
    assert audit["verdict"]["sentence"].split(":")[0] in page and not re.search(r'(src|href)="(?!data:)', page)
    for name in ("evidence", "overlap", "leaves", "kernels"):
        assert (workdir / "plots" / f"audit_{name}.svg").read_text().startswith("<svg")


def test_the_kernels_shown_in_an_audit_are_those_of_zoo_networks(workdir, audited):
    example = results_lib.read(workdir / "audit.json")["examples"][0]
    config = config_lib.read(workdir / "config.json")
    zoo = build.store.read(build.directory(config, workdir), config_lib.zoo_fingerprint(config))["seen"]
    kernels = zoo.params["params"]["Dense_0"]["kernel"]
    assert kernels.shape[1:] == np.shape(example["nearest"]) == (64, 32)
    far = {n: np.abs(kernels - np.array(example[n])).max((1, 2)) for n in ("generated", "nearest", "next")}
    assert far["nearest"].min() < 1e-4 and far["next"].min() < 1e-4 and far["generated"].min() > 1e-3
    assert zoo.seed[far["nearest"].argmin()] != zoo.seed[far["next"].argmin()]


def test_an_audit_needs_a_finished_run(workdir, tmp_path):
    code, _, err = pdiff_main(f"--workdir={tmp_path}", "--mode=audit")
    assert code == 1 and f"{tmp_path}: not finished" in err and "Traceback" not in err
    half = tmp_path / "half"
    shutil.copytree(workdir, half, ignore=shutil.ignore_patterns("zoo"))
    before = {p: p.stat().st_mtime_ns for p in half.rglob("*audit*")}
    with pytest.raises(PdiffError, match="zoo.*missing"):
        run.audit(half)
    assert {p: p.stat().st_mtime_ns for p in half.rglob("*audit*")} == before


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt": "digits turned 世"}, "世"),
        ({}, "--prompt, --task, --between: give one of them"),
        ({"prompt": "digits", "task": "0"}, "one of them"),
        ({"task": "rotation_999"}, "rotation_999"),
        ({"prompt": "digits", "out": None}, "--out"),
        ({"prompt": "digits", "out": "/nowhere/at/all"}, "no existing folder"),
        ({"prompt": "digits", "sampler": "huen"}, "heun"),
    ],
)
def test_bad_requests_for_samples_are_refused(workdir, tmp_path, given, message):
    asked = {"num_samples": 1, "sampler": None, "seed": 0, "out": str(tmp_path / "x")}
    with pytest.raises(PdiffError, match=message):
        commands.sample(workdir, **(asked | given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args, message",
    [
        (["--config=configs/smoke.py", "--config.train.stpes=3"], "did you mean train.steps"),
        (["--config=configs/smoke.py", "--config.train.steps=many"], "config.train.steps"),
        (
            ["--config=configs/smoke.py", "--config.train.steps=0"],
            "config.train.steps: got 0; allowed: a whole number at least 1",
        ),
        (["--config=configs/smoke.py", "--config.model.width=65"], "model.num_heads"),
        (["--config=configs/smoke.py", "--config.tasks.unseen=0:360"], "tasks.unseen"),
        (["--config=configs/smoke.py", "--config.model.max_tokens=3"], "model.max_tokens"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        (["--mode=sing"], "mode"),
        (["--no_such_flag=1"], "no_such_flag"),
        ([], "--config: missing"),
        (["--mode=report"], "--workdir: missing"),
        (["--mode=adapt", "--steps=-1"], "--steps"),
        (["--mode=adapt", "--num_samples=0"], "--num_samples"),
        (
            ["--config=configs/smoke.py", "--config.mean.functional_weight=0"],
            "config.mean.zoo_weight: got 0.0; allowed",
        ),
        (["--mode=compare", "--workdirs=a"], "--workdirs: got a; allowed: two or more"),
    ],
)
def test_bad_command_lines_end_at_once_in_one_line(server, args, message, tmp_path):
    workdir = tmp_path / "w"
    ended = server([*args, *([f"--workdir={workdir}"] if "--mode=report" not in args else [])], tmp_path / "said")
    assert ended.code != 0 and message in ended.error and not ended.traceback
    assert not workdir.exists()


def test_a_signal_stops_cleanly_and_the_same_command_goes_on(tmp_path):
    """Takes 20 s. Stopped in the training of each model; what a straight run gives is compared in test_train."""
    steps = "--config.mean.steps=400", "--config.train.steps=4000", "--config.train.checkpoint_every=20"
    args = ("--config=tests/faults/small_run.py", *steps, f"--workdir={tmp_path / 'w'}")
    for signum, folder in ((signal.SIGTERM, stages.MEAN), (signal.SIGINT, stages.CHECKPOINTS)):
        checkpoints = Checkpoints(tmp_path / "w" / folder, 1)
        process, deadline = start(*args), time.time() + 200
        while not checkpoints.steps():
            assert process.poll() is None and time.time() < deadline, process.communicate()
            time.sleep(0.2)
        process.send_signal(signum)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 128 + signum
        assert "run the same command again" in err and "Traceback" not in err
        assert f"training steps of the {'mean' if folder == stages.MEAN else 'prior'}, all in a checkpoint" in err


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_atomic(path, b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_disk_too_full_for_a_checkpoint_is_said_before_anything_is_written(tiny, tmp_path, monkeypatch):
    state = init_state(tiny.init(jax.random.key(0)), make_optimizer(tiny.config.train))
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(int(state.step), state.parts, {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(PdiffError, match="No space left on device for the checkpoint of step 1.*make room"):
        checkpoints.save(int(state.step) + 1, state.parts, {})
    assert checkpoints.steps() == [0]
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]
