"""What --mode=check says of an installation, and of runs that are not finished; test_main.py has a finished one."""

import pytest
from packaging.requirements import Requirement

from configs import smoke
from pdiff import config as config_lib
from pdiff import workdir as workdir_lib
from pdiff.errors import PdiffError
from pdiff.system import installation


def test_the_environment_is_told_in_lines():
    lines = list(installation.environment())
    assert "devices: 4 x cpu" in lines[1]
    assert any(line.startswith("extra text: ") for line in lines)


def test_a_package_that_is_missing_or_too_old_is_named(monkeypatch):
    asked = [Requirement("jax>=99"), Requirement("no-such-package"), Requirement("numpy>=1")]
    monkeypatch.setattr(installation, "_requirements", lambda extra: asked)
    with pytest.raises(PdiffError, match=r"jax>=99 is asked for, 0.* is there; no-such-package is missing; `pip"):
        next(installation.environment())


def test_extras_are_told_apart():
    assert {r.name for r in installation._requirements("bench")} == {"torch"}
    assert "torch" not in {r.name for r in installation._requirements("")}


def test_a_run_that_has_not_come_far_says_where_it_is(tmp_path):
    with pytest.raises(PdiffError, match="config.json: missing; allowed: a --workdir that a run was started in"):
        list(workdir_lib.check(tmp_path))
    config_lib.write(tmp_path / "config.json", smoke.get_config())
    lines = workdir_lib.check(tmp_path)
    assert next(lines) == "config: family rotation, target mlp, seed 0"
    with pytest.raises(PdiffError, match="zoo: the zoo is not finished; the command that started the run goes on"):
        next(lines)
