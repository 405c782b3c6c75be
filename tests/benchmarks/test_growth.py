"""Slopes are exponents, and steep ones are explained."""

import pytest

from benchmarks import growth


def found(power, grows):
    return [
        {"curve": "width", "size": n, "seconds": {growth.STEP: [7.0 * n**power]}, "mb": {growth.STEP: 3.0 * n**grows}}
        for n in growth.SIZES["width"]
    ]


def test_slopes_of_powers_are_their_exponents():
    rows = growth.rows_of(found(1.7, 0.4))
    fitted = growth.slopes(rows)["growth with width: training step"]
    assert fitted == {"time": pytest.approx(1.7), "memory": pytest.approx(0.4)}
    assert [growth.size_of(r) for r in rows] == list(growth.SIZES["width"])
    assert [bool(r.notes) for r in rows] == [False] * (len(rows) - 1) + [True]


def test_a_slope_is_explained_only_where_it_is_steep():
    explained = growth.WHY["width", "time"]
    assert explained in growth.rows_of(found(1.7, 0.4))[-1].notes
    assert explained not in growth.rows_of(found(1.0, 0.4))[-1].notes


def test_the_figure_shows_every_curve():
    svg = growth.plot(growth.rows_of(found(1.7, 0.4)))
    assert svg.startswith("<svg") and "<path" in svg
