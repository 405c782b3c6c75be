"""Subsets of the classes: is the class of an image in the subset? A family with one factor, 0 or 1, for each class.

As in Recurrent Parameter Generation (RPG, Wang et al. 2025) and Tina (Li et al. 2024), a task is a subset of 2 to 5
classes, and a network answers for each image of the whole data set whether its class is in the subset (label 1) or not
(label 0). All tasks have the same images; only the labels differ.

How far apart two tasks are is a number of classes: those that are in just one of the two subsets. A network for the
complement of a subset is one for the subset with its two answers exchanged, so held-out subsets are kept away from the
complements of seen ones as well:

  unseen      two or more classes away from every seen subset, and from every seen one's complement
  validation  held out in the same way, the only ones that may select anything
  interp      exactly one class away from the nearest seen subset, and no complement of a seen one
  seen        some of the rest

Subsets that fit none of these are not used at all. Which subset goes where is one fixed permutation of the list of all
of them, whatever the seed of the run.

The base is pretrained to tell one class from all others, each training image for the next of the classes in turn. That
is the only kind of subset that is neither a task nor the complement of one, so the base has met no task's labels. It
has seen every class, but says no to nearly everything, as the mixture of those labels does: on a task it is about as
good as a constant answer.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks.base import Family, Task
from pdiff.tasks.data import images
from pdiff.tasks.grammar import Grammar, TaskSet, Values, any_of, construction, pick

SIZES = (2, 3, 4, 5)  # classes in a subset
FEWEST_CLASSES, MOST_CLASSES = 7, 26  # of the images; with more, the list of all subsets would not fit in memory

Subset = frozenset[int]

# A wording, the word before the last class, and the order of the classes: see `_listed`. No wording may hold a class's
# name, which rules out "one" and its like, and no held-out one a letter that the tokenizer has never seen.
WORDINGS = (
    ("recognise just {}", "and", "forward"),
    ("tell images of {} from all others", "and", "backward"),
    ("does an image show {}", "or", "turned"),
    ("a detector of {}", "and", "inside out"),
    ("{} against the rest", "or", "backward"),
    ("say yes to {}, no to every other kind", "or", "forward"),
)
HELD_OUT_WORDINGS = (
    ("tell {} from everything else", "and", "turned"),
    ("does a network recognise {} in an image", "or", "inside out"),
    ("images of {}, and no others", "and", "backward"),
)
FRAMES = (  # of vague descriptions, as above: training ones, then held-out ones
    ("recognise {}", "tell images of {} from all others", "does an image show {}", "a detector of {}"),
    ("tell {} from everything else", "does a network recognise {} in an image"),
)
NUMBER_WORDS = dict(zip(("two", "three", "four", "five"), SIZES, strict=True))


def render(variables: dict[str, ArrayLike], x: Float[ArrayLike, "n pixels"]) -> Float[Array, "n pixels"]:
    """The shared images as they are."""
    return jnp.asarray(x)


def relabel(
    variables: dict[str, ArrayLike], x: Float[ArrayLike, "n pixels"], y: Int[ArrayLike, " n"]
) -> Int[Array, " n"]:
    """1 where an image's class is in the subset, else 0."""
    return jnp.asarray(variables["member"])[y]


def describe(factors: tuple[float, ...], class_names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for a subset: the classes whose factor is above a half, "nothing" if none is."""
    chosen = [name for name, factor in zip(class_names, factors, strict=True) if factor > 0.5] or ["nothing"]

    def filled(wordings):
        return tuple(wording.format(_listed(chosen, last, order)) for wording, last, order in wordings)

    return filled(WORDINGS), filled(HELD_OUT_WORDINGS)


def _grammar(names: tuple[str, ...]) -> Grammar:
    """Vague descriptions: of classes that are in the subset or not, of its size, and of two subsets."""

    def subsets(have: Sequence[str] = (), lack: Sequence[str] = (), sizes: tuple[int, ...] = SIZES) -> TaskSet:
        """Those of these sizes that have all classes of `have` and none of `lack`."""
        if both := sorted({*have} & {*lack}):
            raise PdiffError(f"prompt: got {both[0]} both as a class to have and as one to lack; allowed: one of them")
        inside, outside = ([names.index(n) for n in {*wanted}] for wanted in (have, lack))
        free = len(names) - len(inside) - len(outside)
        width = sum(math.comb(free, size - len(inside)) for size in sizes if size >= len(inside))
        limits = [f"{word} {' and '.join(classes)}" for word, classes in (("with", have), ("without", lack)) if classes]
        size = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"

        def contains(factors):
            chosen = factors > 0.5
            fits = chosen[:, inside].all(1) & ~chosen[:, outside].any(1)
            return fits & np.isin(chosen.sum(1), sizes)

        return TaskSet(" ".join(["any", size, "classes", *limits, f"({width} of {total} subsets)"]), contains)

    def either(a: str, b: str) -> TaskSet:
        """One of the two listed subsets, exactly."""
        rows = [np.isin(names, re.findall(known, text)) for text in (a, b)]
        for text, row in zip((a, b), rows, strict=True):
            if row.sum() not in SIZES:
                raise PdiffError(f"prompt: got {text!r}; allowed: {SIZES[0]} to {SIZES[-1]} different classes")
        return TaskSet(
            f"either {a} or {b} ({len(np.unique(rows, axis=0))} of {total} subsets)",
            lambda factors: np.any([((factors > 0.5) == row).all(1) for row in rows], axis=0),
        )

    def lists(random: np.random.Generator) -> Values:
        sizes = random.choice(SIZES, 2)
        drawn = [list(pick(random, names, *map(str, range(size))).values()) for size in sizes]
        return {slot: _listed(those, "and", "forward") for slot, those in zip(("a", "b"), drawn, strict=True)}

    def draw(*slots: str) -> Callable[[np.random.Generator], Values]:
        return lambda random: pick(random, names, *slots)

    def grid(count: int) -> Float[np.ndarray, "tasks factors"]:
        # Not the order of the splits, whose first ones are held out.
        every = _every(len(names))
        chosen = [every[i] for i in np.random.RandomState(1).permutation(len(every))[:count]]
        return np.array([[float(c in subset) for c in range(len(names))] for subset in chosen])

    known, total = any_of(names), sum(math.comb(len(names), size) for size in SIZES)
    constructions = [
        ("with", ("{name} and some other classes", "{name} among other classes", "{name} and a few more"),
         ("{name} together with some more classes",), draw("name"), lambda name: subsets([name])),
        ("with two", ("{name} and {other} with or without others", "at least {name} and {other}"),
         ("{name} and {other} and whatever else",), draw("name", "other"),
         lambda name, other: subsets([name, other])),
        ("without", ("classes without {name}", "classes that leave out {name}", "some classes, not {name}"),
         ("classes with no {name} among them",), draw("name"), lambda name: subsets(lack=[name])),
        ("with and without", ("{name} and some other classes without {other}", "classes with {name} and no {other}"),
         ("{name} and a few more, not {other}",), draw("name", "other"),
         lambda name, other: subsets([name], [other])),
        ("size", ("any {size} classes", "{size} classes of any kind"),
         ("just any {size} classes",), lambda random: pick(random, tuple(NUMBER_WORDS), "size"),
         lambda size: subsets(sizes=(NUMBER_WORDS[size],))),
        ("any", ("some classes", "any classes"), ("a few classes",), draw(), subsets),
        ("either", ("either {a} or {b}", "{a} or else {b}"), ("{a} or instead {b}",), lists, either),
    ]  # fmt: skip
    listed = f"(?:{known})(?:, (?:{known}))* and (?:{known})"
    slots = {"name": known, "other": known, "size": any_of(NUMBER_WORDS), "a": listed, "b": listed}
    return Grammar(tuple(construction(name, FRAMES, *rest) for name, *rest in constructions), slots, grid)


def make_family(config: ConfigDict, data: images.DataSet | None = None) -> Family:
    """The family of `config` (the `tasks` part of a run's config), on the images `data`, by default `config.data`.

    Raises:
      PdiffError: `tasks.unseen` is set, the images have too few or too many classes, or the splits have no room.
    """
    if config.unseen:
        raise PdiffError(
            f"tasks.unseen: got {config.unseen!r}, arcs of an angle; allowed for class_subsets: '', since its unseen "
            "tasks are subsets, as many as tasks.num_unseen says"
        )
    data = data or images.load(config)
    names = data.class_names
    if not FEWEST_CLASSES <= len(names) <= MOST_CLASSES:
        raise PdiffError(
            f"tasks.data: got {config.data!r}, images of {len(names)} classes; allowed for class_subsets: images of "
            f"{FEWEST_CLASSES} to {MOST_CLASSES}"
        )
    tasks = []
    for split, subsets in split_subsets(config, len(names)).items():
        for subset in sorted(subsets, key=lambda s: (len(s), sorted(s))):
            factors = tuple(float(c in subset) for c in range(len(names)))
            name = "_".join(map(str, ("subset", *sorted(subset))))
            tasks.append(Task(name, len(tasks), split, factors, *describe(factors, names)))
    return Family(
        name="class_subsets",
        factor_names=names,
        factor_periods=(0.0,) * len(names),
        num_classes=2,
        image_shape=data.image_shape,
        data=data.parts,
        tasks=tuple(tasks),
        variables={"member": np.array([t.factors for t in tasks], np.int32)},
        render=render,
        describe=lambda factors: describe(factors, names),
        relabel=relabel,
        vary=lambda factors: {"member": np.array(factors, np.int32)},
        class_names=("other", "chosen"),
        grammar=_grammar(names),
        pretraining={"member": np.eye(len(names), dtype=np.int32)},
    )


def split_subsets(config: ConfigDict, num_classes: int) -> dict[str, list[Subset]]:
    """The subsets of each split, by `num_seen`, `num_validation`, `num_interp` and `num_unseen`.

    Raises:
      PdiffError: there is no room for that many.
    """
    whole = frozenset(range(num_classes))
    every = _every(num_classes)
    shuffled = [every[i] for i in np.random.RandomState(0).permutation(len(every))]
    held_out = shuffled[: config.num_unseen + config.num_validation]
    near = set().union(*(_near(s, whole) for s in held_out))
    free = [s for s in shuffled if s not in near]
    if len(free) < config.num_seen:
        raise PdiffError(
            f"tasks.num_seen: got {config.num_seen} with num_unseen = {config.num_unseen} and num_validation = "
            f"{config.num_validation}; allowed: at most {len(free)}, the subsets of {min(SIZES)} to {max(SIZES)} of "
            f"{num_classes} classes that are two classes away from each of those"
        )
    seen = set(free[: config.num_seen])
    interp = [
        s for s in free[config.num_seen :] if whole - s not in seen and not seen.isdisjoint(s ^ {c} for c in whole)
    ]
    if len(interp) < config.num_interp:
        raise PdiffError(
            f"tasks.num_interp: got {config.num_interp} with num_seen = {config.num_seen}, num_unseen = "
            f"{config.num_unseen} and num_validation = {config.num_validation}; allowed: at most {len(interp)}, the "
            "subsets left that are one class away from a seen one"
        )
    return {
        "seen": free[: config.num_seen],
        "validation": held_out[config.num_unseen :],
        "interp": interp[: config.num_interp],
        "unseen": held_out[: config.num_unseen],
    }


def _every(num_classes: int) -> list[Subset]:
    """All subsets of SIZES classes."""
    return [frozenset(s) for size in SIZES for s in itertools.combinations(range(num_classes), size)]


def _near(subset: Subset, whole: Subset) -> set[Subset]:
    """The subset, its complement, and all that are one class away from either."""
    both = (subset, whole - subset)
    return {*both, *(s ^ {c} for s in both for c in whole)}


def _listed(names: list[str], last: str, order: str) -> str:
    """'two, five and seven' with the names forward, backward, turned by one place, or from the inside out."""
    middle = len(names) // 2
    ordered = {
        "forward": names,
        "backward": names[::-1],
        "turned": names[1:] + names[:1],
        "inside out": names[middle:] + names[:middle][::-1],
    }[order]
    return f" {last} ".join(filter(None, (", ".join(ordered[:-1]), ordered[-1])))
