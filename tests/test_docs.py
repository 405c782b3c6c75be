"""What the tutorials and the README show is run: the files that they print become modules, in one small run."""

import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import pdiff.targets
import pdiff.tasks.families
from configs import smoke
from pdiff import run
from pdiff.tasks import get_family
from pdiff.tasks.families.folder import read_support
from pdiff.tasks.language import Unreadable
from tests import complete
from tests.test_config import SHRUNKEN, with_field

DOCS = Path("docs")


@pytest.fixture
def tutorial(tmp_path, monkeypatch):
    """Makes modules of the files that the tutorials print, as if they lay in the package."""
    for package, page in ((pdiff.tasks.families, "adding_a_family.md"), (pdiff.targets, "adding_a_target.md")):
        text = (DOCS / page).read_text()
        folder = tmp_path / package.__name__
        folder.mkdir()
        for path, code in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", text, re.S):
            assert Path(path).parent == Path(package.__name__.replace(".", "/"))
            (folder / Path(path).name).write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for name in ("pdiff.tasks.families.brightness", "pdiff.targets.tiny_cnn"):
        sys.modules.pop(name, None)


def test_the_tutorials_family_is_sound(tutorial):
    config = smoke.get_config().tasks.copy_and_resolve_references()
    config.unlock()
    config.update(dict(family="brightness", unseen="250:300", num_seen=30))
    family = get_family(config)
    assert len(family.split("seen")) == 30 and family.split("unseen") and family.split("interp")
    x = jnp.asarray(family.data["test"].x)
    np.testing.assert_array_equal(family.render(jnp.float32(1), x), x)
    assert family.render(jnp.float32(2), x).max() == 1
    for split in ("validation", "interp", "unseen"):
        for task in family.split(split):
            assert any(a <= task.factors[0] <= b for a, b in family.arcs[split])
            for text in (*task.descriptions, *task.held_out_descriptions):
                assert family.grammar.read(text).factors == task.factors
    random = np.random.default_rng(0)
    for held_out in (False, True):
        text, expected = family.grammar.sentence(random, held_out)
        assert family.grammar.read(text).said == expected.said
    with pytest.raises(
        Unreadable, match="mean nothing here: 'lamp'.*for example: 'digits at 120 percent of the light'"
    ):
        family.grammar.read("digits lit by a lamp of 50 percent")


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
    assert complete.check(results) == []
    assert results["target"] == {"name": "tiny_cnn", "num_params": 8 * 10 + 90, "symmetric": True}


def test_links_and_configs_in_the_docs_exist():
    for page in (Path("README.md"), *DOCS.glob("*.md")):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"
        for config in re.findall(r"--config=(configs/\w+\.py)", text):
            assert Path(config).exists(), f"{page}: {config}"


def test_the_images_that_the_readme_adapts_to_are_as_many_of_each_class_as_evaluation_takes():
    (folder,) = re.findall(r"--support=(examples/\S+)", Path("README.md").read_text())
    x, y = read_support(Path(folder), get_family(smoke.get_config().tasks))
    assert x.shape == (40, 64) and x.min() == 0 and x.max() == 1 and np.bincount(y).tolist() == [4] * 10


def test_every_module_has_a_place_in_the_api_pages():
    told = {m for page in DOCS.glob("api/*.md") for m in re.findall(r"^::: (\S+)$", page.read_text(), re.M)}
    files = [*Path("pdiff").rglob("*.py"), *Path("configs").glob("*.py")]
    modules = {".".join(f.with_suffix("").parts).removesuffix(".__init__") for f in files}
    empty = {m for m in modules if not re.search(r"^(def|class) ", _source(m), re.M) and _is_package(m)}
    assert told - {"pdiff"} == modules - empty - {"pdiff"}


def _source(module: str) -> str:
    path = Path(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def _is_package(module: str) -> bool:
    return Path(*module.split(".")).is_dir()


def test_the_site_builds_without_a_warning(tmp_path):
    """Takes 15 s."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    assert "Describe a task, get a network" in first and 'src="interp.png"' in first
    pages = [p.read_text() for p in (tmp_path / "site").rglob("*.html")]
    assert not [url for p in pages for url in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', p)]
