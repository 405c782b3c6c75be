"""Controls for families of texts: what needs no generated network, with the same frozen encoder and the same texts.

    cosine         of the description and the text, above a threshold that is chosen on seen tasks
    joined_head    a linear head that tells all kinds apart, trained on the seen tasks' texts; the rule sums its answers
    conditioned    a network that is given description and text, trained on the seen tasks

All see a text as the frozen encoder's unit vector (`Family.sentences`), and describe a task by its first wording.
None is a function of a zoo; a task's factors say which kinds it joins, and a task without any has no `joined_head`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from pdiff import rng
from pdiff.models.sentence import SentenceEncoder
from pdiff.tasks.base import Family, Task

STEPS, BATCH, RATE, WIDTH = 2000, 512, 1e-3, 256  # of `conditioned`
THRESHOLDS = 201  # tried between the lowest and the highest score
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # of regularisation, inverse, of `joined_head`; chosen on validation texts


class Pair(nn.Module):
    """The logit that a text, given as a vector, is what a description, given as a vector, says."""

    @nn.compact
    def __call__(self, said: Float[Array, "n width"], text: Float[Array, "n width"]) -> Float[Array, " n"]:
        scale = said.shape[-1] ** 0.5  # to entries of rms 1
        x = jnp.concatenate([scale * said, scale * text, scale**2 * said * text], -1)
        for _ in range(2):
            x = nn.gelu(nn.Dense(WIDTH)(x))
        return nn.Dense(1)(x)[:, 0]


@dataclasses.dataclass(frozen=True)
class Texts:
    """The controls, fitted.

    Attributes:
      vectors: of the shared texts, by part.
      head: the probability of each kind of factor, for each shared text, by part.
      pair: parameters of `Pair`.
      thresholds: above which `cosine` and `joined_head` say yes.
    """

    family: Family
    encoder: SentenceEncoder
    vectors: dict[str, Float[np.ndarray, "texts width"]]
    head: dict[str, Float[np.ndarray, "texts factors"]]
    pair: PyTree
    thresholds: dict[str, float]

    @classmethod
    def fit(cls, family: Family, encoder: SentenceEncoder, seed: int) -> "Texts":
        """Fitted to the seen tasks and the training texts; choices are made on the seen tasks' validation texts."""
        vectors = {part: family.sentences(images.x) for part, images in family.data.items()}
        head = _head(family, vectors)
        pair = _train(family, encoder, vectors["train"], seed)
        fitted = cls(family, encoder, vectors, head, pair, {})
        seen = family.split("seen")
        chosen = {name: fitted._threshold(name, seen) for name in ("cosine", "joined_head")}
        return dataclasses.replace(fitted, thresholds=chosen)

    def accuracy(self, tasks: Sequence[Task], part: str = "test") -> dict[str, Float[np.ndarray, " tasks"]]:
        """Of each control on the texts of each task, as networks are scored."""
        named = [n for n in ("cosine", "joined_head", "conditioned") if n != "joined_head" or _join(self.family, tasks)]
        scores, labels = {n: self._of_tasks(n, tasks, part) for n in named}, self.family.labels(tasks, part)
        return {n: ((s > self.thresholds.get(n, 0.0)) == labels).mean(1) for n, s in scores.items()}

    def _threshold(self, name: str, tasks: Sequence[Task]) -> float:
        scores, labels = self._of_tasks(name, tasks, "validation"), self.family.labels(tasks, "validation")
        tried = np.linspace(scores.min(), scores.max(), THRESHOLDS)
        return float(tried[int(np.argmax([((scores > t) == labels).mean() for t in tried]))])

    def _of_tasks(self, name: str, tasks: Sequence[Task], part: str) -> Float[np.ndarray, "tasks texts"]:
        """How much each of a task's texts is what it asks for."""
        return np.take_along_axis(self._scores(name, tasks, part), _rows(self.family, tasks, part), 1)

    def _scores(self, name: str, tasks: Sequence[Task], part: str) -> Float[np.ndarray, "tasks texts"]:
        """How much each shared text is what each task asks for."""
        vectors = self.vectors[part]
        if name == "joined_head":
            return (self.family.factors(tasks) > 0.5).astype(np.float32) @ self.head[part].T
        said = self.encoder.encode_all([t.descriptions[0] for t in tasks])
        if name == "cosine":
            return said @ vectors.T
        one = jax.jit(lambda s: Pair().apply(self.pair, jnp.broadcast_to(s, vectors.shape), jnp.asarray(vectors)))
        return np.stack([one(s) for s in said])


def _join(family: Family, tasks: Sequence[Task]) -> bool:
    return bool((family.factors(tasks) > 0.5).any(1).all())


def _rows(family: Family, tasks: Sequence[Task], part: str) -> Int[np.ndarray, "tasks texts"]:
    """Which shared texts each task has."""
    y, ids = jnp.asarray(family.data[part].y), np.array([t.id for t in tasks])
    places = jnp.arange(len(y), dtype=jnp.float32)[:, None]
    variables = jax.tree.map(lambda v: jnp.asarray(v)[ids], family.variables)
    rows = jax.jit(jax.vmap(lambda v: family.shared(v, places, y)[0][:, 0]))(variables)
    return np.asarray(rows).astype(np.int32)


def _head(family: Family, vectors: dict[str, np.ndarray]) -> dict[str, Float[np.ndarray, "texts factors"]]:
    """The probabilities of a logistic regression over the kinds that single factors name."""
    from sklearn.linear_model import LogisticRegression  # slow to import

    single = [family.vary(tuple(row)) for row in np.eye(len(family.factor_names))]
    kinds = [{part: np.flatnonzero(_labels(family, v, part)) for part in family.data} for v in single]
    y = {part: np.full(len(family.data[part].y), -1) for part in family.data}
    for k, rows in enumerate(kinds):
        for part, chosen in rows.items():
            y[part][chosen] = k
    fits = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=500)
        model.fit(vectors["train"][y["train"] >= 0], y["train"][y["train"] >= 0])
        held = y["validation"] >= 0
        fits.append((model.score(vectors["validation"][held], y["validation"][held]), strength, model))
    model = max(fits, key=lambda fit: fit[:2])[2]
    return {part: model.predict_proba(v).astype(np.float32) for part, v in vectors.items()}


def _labels(family: Family, variables: PyTree, part: str) -> Int[np.ndarray, " texts"]:
    images = family.data[part]
    return np.asarray(family.relabel(variables, images.x, jnp.asarray(images.y)))


def _train(family: Family, encoder: SentenceEncoder, vectors: Float[np.ndarray, "texts width"], seed: int) -> PyTree:
    """`Pair` after STEPS of AdamW on texts of the seen tasks, which are described in all of their wordings."""
    seen, y = family.split("seen"), jnp.asarray(family.data["train"].y)
    wordings = [encoder.encode_all(t.descriptions) for t in seen]
    said, text = jnp.asarray(np.stack(wordings)), jnp.asarray(vectors)
    ids = np.array([t.id for t in seen])
    variables = jax.tree.map(lambda v: jnp.asarray(v)[ids], family.variables)
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, STEPS), weight_decay=1e-2)
    start = Pair().init(rng.stream(seed, "controls/pair"), said[:1, 0], text[:1])

    def step(carry, key):
        params, state = carry
        which, wording, place = jax.random.split(key, 3)
        task = jax.random.randint(which, (BATCH,), 0, len(seen))
        worded = jax.random.randint(wording, (BATCH,), 0, said.shape[1])
        rows = jax.random.randint(place, (BATCH,), 0, len(y))

        def of_task(i, row):
            x, label = family.of_task(jax.tree.map(lambda v: v[i], variables), text, y, row[None])
            return x[0], label[0]

        x, labels = jax.vmap(of_task)(task, rows)

        def loss(params):
            logits = Pair().apply(params, said[task, worded], x)
            return optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype)).mean()

        gradients = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(rng.stream(seed, "controls/pair/steps"), STEPS)
    return jax.jit(lambda c, k: jax.lax.scan(step, c, k)[0][0])((start, optimizer.init(start)), keys)
