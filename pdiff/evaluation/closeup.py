"""A close look at a trained generator, for the eye: what report.html shows beside the numbers of results.json.

It is measured once, at the end of an evaluation, with programs that are compiled by then, and kept in closeup.json, so
that the page can be written again without computing. Each key stands alone, and is absent where it does not apply:

    prompt         a description that networks can be asked for with
    plane          {"explained": [share, share], "points": [POINT, …], "paths": [PATH, …]}: normalised weights on
                   the two main axes of the zoo's. POINT: {"kind": "zoo" | "finetuned" | "generated", "split", "task",
                   "factors", "at": [x, y]}, generated ones with "sampler". PATH, from noise to a network:
                   {"split", "task", "sigma": […], "at": [[x, y], …]}
    averaging      {split: {sampler: {"averaged": S, "raw": S}}}: accuracy, S as in results.json
    confusion      {split: {"generated" | "finetuned": [[count, …], …]}}, rows being labels and columns answers
    images         [{"split", "task", "images": [{"png": base64, "label", "generated", "finetuned"}, …]}, …]
"""

import base64
import io
import itertools
from collections.abc import Sequence

import jax
import numpy as np
import scipy.linalg
from jaxtyping import Float, Int, PyTree
from PIL import Image

from pdiff import rng
from pdiff.config.fields import DESCRIBING
from pdiff.diffusion.samplers import noise_levels
from pdiff.evaluation.bench import Bench
from pdiff.system.evenly import evenly
from pdiff.tasks.base import REPORTED_SPLITS, Family, Task
from pdiff.weights import stats
from pdiff.zoo.store import Networks

FILE = "closeup.json"
MOST_NETWORKS = 384  # of the zoo, on the plane
MOST_ELEMENTS = 1 << 26  # weights of all of these together
PATHS = 2  # samples of a task, in each split, whose way from noise is shown
MOST_IMAGES, MOST_CLASSES = 12, 64  # of a strip; of a confusion matrix


def measure(bench: Bench, networks: dict[str, Networks], splits: dict, selection: dict, raw: PyTree | None) -> dict:
    """The contents of closeup.json.

    Args:
      networks: the zoo.
      splits: as in results.json.
      selection: as in results.json.
      raw: the parameters that were trained, where `bench` has their moving average; None leaves comparisons out.
    """
    samplers = list(dict.fromkeys(selection[k] for k in ("sampler", "many_steps") if k in selection))
    plain = None if raw is None else bench.with_params(raw)
    tasks = {s: bench.tasks(s, bench.config.eval.closeup_tasks) for s in REPORTED_SPLITS if s in splits}
    generated = {s: {n: bench.generate(n, chosen, f"closeup/{s}/{n}") for n in samplers} for s, chosen in tasks.items()}
    parts = {
        "prompt": _prompt(bench),
        "plane": _plane(bench, networks, tasks, generated),
        "averaging": _averaging(bench, plain, splits, selection, samplers) if plain else None,
    }
    chosen = {s: m[selection["sampler"]] for s, m in generated.items()}
    parts |= _answers(bench, networks, tasks, chosen)
    return {k: v for k, v in parts.items() if v}


def _prompt(bench: Bench) -> str:
    """The first description of the last held-out task, or of the last task."""
    family = bench.generator.family
    if set(DESCRIBING).isdisjoint(bench.config.sample.condition):
        return ""
    return (family.split("unseen") or family.split("interp") or family.tasks)[-1].descriptions[0]


# --- weights ---------------------------------------------------------------------------------------


def _plane(bench: Bench, networks: dict[str, Networks], tasks: dict, generated: dict) -> dict:
    """Zoo, held-out and generated networks, and denoising paths, on the two main axes of the zoo's weights."""
    generator, family = bench.generator, bench.generator.family
    on = np.asarray(stats.varying(generator.stats))

    def flat(parts: PyTree) -> Float[np.ndarray, "nets varying"]:
        return np.asarray(stats.normalize(generator.stats, bench.encode(parts)))[:, on]

    most = max(3, min(MOST_NETWORKS, MOST_ELEMENTS // generator.spec.num_params))
    zoo = networks["seen"][evenly(len(networks["seen"]), most)]
    x = flat(zoo.params)
    center, axes, explained = _main_axes(x)
    if explained is None:
        return {}

    def points(kind: str, at: np.ndarray, ids: Int[np.ndarray, " nets"], **more) -> list[dict]:
        places = ((at - center) @ axes).astype(float).round(3).tolist()
        return [
            {"kind": kind, "split": t.split, "task": t.name, "factors": list(t.factors), "at": place} | more
            for t, place in zip((family.tasks[i] for i in ids), places, strict=True)
        ]

    placed = points("zoo", x, zoo.task)
    for split in (s for s in tasks if s != "seen"):
        finetuned = networks[split][np.isin(networks[split].task, [t.id for t in tasks[split]])]
        placed += points("finetuned", flat(finetuned.params), finetuned.task)
    for split, by_sampler in generated.items():
        for name, parts in by_sampler.items():
            ids = np.repeat([t.id for t in tasks[split]], bench.config.eval.samples_per_task)
            placed += points("generated", flat(parts), ids, sampler=name)
    paths = _paths(bench, tasks, lambda d: (d[:, on] - center) @ axes)
    return {"explained": explained, "points": placed, "paths": paths}


def _main_axes(x: Float[np.ndarray, "nets dim"]) -> tuple:
    """The mean, the two main axes (dim, 2), and their shares of the variance, which are None where there is none.

    By the eigenvectors of the networks' inner products, since there are fewer networks than weights.
    """
    center = x.mean(0)
    x = x - center
    products = np.float64(x @ x.T)
    if len(x) < 3:
        return center, None, None
    values, vectors = scipy.linalg.eigh(products, subset_by_index=[len(x) - 2, len(x) - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    if not values[1] > 1e-6 * values[0]:
        return center, None, None
    axes = x.T @ (vectors / np.sqrt(values)).astype(np.float32)
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])  # an eigenvector's sign is arbitrary
    return center, axes, (values / np.trace(products)).tolist()


def _paths(bench: Bench, tasks: dict[str, Sequence[Task]], project) -> list[dict]:
    """The way of a few samples by DDIM, at each noise level of the config's schedule, and at 0 the network.

    What is shown are the weights of z / sqrt(1 + sigma^2): coefficients as large as those of networks.
    """
    generator, config = bench.generator, bench.config.sample

    def at_level(z: Float[np.ndarray, "samples tokens dim"], sigma: float) -> Float[np.ndarray, "samples axes"]:
        coefficients = (z / np.sqrt(1 + sigma**2)).reshape(len(z), -1)
        z = generator.subspace.reconstruct(coefficients.astype(np.float32))
        if generator.coordinates:
            networks = jax.tree.map(np.asarray, generator.denormalize(z))
            z = stats.normalize(generator.stats, bench.encode(networks))
        return project(np.asarray(z))

    chosen = [of_split[len(of_split) // 2] for of_split in tasks.values() for _ in range(PATHS)]
    levels = np.asarray(noise_levels(generator.path, config.num_steps, config.rho), np.float64)
    conditions = [(config.guidance, bench.condition(chosen, 1))]
    if config.guidance != 1:
        conditions.append((1 - config.guidance, bench.condition(chosen, 1, given=())))
    key = rng.stream(bench.config.seed, "closeup/paths")
    z = levels[0] * np.asarray(jax.random.normal(key, (len(chosen), *generator.shape)))
    at = [at_level(z, levels[0])]
    for sigma, below in itertools.pairwise(levels):
        rows = (z.astype(np.float32), np.full(len(z), sigma, np.float32))
        denoised = sum(share * bench.denoise(condition, *rows) for share, condition in conditions)
        z = z + (below - sigma) * (z - denoised) / sigma
        at.append(at_level(z, below))
    places = np.stack(at, 1).astype(float).round(3).tolist()
    sigmas = [float(f"{s:.4g}") for s in levels]
    return [{"split": t.split, "task": t.name, "sigma": sigmas, "at": p} for t, p in zip(chosen, places, strict=True)]


def _averaging(bench: Bench, plain: Bench, splits: dict, selection: dict, samplers: list[str]) -> dict:
    """Accuracy with the raw parameters beside that with averaged ones, for the same noise.

    On validation tasks by each of `samplers`, on the others by the chosen one, which takes time enough.
    """
    study: dict = {"validation": {}}
    for name in samplers:
        raw = plain.scores(name, bench.choosing_tasks(), f"evaluate/validation/{name}", part="validation")
        study["validation"][name] = {"averaged": selection["validation"][name], "raw": raw.summary()}
    name = selection["sampler"]
    for split in (s for s in REPORTED_SPLITS if s in splits):
        raw = plain.scores(name, bench.tasks(split), f"evaluate/{split}/{name}").summary()
        study[split] = {name: {"averaged": splits[split]["generated"][name], "raw": raw}}
    return study


# --- answers ---------------------------------------------------------------------------------------


def _answers(bench: Bench, networks: dict[str, Networks], tasks: dict, generated: dict[str, PyTree]) -> dict:
    """What generated and fine-tuned networks answer on test images: counts for each label, and strips of images."""
    family, count = bench.generator.family, bench.config.eval.samples_per_task
    confusion, strips = {}, []
    for split, of_split in tasks.items():
        ids = np.repeat([t.id for t in of_split], count)
        tuned = networks[split][np.isin(networks[split].task, [t.id for t in of_split])]
        labels = dict(zip([t.id for t in of_split], family.labels(of_split), strict=True))
        predicted = {
            "generated": (ids, bench.score["test"].answers(generated[split], ids).predicted),
            "finetuned": (tuned.task, bench.score["test"].answers(tuned.params, tuned.task).predicted),
        }
        confusion[split] = {
            k: _counts(np.stack([labels[i] for i in who]), answers, family.num_classes)
            for k, (who, answers) in predicted.items()
        }
        strips += _strips(family, of_split, labels, predicted)
    study = {"images": strips}
    return study | {"confusion": confusion} if family.num_classes <= MOST_CLASSES else study


def _counts(
    labels: Int[np.ndarray, "nets images"], answers: Int[np.ndarray, "nets images"], classes: int
) -> list[list[int]]:
    """How often each label (rows) got each answer (columns)."""
    pairs = labels.astype(np.int64).reshape(-1) * classes + answers.reshape(-1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).tolist()


def _strips(family: Family, tasks: Sequence[Task], labels: dict, predicted: dict) -> list[dict]:
    """Images of the task that generated networks do worst on, and of one in the middle, with two networks' answers.

    The first half are those that the most generated networks of the task get wrong, the others are evenly chosen.
    """
    if len(family.image_shape) == 3 and family.image_shape[-1] not in (1, 3) or len(family.image_shape) not in (2, 3):
        return []
    (ids, answers), (tuned_ids, tuned) = predicted["generated"], predicted["finetuned"]
    right = {t.id: (answers[ids == t.id] == labels[t.id]).mean(0) for t in tasks}
    order = sorted(tasks, key=lambda t: right[t.id].mean())
    draw = jax.jit(family.of_task)
    images, strips = family.data["test"], []
    for task in dict.fromkeys((order[0], order[len(order) // 2])):
        hardest = np.argsort(right[task.id], kind="stable")
        rest = np.sort(hardest[MOST_IMAGES // 2 :])
        rows = np.concatenate([hardest[: MOST_IMAGES // 2], rest[evenly(len(rest), MOST_IMAGES - MOST_IMAGES // 2)]])
        variables = jax.tree.map(lambda v, i=task.id: v[i], family.variables)
        pixels = np.asarray(draw(variables, images.x, images.y, rows)[0]).reshape(-1, *family.image_shape)
        first, other = answers[np.argmax(ids == task.id)], tuned[np.argmax(tuned_ids == task.id)]
        strip = [
            {"png": png, "label": int(labels[task.id][r]), "generated": int(first[r]), "finetuned": int(other[r])}
            for r, png in zip(rows, _pngs(pixels), strict=True)
        ]
        strips.append({"split": task.split, "task": task.name, "images": strip})
    return strips


def _pngs(images: Float[np.ndarray, "n height width *channels"]) -> list[str]:
    """Each image as a PNG in base64; if they are not all in [0, 1], that range is theirs."""
    low, high = min(0.0, images.min()), max(1.0, images.max())
    pixels = ((images - low) / (high - low) * 255).round().astype(np.uint8)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 4 else pixels
    made = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        made.append(base64.b64encode(buffer.getvalue()).decode())
    return made
