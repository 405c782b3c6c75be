"""Links that are followed, which are those of Hugging Face's cache into its own blobs, and links that are not."""

import hashlib
from pathlib import Path

import pytest

from pdiff.errors import Faults, PdiffError
from pdiff.imports import links, manifest, source
from pdiff.imports.tasks import task_name
from pdiff.tasks.base import words_of
from tests.imports import zoos


def cached(cache: Path, name: str, made: Path, revision: str = "a" * 40, main: str | None = None) -> Path:
    """The folder `made` moved into a cache as huggingface_hub keeps it; returns the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    for path in sorted(p for p in made.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        link.symlink_to("../" * (len(link.relative_to(repository).parts) - 1) + f"blobs/{blob.name}")
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(main)
    return snapshot


def adapters(cache: Path, made: Path, names=("ann/style-0.25", "ann/style-0.75", "bob/base")):
    for i, name in enumerate(names):
        zoos.lora(made / str(i), 0.1 + i / 10)
        cached(cache, name, made / str(i), main="a" * 40)


def test_repositories_of_a_cache_are_tasks(tmp_path):
    adapters(tmp_path / "hub", tmp_path / "made")
    (tmp_path / "hub" / ".locks").mkdir()
    (tmp_path / "hub" / "datasets--x--y").mkdir()
    listing = manifest.rows(tmp_path / "hub", None)
    revision = "snapshots/" + "a" * 40
    assert [(r.file, r.task) for r in listing.rows] == [
        (f"models--ann--style-0.25/{revision}", "ann--style-0.25"),
        (f"models--ann--style-0.75/{revision}", "ann--style-0.75"),
        (f"models--bob--base/{revision}", "bob--base"),
    ]
    assert words_of("ann--style-0.25") == "ann style 0.25"
    assert listing.notes == ("left out, no network lies in: 'datasets--x--y'",)
    assert len(zoos.params(source.read(tmp_path / "hub", 1))["lora/layers.0.q_proj/A"]) == 3
    (tmp_path / "hub" / "manifest.csv").write_text("file\nmodels--bob--base\nmodels--ann--style-0.25\n")
    named = manifest.rows(tmp_path / "hub", None).rows
    assert [r.file for r in named] == [f"models--bob--base/{revision}", f"models--ann--style-0.25/{revision}"]
    assert [task_name(r) for r in named] == ["bob--base", "ann--style-0.25"]


def test_of_several_snapshots_that_of_main_is_taken_and_said(tmp_path):
    hub = tmp_path / "hub"
    for revision in ("b" * 40, "c" * 40):
        zoos.save(tmp_path / "made" / "model.safetensors", zoos.network(ord(revision[0])))
        cached(hub, "org/net", tmp_path / "made", revision, main="c" * 40)
    (row,) = manifest.rows(hub, None).rows
    assert row.file == f"models--org--net/snapshots/{'c' * 40}/model.safetensors"
    assert manifest.rows(hub, None).notes == (
        f"of several snapshots, that of refs/main is taken: 'models--org--net ({'c' * 40})'",
    )
    for wrong in ("../../secret", "d" * 40, ""):
        (hub / "models--org--net" / "refs" / "main").write_text(wrong)
        with pytest.raises(Faults, match="models--org--net: has 2 snapshots, and refs/main names none of them"):
            manifest.rows(hub, None)


@pytest.mark.parametrize("which", ["repository", "snapshots", "snapshot"])
def test_a_source_may_lie_in_a_cache(tmp_path, which):
    """A repository of several adapters, or its snapshots, each with links into blobs beside the source."""
    for name in ("style_a", "style_b"):
        zoos.lora(tmp_path / "made" / name, ord(name[-1]) / 100)
    snapshot = cached(tmp_path / "hub", "org/styles", tmp_path / "made", "e" * 40)
    root = {"repository": snapshot.parents[1], "snapshots": snapshot.parent, "snapshot": snapshot}[which]
    read = source.read(root, 1)
    below = "e" * 40 + "/" if which == "snapshots" else ""
    assert [r.file for r in read.rows] == [f"{below}style_a", f"{below}style_b"]
    assert {task_name(r) for r in read.rows} == ({"e" * 40} if below else {"style_a", "style_b"})


def test_links_elsewhere_stay_refused(tmp_path):
    hub = tmp_path / "hub"
    adapters(hub, tmp_path / "made", ("a/one", "a/two", "a/three"))
    model = "adapter_model.safetensors"
    one, two, three = (hub / f"models--a--{n}" / "snapshots" / ("a" * 40) for n in ("one", "two", "three"))
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((one / model).read_bytes())
    (one / model).unlink()
    (one / model).symlink_to(outside)  # out of the cache
    blob = two / model
    blob.resolve().unlink()
    blob.resolve().symlink_to(outside)  # a blob that is itself a link out
    with pytest.raises(Faults) as e:
        source.read(hub, 1)
    assert [line.split("/")[0] for line in e.value.lines] == ["models--a--one", "models--a--two"]
    assert all(f"{model} leads out of" in line for line in e.value.lines)
    # From inside one repository, the blobs of another are elsewhere.
    (three / model).unlink()
    (three / model).symlink_to((three / "adapter_config.json").resolve().parents[2] / "models--a--one" / "blobs" / "x")
    (hub / "models--a--one" / "blobs" / "x").write_bytes(outside.read_bytes())
    with pytest.raises(PdiffError, match="leads out of"):
        links.inside(three.parent, three.name)


def test_blobs_that_are_a_link_and_names_that_only_look_like_a_cache_are_refused(tmp_path):
    zoos.lora(tmp_path / "made", 0.5)
    snapshot = cached(tmp_path / "hub", "a/one", tmp_path / "made")
    repository = snapshot.parents[1]
    (repository / "blobs").rename(tmp_path / "elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PdiffError, match="adapter_config.json leads out of"):
        links.inside(tmp_path / "hub", str(snapshot.relative_to(tmp_path / "hub")))
    zoos.lora(tmp_path / "made2", 0.5)
    plain = cached(tmp_path / "other", "a/one", tmp_path / "made2")
    repository = plain.parents[1].rename(tmp_path / "other" / "copied")
    with pytest.raises(PdiffError, match="leads out of"):
        links.inside(repository / "snapshots", "a" * 40)


def test_what_is_not_there_and_loops_are_told(tmp_path):
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    for name in ("nothing.npz", "loop.npz", "nothing.npy#3"):
        with pytest.raises(PdiffError, match="does not exist"):
            links.inside(tmp_path, name)
    with pytest.raises(PdiffError, match="has no snapshot"):
        (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
        links.opened(tmp_path / "models--a--b")
    assert links.row_of("a#1.npz") == ("a#1.npz", None) and links.row_of("x/w.npy#7") == ("x/w.npy", 7)
