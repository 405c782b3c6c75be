"""Rules over texts: is a text about one of these kinds of thing? A family whose inputs are texts.

The texts are WordNet's nouns with their definitions (`tasks.data=wordnet`), of 23 kinds. A task is a rule, a set of 1
to 5 of 20 of the kinds; a network answers whether a text is of one of them (label 1) or of another of the 20 (0).

How far apart two rules are is a number of kinds: those that are in just one of the two.

  unseen      two or more kinds away from every seen rule
  validation  held out in the same way, the only ones that may select anything
  interp      exactly one kind away from the nearest seen rule
  unheard     a kind that no other task names, described by its dictionary definition
  seen        some of the rest
  practice    more of the rest: no network is fine-tuned for them, but the mean learns what networks should answer

Rules that fit none of these are not used. Which rule goes where is one fixed permutation of all of them, whatever the
seed of the run.

Labels of a rule are rare: one kind is a twentieth of the texts. So a task has, in the place of each shared text, one
that `choose` finds for it: half of its texts are of the rule, as many of each kind, and half are not. An accuracy is
thereby a balanced one, and a constant answer is right on half of all texts.

An input is a text's tokens after the layers of MiniLM that no network changes (`pdiff.minilm`), as the data set has it.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from ml_collections import ConfigDict

from pdiff import minilm
from pdiff.errors import PdiffError
from pdiff.tasks.base import Family, Images, Task
from pdiff.tasks.data import wordnet
from pdiff.tasks.languages.class_subsets import every_subset
from pdiff.tasks.languages.text_rules import KINDS, SIZES, describe, make_grammar

UNHEARD = {  # the kinds that no other task names, by WordNet's definitions of them, with their parts
    "body": "the entire physical structure of an organism, and any part of it, such as an organ or a limb",
    "feeling": "the experiencing of affective and emotional states",
    "time": "the continuum of experience in which events pass from the future through the present to the past, and "
    "any period of it",
}
DEFINED = ("is it about {}", "texts about {}", "find definitions of {}", "recognise {}")
DEFINED_HELD_OUT = ("does this definition belong to {}",)
LEFT_OUT = -1  # of `member`: the task has no texts of the kind

Rule = frozenset[int]


def render(variables: dict[str, ArrayLike], x: Float[ArrayLike, "n features"]) -> Float[Array, "n features"]:
    """The shared texts as they are."""
    return jnp.asarray(x)


def relabel(
    variables: dict[str, ArrayLike], x: Float[ArrayLike, "n features"], y: Int[ArrayLike, " n"]
) -> Int[Array, " n"]:
    """1 where a text's kind is in the rule, else 0."""
    return jnp.maximum(jnp.asarray(variables["member"])[y], 0)


def choose(variables: dict[str, ArrayLike], rows: Int[ArrayLike, " n"], count: int) -> Int[Array, " n"]:
    """The texts that a task has in the place of `rows` of all `count`, which lie kind after kind, as many of each.

    Text j of kind k is text j of another kind: of the rule's in turn where j + k is even, else of the others'. So over
    all rows every text of the rule comes as often as any other of it, but for one.
    """
    member, kinds = jnp.asarray(variables["member"]), len(wordnet.KINDS)
    each = count // kinds
    kind, text = jnp.asarray(rows) // each, jnp.asarray(rows) % each
    order = jnp.argsort(-member)  # the rule's kinds, then the others, then those that are left out
    inside, outside = (member == 1).sum(dtype=jnp.int32), (member == 0).sum(dtype=jnp.int32)
    turn = kind // 2 + text * (kinds // 2)
    taken = jnp.where((kind + text) % 2 == 0, turn % inside, inside + turn % outside)
    return order[taken] * each + text


def make_family(config: ConfigDict) -> Family:
    """The family of `config` (the `tasks` part of a run's config).

    Raises:
      PdiffError: `tasks.unseen` is set, the data are missing or damaged, or the splits have no room.
    """
    if config.unseen:
        raise PdiffError(
            f"tasks.unseen: got {config.unseen!r}, arcs of an angle; allowed for text_rules: '', since its unseen "
            "tasks are rules, as many as tasks.num_unseen says"
        )
    if config.data != "wordnet":
        raise PdiffError(f"tasks.data: got {config.data!r}; allowed for text_rules: wordnet")
    parts, kinds, everything = wordnet.read(config.data_dir), tuple(KINDS), tuple(wordnet.KINDS.values())
    tasks, members = [], []
    for split, rules in split_rules(config, len(kinds)).items():
        for rule in sorted(rules, key=lambda s: (len(s), sorted(s))):
            factors = tuple(float(k in rule) for k in range(len(kinds)))
            name = "_".join(("rule", *(kinds[k] for k in sorted(rule))))
            tasks.append(Task(name, len(tasks), split, factors, *describe(factors)))
            members.append(_member(factors))
    for kind, definition in list(UNHEARD.items())[: config.num_unheard]:
        wordings = [DEFINED[i % len(DEFINED)].format(definition) for i in range(len(tasks[0].descriptions))]
        held_out = tuple(w.format(definition) for w in DEFINED_HELD_OUT)
        tasks.append(Task(f"unheard_{kind}", len(tasks), "unheard", (0.0,) * len(kinds), tuple(wordings), held_out))
        members.append(_member(tasks[-1].factors))
        members[-1][everything.index(kind)] = 1
    data = {part: _at_most(part, texts, config.eval_images) for part, texts in parts.items()}
    width = data["train"].x.shape[1]
    single = np.stack([_member(np.eye(len(kinds))[k]) for k in range(len(kinds))])
    return Family(
        name="text_rules",
        factor_names=tuple(called[0] for called in KINDS.values()),
        factor_periods=(0.0,) * len(kinds),
        factor_units=(0.0,) * len(kinds),
        num_classes=2,
        image_shape=(width,),
        data=data,
        tasks=tuple(tasks),
        variables={"member": np.stack(members)},
        render=render,
        describe=describe,
        relabel=relabel,
        vary=lambda factors: {"member": _member(factors)},
        class_names=("no", "yes"),
        grammar=make_grammar(),
        pretraining={"member": single},
        choose=choose,
        same_images=True,
        reads=functools.partial(read_texts, width=width),
        sentences=vectors,
    )


def _member(factors) -> Int[np.ndarray, " kinds"]:
    """1 for a kind of the rule, 0 for another of KINDS, LEFT_OUT for the unheard ones."""
    there = dict(zip(KINDS, np.asarray(factors) > 0.5, strict=True))
    return np.array([int(there.get(kind, LEFT_OUT)) for kind in wordnet.KINDS.values()], np.int32)


def _at_most(part: str, texts: wordnet.Texts, count: int) -> Images:
    """All texts to train on; of another part at most `count` (0: all), as many of each kind."""
    kinds, start = len(wordnet.KINDS), list(wordnet.SHARES).index(part) << 24
    each = len(texts.y) // kinds
    most = each if part == "train" or not count else min(each, max(1, count // kinds))
    rows = (np.arange(kinds)[:, None] * each + np.arange(most)).reshape(-1)
    return Images(texts.x[rows], texts.y[rows].astype(np.int32), start + rows)


@functools.cache
def _reader() -> minilm.Reader:
    return minilm.Reader(minilm.find("tasks.family: 'text_rules'"))


def read_texts(texts, width: int) -> Float[np.ndarray, "n features"]:
    """Inputs for texts, `width` numbers each; of a long text its first words.

    Raises:
      PdiffError: a text has no words, too many of them, or those of another script.
    """
    reader = _reader()
    x = reader.after(texts, reader.sizes.depth - minilm.TOP, width // reader.sizes.width)
    return x.reshape(len(x), -1)


def vectors(x: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n width"]:
    """The published unit vectors of texts, by the layers above what the inputs are of."""
    reader = _reader()
    return reader.vectors(x.reshape(len(x), -1, reader.sizes.width), minilm.TOP)


def split_rules(config: ConfigDict, num_kinds: int) -> dict[str, list[Rule]]:
    """The rules of each split, by `num_seen`, `num_practice`, `num_validation`, `num_interp` and
    `num_unseen`.

    Raises:
      PdiffError: there is no room for that many.
    """
    every = every_subset(num_kinds, SIZES)
    shuffled = [every[i] for i in _by_sizes(every)]
    held_out = shuffled[: config.num_unseen + config.num_validation]
    near = set(held_out).union(*({s ^ {k} for k in range(num_kinds)} for s in held_out))
    free = [s for s in shuffled if s not in near]
    trained = config.num_seen + config.num_practice
    if len(free) < trained:
        raise PdiffError(
            f"tasks.num_seen + tasks.num_practice: got {trained} with num_unseen = {config.num_unseen} and "
            f"num_validation = {config.num_validation}; allowed: at most {len(free)}, the rules two kinds away from "
            "each of those"
        )
    seen = set(free[: config.num_seen])
    interp = [s for s in free[trained:] if not seen.isdisjoint(s ^ {k} for k in range(num_kinds))]
    if len(interp) < config.num_interp:
        raise PdiffError(
            f"tasks.num_interp: got {config.num_interp} with num_seen = {config.num_seen}; allowed: at most "
            f"{len(interp)}, the rules left that are one kind away from a seen one"
        )
    return {
        "seen": free[: config.num_seen],
        "practice": free[config.num_seen : trained],
        "validation": held_out[config.num_unseen :],
        "interp": interp[: config.num_interp],
        "unseen": held_out[: config.num_unseen],
    }


def _by_sizes(every: list[Rule]) -> list[int]:
    """A fixed order of the rules in which sizes take turns, so that small rules, of which there are few, come too."""
    queues = {n: [] for n in SIZES}
    for i in np.random.RandomState(0).permutation(len(every)):
        queues[len(every[i])].append(int(i))
    return [queues[n][place] for place in range(len(every)) for n in SIZES if place < len(queues[n])]
