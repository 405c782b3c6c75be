"""One writer for a directory, whoever dies, and wherever."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from pdiff.errors import PdiffError
from pdiff.system import claim

HOLD = """
import sys, time
from pathlib import Path
from pdiff.system import claim
with claim.claimed(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def fast(monkeypatch):
    """Signs of life ten times a second."""
    for name, seconds in (("BEAT", 0.1), ("SILENCE", 0.6), ("POLL", 0.02)):
        monkeypatch.setattr(claim, name, seconds)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_one_is_told_who_holds_it(tmp_path, other):
    message = f"it: held by process {other.pid} on .* since 2.*; allowed: one at a time"
    with pytest.raises(PdiffError, match=message), claim.claimed(tmp_path, "it"):
        pass
    assert f"process {other.pid}" in claim.holder(tmp_path)


def test_one_after_the_other_may(tmp_path):
    assert claim.holder(tmp_path) is None
    for _ in range(3):
        with claim.claimed(tmp_path, "it"):
            assert str(os.getpid()) in claim.holder(tmp_path)
        assert claim.holder(tmp_path) is None
    assert [p.name for p in (tmp_path / "claim").iterdir()] == ["000003.json"]


def test_an_error_releases_it(tmp_path):
    with pytest.raises(KeyError), claim.claimed(tmp_path, "it"):
        raise KeyError
    assert claim.holder(tmp_path) is None


def test_what_a_killed_process_held_is_taken_over_at_once(tmp_path, other, said):
    other.kill()
    other.wait()
    start = time.monotonic()
    with claim.claimed(tmp_path, "it"):
        assert time.monotonic() - start < claim.POLL
    assert f"it was held by process {other.pid}" in said() and "taken over" in said()


def test_a_process_number_that_is_anothers_by_now_holds_nothing(tmp_path):
    (tmp_path / "claim").mkdir()
    path = tmp_path / "claim" / "000004.json"
    path.write_text(json.dumps(claim._me() | {"started": "1"}))  # this process, as of another start
    with claim.claimed(tmp_path, "it"):
        pass


def elsewhere(tmp_path, **more):
    """The claim of a process on another machine."""
    (tmp_path / "claim").mkdir(exist_ok=True)
    path = tmp_path / "claim" / "000001.json"
    path.write_text(json.dumps(claim._me() | {"machine": "far away", "host": "far"} | more))
    return path


def test_another_machine_that_is_silent_is_taken_over(tmp_path, fast, said):
    elsewhere(tmp_path)
    start = time.monotonic()
    with claim.claimed(tmp_path, "it"):
        assert time.monotonic() - start >= claim.SILENCE
    assert "on far" in said() and "taken over" in said()


@pytest.mark.parametrize("hours", [-100, 0, 100])
def test_another_machine_that_beats_is_not_whatever_its_clock_says(tmp_path, fast, hours):
    path = elsewhere(tmp_path)
    stop = threading.Event()

    def beat():
        count = 0
        while not stop.wait(0.1):
            count += 1
            elsewhere(tmp_path, beat=count)
            os.utime(path, (time.time() + 3600 * hours,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(PdiffError, match="held by process .* on far"), claim.claimed(tmp_path, "it"):
            pass
    finally:
        stop.set()
        thread.join()


def test_a_claim_without_contents_is_someone_who_has_just_started_or_died(tmp_path, fast):
    (tmp_path / "claim").mkdir()
    path = tmp_path / "claim" / "000001.json"
    path.touch()
    threading.Timer(0.2, lambda: path.write_text(json.dumps(claim._me()))).start()
    with pytest.raises(PdiffError, match="held by process"), claim.claimed(tmp_path, "it"):
        pass
    path.write_text("{")
    with claim.claimed(tmp_path, "it"):
        pass


def test_of_many_at_once_one_gets_it(tmp_path, monkeypatch):
    """Threads stand for processes: who holds it is alive, and all else is as between processes."""
    start, won, refused = threading.Barrier(8), [], []
    done = threading.Barrier(8)

    def take():
        start.wait()
        try:
            with claim.claimed(tmp_path, "it"):
                won.append(1)
                done.wait()
        except PdiffError as e:
            refused.append(str(e))
            done.wait()

    for _ in range(4):
        won.clear(), refused.clear()
        threads = [threading.Thread(target=take) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(won) == 1 and len(refused) == 7 and all("held by" in r for r in refused)


def test_who_was_taken_for_dead_ends_at_its_next_beat(tmp_path):
    """As a process that was suspended, or cut off from the file system, and comes back."""
    code = HOLD.replace("from pdiff.system import claim", "from pdiff.system import claim\nclaim.BEAT = 0.1")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    (tmp_path / "claim" / "000002.json").write_text(json.dumps(claim._me() | {"machine": "far away", "host": "far"}))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "taken over by process" in err and "on far" in err
