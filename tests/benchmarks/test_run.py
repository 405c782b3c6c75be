"""What the one command makes of rows: a table that says what was missed, JSON and back, and plots."""

import dataclasses
import json
import time

import numpy as np
import pytest

from benchmarks import growth, main_job, plots, run, timing
from benchmarks.timing import Row, Spread

ROW = Row(
    "zoo", "32 networks", "one network", Spread(0.02, 0.01, 0.03, 7), {"loop": Spread(1.0, 0.9, 1.1, 7)},
    {"loop": Spread(50.0, 45.0, 55.0, 7)}, "200 GFLOP/s", Spread(0.17, 0.16, 0.18, 7),
    {">= 25 x loop": True, ">= 90 x loop": False}, 1234.0, "zoo.chunk_size", "scaled", 1e9, 1e8,
)  # fmt: skip


def test_a_row_survives_json():
    assert run.row_of(json.loads(json.dumps(dataclasses.asdict(ROW)))) == ROW
    bare = Row("codec", "trees", "tree", Spread(1.0, 1.0, 1.0, 1))
    assert run.row_of(json.loads(json.dumps(dataclasses.asdict(bare)))) == bare


def test_the_table_says_what_was_met_and_what_was_missed():
    line = run.table([ROW]).splitlines()[-1]
    assert "20 (10 .. 30) ms for one network" in line
    assert "loop: 50 (45 .. 55) ×" in line and "17% (16 .. 18) of 200 GFLOP/s" in line
    assert ">= 25 x loop: met; >= 90 x loop: **missed**" in line
    assert "1,234 MB, bounded by zoo.chunk_size" in line


def test_growth_has_a_table_of_slopes():
    rows = [
        Row(f"{growth.PREFIX}tasks: tokenizer", f"{n} tasks", "tokenizer", Spread(s, s, s, 1), peak_mb=float(n),
            notes="time grows as size^1.50: for a reason" if n == 400 else "")
        for n, s in ((4, 1.0), (400, 1000.0))
    ]  # fmt: skip
    line = run.growth_table(rows).splitlines()[-1]
    assert line == "| tasks: tokenizer | 4, 400 | 1.50 | 1.00 | for a reason |"


def test_turns_rotate_and_scale():
    order = []
    candidates = {n: lambda n=n: order.append(n) or time.sleep(0.002) for n in "ab"}
    turns = timing.take_turns(candidates, 2, {"b": 0.5})
    assert order == ["a", "b", "b", "a", "a", "b"]  # the first turn warms up
    assert len(turns.seconds["a"]) == 2
    assert turns.time("b").median > 0.003  # half of the work in 2 ms
    assert turns.ratio("b", "a").median == pytest.approx(np.median(np.divide(turns.seconds["b"], turns.seconds["a"])))


def test_a_stopwatch_counts_the_outermost_call_alone():
    class Work:
        def outer(self):
            time.sleep(0.01)
            return self.inner()

        def inner(self):
            time.sleep(0.01)
            return "done"

    watch = main_job.Stopwatch()
    watch.wrap(Work, "outer", "outside")
    watch.wrap(Work, "inner", "inside")
    assert Work().outer() == "done" and set(watch.seconds) == {"outside"}
    Work().inner()
    assert 0.009 < watch.seconds["inside"] < watch.seconds["outside"]


def test_the_roofline_has_a_point_for_each_path_that_has_flops():
    limits = {"peak_flops": 2e11, "copy_bandwidth": 1.6e10}
    svg = plots.roofline(limits, [ROW, dataclasses.replace(ROW, flops=None, what="nothing to place")])
    assert "zoo: 32 networks" in svg and "nothing to place" not in svg


def test_unknown_paths_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", "--only=zoo,nothing"])
    with pytest.raises(SystemExit):
        run.main()
    assert "--only: got nothing; allowed: codec" in capsys.readouterr().err
