"""A few faults of each kind, with fixed seeds; `python -m tests.faults` injects hundreds. Takes three minutes."""

import json
import os
import random
import shutil

import pytest

from pdiff import workdir as workdir_lib
from pdiff.errors import PdiffError
from tests.faults import access, children, disk, flips, kills, power, reads, shim, starts
from tests.faults.ends import differences, ends
from tests.faults.outcome import Outcome, failures, table
from tests.faults.scenario import Ground


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A run and an import; making it stops the run dead before each stage, and compares where that ends."""
    return Ground(tmp_path_factory.mktemp("faults"), names=("run", "import"))


@pytest.fixture(scope="module")
def readers(ground):
    readers = flips.Readers(ground.folder / "said" / "readers.txt")
    yield readers
    readers.close()


def fine(*outcomes):
    assert not any(o.bad for o in outcomes), failures(outcomes)
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zoo", "generator", "evaluation", "import"])
def test_a_killed_run_ends_as_one_that_never_stopped(ground, stage):
    """Takes 5 to 20 s each, the first a minute more."""
    (done,) = fine(kills.kill(ground, f"{stage}.1", stage=stage))
    assert done.verdict == "identical" and stage in done.fault


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["mean", "checkpointing", "import"])
def test_a_power_cut_costs_no_bit_of_the_end(ground, stage):
    """Takes 5 to 15 s each."""
    fine(kills.kill(ground, f"{stage}.2", stage=stage, cut=True))


@pytest.mark.slow
def test_damage_is_found_and_named_and_no_reader_believes_it(ground, readers):
    """Takes 30 s."""
    done = fine(*(flips.flip(ground, readers, f"short.{i}", "run") for i in range(6)))
    assert len({o.fault for o in done}) > 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["generator", "report"])
def test_a_stopped_run_with_a_damaged_file_goes_on(ground, stage):
    """Takes 10 s each."""
    fine(flips.unfinished(ground, "short.0", stage=stage))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["mean", "generator", "checkpoints"])
def test_what_is_damaged_of_a_finished_run_is_named_and_made_again_to_the_bit(ground, folder):
    """Takes 15 s each. The newest checkpoint of a model, whose last steps are done again; and what comes between them,
    of which the prior's checkpoints must be the ones that they were."""
    chosen = ground.scenarios["run"]
    workdir, out = ground.place(chosen, f"again_{folder}", "report"), ground.folder / "said" / f"again_{folder}.txt"
    shutil.rmtree(workdir)
    shutil.copytree(ground.reference("run"), workdir)
    newest = max(p for p in workdir.glob(f"{folder}/**/*") if p.is_file() and p.stat().st_size > 10_000)
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(PdiffError, match=newest.name):
        list(workdir_lib.check(workdir))
    ended = children.run(ground.args(chosen, workdir), out)
    assert ended.code == 0 and not ended.traceback, ended.said
    assert str(newest.relative_to(workdir)) in ended.said and "warning: " in ended.said
    assert ground.different(chosen, workdir) == []
    kills.clean(ground, workdir, f"again_{folder}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zoo", "mean", "checkpointing", "evaluation"])
def test_what_a_kill_leaves_is_read_or_refused_on_one_line(ground, readers, stage):
    """Takes 5 to 10 s each."""
    fine(reads.read(ground, readers, f"{stage}.0", "run", stage))


@pytest.mark.slow
def test_a_full_disk_is_said_and_costs_nothing_that_was_finished(ground):
    """Takes 15 s."""
    mount = disk.can_mount()
    done = fine(
        disk.full(ground, "short.0", "run", "report", mount=mount),
        disk.full(ground, "short.1", "import", "zoo", mount=mount),
        disk.full(ground, "short.2", "run", "report", mount=False),
    )
    assert any(o.verdict == "refused" for o in done)


@pytest.mark.slow
@pytest.mark.parametrize("kind", access.KINDS)
def test_missing_permissions_wrong_clocks_and_slow_disks_change_nothing(ground, kind):
    """Takes 5 s each."""
    if kind == "permission" and not children.can_obey_modes():
        pytest.skip("this process cannot give up what lets it read in spite of modes")
    fine(access.hinder(ground, f"{kind}.0", kind, "run", "report"))


@pytest.mark.slow
def test_of_two_starts_one_wins_and_the_other_says_who_holds_it(ground):
    """Takes 15 s."""
    fine(*(starts.start(ground, f"short.{i}", stage="report") for i in range(2)))


# --- the injector itself -------------------------------------------------------------------------


def in_a_child(work, *args) -> int:
    """The exit status of a forked process that does `work`."""
    pid = os.fork()
    if not pid:
        try:
            work(*args)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def three_files(root, settings):
    shim.install({"root": str(root), **settings})
    for name in "abc":
        with open(root / name, "w") as f:
            f.write(3 * name)
            f.flush()
            if name != "c":
                os.fsync(f.fileno())


@pytest.mark.parametrize("when, there", [("before", ["a"]), ("after", ["a", "b"])])
def test_a_process_dies_at_the_event_it_was_told_to(tmp_path, when, there):
    kill = {"stage": shim.OTHER, "nth": 2, "when": when, "signal": "KILL"}  # open, fsync, open
    assert in_a_child(three_files, tmp_path, {"kill": kill}) == -9
    assert sorted(p.name for p in tmp_path.iterdir()) == there


def test_a_full_disk_stays_full(tmp_path):
    three_files_in_vain = pytest.raises(OSError, match="No space left")

    def work():
        with three_files_in_vain:
            three_files(tmp_path, {"full": {"nth": 1}})
        os._exit(7)

    assert in_a_child(work) == 7 and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_power_cut_loses_what_was_not_synced_and_nothing_else(tmp_path):
    found = set()
    for seed in range(40):
        root, kept = tmp_path / f"root{seed}", tmp_path / f"kept{seed}"
        root.mkdir()
        kept.mkdir()
        (root / "a").write_text("old")
        before, journal = power.seen(root), tmp_path / f"journal{seed}"

        def work(root=root, kept=kept, journal=journal):
            shim.install({"root": str(root), "journal": str(journal), "kept": str(kept)})
            (root / "new").write_text("aaa")  # never synced
            os.replace(root / "new", root / "a")
            with open(root / "b", "w") as f:
                f.write("bbb")
                f.flush()
                os.fsync(f.fileno())
            folder = os.open(root, os.O_RDONLY)
            os.fsync(folder)
            (root / "c").write_text("ccc")  # nor its name

        assert in_a_child(work) == 0
        power.cut(root, power.read(journal), before, kept, random.Random(seed))
        assert (root / "b").read_text() == "bbb"
        found |= {(name, (root / name).read_text() if (root / name).exists() else None) for name in "ac"}
    assert {("a", "aaa"), ("c", "ccc"), ("c", None)} <= found and ("a", None) not in found
    assert any(name == "a" and text != "aaa" for name, text in found)


def test_an_overwritten_file_is_back_where_its_folder_was_not_synced(tmp_path):
    texts = set()
    for seed in range(20):
        root, kept, journal = (tmp_path / f"{n}{seed}" for n in ("root", "kept", "journal"))
        root.mkdir()
        kept.mkdir()
        (root / "a").write_text("old")
        before = power.seen(root)

        def work(root=root, kept=kept, journal=journal):
            shim.install({"root": str(root), "journal": str(journal), "kept": str(kept)})
            with open(root / "new", "w") as f:
                f.write("new")
                f.flush()
                os.fsync(f.fileno())
            os.replace(root / "new", root / "a")

        assert in_a_child(work) == 0
        power.cut(root, power.read(journal), before, kept, random.Random(seed))
        texts.add((root / "a").read_text())
    assert texts == {"old", "new"}


@pytest.mark.slow
def test_one_other_bit_is_another_end(ground, tmp_path):
    """Takes a second, where the run is there already."""
    for name in ("generator/arrays.safetensors", "results.json", "metrics.jsonl", "report.html"):
        workdir = ground.place(ground.scenarios["run"], "another")
        workdir.mkdir(exist_ok=True)
        source = (ground.reference("run") / name).read_bytes()
        (workdir / name).parent.mkdir(exist_ok=True)
        other = {"metrics.jsonl": (b'"loss": ', b'"loss": 1'), "generator/arrays.safetensors": (source[-1:], b"")}
        (workdir / name).write_bytes(source.replace(*other.get(name, (b"0.1", b"0.2")), 1))
        different = name in differences(ground.ends["run"], ends(workdir, ground.reference("run")))
        assert different == (name != "report.html"), name  # its numbers are those of results.json
        (workdir / name).write_bytes(source)
        assert name not in differences(ground.ends["run"], ends(workdir, ground.reference("run")))
        kills.clean(ground, workdir, "another")


def test_outcomes_are_counted_by_kind_and_failures_can_be_repeated():
    outcomes = [
        Outcome("kill: zoo", "event 3", "0.1", "identical", lost_steps=1, seconds=2.0),
        Outcome("kill: zoo", "event 4", "0.2", "identical", lost_steps=2, seconds=4.0),
        Outcome("damage: flip", "config.json", "0.3", "silent", "exit 0", kept="/tmp/w"),
    ]
    assert "| kill: zoo | 2 | 2 | 0 | 0 | 2 | 3.0 |" in table(outcomes)
    assert "| damage: flip | 1 | 0 | 1 | 0 | 0 | 0.0 |" in table(outcomes)
    assert failures(outcomes) == "silent: damage: flip config.json [0.3]: exit 0; kept: /tmp/w"
    assert json.dumps([o.bad for o in outcomes]) == "[false, false, true]"
