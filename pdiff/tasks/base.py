"""The interface of tasks and families.

A family shares one set of labelled images among all its tasks. A task is a small pytree of `variables` (for a rotation:
one matrix), and one pure function, `render`, turns shared images into the task's. So thousands of tasks cost no memory
for images, and rendering runs inside the jitted steps that need it.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from ml_collections import ConfigDict

from pdiff.errors import PdiffError, some
from pdiff.tasks.grammar import Grammar
from pdiff.tasks.plain import plain

SPLITS = ("seen", "validation", "interp", "unseen")
FITTED_SPLITS = (*SPLITS, "unheard")  # whose tasks have networks in the zoo
EVERY_SPLIT = (*FITTED_SPLITS, "practice")
REPORTED_SPLITS = ("seen", "interp", "unseen", "unheard")  # validation tasks choose, so they prove nothing
RENDER_BYTES = 1 << 28  # of rendered images that are kept, at most


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is trained for.

    Attributes:
      name: unique in its family.
      id: position in `Family.tasks`; the id condition looks it up.
      split: `seen` (in the zoo that the generator learns from), `interp` (between seen ones), `unseen` (outside them),
        `unheard` (of something that no seen task's description names), `validation` (held out like these, and the
        only tasks that may select a hyper-parameter, a sampler or a checkpoint), or `practice` (like seen ones, but
        without a network in the zoo: the mean learns from their labelled data alone, by its functional loss).
      factors: continuous coordinates, in the units of `Family.factor_names`.
      descriptions: texts that the generator is trained with.
      held_out_descriptions: other wordings of the same, never trained on.
    """

    name: str
    id: int
    split: str
    factors: tuple[float, ...]
    descriptions: tuple[str, ...]
    held_out_descriptions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images: `x` is `(n, features)` of floats, `y` is `(n,)` int32, `index` their source rows."""

    x: Float[np.ndarray, "n features"]
    y: Int[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks that share images and a target network.

    Attributes:
      name: as in the config.
      factor_names, factor_periods: one per factor; a period of 0 means that it does not wrap.
      factor_units: one per factor: how much of it is 1 in the numbers of a description (0.01 for a share written in
        percent); 0 for an indicator, which is 0 or 1 and written in words. Empty is 1 for each.
      num_classes: labels are 0 … num_classes - 1.
      image_shape: of one image, before it is flattened.
      data: `train`, `validation` and `test` images, disjoint.
      tasks: all tasks, by id.
      variables: pytree of arrays with a leading axis over tasks.
      render: (variables of one task, shared images) -> the task's images (n, features), pure JAX.
      arcs: held-out regions of the first factor by split, for plots; may be empty.
      singular: values of the only factor at which images are unlike those just beside, so that nothing tells how good
        networks are there but measuring them.
      describe: factors -> (training wordings, held-out wordings), for any factors; None if there are no factors.
      relabel: (variables of one task, shared images, shared labels) -> the task's labels, pure JAX.
      pretraining: variables, stacked like `variables`, of what the base is pretrained on; None is the shared images
        themselves. They belong to no task.
      pretraining_on_all: whether the base is trained on a training image as all of those have it, not as one does.
      backgrounds: images of each task that show no object, for the condition of that name: training draws one, a
        request for the task shows the first. None if there are none.
      vary: factors -> the variables of a task with them, in the family or not; None if factors do not determine them.
      class_names: what the labels are called; empty is their numbers.
      grammar: the vague descriptions, which denote sets of tasks; None if there are none.
      resizes: whether images of other sizes are resized to `image_shape`, as the family's own were.
      notes: a line each on what a user should know of the data before a run.
      choose: (variables of one task, rows, number of shared images) -> the shared images that the task has in the place
        of those rows, pure JAX; so a task whose labels are rare can have as many images of each. None is those rows.
      same_images: whether `render` leaves images as they are, so that tasks differ by their labels and choice
        alone, and `relabel` looks at labels alone.
      reads: texts -> images (n, features), where the inputs are texts; None where they are images.
      sentences: (shared images) -> unit vectors, as the frozen encoder gives them for the texts; None without texts.
    """

    name: str
    factor_names: tuple[str, ...]
    factor_periods: tuple[float, ...]
    num_classes: int
    image_shape: tuple[int, ...]
    data: Mapping[str, Images]
    tasks: tuple[Task, ...]
    variables: Any
    render: Callable[[Any, Float[ArrayLike, "n shared"]], Float[Array, "n features"]]
    describe: Callable[[tuple[float, ...]], tuple[tuple[str, ...], tuple[str, ...]]] | None
    arcs: Mapping[str, tuple[tuple[float, float], ...]] = dataclasses.field(default_factory=dict)
    relabel: Callable[[Any, Float[ArrayLike, "n shared"], Int[Array, " n"]], Int[Array, " n"]] = lambda _, x, y: y
    factor_units: tuple[float, ...] = ()
    pretraining: Any = None
    pretraining_on_all: bool = False
    backgrounds: Float[np.ndarray, "tasks shots features"] | None = None
    vary: Callable[[tuple[float, ...]], Any] | None = None
    class_names: tuple[str, ...] = ()
    grammar: Grammar | None = None
    resizes: bool = False
    notes: tuple[str, ...] = ()
    singular: tuple[float, ...] = ()
    choose: Callable[[Any, Int[ArrayLike, " n"], int], Int[Array, " n"]] | None = None
    same_images: bool = False
    reads: Callable[[Sequence[str]], Float[np.ndarray, "n features"]] | None = None
    sentences: Callable[[Float[np.ndarray, "n shared"]], Float[np.ndarray, "n width"]] | None = None

    @property
    def units(self) -> tuple[float, ...]:
        """`factor_units`, filled in."""
        return self.factor_units or (1.0,) * len(self.factor_names)

    @property
    def classes(self) -> tuple[str, ...]:
        """`class_names`, filled in."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    @property
    def features(self) -> int:
        """Numbers in one rendered image."""
        return math.prod(self.image_shape)

    def fit_rendered(self, tasks: int, images: int) -> bool:
        """Whether so many images of so many tasks fit into RENDER_BYTES: then they are rendered once, ahead of use."""
        return tasks * images * self.features * 4 <= RENDER_BYTES

    def labelled(
        self, variables: Any, x: Float[ArrayLike, "n shared"], y: Int[ArrayLike, " n"]
    ) -> tuple[Float[Array, "n features"], Int[Array, " n"]]:
        """Shared images and labels as the task with these variables has them."""
        return self.render(variables, x), self.relabel(variables, x, jnp.asarray(y))

    def shared(
        self, variables: Any, x: Float[ArrayLike, "n shared"], y: Int[ArrayLike, " n"]
    ) -> tuple[Float[ArrayLike, "n shared"], Int[ArrayLike, " n"]]:
        """Those of all shared images and labels that the task with these variables has, before it renders them."""
        if self.choose is None:
            return x, y
        rows = self.choose(variables, jnp.arange(len(y)), len(y))
        return jnp.asarray(x)[rows], jnp.asarray(y)[rows]

    def of_task(
        self, variables: Any, x: Float[ArrayLike, "all shared"], y: Int[ArrayLike, " all"], rows: Int[ArrayLike, " n"]
    ) -> tuple[Float[Array, "n features"], Int[Array, " n"]]:
        """The images and labels at `rows` of a task, where `x` and `y` are all shared ones."""
        if self.choose is not None:
            rows = self.choose(variables, rows, len(y))
        return self.labelled(variables, jnp.asarray(x)[rows], jnp.asarray(y)[rows])

    def all_of_task(
        self, variables: Any, x: Float[ArrayLike, "n shared"], y: Int[ArrayLike, " n"]
    ) -> tuple[Float[Array, "n features"], Int[Array, " n"]]:
        """All images and labels of a task, where `x` and `y` are all shared ones."""
        return self.labelled(variables, *self.shared(variables, x, y))

    def labels(self, tasks: Sequence[Task], part: str = "test") -> Int[np.ndarray, "tasks n"]:
        """The labels of all images of a part as each of these tasks has them."""
        images, ids = self.data[part], np.array([t.id for t in tasks])
        variables = jax.tree.map(lambda v: jnp.asarray(v)[ids], self.variables)
        one = jax.jit(jax.vmap(lambda v, x, y: self.relabel(v, *self.shared(v, x, y)), (0, None, None)))
        return np.asarray(one(variables, images.x, jnp.asarray(images.y)))

    def pretraining_images(self, part: str) -> tuple[Float[Array, "n features"], Int[Array, " n"]]:
        """What the base is trained and scored on: a shared image as one of the pretraining tasks has it, or as all."""
        images = self.data[part]
        if self.pretraining is None:
            return jnp.asarray(images.x), jnp.asarray(images.y)
        if self.pretraining_on_all and part == "train":
            every = jax.jit(lambda tasks: jax.lax.map(lambda v: self.all_of_task(v, images.x, images.y), tasks))
            return jax.tree.map(jnp.concatenate, every(self.pretraining))
        count = len(jax.tree.leaves(self.pretraining)[0])
        # A permutation, so that no task gets only some of the classes where these take turns.
        task = np.random.RandomState(0).permutation(len(images.y)) % count
        return self.mixed(self.pretraining, part, np.arange(len(task)), task)

    def mixed(
        self, variables: Any, part: str, rows: Int[np.ndarray, " n"], task: Int[np.ndarray, " n"]
    ) -> tuple[Float[Array, "n features"], Int[Array, " n"]]:
        """Shared image `rows[i]` as the task with the variables at `task[i]` has it; few tasks are copied at a time."""

        def one(variables, x, y, row, task):
            x, y = self.of_task(jax.tree.map(lambda v: v[task], variables), x, y, row[None])
            return x[0], y[0]

        each = jax.jit(lambda *args: jax.lax.map(lambda pair: one(*args[:3], *pair), args[3:], batch_size=64))
        images = self.data[part]
        return each(jax.tree.map(jnp.asarray, variables), images.x, images.y, rows, task)

    @property
    def choosing_split(self) -> str:
        """The split whose validation images choose among options: `validation`, or `seen` if it has no task."""
        return "validation" if self.split("validation") else "seen"

    def is_singular(self, factors: Sequence[float]) -> bool:
        """Whether the only factor is one of the `singular` values."""
        period = self.factor_periods[0] if self.factor_periods else 0.0
        return any((factors[0] - value) % period == 0 if period else factors[0] == value for value in self.singular)

    def at(self, factors: Float[np.ndarray, "tasks factors"]) -> "Family":
        """The family with a task for each of these factors in place of its own, all of them seen; it needs `vary`."""
        rows = [tuple(map(float, f)) for f in factors]
        tasks = tuple(Task(str(row), i, "seen", row, *self.describe(row)) for i, row in enumerate(rows))
        variables = jax.tree.map(lambda *v: np.stack(v), *map(self.vary, rows))
        return dataclasses.replace(self, tasks=tasks, variables=variables, backgrounds=None)

    def split(self, name: str) -> tuple[Task, ...]:
        """The tasks of a split, by id."""
        return tuple(t for t in self.tasks if t.split == name)

    def factors(self, tasks: Sequence[Task] | None = None) -> Float[np.ndarray, "tasks factors"]:
        tasks = self.tasks if tasks is None else tasks
        return np.array([t.factors for t in tasks], np.float32).reshape(len(tasks), len(self.factor_names))

    def distance(self, a: Float[np.ndarray, "n f"], b: Float[np.ndarray, "m f"]) -> Float[np.ndarray, "n m"]:
        """Euclidean distance between factors, the short way round for those that wrap."""
        gap = np.abs(a[:, None] - b[None])
        period = np.array([p or np.inf for p in self.factor_periods])
        gap = np.where(period < np.inf, gap % period, gap)
        return np.sqrt((np.minimum(gap, period - gap) ** 2).sum(-1))

    def check(self) -> None:
        """Raises PdiffError unless ids, names, splits of tasks and splits of images are sound."""
        if [t.id for t in self.tasks] != list(range(len(self.tasks))):
            raise PdiffError(f"family {self.name}: task ids must be their positions")
        twice = sorted(name for name, count in Counter(t.name for t in self.tasks).items() if count > 1)
        if twice:
            raise PdiffError(f"family {self.name}: task names must be unique; got twice: {', '.join(twice[:5])}")
        for task in self.tasks:
            if task.split not in EVERY_SPLIT:
                raise PdiffError(f"task {task.name}: split {task.split!r}; allowed: {', '.join(EVERY_SPLIT)}")
            if not task.descriptions or set(task.descriptions) & set(task.held_out_descriptions):
                raise PdiffError(f"task {task.name}: needs descriptions, disjoint from the held-out ones")
        if not self.split("seen"):
            raise PdiffError(f"family {self.name}: the held-out regions leave no seen task; make tasks.unseen smaller")
        seen = self.factors(self.split("seen") + self.split("practice"))
        for split in SPLITS[1:] if self.factor_names else ():
            tasks = self.split(split)
            if tasks and self.distance(self.factors(tasks), seen).min() == 0:
                raise PdiffError(f"family {self.name}: a task of split {split} has the factors of a seen one")
        used: set[int] = set()
        for part, images in self.data.items():
            rows = set(images.index.tolist())
            if used & rows:
                raise PdiffError(f"family {self.name}: {len(used & rows)} {part} images are also in another part")
            if not np.isfinite(images.x).all():
                raise PdiffError(f"family {self.name}: the {part} images hold values that are not finite")
            used |= rows


def hold_out(names: Collection[str], config: ConfigDict, seed: int, start: str) -> dict[str, str]:
    """The split of each task, by a permutation of the sorted names that `seed` draws.

    First come `num_unseen` unseen ones (of the `tasks` part of a run's config), then `num_validation` for validation,
    then at most `num_seen` seen ones; the rest is left out.

    Raises:
      PdiffError: no name is left for a seen task; the message begins with `start`.
    """
    if len(names) <= config.num_unseen + config.num_validation:
        raise PdiffError(
            f"{start} {len(names)} tasks; allowed: more than tasks.num_unseen + tasks.num_validation = "
            f"{config.num_unseen} + {config.num_validation} (with --config.tasks.num_unseen=0 "
            "--config.tasks.num_validation=0 none is held out)"
        )
    splits = ["unseen"] * config.num_unseen + ["validation"] * config.num_validation + ["seen"] * config.num_seen
    ordered, order = sorted(names), np.random.RandomState(seed).permutation(len(names))
    return {ordered[i]: split for i, split in zip(order, splits, strict=False)}


def words_of(name: str) -> str:
    """A task's name as a description: dashes and underscores are spaces, but for the sign of a number."""
    return " ".join(re.split(r"_+|-+(?![.\d])|(?<=[^\W_])-+", name)).strip() or name


def same_descriptions(descriptions: Mapping[str, Sequence[str]], most: int = 5) -> list[str]:
    """A line on tasks, given by name, that a description cannot tell apart; none if there are no such tasks."""
    having: dict[str, list[str]] = {}
    for name, texts in descriptions.items():
        for text in {plain(t) for t in texts}:
            having.setdefault(text, []).append(name)
    same = [f"{some(names, 3, ' = ')} ('{text}')" for text, names in sorted(having.items()) if len(names) > 1]
    said = f"tasks with the same description, which cannot be told apart by it: {some(same, most, '; ')}"
    return [said] if same else []
