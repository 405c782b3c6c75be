"""What the tutorials and the README show is run: the files that they print become modules, in one small run."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import pdiff.targets
import pdiff.tasks
from configs import smoke
from pdiff import run
from pdiff.report import results as results_lib
from pdiff.tasks import get_family
from tests.test_config import SHRUNKEN, with_field

DOCS = Path("docs")


@pytest.fixture
def tutorial(tmp_path, monkeypatch):
    """Makes modules of the files that the tutorials print, as if they lay in the package."""
    for package, page in ((pdiff.tasks, "adding_a_family.md"), (pdiff.targets, "adding_a_target.md")):
        text = (DOCS / page).read_text()
        folder = tmp_path / package.__name__
        folder.mkdir()
        for path, code in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", text, re.S):
            assert Path(path).parent == Path(package.__name__.replace(".", "/"))
            (folder / Path(path).name).write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for name in ("pdiff.tasks.brightness", "pdiff.targets.tiny_cnn"):
        sys.modules.pop(name, None)


def test_the_tutorials_family_is_sound(tutorial):
    config = smoke.get_config().tasks.copy_and_resolve_references()
    config.unlock()
    config.update(dict(family="brightness", unseen="250:300", num_seen=30))
    family = get_family(config)
    assert len(family.split("seen")) == 30 and family.split("unseen") and family.split("interp")
    x = family.data["test"].x
    np.testing.assert_array_equal(family.render(np.float32(1), x), x)
    assert family.render(np.float32(2), x).max() == 1
    for split in ("validation", "interp", "unseen"):
        for task in family.split(split):
            assert any(a <= task.factors[0] <= b for a, b in family.arcs[split])


def test_the_tutorials_family_and_target_run_together(tutorial, tmp_path):
    """Takes 30 s."""
    config = smoke.get_config()
    changes = SHRUNKEN | {
        "tasks.family": "brightness", "tasks.unseen": "250:300", "target.name": "tiny_cnn", "target.widths": (8,),
        "condition.number_period": 600.0,
    }  # fmt: skip
    for field, value in changes.items():
        config = with_field(config, field, value)
    results = run.run(config.lock(), tmp_path / "w")
    assert results_lib.check(results) == []
    assert results["target"] == {"name": "tiny_cnn", "num_params": 8 * 10 + 90, "symmetric": True}


def test_links_and_configs_in_the_docs_exist():
    for page in (Path("README.md"), *DOCS.glob("*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"
        for config in re.findall(r"--config=(configs/\w+\.py)", text):
            assert Path(config).exists(), f"{page}: {config}"
