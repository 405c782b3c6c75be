"""What the command line asks of a trained generator: networks in a file, or the generator itself as a small folder."""

import dataclasses
import json
from pathlib import Path

from pdiff import api, exports, generator, logs, published
from pdiff.errors import PdiffError
from pdiff.expect import Expectation
from pdiff.imports import scenario
from pdiff.logs import log
from pdiff.report import results as results_lib
from pdiff.tasks import folder

ASKED = ("prompt", "task", "between")
MOST_SAID = 16  # networks of which it is said what they are good for


def sample(
    workdir: Path | None,
    *,
    prompt: str | None = None,
    task: str | None = None,
    between: str | None = None,
    num_samples: int,
    sampler: str | None,
    seed: int,
    force: bool = False,
    out: str | None,
    form: str | None = None,
) -> None:
    """Draws networks, writes them to `out`, and says what accuracy to expect.

    Args:
      form: one of `exports.FORMATS`, or as `out` ends.
      workdir: of a run or published; None is the generator of the package.
      between: 'a,b,w': two tasks by id or name, and how far from a to b.

    Raises:
      PdiffError: as `LoadedGenerator.sample`; nothing is written then.
    """
    logs.set_up()
    if out is None:
        raise PdiffError("--out: missing; allowed: the file or folder to write")
    exports.check_out(Path(out))
    given = dict(zip(ASKED, (prompt, task, between), strict=True))
    if sum(v is not None for v in given.values()) != 1:
        raise PdiffError(f"{', '.join(f'--{n}' for n in ASKED)}: give one of them")
    mixed = None if between is None else parse_between(between)
    imported = scenario.load(api.place(workdir))
    made = exports.format_of(Path(out), form, imported)
    loaded = api.load(workdir)
    request = {"prompt": prompt, "task_id": task, "between": mixed}
    tasks = loaded.understood(prompt) if prompt is not None else None
    if tasks is not None:
        log.info("read as %s; each network is drawn from that set", tasks.said)
    networks = loaded.sample(**request, num_samples=num_samples, sampler=sampler, seed=seed, force=force, progress=True)
    expected = loaded.expect(**request, sampler=sampler)
    facts = {n: v or "" for n, v in given.items()} | {
        "seed": str(seed),
        "sampler": loaded.sampler_for(prompt, sampler),
        "model": published.model_digest(api.place(workdir)),
        "expected_accuracy": as_text(expected),
    }
    if tasks is not None:
        facts["understood"] = tasks.said
    exports.write(networks, Path(out), made, facts, imported)
    log.info("%d networks: %s", num_samples, out)
    if tasks is not None and loaded.family.data:
        for i, one in enumerate(loaded.suited(networks, prompt)[:MOST_SAID]):
            log.info("network %d: best for '%s', %.3f there", i, one.description, one.accuracy)
    measured = bool(loaded.family.data)
    unknown = "the run measured nothing that is like this" if measured else "networks were imported without images"
    log.info("%s", expected or f"what accuracy to expect is not known: {unknown}")


def adapt(
    workdir: Path | None,
    *,
    support: str | None,
    prompt: str | None = None,
    num_samples: int,
    steps: int | None = None,
    seed: int,
    force: bool = False,
    out: str | None,
    form: str | None = None,
) -> None:
    """Makes one network from a folder of images of a task, labelled by the folders that they are in, and writes it.

    Raises:
      PdiffError: as `LoadedGenerator.adapt`; nothing is written then.
    """
    logs.set_up()
    if out is None:
        raise PdiffError("--out: missing; allowed: the file or folder to write")
    if support is None:
        raise PdiffError("--support: missing; allowed: a folder of images of the task, one folder for each class")
    exports.check_out(Path(out))
    imported = scenario.load(api.place(workdir))
    made = exports.format_of(Path(out), form, imported)
    loaded = api.load(workdir)
    images, labels = folder.read_support(Path(support), loaded.family)
    network = loaded.adapt(
        images, labels, prompt=prompt, num_samples=num_samples, steps=steps, seed=seed, force=force, progress=True
    )
    expected = loaded.expect_adapted(labels, prompt is not None)
    facts = {
        "prompt": prompt or "",
        "support": support,
        "images": str(len(images)),
        "num_samples": str(num_samples),
        "steps": "" if steps is None else str(steps),
        "seed": str(seed),
        "model": published.model_digest(api.place(workdir)),
        "expected_accuracy": as_text(expected),
    }
    exports.write(network, Path(out), made, facts, imported)
    log.info("1 network, the likeliest of %d by %d images: %s", num_samples, len(images), out)
    log.info("%s", expected or "what accuracy to expect is not known: the run measured nothing that is like this")


def as_text(expected: Expectation | None) -> str:
    """For a file's metadata: JSON, or nothing if it is not known."""
    return "" if expected is None else json.dumps(dataclasses.asdict(expected))


def parse_between(text: str) -> tuple[str, str, float]:
    """'a,b,0.5' as (a, b, 0.5).

    Raises:
      PdiffError: it is not of that form.
    """
    try:
        a, b, weight = (part.strip() for part in text.split(","))
        return a, b, float(weight)
    except ValueError as e:
        raise PdiffError(f"--between: got {text!r}; allowed: a,b,w: two tasks and a number from 0 to 1") from e


def publish(workdir: Path, out: str | None) -> None:
    """Writes the trained generator of a finished run as a small folder, which stands wherever its workdir does.

    Raises:
      PdiffError: the run is not finished, or `out` cannot be written.
    """
    logs.set_up()
    if out is None:
        raise PdiffError("--out: missing; allowed: the folder to write")
    results = results_lib.read(workdir / "results.json")
    made = generator.load(workdir)
    published.write(made, published.restore_params(made, workdir), results, Path(out), scenario.load(workdir))
    size = sum(p.stat().st_size for p in Path(out).rglob("*") if p.is_file())
    log.info("published, %.1f MB: %s; --workdir=%s samples from it", size / 1e6, out, out)
