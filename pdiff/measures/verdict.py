"""Copies, noised copies, averages, or new? A rule that a reader can check by hand.

Four numbers say of each network how it relates to the zoo networks that it is compared with. Distances count in units
of the task's zoo: the median of the same distance of its own networks, each compared with those of other runs.

1. copy: the nearest zoo network is nearer than COPY = 0.02 of what it is for zoo networks, in weight space (`weights`,
   or `matched`, modulo permutations of hidden units, where that was measured) or in function space (`function`, the
   Hellinger distance of class probabilities on test images, from which no change of the weights' order can hide).
2. noised copy: no copy, but it inherits at least NOISED = 0.75 of the individuality of its nearest zoo network: the
   regression of its own deviation from the mean of the others on that network's, which independent noise leaves at 1.
3. average: neither, and its distance to the nearest weighted average of zoo networks is less than AVERAGE = 0.5 of what
   it is for zoo networks.
4. new: none of these.

The same rule judges the zoo's own networks, each against the others. The verdict on a generator is the kind (of the
first three) by whose share it exceeds the zoo most, if that excess is at least EXCESS = 0.25, and else `new`. It says
nothing of quality: noise is new too, so it is read beside the accuracy.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped

KINDS = ("copies", "noised copies", "averages", "new")
COPY, NOISED, AVERAGE, EXCESS = 0.02, 0.75, 0.5, 0.25
COLLAPSED = 0.1  # of the zoo's spread, which is said of a generator but does not decide
NEAREST = ("weights", "matched", "function")


def kinds(measured: Mapping[str, Float[np.ndarray, " nets"]]) -> Shaped[np.ndarray, " nets"]:
    """The kind of each network. `measured` has `weights`, `function`, `inherited`, `average`, and maybe `matched`."""
    copies = np.any([measured[n] < COPY for n in NEAREST if n in measured], 0)
    noised, average = measured["inherited"] >= NOISED, measured["average"] < AVERAGE
    return np.select([copies, noised, average], KINDS[:3], KINDS[3])


def verdict(
    generated: Mapping[str, Float[np.ndarray, " nets"]],
    zoo: Mapping[str, Float[np.ndarray, " references"]],
    accuracy: Mapping[str, float],
    spread: float | None,
    told_apart: Mapping[str, float] | None,
) -> dict:
    """The verdict with the numbers and thresholds that led to it.

    Args:
      generated: as `kinds` takes them.
      zoo: the same of the zoo's networks.
      accuracy: mean test accuracy of `generated` and of `zoo`.
      spread: how far two samples of one task differ, in units of two zoo networks of one task; None if unknown.
      told_apart: by `two_sample.nearest_neighbour_test`; None if unknown. Like `spread`, it does not decide.
    """
    shares = {who: _shares(kinds(m)) for who, m in (("generated", generated), ("zoo", zoo))}
    excess = {k: shares["generated"][k] - shares["zoo"][k] for k in KINDS[:3]}
    worst = max(KINDS[:3], key=excess.get)
    kind = worst if excess[worst] >= EXCESS else "new"
    medians = {n: {"generated": float(np.median(v)), "zoo": float(np.median(zoo[n]))} for n, v in generated.items()}
    return {
        "kind": kind,
        "sentence": _sentence(kind, shares, medians, accuracy) + _distribution(spread, told_apart),
        "shares": shares,
        "medians": medians,
        "thresholds": {"copy": COPY, "noised": NOISED, "average": AVERAGE, "excess": EXCESS},
    }


def _shares(kind: Shaped[np.ndarray, " nets"]) -> dict[str, float]:
    return {k: float((kind == k).mean()) for k in KINDS}


def _sentence(kind: str, shares: dict, medians: dict, accuracy: Mapping[str, float]) -> str:
    words = {
        "copies": "copies of zoo networks",
        "noised copies": "zoo networks with noise",
        "averages": "averages of zoo networks",
        "new": "new networks",
    }
    nearest = medians.get("matched", medians["weights"])["generated"]
    return (
        f"The samples are {words[kind]}: {shares['generated'][kind]:.0%} of them, where the zoo's own networks are "
        f"judged so in {shares['zoo'][kind]:.0%}. The nearest zoo network is {nearest:.2f} times as far as it is for a "
        f"zoo network in weights and {medians['function']['generated']:.2f} times in predictions, a sample inherits "
        f"{medians['inherited']['generated']:.2f} of it (zoo {medians['inherited']['zoo']:.2f}), and the nearest "
        f"average of zoo networks is {medians['average']['generated']:.2f} times as far (medians). Test accuracy is "
        f"{accuracy['generated']:.3f} (zoo {accuracy['zoo']:.3f})."
    )


def _distribution(spread: float | None, told_apart: Mapping[str, float] | None) -> str:
    said = ""
    if spread is not None:
        said = f" Two samples of one task differ {spread:.2f} times as much as two of its zoo networks"
        said += ": they have all but collapsed to one network." if spread < COLLAPSED else "."
    if told_apart:
        said += (
            f" By their nearest neighbours in weights, {told_apart['accuracy']:.0%} of samples and zoo networks are "
            f"recognised as what they are, where one distribution would give {told_apart['expected']:.0%} "
            f"(p = {told_apart['p_value']:.3f})."
        )
    return said
