"""What the page asks for, as JSON in and out. No HTTP here."""

import collections
import dataclasses
import functools
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from pdiff.ask.api import LoadedGenerator
from pdiff.ask.expect import Expectation
from pdiff.ask.overview import indicators, ranges, turning
from pdiff.ask.plan import Plan
from pdiff.ask.request import Request
from pdiff.ask.serve import fields, pictures
from pdiff.ask.serve.fields import MOST_EXAMPLES, MOST_NETWORKS
from pdiff.errors import PdiffError
from pdiff.system.evenly import evenly
from pdiff.system.logs import log
from pdiff.tasks.support import UNKNOWN
from pdiff.zoo import score

MOST_IMAGES = 400  # validation images that networks are scored on
SHOWN = 30  # images in the grid
KEPT = 8  # requests whose networks can still be downloaded
KEPT_BYTES = 1 << 30  # most that they take together, but for the last
MOST_TASKS = 400  # names in the list of tasks
EXAMPLES = 8  # prompts to click


@dataclasses.dataclass(frozen=True)
class Made:
    """Networks of one request, with what tells their task's images.

    Attributes:
      own: the variables of the task that they are shown; None where they are not known.
      shown: how many of them, the first ones, that task is for.
      adapted: whether they are for the images that came with the request, and for drawings as they are.
    """

    networks: PyTree[Float[np.ndarray, "samples ..."]]
    own: Any
    facts: dict[str, str]
    shown: int
    adapted: bool = False


class Session:
    """A loaded generator, its programs compiled, and the last few requests.

    Raises:
      PdiffError: its family has no images, or texts in their place.
    """

    def __init__(self, loaded: LoadedGenerator):
        self._loaded, self._family = loaded, loaded.family
        self._made: collections.OrderedDict[str, Made] = collections.OrderedDict()
        self._numbers = itertools.count(1)
        images = loaded.family.data.get("validation")
        if images is None:
            raise PdiffError("--mode=serve: the family has no images to show; --mode=sample writes its networks")
        if loaded.family.reads is not None:
            raise PdiffError(
                "--mode=serve: the family has texts, and the page shows images; --mode=sample writes networks"
            )
        rows = evenly(len(images.y), MOST_IMAGES)
        self._x, self._y = images.x[rows], images.y[rows]
        self._some = evenly(len(rows), SHOWN)

        def answers(networks, variables, x, y):
            answer = functools.partial(score.answers, loaded.target.apply, loaded.family.labelled)
            predicted, labels = jax.vmap(answer, (0, None, None, None))(networks, variables, x, y)
            return predicted, labels[0], loaded.family.render(variables, x[: len(self._some)])

        self._answers = jax.jit(answers)
        self._answers_as_is = jax.jit(jax.vmap(lambda net, x: loaded.target.apply(net, x).argmax(-1), (0, None)))
        self._examples: list[str] = []  # prompts
        # A family's shared rows may be something else than images, and then nothing drawn can stand for one.
        self._drawable = images.x.shape[-1] == loaded.family.features and len(loaded.family.image_shape) == 2
        self._warm()

    def _warm(self) -> None:
        """Compiles what most clicks need, for prompts of both lengths that a tokenizer pads to.

        What vague prompts are measured by, and adaptation, are compiled when they are first asked for.
        """
        start, task = time.perf_counter(), self._family.tasks[0]
        self.sample({"task": task.name})
        if self._loaded.reads_prompts:
            if longer := self._longer():
                with _silence():  # it is nobody's prompt
                    self._loaded.sample(longer, force=True)
            self._examples = self._loaded.examples(EXAMPLES)
            plans = (self._loaded.plan(Request(prompt)) for prompt in self._examples)
            if vague := next((plan for plan in plans if plan.vague), None):
                self._loaded.draw(vague)
        if self._drawable:
            self.draw({"id": next(reversed(self._made)), "pixels": [0.0] * self._family.features})
        self._made.clear()
        log.info("compiled in %.1f s", time.perf_counter() - start)

    def facts(self) -> dict:
        """What the page has to know to be drawn: factors and their ranges, regions, tasks, the network."""
        family, loaded, values = self._family, self._loaded, self._family.factors()
        kinds = [i for i, unit in enumerate(family.units) if not unit]
        exclusive = bool(kinds) and bool((values[:, kinds].sum(1) == 1).all())
        controls, turns = [], turning(family)
        columns = zip(family.factor_names, family.units, indicators(family), ranges(family), strict=True)
        for name, unit, binary, (low, high) in columns:
            scale = unit or 1.0
            control = {"name": name, "binary": binary, "low": low / scale, "high": high / scale, "scale": scale}
            controls.append(control | {"turning": turns.get(name)})
        tasks = family.tasks[:: max(1, -(-len(family.tasks) // MOST_TASKS))]
        return {
            "family": family.name,
            "target": loaded.target.name,
            "sampler": loaded.default_sampler,
            "reads_prompts": loaded.reads_prompts,
            "examples": self._examples,
            "controls": controls if family.describe and loaded.reads_prompts else [],
            "exclusive": exclusive,
            "regions": [{"split": s, "from": a, "to": b} for s, arcs in family.arcs.items() for a, b in arcs],
            "tasks": [{"name": t.name, "split": t.split} for t in tasks],
            "most_networks": MOST_NETWORKS,
            "most_examples": MOST_EXAMPLES,
            "classes": list(family.classes),
            "drawable": self._drawable,
            "image_shape": list(family.image_shape),
        }

    def sample(self, request: dict) -> dict:
        """Networks for one of `prompt`, `task` (a name) and `factors`, with how well they do and on what.

        Of a vague prompt each network has a task of its own, and the images are those of the first one's.

        Raises:
          PdiffError: a field is missing, unknown, of another type or out of range, or the prompt is refused.
        """
        start, loaded = time.perf_counter(), self._loaded
        with _warnings() as warnings:
            plan = loaded.plan(fields.of_sample(request, loaded))
            networks, expected = loaded.draw(plan), loaded.expected(plan)
            suited = loaded.suited_in(networks, plan.reading.tasks) if plan.vague else []
        variables, factors = (self._nearest(suited[0].factors), None) if suited else self._own(plan)
        shown = 1 if suited else plan.request.num_samples
        answer = Made(networks, variables, plan.facts | loaded.facts(expected, suited), shown)
        return self._answer(
            start, answer, plan, expected, warnings,
            prompt=plan.request.prompt if plan.request.prompt is not None else plan.tasks[0].descriptions[0],
            networks=[{"index": i, **dataclasses.asdict(one)} for i, one in enumerate(suited)] or None,
            factors=None if factors is None else [float(f) for f in factors],
            **self._on_images(answer),
        )  # fmt: skip

    def adapt(self, request: dict) -> dict:
        """A network for the task of a few labelled images, drawn from what `prompt` says, or from everything.

        `images` are lists of pixels, as that task has them, and `labels` names of classes or their numbers. The answer
        is as that of `sample`; its images are the given ones, and their labels those that came with them.

        Raises:
          PdiffError: as `sample`; or the images and labels do not fit.
        """
        start, loaded = time.perf_counter(), self._loaded
        x, y, given = fields.of_adapt(request, loaded)
        room = MOST_EXAMPLES - len(y)
        with _warnings() as warnings:
            networks, plan = loaded.adapted(
                np.pad(x, ((0, room), (0, 0))),  # without labels, so not looked at: one program serves any number
                np.pad(y, (0, room), constant_values=UNKNOWN),
                **given,
            )
        expected = loaded.expect_adapted(y, given["prompt"] is not None)
        labels = ", ".join(self._family.classes[c] for c in y)
        facts = plan.facts | {"labels": labels, "num_samples": str(plan.request.num_samples)} | loaded.facts(expected)
        answer = Made(networks, None, facts, 1, adapted=True)
        images = self._shown(x, y, self._as_is(networks, x)[0])
        return self._answer(start, answer, plan, expected, warnings, prompt=given["prompt"], images=images)

    def _answer(
        self, start: float, answer: Made, plan: Plan, expected: Expectation | None, warnings: list[str], **more
    ) -> dict:
        """What the page is told of networks, which are kept; in place of some of it, and beside it, `more`."""
        return {
            "id": self._keep(answer),
            "understood": plan.said,
            "ignored": list(plan.reading.ignored) if plan.reading else [],
            "forced": bool(plan.doubt),
            "networks": None,
            "factors": None,
            "expected": {"mean": expected.mean, "said": str(expected)} if expected else None,
            "maps": pictures.heat_maps(answer.networks),
            "accuracy": None,
            "images": [],
            "warnings": warnings,
            **more,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def draw(self, request: dict) -> dict:
        """What the networks of a request say of a drawing, shown to them as their task has it.

        An adapted network sees it as it is; of several tasks, it is the first network that is asked.

        Raises:
          PdiffError: the request is not known any more, or the pixels do not fit.
        """
        family, answer = self._family, self.made(request.get("id"))
        if not self._drawable or (answer.own is None and not answer.adapted):
            raise PdiffError("pixels: nothing can be drawn for this request: its images cannot be told")
        x = fields.image(request.get("pixels"), family)[None]
        if answer.adapted:
            predicted, seen = self._as_is(answer.networks, x), x
        else:
            x = np.repeat(x, len(self._x), 0)  # as many as `sample` scores: one program
            answered = self._answers(_padded(answer.networks), answer.own, x, self._y)
            predicted, _, seen = jax.device_get(answered)
        votes = collections.Counter(family.classes[p] for p in predicted[: answer.shown, 0])
        return {"image": pictures.image(seen[0], family.image_shape), "votes": votes.most_common()}

    def made(self, key: Any) -> Made:
        """The networks of an earlier request.

        Raises:
          PdiffError: there is no such request, or too many came after it.
        """
        if not isinstance(key, str) or key not in self._made:
            raise PdiffError(f"id: got {str(key)[:20]!r}; allowed: one of the last {KEPT} requests; sample again")
        return self._made[key]

    def _keep(self, answer: Made) -> str:
        """Keeps the networks of a request for downloads and drawings, drops old ones, and returns its key."""
        key = str(next(self._numbers))
        self._made[key] = answer
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(m.networks)) for m in self._made.values()]
        while len(sizes) > KEPT or (len(sizes) > 1 and sum(sizes) > KEPT_BYTES):
            self._made.popitem(last=False)
            sizes.pop(0)
        return key

    def _own(self, plan: Plan) -> tuple[Any, tuple[float, ...] | None]:
        """The variables and the factors of the task that is asked for, each None if it cannot be told."""
        family, factors = self._family, plan.reading and plan.reading.factors
        if plan.tasks:
            (task,) = plan.tasks
            return jax.tree.map(lambda v: v[task.id], family.variables), task.factors or None
        return (family.vary(factors) if factors is not None and family.vary is not None else None), factors

    def _nearest(self, factors: tuple[float, ...]) -> Any:
        """The variables of the task with these factors, or, where they do not say all of it, of the nearest one."""
        family = self._family
        if family.vary is not None:
            return family.vary(factors)
        task = int(family.distance(np.array([factors], np.float32), family.factors()).argmin())
        return jax.tree.map(lambda v: v[task], family.variables)

    def _as_is(self, networks: PyTree, x: Float[np.ndarray, "images features"]) -> Int[np.ndarray, "samples images"]:
        """The classes that networks see in at most MOST_EXAMPLES images."""
        padded = np.pad(x, ((0, MOST_EXAMPLES - len(x)), (0, 0)))
        return np.asarray(self._answers_as_is(networks, padded))[:, : len(x)]

    def _on_images(self, answer: Made) -> dict:
        if answer.own is None:
            return {}
        first = np.argsort(~np.isin(np.arange(len(self._y)), self._some), kind="stable")  # those to be shown
        answered = self._answers(_padded(answer.networks), answer.own, self._x[first], self._y[first])
        predicted, labels, rendered = jax.device_get(answered)
        right = (predicted[: answer.shown] == labels).mean(1)
        accuracy = {"mean": float(right.mean()), "low": float(right.min()), "high": float(right.max())}
        accuracy |= {"networks": answer.shown, "images": len(labels)}
        return {"accuracy": accuracy, "images": self._shown(rendered, labels, predicted[0])}

    def _shown(self, images, labels, predicted) -> list[dict]:
        """Images, with what they are and what a network takes them for."""
        classes = self._family.classes
        return [
            {"src": pictures.image(x, self._family.image_shape), "label": classes[y], "predicted": classes[p],
             "right": bool(p == y)}
            for x, y, p in zip(images, labels, predicted, strict=False)
        ]  # fmt: skip

    def _longer(self) -> str | None:
        """A prompt just longer than all descriptions, if such can be read."""
        tokenizer, longest = self._loaded.tokenizer, max((t.descriptions[0] for t in self._family.tasks), key=len)
        words = f"{longest} {longest}".split()
        texts = (" ".join(words[:count]) for count in range(1, len(words) + 1))
        longer = next((text for text in texts if tokenizer.count(text) > tokenizer.usual_length), None)
        return longer if longer is not None and tokenizer.count(longer) <= tokenizer.max_length else None


def _padded(networks: PyTree) -> PyTree:
    """MOST_NETWORKS networks, the last one repeated, so that one program serves any number."""
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[-1:], MOST_NETWORKS - len(a), 0)]), networks)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What pdiff warns of meanwhile, in this thread: others answer other requests."""
    said, here = [], threading.get_ident()
    handler = logging.Handler(logging.WARNING)
    handler.addFilter(lambda record: record.thread == here)
    handler.emit = lambda record: said.append(record.getMessage().removeprefix("warning: "))
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is warned of meanwhile."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False
