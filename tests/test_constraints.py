"""Versions of packages: setup.py bounds each from both sides, and the files in constraints/ are inside."""

import ast
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

(SETUP,) = (
    node for node in ast.walk(ast.parse(Path("setup.py").read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
)  # fmt: skip
FIELDS = {k.arg: ast.literal_eval(k.value) for k in SETUP.keywords if k.arg in ("install_requires", "extras_require")}
EXTRAS = {extra: [Requirement(r) for r in asked] for extra, asked in FIELDS["extras_require"].items()}
NAMED = [Requirement(r) for r in FIELDS["install_requires"]] + [r for asked in EXTRAS.values() for r in asked]
NAMED = [r for r in NAMED if r.name != "pdiff"]


def lower(requirement):
    (version,) = (Version(s.version) for s in requirement.specifier if s.operator == ">=")
    return version


def pins(name):
    lines = (Path("constraints") / name).read_text().splitlines()
    made = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all([s.operator for s in r.specifier] == ["=="] for r in made), f"{name}: allowed are lines name==version"
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in made}


@pytest.mark.parametrize("requirement", NAMED, ids=str)
def test_every_requirement_is_bounded_from_both_sides(requirement):
    assert sorted(s.operator for s in requirement.specifier) == ["<", ">="]


def test_what_builds_the_package_is_bounded_too():
    for asked in tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"]:
        test_every_requirement_is_bounded_from_both_sides(Requirement(asked))


def test_a_package_that_is_named_twice_has_the_same_bounds():
    found = {}
    for r in NAMED:
        assert found.setdefault(canonicalize_name(r.name), r.specifier) == r.specifier, r


def test_the_newest_set_is_within_the_bounds():
    newest = pins("newest.txt")
    for r in NAMED:
        assert newest[canonicalize_name(r.name)] in r.specifier, r
    assert len(newest) > 2 * len({r.name for r in NAMED})  # and holds what those bring


def test_the_oldest_set_is_the_lower_bounds():
    assert pins("oldest.txt") == {canonicalize_name(r.name): lower(r) for r in NAMED}
