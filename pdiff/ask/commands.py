"""What the command line asks of a trained generator: networks in a file, or the generator itself as a small folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdiff import results as results_lib
from pdiff import scenario
from pdiff.ask import api, exports
from pdiff.ask.api import LoadedGenerator
from pdiff.ask.expect import Expectation
from pdiff.ask.plan import Plan, said_of
from pdiff.ask.request import Request, one_of
from pdiff.errors import PdiffError
from pdiff.generator import generator, published
from pdiff.system import logs
from pdiff.system.files import SUMS, digest_of
from pdiff.system.logs import log
from pdiff.tasks.data import text_files
from pdiff.tasks.families import folder

MOST_SAID = 16  # networks of which it is said what they are good for


def sample(
    workdir: Path | None, *, between: str | None = None, out: str | None = None, form: str | None = None, **fields: Any
) -> None:
    """Draws networks, 8 by default, writes them to `out`, and says what they were asked for and what to expect.

    Args:
      workdir: of a run or published; None is the generator of the package.
      between: 'a,b,w': two tasks by id or name, and how far from a to b.
      form: one of `exports.FORMATS`, or as `out` ends.
      fields: the other ones of a `Request`; None is as if it were not given.

    Raises:
      PdiffError: as `LoadedGenerator.sample`; nothing is written then.
    """
    fields = {"num_samples": 8} | {name: value for name, value in fields.items() if value is not None}
    given = {"prompt": fields.get("prompt"), "task": fields.get("task"), "between": between}
    if not any(value is not None for value in given.values()):
        raise PdiffError(f"--prompt, --task, --between: give one of them{_for_example(workdir)}")
    one_of(given, "--prompt, --task, --between: give one of them, got {given}")
    request = Request(between=None if between is None else parse_between(between), **fields)
    loaded, write = _open(workdir, out, form)
    plan = loaded.plan(request)
    _say(plan)
    networks, expected = loaded.draw(plan, progress=True), loaded.expected(plan)
    suited = loaded.suited_in(networks, plan.reading.tasks) if plan.vague and loaded.family.data else []
    write(plan.facts | loaded.facts(expected, suited), networks)
    log.info("%d networks: %s", request.num_samples, _written(out))
    for i, one in enumerate(suited[:MOST_SAID]):
        log.info("network %d: best for '%s', %.3f there", i, one.description, one.accuracy)
    _tell(expected, bool(loaded.family.data))
    if plan.named_one and request.num_samples > 1 and loaded.family.grammar is not None:
        log.info("networks for one task differ little; a description of a set of tasks gives different ones")


def adapt(
    workdir: Path | None, *, support: str | None = None, out: str | None = None, form: str | None = None, **given: Any
) -> None:
    """Makes one network from a folder of images of a task, labelled by the folders that they are in, and writes it.

    Of a family of texts, it is a folder of files with a text on each line.

    Args:
      given: arguments of `LoadedGenerator.adapt`; None is as if it were not given.

    Raises:
      PdiffError: as `LoadedGenerator.adapt`; nothing is written then.
    """
    if support is None:
        raise PdiffError("--support: missing; allowed: a folder of images of the task, one folder for each class")
    usual = {"prompt": None, "num_samples": 512, "seed": 0}
    given = usual | {name: value for name, value in given.items() if value is not None}
    loaded, write = _open(workdir, out, form)
    read = folder.read_support if loaded.family.reads is None else text_files.read_support
    images, labels = read(Path(support), loaded.family)
    network, plan = loaded.adapted(images, labels, **given, progress=True)
    _say(plan)
    expected = loaded.expect_adapted(labels, given["prompt"] is not None)
    counts = {"support": support, "images": str(len(images)), "num_samples": str(plan.request.num_samples)}
    write(plan.facts | counts | {"steps": str(given.get("steps", ""))} | loaded.facts(expected), network)
    log.info("1 network, the likeliest of %d by %d images: %s", plan.request.num_samples, len(images), _written(out))
    _tell(expected)


def _for_example(workdir: Path | None) -> str:
    """How a generator could be asked, as the end of a message."""
    loaded = api.load(workdir)
    prompts = loaded.examples(2)
    ways = [f'--prompt="{p}"' for p in prompts] or [f"--task={loaded.family.tasks[0].name}"]
    return f"; for example {' or '.join(ways)}"


def _say(plan: Plan) -> None:
    """Says what a request was read as."""
    if plan.reading is None:
        for task in plan.tasks:
            log.info("task %s", said_of(task))
        return
    log.info("read as %s%s", plan.said, "; each network is drawn from that set" if plan.vague else "")
    if plan.reading.ignored:
        log.info("words that changed nothing: %s", ", ".join(plan.reading.ignored))


def _written(out: str) -> str:
    """What was written, as a line says it."""
    where = Path(out)
    return f"{out}, with {digest_of(where).name} beside it" if where.is_file() else f"{out}, with {SUMS} in it"


def _open(workdir: Path | None, out: str | None, form: str | None) -> tuple[LoadedGenerator, Callable]:
    """The generator, and (where networks come from, networks) -> None, which writes them."""
    logs.set_up()
    if out is None:
        raise PdiffError("--out: missing; allowed: the file or folder to write")
    exports.check_out(Path(out))
    imported, loaded = scenario.load(api.place(workdir)), api.load(workdir)
    form = exports.format_of(Path(out), form, imported, loaded.target.peft)

    def write(facts: dict[str, str], networks) -> None:
        exports.write(networks, Path(out), form, facts, imported, loaded.target.peft)

    return loaded, write


def _tell(expected: Expectation | None, measured: bool = True) -> None:
    why = "the run measured nothing that is like this" if measured else "networks were imported without images"
    log.info("%s", expected or f"what accuracy to expect is not known: {why}")


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


def publish(workdir: Path, out: str | None = None) -> None:
    """Writes the trained generator of a finished run as a small folder, which stands wherever its workdir does.

    Raises:
      PdiffError: the run is not finished, or `out` cannot be written.
    """
    logs.set_up()
    if out is None:
        raise PdiffError("--out: missing; allowed: the folder to write")
    results = results_lib.read(workdir / "results.json")
    loaded = generator.load(workdir)
    published.write(loaded, published.restore_params(loaded, workdir), results, Path(out), scenario.load(workdir))
    size = sum(p.stat().st_size for p in Path(out).rglob("*") if p.is_file())
    log.info("published, %.1f MB: %s; --workdir=%s samples from it", size / 1e6, out, out)
