"""Columns hold the same wherever they lie, and leave nothing behind."""

import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.imports.columns import Columns
from pdiff.system import files

SHAPES = {"a": (3, 5), "b/c": (), "d": (2, 1, 4)}


@pytest.mark.parametrize("memory, on_disk", [(1e9, False), (0, True), (7 * 24 * 4, False), (7 * 24 * 4 - 1, True)])
def test_what_is_written_is_read(memory, on_disk, tmp_path):
    columns, random = Columns(SHAPES, 7, memory, tmp_path), np.random.default_rng(0)
    assert columns.on_disk == on_disk and len(columns) == 7
    values = {p: random.standard_normal((7, *s)).astype(np.float32) for p, s in SHAPES.items()}
    for row in random.permutation(7).tolist():
        for path, value in values.items():
            columns.write(path, row, np.asarray(value[row]))
    for path, value in values.items():
        np.testing.assert_array_equal(columns.read(path), value)
        np.testing.assert_array_equal(columns.read(path, [5, 0, 5]), value[[5, 0, 5]])
        np.testing.assert_array_equal(columns.read(path, slice(2, 4)), value[2:4])
        np.testing.assert_allclose(columns.mean(path, [1, 3, 6]), value[[1, 3, 6]].mean(0), rtol=1e-6, atol=1e-7)
        columns.read(path)[:] = 0  # a copy
        np.testing.assert_array_equal(columns.read(path), value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 600})())
    Columns(SHAPES, 7, 1e9, tmp_path)
    with pytest.raises(PdiffError, match="the networks that are imported"):
        Columns(SHAPES, 7, 0, tmp_path)
