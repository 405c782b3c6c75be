"""The contract of results.json."""

import copy
import functools
import json
import math
import operator

import numpy as np
import pytest

from pdiff import results as lib
from pdiff.errors import PdiffError
from tests import annotations, complete
from tests.report import synthetic


def test_summary_by_hand():
    s = lib.summary(np.array([0.2, 0.4, 0.9]))
    assert s["mean"] == pytest.approx(0.5)
    assert s["sem"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2 / 3))
    assert (s["min"], s["max"], s["n"]) == (0.2, 0.9, 3)
    json.dumps(s, allow_nan=False)


def test_summary_takes_the_error_over_groups():
    """Two tasks with means 0.2 and 0.6: standard deviation 0.4/√2, error 0.2, whatever lies inside them."""
    s = lib.summary(np.array([0.1, 0.3, 0.5, 0.6, 0.7]), np.array(["a", "a", "b", "b", "b"]))
    assert s["sem"] == pytest.approx(0.2)
    assert s["mean"] == pytest.approx(2.2 / 5)  # sums over counts, not a mean of means
    assert s["n"] == 5


def test_summary_falls_back_to_values_in_one_group():
    values = np.array([0.2, 0.4, 0.9])
    assert lib.summary(values, np.array([7, 7, 7])) == lib.summary(values)


def test_summary_of_one_value_has_no_error():
    assert lib.summary(np.array([0.25])) == {"mean": 0.25, "sem": 0.0, "min": 0.25, "max": 0.25, "n": 1}
    assert lib.summary(np.array([0.25]), np.array([3]))["sem"] == 0.0


def test_summary_refuses_nothing_and_unmatched_groups():
    with pytest.raises(ValueError, match="at least one"):
        lib.summary(np.array([]))
    with pytest.raises(ValueError, match="3 values, but 2 groups"):
        lib.summary(np.zeros(3), np.zeros(2))


def test_complete_results_have_no_faults():
    assert complete.check(synthetic.results()) == []
    assert complete.check(json.loads(json.dumps(synthetic.results()))) == []


SEEN, UNSEEN = ("splits", "seen"), ("splits", "unseen")
VAGUE, FEW = ("vague", 0), ("adaptation", "splits", "interp", 1)
REMOVED = [
    *[(key,) for key in ("config", "seed", "commit", "command", "created", "target", "selection", "splits")],
    *[("timing", key) for key in ("zoo_s", "train_s", "sample_s_per_100", "evaluate_s", "peak_rss_mb", "total_s")],
    *[(*UNSEEN, "controls", name) for name in lib.CONTROLS if name not in lib.OF_TEXTS],
    *[(*SEEN, "finetuned", key) for key in complete.SUMMARY_KEYS],
    *[("novelty", key) for key in ("max_iou_to_zoo", "zoo_to_zoo_iou", "nearest_l2", "zoo_nearest_l2", "points")],
    SEEN,
    UNSEEN,
    (*SEEN, "per_task"),
    (*SEEN, "base"),
    (*SEEN, "generated", "posterior_mean"),
    (*SEEN, "per_task", 0, "factors"),
    (*SEEN, "per_task", 3, "generated", "heun"),
    ("novelty", "points", 5, "max_iou"),
    ("selection", "sampler"),
    ("target", "num_params"),
    ("spread",),
    ("spread", "zoo"),
    ("spread", "generated", "seen"),
    ("spread", "zoo", "interp", "disagreement"),
    ("spread", "generated", "validation", "spread", "mean"),
    ("calibration",),
    ("calibration", "seen"),
    ("calibration", "unseen", "finetuned_single"),
    ("calibration", "unseen", "generated_ensemble", "log_likelihood"),
    *[(*VAGUE, key) for key in ("prompt", "said", "tasks", "samples", "networks")],
    *[(*VAGUE, "networks", name) for name in ("generated", "task_of_set")],
    *[(*VAGUE, "networks", "zoo", key) for key in (*complete.FIT_SHARES, "best", "share", "bins_hit", "by_argmax")],
    ("adaptation",),
    ("adaptation", "recipes"),
    ("adaptation", "recipes", "4"),
    ("adaptation", "recipes", "4", "prior"),
    ("adaptation", "recipes", "4", "zoo", "learning_rate"),
    *[(*FEW, key) for key in ("shots", "images", "accuracy", "ahead")],
    (*FEW, "accuracy", "prior"),
    (*FEW, "ahead", "zoo", "sem"),
]


@pytest.mark.parametrize("place", REMOVED, ids=lambda place: ".".join(map(str, place)))
def test_check_finds_what_is_missing_or_null(place):
    for value in (_REMOVE, None):
        faults = complete.check(_planted(place, value))
        assert any(str(place[-1]) in fault for fault in faults), faults


WRONG = [
    ((*SEEN, "finetuned", "mean"), 1.2),
    ((*SEEN, "controls", "ridge", "min"), -0.1),
    ((*SEEN, "base", "sem"), -0.01),
    ((*SEEN, "base", "mean"), math.nan),
    ((*SEEN, "base", "n"), 0),
    ((*SEEN, "base", "max"), 0.001),
    ((*SEEN, "generated", "heun", "mean"), "0.9"),
    ((*SEEN, "per_task"), []),
    ((*SEEN, "per_task", 1, "finetuned"), 96.5),
    ((*SEEN, "per_task", 1, "controls", "soup"), math.inf),
    ((*SEEN, "num_tasks"), 5),
    ((*SEEN, "controls"), {}),
    (("splits", "test"), {}),
    (("selection", "sampler"), "magic"),
    (("timing", "train_s"), -1.0),
    (("novelty", "zoo_to_zoo_iou", "mean"), 1.5),
    (("novelty", "points"), []),
    (("novelty", "points", 0, "accuracy"), 2.0),
    (("novelty", "points", 0, "kind"), "copy"),
    (("splits",), []),
    (("spread", "zoo", "unseen", "accuracy", "max"), 1.2),
    (("spread", "generated", "seen", "spread", "min"), -0.1),
    (("spread", "generated", "seen", "disagreement"), 0.1),
    (("spread", "zoo", "interp"), []),
    (("vague",), {}),
    ((*VAGUE, "networks", "zoo", "precision"), 1.5),
    ((*VAGUE, "networks", "generated", "share"), [0.5, 0.5]),
    ((*VAGUE, "networks", "generated", "bins_hit"), 99),
    ((*VAGUE, "networks", "generated", "best", "mean"), -0.2),
    (("adaptation", "splits", "interp"), []),
    ((*FEW, "accuracy", "base", "max"), 1.2),
    ((*FEW, "ahead", "base", "mean"), "0.1"),
    (("calibration", "seen", "generated_single", "error", "min"), -0.1),
    (("calibration", "seen", "generated_single", "log_likelihood", "sem"), -0.1),
]


@pytest.mark.parametrize(("place", "value"), WRONG, ids=lambda x: str(x)[:60])
def test_check_finds_what_is_wrong(place, value):
    assert complete.check(_planted(place, value))


def test_studies_that_were_not_asked_for_may_be_absent():
    results = synthetic.results()
    results["config"]["eval"] = {"rivals": "all", "calibration_samples": 0, "adapt_tasks": 0}
    for study in ("calibration", "vague", "adaptation"):
        del results[study]
    assert complete.check(results) == []
    results["config"]["eval"] |= {"calibration_samples": 8, "adapt_tasks": 16}
    assert complete.check(results) == ["calibration: missing", "adaptation: missing"]
    del results["selection"]["many_steps"]  # nothing is drawn with noise
    assert complete.check(results) == ["calibration: missing"]


def test_check_survives_anything_in_any_place():
    """Every node in turn becomes null, a string, an empty list: a fault or none, never a crash.

    Of entries of a list, and of splits, which are read alike, one stands for all.
    """
    results = synthetic.results(num_tasks=2, samples=1)
    results["novelty"]["points"] = results["novelty"]["points"][:1]
    for entry in results["splits"].values():
        entry["per_task"] = entry["per_task"][:1]
    alike = {tuple(0 if isinstance(k, int) else _ALIKE.get(k, k) for k in p): p for p in _places(results)}
    with annotations.unchecked():  # a quarter of a million calls
        for *parents, last in alike.values():
            node = functools.reduce(operator.getitem, parents, results)
            before = node[last]
            for node[last] in (None, "x", [], {}, -1) if isinstance(before, (dict, list)) else (None, "x", []):
                complete.check(results)
            node[last] = before


def test_distances_may_exceed_one():
    far = lib.summary(np.array([3.0, 90.0]))
    for place in (("novelty", "nearest_l2"), ("spread", "generated", "seen", "spread")):
        assert complete.check(_planted(place, far)) == []


def test_required_controls_are_those_that_apply():
    one = synthetic.results(num_tasks=1)
    one["splits"] = {"seen": one["splits"]["seen"]}
    one["arcs"] = {}
    for name in ("nearest_seen", "ridge", "linear_interpolation", "wrong_task"):
        del one["splits"]["seen"]["controls"][name]
    assert complete.check(one) == []
    assert complete.check(one, controls=("soup",)) == []
    assert complete.check(one, controls=("soup", "ridge")) == ["splits.seen.controls.ridge: missing"]


def test_tasks_without_factors_have_no_neighbours():
    results = synthetic.results()
    with_factors = {split: set(complete.expected_controls(results, split)) for split in ("seen", "unseen")}
    for entry in results["splits"].values():
        for task in entry["per_task"]:
            task["factors"] = []
    neighbours = {"nearest_seen", "ridge", "linear_interpolation", "rebasin_merge"}
    assert with_factors["seen"] - set(complete.expected_controls(results, "seen")) == neighbours
    assert with_factors["unseen"] - set(complete.expected_controls(results, "unseen")) == neighbours | {"noise"}


def test_a_family_without_arcs_and_with_many_factors_is_held_to_its_zoo():
    results = synthetic.without_arcs(num_factors=10)
    assert complete.check(results) == []
    del results["splits"]["unseen"]
    assert complete.check(results) == ["splits.unseen: missing"]


def test_write_and_read_round_trip(tmp_path):
    path, results = tmp_path / "results.json", synthetic.results()
    lib.write(path, results)
    assert lib.read(path) == results
    shuffled = dict(reversed(results.items())) | {"seed": np.int64(0)}
    lib.write(tmp_path / "again.json", shuffled)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    lib.write(path, {"seed": 1})
    with pytest.raises(PdiffError, match=r"splits\.seen\.base is nan"):
        lib.write(path, {"splits": {"seen": {"base": np.float32("nan")}}})
    with pytest.raises(TypeError, match="object"):
        lib.write(path, {"x": object()})
    assert lib.read(path) == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", '{"seed": 1', '{"seed": NaN}', "[1]", "\x00"])
def test_read_refuses_a_damaged_file(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(PdiffError, match=r"results\.json"):
        lib.read(path)


def test_read_refuses_what_is_not_there_or_not_text(tmp_path):
    with pytest.raises(PdiffError, match="missing"):
        lib.read(tmp_path / "results.json")
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(PdiffError, match="damaged"):
        lib.read(tmp_path / "results.json")


_REMOVE = object()
_ALIKE = dict.fromkeys(lib.SPLITS, "split")


def _planted(place: tuple, value, results: dict | None = None) -> dict:
    """A copy of complete results with one value replaced or removed."""
    results = copy.deepcopy(results or synthetic.results())
    node = results
    for key in place[:-1]:
        node = node[key]
    if value is _REMOVE:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return results


def _places(node, where: tuple = ()):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*where, key)
        yield from _places(value, (*where, key))
