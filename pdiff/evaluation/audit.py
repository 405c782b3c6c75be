"""The memorisation audit: are generated networks copies of zoo networks, noised copies, averages of them, or new?

`audit` is the whole of it for any generator: it takes tokens of generated networks by task, those of the zoo, and a
function that asks networks for their answers. `copies.py` gives it those of a run. The rule of the verdict is in
`measures/verdict.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from scipy.spatial.distance import squareform

from pdiff.errors import PdiffError
from pdiff.measures import leaves, novelty, two_sample
from pdiff.measures.accuracy import Answers
from pdiff.measures.novelty import Compared
from pdiff.measures.verdict import verdict
from pdiff.results import summary
from pdiff.system.evenly import evenly
from pdiff.weights import codec
from pdiff.weights.spec import Spec

MOST_JUDGED = 128  # generated networks, and zoo networks, of each task that are judged
MOST_ON_CURVE = 32  # networks of each task at a point of a curve
NOISE_CURVE = (0.02, 0.05, 0.1, 0.2, 0.4)  # scales of noise on zoo networks: what overlap an accuracy costs at least
MEAN_CURVE = (2, 4, 8, 16)  # zoo networks in an average
CANDIDATES = 4  # nearest zoo networks by weights, and as many by function, that are matched modulo permutations
MEASURES = ("accuracy", "max_iou", "nearest_l2", "nearest_cosine", "nearest_function", "inherited", "average_distance")

_decode, _encode = (jax.jit(f, static_argnums=0) for f in (codec.decode_part, codec.encode_part))

Tokens = Float[np.ndarray, "_ tokens dim"]
Match = Callable[[PyTree, PyTree], PyTree]
"""(reference part, part) -> the part with its hidden units permuted so that it comes nearest to the reference."""


def audit(
    generated: Mapping[int, Tokens],
    zoo: Tokens,
    compared: Mapping[int, Compared],
    ask: Callable[[Tokens, int], Answers],
    spec: Spec,
    *,
    seed: int = 0,
    match: Match | None = None,
) -> dict:
    """Measures generated networks against the zoo, and the zoo's own against the rest of it, and judges them.

    Args:
      generated: by task: raw (not normalised) tokens.
      zoo: raw tokens of the networks that the generator learned from.
      compared: by task: which of them its networks are compared with.
      ask: (tokens, task) -> what the networks answer on the task's test images.
      spec: of the tokens.
      seed: of the noise, the averages and the permutation tests; the audit is a function of its arguments.
      match: aligns hidden units; without it, nothing is measured modulo permutations.

    Returns:
      The contents of audit.json, see `report/audit_page.py`: for each of MEASURES {"generated": S, "zoo": S}, with S as
      in results.json, over networks; L2 in the weights' own units, cosine distance in [0, 2], function distance
      (Hellinger) in [0, 1].

    Raises:
      PdiffError: there is nothing to audit, or a task has fewer than two zoo networks of other runs to compare with.
    """
    _check(generated, compared)
    parts = [_Task(t, g, zoo, compared[t], ask, spec, seed, match) for t, g in generated.items()]
    random, tasks = np.random.default_rng(seed), [p.task for p in parts]
    by_kind = {"generated": [p.generated for p in parts], "zoo": [p.references for p in parts]}
    tables = {kind: Table.of(tasks, measured) for kind, measured in by_kind.items()}
    relative = {kind: _relative(measured, by_kind["zoo"]) for kind, measured in by_kind.items()}
    measures = {n: {kind: table.summary(n) for kind, table in tables.items()} for n in tables["generated"].columns}
    tests = {n: two_sample.nearest_neighbour_test([p.joint[n] for p in parts], random) for n in parts[0].joint}
    tests = _present(tests)
    diversity = {n: _both(p.pairs[n] for p in parts) for n in ("spread", "disagreement")}
    spread = diversity["spread"]
    differ = None if len(spread) < 2 else spread["generated"]["mean"] / max(spread["zoo"]["mean"], 1e-30)
    accuracy = {kind: s["mean"] for kind, s in measures["accuracy"].items()}
    judged = verdict(relative["generated"], relative["zoo"], accuracy, differ, tests.get("weights"))
    return measures | diversity | {
        "verdict": judged,
        "num_tasks": len(parts),
        "num_generated": len(tables["generated"].task),
        "num_zoo": len(zoo),
        "two_sample": tests,
        "precision_recall": _present({n: _precision_recall(parts, n) for n in parts[0].joint}),
        "leaves": leaves.compare(spec, [(p.drawn, p.own) for p in parts]),
        "examples": leaves.examples(spec, [(p.task, p.drawn, p.nearest, p.next) for p in parts]),
        "noise_curve": _curve(parts, "noise", "scale"),
        "averaging_curve": _curve(parts, "mean", "networks"),
        "points": [p for kind, table in tables.items() for p in _points(kind, table, relative[kind])],
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """Measures of the networks of several tasks by name, and the task of each network."""

    task: Int[np.ndarray, " nets"]
    columns: dict[str, Float[np.ndarray, " nets"]]

    @classmethod
    def of(cls, tasks: Sequence[int], measured: Sequence[dict[str, np.ndarray]]) -> "Table":
        """Joins the measures of each task's networks."""
        ids = np.repeat(tasks, [len(m["accuracy"]) for m in measured])
        return cls(ids, {n: np.concatenate([m[n] for m in measured]) for n in measured[0]})

    def summary(self, name: str) -> dict:
        return summary(self.columns[name], self.task)


class _Task:
    """What is measured of one task. Tokens are flat, (nets, tokens * dim), and zero in the padding."""

    def __init__(self, task: int, drawn: Tokens, zoo: Tokens, compared: Compared, ask, spec: Spec, seed: int, match):
        self.task, self._compared, self._spec, self._match = task, compared, spec, match
        self.drawn = flat(drawn[evenly(len(drawn), MOST_JUDGED)], spec)
        self.zoo = flat(zoo[compared.rows], spec)
        chosen = compared.references(MOST_JUDGED)
        self.own = self.zoo[chosen]
        sets = {"zoo": self.zoo, "drawn": self.drawn} | self._on_curves(chosen, np.random.default_rng((seed, task)))
        every = ask(np.concatenate(list(sets.values())).reshape(-1, *zoo.shape[1:]), task)
        ends = np.cumsum([len(v) for v in sets.values()])
        answers = {n: every[end - len(v) : end] for (n, v), end in zip(sets.items(), ends, strict=True)}
        self._answers = answers.pop("zoo")
        drawn_answers, own_answers = answers.pop("drawn"), self._answers[chosen]
        # Whose individuality may be inherited: the task's own networks, where there are enough to tell it from theirs.
        peers = np.arange(compared.own if len(chosen) >= 3 else len(self.zoo))
        everyone = np.ones((len(self.drawn), len(self.zoo)), bool)
        self.generated = self._measure(self.drawn, drawn_answers, everyone, peers)
        self.references = self._measure(self.own, own_answers, compared.others(chosen), peers)
        rows = novelty.l2_distances(self.drawn, self.zoo).argmin(1)
        among = np.where(compared.others(rows), novelty.l2_distances(self.zoo[rows], self.zoo), np.inf)
        self.nearest, self.next = self.zoo[rows], self.zoo[among.argmin(1)]
        self.curves = {point: self._cost(a.right) for point, a in answers.items()}
        both = {"generated": (self.drawn, drawn_answers), "zoo": (self.own, own_answers)}
        self.pairs = {
            "spread": {w: squareform(novelty.l2_distances(v, v), checks=False) for w, (v, _) in both.items()},
            "disagreement": {w: novelty.disagreement(a.predicted) for w, (_, a) in both.items()},
        }
        self.joint, self.halves = self._joint(both)

    def _cost(self, right: Bool[np.ndarray, "nets images"]) -> dict[str, Float[np.ndarray, " nets"]]:
        return {"accuracy": right.mean(-1), "max_iou": novelty.iou_of_wrong(right, self._answers.right).max(1)}

    def _on_curves(self, chosen: Int[np.ndarray, " own"], random: np.random.Generator) -> dict[tuple, np.ndarray]:
        """Networks of the two curves, by ("noise", scale) and ("mean", how many)."""
        count = min(MOST_ON_CURVE, max(len(self.drawn), 2))
        rms = np.sqrt((self.zoo**2).sum() / len(self.zoo) / self._spec.num_params)
        start, mask = self.own[np.arange(count) % len(chosen)], self._spec.mask.reshape(-1)
        networks = {("noise", s): start + s * rms * mask * random.standard_normal(start.shape) for s in NOISE_CURVE}
        for k in MEAN_CURVE:
            pool = self.own if k <= len(self.own) else self.zoo[:k]  # then those of neighbouring tasks too
            if k <= len(pool):
                rows = [random.choice(len(pool), k, replace=False) for _ in range(count)]
                networks["mean", k] = np.stack([pool[r].mean(0) for r in rows])
        return {n: v.astype(np.float32) for n, v in networks.items()}

    def _measure(
        self, x: Float[np.ndarray, "nets params"], answers: Answers, others: Bool[np.ndarray, "nets zoo"], peers
    ) -> dict[str, Float[np.ndarray, " nets"]]:
        """MEASURES of networks, each against the `others` of the zoo's; how much they inherit, against `peers`."""
        l2 = np.where(others, novelty.l2_distances(x, self.zoo), np.inf)
        function = np.where(others, _function_distances(answers, self._answers), np.inf)
        mates = others[:, peers]
        nearest = np.where(mates, l2[:, peers], np.inf).argmin(1)  # peers come first, so it is a row of the zoo too
        rest = mates & self._compared.others(nearest)[:, peers]
        measured = against(answers.right, l2, self._answers.right, others) | {
            "nearest_cosine": np.where(others, novelty.cosine_distances(x, self.zoo), np.inf).min(1),
            "nearest_function": function.min(1),
            "inherited": novelty.inherited(x, self.zoo[peers], nearest, rest),
            "average_distance": novelty.average_distances(x, self.zoo, others),
        }
        if self._match:
            aligned, rows = self._aligned(x, l2, function)
            measured["nearest_l2_matched"] = np.linalg.norm(aligned - self.zoo[rows], axis=1)
            cosine = novelty.cosine_distances(aligned, self.zoo)
            measured["nearest_cosine_matched"] = cosine[np.arange(len(x)), rows]
            # A permuted copy with noise inherits as much, once it is aligned.
            again = np.where(rows < len(peers), rows, nearest)
            rest = mates & self._compared.others(again)[:, peers]
            inherits = novelty.inherited(aligned, self.zoo[peers], again, rest)
            measured["inherited"] = np.maximum(measured["inherited"], inherits)
        return measured

    def _aligned(self, x, l2, function) -> tuple[Float[np.ndarray, "nets params"], Int[np.ndarray, " nets"]]:
        """Each network with its hidden units as in the zoo network that is then nearest, and that network's row.

        Of those nearest by weights and by function: a permuted copy is far off by weights alone.
        """
        aligned, rows = [], []
        for i, network in enumerate(x):
            near = {int(r) for d in (l2, function) for r in np.argsort(d[i], kind="stable")[:CANDIDATES]}
            near = [r for r in sorted(near) if np.isfinite(l2[i, r])]
            matched = [self._vector(self._match(self._part(self.zoo[r]), self._part(network))) for r in near]
            best = int(np.argmin([np.linalg.norm(m - self.zoo[r]) for m, r in zip(matched, near, strict=True)]))
            aligned.append(matched[best])
            rows.append(near[best])
        return np.stack(aligned), np.array(rows)

    def _part(self, vector: Float[np.ndarray, " params"]) -> PyTree:
        return _decode(self._spec, vector.reshape(self._spec.mask.shape))

    def _vector(self, part: PyTree) -> Float[np.ndarray, " params"]:
        return np.asarray(_encode(self._spec, part)).reshape(-1)

    def _joint(self, both: dict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Distances among as many generated as zoo networks, and among one half of the latter and the other."""
        count = min(len(v) for v, _ in both.values())
        rows = {w: evenly(len(v), count) for w, (v, _) in both.items()}
        half = np.arange(len(self.own) // 2 * 2).reshape(-1, 2).T.reshape(-1)  # every other one, then the rest
        v = np.concatenate([v[rows[w]] for w, (v, _) in both.items()])
        a, others = [a[rows[w]] for w, (_, a) in both.items()], both["zoo"][1][half]
        a = Answers(*(np.concatenate([getattr(x, f.name) for x in a]) for f in dataclasses.fields(Answers)))
        w = self.own[half]
        joint = {"weights": novelty.l2_distances(v, v), "function": _function_distances(a, a)}
        return joint, {"weights": novelty.l2_distances(w, w), "function": _function_distances(others, others)}


def against(right, l2, zoo_right, others: Bool[np.ndarray, "nets zoo"]) -> dict[str, Float[np.ndarray, " nets"]]:
    """Accuracy, the highest overlap of wrong answers and the nearest L2, of networks against the `others`."""
    overlap = np.where(others, novelty.iou_of_wrong(right, zoo_right), -np.inf)
    return {"accuracy": right.mean(-1), "max_iou": overlap.max(1), "nearest_l2": np.where(others, l2, np.inf).min(1)}


def flat(tokens: Tokens, spec: Spec) -> Float[np.ndarray, "nets params"]:
    return (np.asarray(tokens) * spec.mask).reshape(len(tokens), -1)


def _function_distances(a: Answers, b: Answers) -> Float[np.ndarray, "a b"]:
    """Hellinger distance of class probabilities, root mean square over images, in [0, 1]."""
    x, y = (np.sqrt(p.probabilities.astype(np.float64)).reshape(len(p), -1) for p in (a, b))
    return novelty.l2_distances(x, y) / np.sqrt(2 * a.probabilities.shape[1])


def _check(generated: Mapping[int, Tokens], compared: Mapping[int, Compared]) -> None:
    if not generated or min(map(len, generated.values())) == 0:
        raise PdiffError("audit: no task, or one without generated networks; allowed: one network or more of each")
    for task in generated:
        least = compared[task].others(compared[task].references(MOST_JUDGED)).sum(1)
        if not len(least) or least.min() < 2:
            raise PdiffError(
                f"audit: a zoo network of task {task} has {min(least, default=0)} networks of other seeds to be "
                "compared with; allowed: at least 2; raise zoo.seeds_per_task or eval.novelty_networks"
            )


def _relative(measured: Sequence[dict], zoo: Sequence[dict]) -> dict[str, Float[np.ndarray, " nets"]]:
    """What the verdict looks at: distances in units of the median of each task's zoo networks."""
    names = {
        "weights": "nearest_l2",
        "matched": "nearest_l2_matched",
        "function": "nearest_function",
        "average": "average_distance",
    }
    relative = {"inherited": np.concatenate([m["inherited"] for m in measured])}
    for name, measure in names.items():
        if measure in zoo[0]:
            units = [max(np.median(z[measure]), 1e-30) for z in zoo]
            relative[name] = np.concatenate([m[measure] / u for m, u in zip(measured, units, strict=True)])
    return relative


def _both(pairs) -> dict[str, dict]:
    """Summaries over pairs of networks of one task; absent where no task has two."""
    joined: dict[str, list] = {}
    for by_kind in pairs:
        for kind, values in by_kind.items():
            joined.setdefault(kind, []).append(values)
    return {kind: summary(np.concatenate(v)) for kind, v in joined.items() if sum(map(len, v))}


def _precision_recall(parts: Sequence[_Task], space: str) -> dict | None:
    """Of generated against zoo networks, and (`zoo_…`) of one half of the latter against the other."""
    drawn = two_sample.precision_recall([p.joint[space] for p in parts])
    zoo = two_sample.precision_recall([p.halves[space] for p in parts])
    return drawn and drawn | ({f"zoo_{n}": v for n, v in zoo.items()} if zoo else {})


def _present(measured: dict) -> dict:
    """Without what could not be measured: a task needs two networks of each kind."""
    return {n: v for n, v in measured.items() if v is not None}


def _curve(parts: Sequence[_Task], kind: str, key: str) -> list[dict]:
    points = []
    for point in (p for p in parts[0].curves if p[0] == kind):
        there = [p for p in parts if point in p.curves]
        table = Table.of([p.task for p in there], [p.curves[point] for p in there])
        points.append({key: point[1]} | {n: table.summary(n) for n in table.columns})
    return points


def _points(kind: str, table: Table, relative: dict) -> list[dict]:
    values = table.columns | {f"relative_{n}": v for n, v in relative.items() if n != "inherited"}
    return [{"kind": kind, **{n: round(float(v[i]), 6) for n, v in values.items()}} for i in range(len(table.task))]
