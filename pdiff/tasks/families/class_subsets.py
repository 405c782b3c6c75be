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

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks.base import Family, Task
from pdiff.tasks.data import images
from pdiff.tasks.languages.class_subsets import SIZES, describe, every_subset, make_grammar

FEWEST_CLASSES, MOST_CLASSES = 7, 26  # of the images; with more, the list of all subsets would not fit in memory

Subset = frozenset[int]


def render(variables: dict[str, ArrayLike], x: Float[ArrayLike, "n pixels"]) -> Float[Array, "n pixels"]:
    """The shared images as they are."""
    return jnp.asarray(x)


def relabel(
    variables: dict[str, ArrayLike], x: Float[ArrayLike, "n pixels"], y: Int[ArrayLike, " n"]
) -> Int[Array, " n"]:
    """1 where an image's class is in the subset, else 0."""
    return jnp.asarray(variables["member"])[y]


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
        grammar=make_grammar(names),
        pretraining={"member": np.eye(len(names), dtype=np.int32)},
    )


def split_subsets(config: ConfigDict, num_classes: int) -> dict[str, list[Subset]]:
    """The subsets of each split, by `num_seen`, `num_validation`, `num_interp` and `num_unseen`.

    Raises:
      PdiffError: there is no room for that many.
    """
    whole = frozenset(range(num_classes))
    every = every_subset(num_classes)
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


def _near(subset: Subset, whole: Subset) -> set[Subset]:
    """The subset, its complement, and all that are one class away from either."""
    both = (subset, whole - subset)
    return {*both, *(s ^ {c} for s in both for c in whole)}
