"""What the page asks for, as JSON in and out. No HTTP here."""

import collections
import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from pdiff.api import LoadedGenerator
from pdiff.config import DESCRIBING
from pdiff.errors import PdiffError
from pdiff.logs import log
from pdiff.serve import pictures
from pdiff.tasks.support import UNKNOWN
from pdiff.zoo import score

MOST_NETWORKS = 16  # of one request
MOST_IMAGES = 400  # validation images that networks are scored on
SHOWN = 30  # images in the grid
MOST_MAPS = 4  # heat maps
KEPT = 8  # requests whose networks can still be downloaded
KEPT_BYTES = 1 << 30  # most that they take together, but for the last
MOST_TASKS = 400  # names in the list of tasks
MOST_EXAMPLES = 64  # labelled images that a network is adapted to
MOST_NAMES = 12  # of classes in an error message
MOST_DRAWN = 2048  # networks that the one to adapt is chosen from
FIELDS = {"prompt": str, "task": str, "factors": list, "num_samples": int, "seed": int, "force": bool}
ADAPT_FIELDS = {"images": list, "labels": list, "prompt": str, "num_samples": int, "seed": int, "force": bool}


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
      PdiffError: its family has no images.
    """

    def __init__(self, loaded: LoadedGenerator):
        self._loaded, self._family = loaded, loaded.family
        self._made: collections.OrderedDict[str, Made] = collections.OrderedDict()
        self._numbers = itertools.count(1)
        images = loaded.family.data.get("validation")
        if images is None:
            raise PdiffError("--mode=serve: the family has no images to show; --mode=sample writes its networks")
        rows = np.linspace(0, len(images.y) - 1, min(MOST_IMAGES, len(images.y))).round().astype(int)
        self._x, self._y = images.x[rows], images.y[rows]
        self._some = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)

        def answers(networks, own, x, y):
            def one(network):
                return score.answers(loaded.target.apply, loaded.family.labelled, network, own, x, y)

            predicted, labels = jax.vmap(one)(networks)
            return predicted, labels[0], loaded.family.render(own, x[: len(self._some)])

        def answers_as_is(networks, x):
            return jax.vmap(lambda network: loaded.target.apply(network, x).argmax(-1))(networks)

        self._answers, self._answers_as_is = jax.jit(answers), jax.jit(answers_as_is)
        self._examples: list[str] = []  # prompts
        self._reads_prompts = not set(DESCRIBING).isdisjoint(loaded.config.condition.use)
        # A family's shared rows may be something else than images, and then nothing drawn can stand for one.
        self._drawable = images.x.shape[-1] == loaded.family.features and len(loaded.family.image_shape) == 2
        self._warm()

    def _warm(self) -> None:
        """Compiles what most clicks need, for prompts of both lengths that a tokenizer pads to.

        What vague prompts are measured by, and adaptation, are compiled when they are first asked for.
        """
        start, task = time.perf_counter(), self._family.tasks[0]
        self.sample({"task": task.name})
        if self._reads_prompts and (longer := self._longer()):
            self._loaded.sample(prompt=longer)
        self._examples = [task.descriptions[0], *self._vague_example()] if self._reads_prompts else []
        if self._drawable:
            self.draw({"id": next(reversed(self._made)), "pixels": [0.0] * self._family.features})
        self._made.clear()
        log.info("compiled in %.1f s", time.perf_counter() - start)

    def _vague_example(self) -> list[str]:
        """A vague prompt that the generator was trained to read, once sampled; none if there is no such."""
        grammar = self._family.grammar
        if grammar is None or not self._loaded.config.refined.vague:
            return []
        for example in grammar.examples(len(grammar.constructions)):
            try:
                self._loaded.sample(prompt=example)
                return [example]
            except PdiffError:  # of a set that has no network
                continue
        return []

    def facts(self) -> dict:
        """What the page has to know to be drawn: factors and their ranges, regions, tasks, the network."""
        family, loaded = self._family, self._loaded
        values = family.factors() if family.factor_names else np.zeros((1, 0))
        indicators = [i for i, unit in enumerate(family.units) if not unit]
        controls = []
        for i, (name, unit, period) in enumerate(
            zip(family.factor_names, family.units, family.factor_periods, strict=True)
        ):
            binary = unit == 0 or set(np.unique(values[:, i])) <= {0.0, 1.0}
            scale = unit or 1.0
            low, high = (0.0, period) if period else (float(values[:, i].min()), float(values[:, i].max()))
            controls.append({"name": name, "binary": binary, "low": low / scale, "high": high / scale, "scale": scale})
        exclusive = bool(indicators) and bool((values[:, indicators].sum(1) == 1).all())
        tasks = family.tasks[:: max(1, -(-len(family.tasks) // MOST_TASKS))]
        return {
            "family": family.name,
            "target": loaded.target.name,
            "sampler": loaded.default_sampler,
            "reads_prompts": self._reads_prompts,
            "examples": self._examples,
            "controls": controls if family.describe and self._reads_prompts else [],
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
        start = time.perf_counter()
        _check_fields(request, FIELDS)
        asked = [n for n in ("prompt", "task", "factors") if n in request]
        if len(asked) != 1:
            raise PdiffError(f"got {', '.join(asked) or 'no request'}; give one of prompt, task, factors")
        count, seed = _number(request, "num_samples", 4, 1, MOST_NETWORKS), _number(request, "seed", 0, 0, 2**31 - 1)
        prompt = self._describe(request["factors"]) if "factors" in request else request.get("prompt")
        given = {"task_id": request["task"]} if "task" in request else {"prompt": prompt}
        networks = self._loaded.sample(**given, num_samples=count, seed=seed, force=request.get("force", False))
        expected = self._loaded.expect(**given)
        tasks = self._loaded.understood(prompt) if prompt is not None else None
        suited = self._loaded.suited(networks, prompt) if tasks is not None else []
        if suited:
            own, factors = self._nearest(suited[0].factors), None
        else:
            own, factors = self._own(prompt, request.get("task"))
        said = prompt if prompt is not None else self._loaded.task(request["task"]).descriptions[0]
        facts = {"prompt": said, "seed": str(seed), "sampler": self._loaded.sampler_for(prompt)}
        if tasks is not None:
            facts["understood"] = tasks.said
        made = Made(networks, own, facts, 1 if suited else count)
        return {
            "id": self._keep(made),
            "prompt": said,
            "understood": None if tasks is None else tasks.said,
            "networks": [{"index": i, **dataclasses.asdict(one)} for i, one in enumerate(suited)] or None,
            "factors": None if factors is None else [float(f) for f in factors],
            "expected": str(expected) if expected else None,
            "known": tasks is not None or self._loaded.descriptions.match(said).known,
            "maps": self._maps(networks),
            **self._on_images(made),
            "warnings": [],
            "seconds": round(time.perf_counter() - start, 3),
        }

    def adapt(self, request: dict) -> dict:
        """A network for the task of a few labelled images, drawn from what `prompt` says, or from everything.

        `images` are lists of pixels, as that task has them, and `labels` names of classes or their numbers. The answer
        is as that of `sample`; its images are the given ones, and their labels those that came with them.

        Raises:
          PdiffError: as `sample`; or the images and labels do not fit.
        """
        start = time.perf_counter()
        _check_fields(request, ADAPT_FIELDS)
        x, y = self._labelled(request)
        most = min(self._loaded.config.adapt.num_samples, MOST_DRAWN)
        count, seed = _number(request, "num_samples", most, 1, MOST_DRAWN), _number(request, "seed", 0, 0, 2**31 - 1)
        prompt, room = request.get("prompt"), MOST_EXAMPLES - len(y)
        with _warnings() as warnings:
            networks = self._loaded.adapt(
                np.pad(x, ((0, room), (0, 0))),  # without labels, so not looked at: one program serves any number
                np.pad(y, (0, room), constant_values=UNKNOWN),
                prompt=prompt, num_samples=count, seed=seed, force=request.get("force", False),
            )  # fmt: skip
        expected = self._loaded.expect_adapted(y, prompt is not None)
        tasks = self._loaded.understood(prompt) if prompt is not None else None
        facts = {"prompt": prompt or "", "labels": ", ".join(self._family.classes[c] for c in y), "seed": str(seed)}
        predicted = self._as_is(networks, x)[0]
        return {
            "id": self._keep(Made(networks, None, facts, 1, adapted=True)),
            "prompt": prompt,
            "understood": None if tasks is None else tasks.said,
            "networks": None,
            "factors": None,
            "expected": str(expected) if expected else None,
            "known": True,  # a doubted prompt is among the warnings
            "maps": self._maps(networks),
            "accuracy": None,
            "images": self._shown(x, y, predicted),
            "warnings": warnings,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def draw(self, request: dict) -> dict:
        """What the networks of a request say of a drawing, shown to them as their task has it.

        An adapted network sees it as it is; of several tasks, it is the first network that is asked.

        Raises:
          PdiffError: the request is not known any more, or the pixels do not fit.
        """
        family = self._family
        made, pixels = self.made(request.get("id")), request.get("pixels")
        if not self._drawable or (made.own is None and not made.adapted):
            raise PdiffError("pixels: nothing can be drawn for this request: its images cannot be told")
        if not self._fits(pixels):
            raise PdiffError(f"pixels: got something else; allowed: a list of {family.features} numbers from 0 to 1")
        x = np.array([pixels], np.float32)
        if made.adapted:
            predicted, seen = self._as_is(made.networks, x), x
        else:
            x = np.repeat(x, len(self._x), 0)  # as many as `sample` scores: one program
            answered = self._answers(_padded(made.networks), made.own, x, self._y)
            predicted, _, seen = jax.device_get(answered)
        votes = collections.Counter(family.classes[p] for p in predicted[: made.shown, 0])
        return {"image": pictures.image(seen[0], family.image_shape), "votes": votes.most_common()}

    def made(self, key: Any) -> Made:
        """The networks of an earlier request.

        Raises:
          PdiffError: there is no such request, or too many came after it.
        """
        if not isinstance(key, str) or key not in self._made:
            raise PdiffError(f"id: got {str(key)[:20]!r}; allowed: one of the last {KEPT} requests; sample again")
        return self._made[key]

    def _keep(self, made: Made) -> str:
        """Keeps the networks of a request for downloads and drawings, drops old ones, and returns its key."""
        key = str(next(self._numbers))
        self._made[key] = made
        while len(self._made) > KEPT or (len(self._made) > 1 and self._kept_bytes() > KEPT_BYTES):
            self._made.popitem(last=False)
        return key

    def _kept_bytes(self) -> int:
        return sum(leaf.nbytes for made in self._made.values() for leaf in jax.tree.leaves(made.networks))

    def _describe(self, factors: list) -> str:
        family = self._family
        names = family.factor_names
        if not names or family.describe is None or not self._reads_prompts:
            raise PdiffError("factors: this generator cannot be asked by factors; give a task")
        if len(factors) != len(names) or not all(_is_number(f) for f in factors):
            raise PdiffError(f"factors: got {str(factors)[:80]}; allowed: {len(names)} numbers: {', '.join(names)}")
        values = family.factors()
        for name, value, period, column in zip(names, factors, family.factor_periods, values.T, strict=True):
            low, high = (0.0, period) if period else (float(column.min()), float(column.max()))
            if not low - 1e-6 <= value <= high + 1e-6:
                raise PdiffError(f"factors: got {value:g} for {name}; allowed: {low:g} to {high:g}")
        return family.describe(tuple(float(f) for f in factors))[0][0]

    def _own(self, prompt: str | None, task: str | None) -> tuple[Any, tuple[float, ...] | None]:
        """The variables and the factors of the task that is asked for, each None if it cannot be told."""
        family, descriptions = self._family, self._loaded.descriptions
        found = self._loaded.task(task) if task is not None else descriptions.task(prompt)
        if found is not None:
            return jax.tree.map(lambda v: v[found.id], family.variables), found.factors or None
        factors = descriptions.factors(prompt)
        return (family.vary(factors) if factors is not None and family.vary is not None else None), factors

    def _nearest(self, factors: tuple[float, ...]) -> Any:
        """The variables of the task with these factors, or, where they do not say all of it, of the nearest one."""
        family = self._family
        if family.vary is not None:
            return family.vary(factors)
        task = int(family.distance(np.array([factors], np.float32), family.factors()).argmin())
        return jax.tree.map(lambda v: v[task], family.variables)

    def _labelled(self, request: dict) -> tuple[Float[np.ndarray, "images features"], Int[np.ndarray, " images"]]:
        """The images and labels of a request."""
        images, labels, classes = request.get("images", []), request.get("labels", []), self._family.classes
        if not 1 <= len(images) <= MOST_EXAMPLES:
            raise PdiffError(f"images: got {len(images)}; allowed: 2 to {MOST_EXAMPLES}, each with its label")
        if len(labels) != len(images):
            raise PdiffError(f"labels: got {len(labels)} for {len(images)} images; allowed: one for each image")
        for i, pixels in enumerate(images):
            if not self._fits(pixels):
                size = f"{len(pixels)} values" if isinstance(pixels, list) else f"a {type(pixels).__name__}"
                raise PdiffError(
                    f"images: got {size} for image {i}; allowed: a list of {self._family.features} numbers from 0 to 1"
                )
        found = [self._class(label) for label in labels]
        if None in found:
            got = str(labels[found.index(None)])[:40]
            names = ", ".join(classes[:MOST_NAMES]) + (", …" if len(classes) > MOST_NAMES else "")
            raise PdiffError(f"labels: got {got!r}; allowed: {names}, or a whole number from 0 to {len(classes) - 1}")
        return np.array(images, np.float32), np.array(found, np.int32)

    def _class(self, label: Any) -> int | None:
        """The number of a class, by its name or its number; None if there is no such class."""
        classes = self._family.classes
        if isinstance(label, str):
            return classes.index(label) if label in classes else None
        whole = isinstance(label, int) and not isinstance(label, bool)
        return label if whole and 0 <= label < len(classes) else None

    def _fits(self, pixels: Any) -> bool:
        """Whether they are an image of the family."""
        right = isinstance(pixels, list) and len(pixels) == self._family.features
        return right and all(_is_number(p) and 0 <= p <= 1 for p in pixels)

    def _as_is(self, networks: PyTree, x: Float[np.ndarray, "images features"]) -> Int[np.ndarray, "samples images"]:
        """The classes that networks see in at most MOST_EXAMPLES images."""
        padded = np.pad(x, ((0, MOST_EXAMPLES - len(x)), (0, 0)))
        return np.asarray(self._answers_as_is(networks, padded))[:, : len(x)]

    def _on_images(self, made: Made) -> dict:
        if made.own is None:
            return {"accuracy": None, "images": []}
        first = np.argsort(~np.isin(np.arange(len(self._y)), self._some), kind="stable")  # those to be shown
        answered = self._answers(_padded(made.networks), made.own, self._x[first], self._y[first])
        predicted, labels, rendered = jax.device_get(answered)
        right = (predicted[: made.shown] == labels).mean(1)
        accuracy = {
            "mean": float(right.mean()), "low": float(right.min()), "high": float(right.max()),
            "networks": made.shown, "images": len(labels),
        }  # fmt: skip
        return {"accuracy": accuracy, "images": self._shown(rendered, labels, predicted[0])}

    def _shown(self, images, labels, predicted) -> list[dict]:
        """Images, with what they are and what a network takes them for."""
        classes = self._family.classes
        return [
            {"src": pictures.image(x, self._family.image_shape), "label": classes[y], "predicted": classes[p],
             "right": bool(p == y)}
            for x, y, p in zip(images, labels, predicted, strict=False)
        ]  # fmt: skip

    def _maps(self, networks: PyTree) -> list[dict]:
        """Heat maps of the first network's matrices, the largest first."""
        leaves = jax.tree_util.tree_leaves_with_path(networks)
        found = [("/".join(k.key for k in path), leaf[0]) for path, leaf in leaves if leaf.ndim > 2]
        made = []
        for name, weights in sorted(found, key=lambda f: -f[1].size)[:MOST_MAPS]:
            src, largest = pictures.heat_map(weights)
            made.append({"name": name, "shape": list(weights.shape), "src": src, "largest": round(largest, 3)})
        return made

    def _longer(self) -> str | None:
        """A prompt just longer than all descriptions, if such can be read."""
        tokenizer, longest = self._loaded.tokenizer, max((t.descriptions[0] for t in self._family.tasks), key=len)
        words = f"{longest} {longest}".split()
        for count in range(1, len(words) + 1):
            text = " ".join(words[:count])
            length = tokenizer.count(text)
            if length > tokenizer.usual_length:
                return text if length <= tokenizer.max_length else None
        return None


def _padded(networks: PyTree) -> PyTree:
    """MOST_NETWORKS networks, the last one repeated, so that one program serves any number."""
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[-1:], MOST_NETWORKS - len(a), 0)]), networks)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What pdiff warns of meanwhile."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage().removeprefix("warning: "))
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


def _check_fields(request: dict, fields: dict[str, type]) -> None:
    for name, value in request.items():
        if name not in fields:
            raise PdiffError(f"{str(name)[:40]!r}: unknown field; allowed: {', '.join(fields)}")
        if not isinstance(value, fields[name]) or (isinstance(value, bool) and fields[name] is not bool):
            raise PdiffError(f"{name}: got a {type(value).__name__}; allowed: a {fields[name].__name__}")


def _number(request: dict, name: str, usual: int, low: int, high: int) -> int:
    value = request.get(name, usual)
    if not low <= value <= high:
        raise PdiffError(f"{name}: got {value}; allowed: {low} to {high}")
    return value


def _is_number(value: Any) -> bool:
    """A finite number that a float can hold, which JSON's whole numbers need not be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
