"""Complete results and metrics with made-up numbers of a believable shape."""

import numpy as np

from pdiff.results import CONTROLS, summary

ARCS = {"unseen": [[60.0, 90.0], [216.0, 234.0]], "interp": [[20.0, 30.0], [150.0, 160.0], [355.0, 365.0]]}
ARCS["validation"] = [[110.0, 120.0], [270.0, 288.0]]
SAMPLERS = ("heun", "posterior_mean", "dpmpp_2m", "ddim", "euler_maruyama")
LEVELS = {
    "seen": {
        "generated": 0.965,
        "soup": 0.25,
        "nearest_seen": 0.966,
        "ridge": 0.89,
        "linear_interpolation": 0.962,
    },
    "interp": {
        "generated": 0.953,
        "soup": 0.24,
        "nearest_seen": 0.93,
        "ridge": 0.88,
        "linear_interpolation": 0.93,
    },
    "unseen": {
        "generated": 0.85,
        "soup": 0.2,
        "nearest_seen": 0.6,
        "ridge": 0.72,
        "linear_interpolation": 0.55,
    },
}


VAGUE = {
    "digits rotated by between 60 and 90 degrees": "any angle from 60 to 90 degrees (30 of 360)",
    "digits that are nearly upright": "any angle within 20 degrees of upright (40 of 360)",
}
FITTED = {"generated": 0.9, "task_of_set": 0.95, "hypernetwork": 0.6, "zoo": 0.97}  # and accuracy
ADAPTED = {  # and accuracy with the fewest images
    "prior": 0.9,
    "prior_chosen": 0.88,
    "prior_guided": 0.89,
    "prior_described": 0.91,
    "described": 0.87,
    "refined_zoo": 0.83,
    "refined_all": 0.9,
    "zoo": 0.8,
    "reptile": 0.5,
    "base": 0.3,
    "unlabelled": 0.7,
}


def results(num_tasks: int = 24, samples: int = 3, seed: int = 0, task_name: str = "rotation_{:g}") -> dict:
    """Results that `check` finds nothing wrong with."""
    random = np.random.default_rng(seed)

    def noisy(level: float, scale: float = 0.008) -> np.ndarray:
        return np.clip(level + scale * random.standard_normal(samples), 0, 1)

    held_out = [a for arcs in ARCS.values() for a in arcs]
    circle = [x for x in np.linspace(0, 360, 4 * num_tasks, endpoint=False) if not _inside(x, held_out)]
    angles = {
        "seen": [circle[i] for i in np.linspace(0, len(circle) - 1, num_tasks).round().astype(int)],
        "interp": [x % 360 for a, b in ARCS["interp"] for x in np.linspace(a, b, 6)[1:-1]],
        "unseen": [x for a, b in ARCS["unseen"] for x in np.linspace(a, b, 8)[1:-1]],
    }
    splits = {}
    for split, levels in LEVELS.items():
        scores = {"finetuned": [], "base": []}
        scores |= {f"generated.{n}": [] for n in SAMPLERS} | {f"controls.{n}": [] for n in CONTROLS}
        for angle in angles[split]:
            base = 0.12 + 0.83 * np.exp(-((min(angle, 360 - angle) / 22) ** 2))
            deep = min((abs(angle - b) for arc in ARCS["unseen"] for b in arc), default=0) / 15
            drop = deep if split == "unseen" else 0
            scores["finetuned"].append(noisy(0.966, 0.004))
            scores["base"].append(noisy(base, 0))
            for i, n in enumerate(SAMPLERS):
                scores[f"generated.{n}"].append(noisy(levels["generated"] - 0.02 * abs(i - 1) - 0.1 * drop))
            for n in CONTROLS:
                scores[f"controls.{n}"].append(noisy(levels.get(n, 0.11) - 0.2 * drop * (n in levels)))
        tasks = np.repeat(np.arange(len(angles[split])), samples)
        whole = {k: summary(np.concatenate(v), tasks) for k, v in scores.items()}
        per_task = [
            {"task": task_name.format(a), "id": i, "factors": [float(a)]}
            | _nested({k: float(v[i].mean()) for k, v in scores.items()})
            for i, a in enumerate(angles[split])
        ]
        splits[split] = {"num_tasks": len(per_task), **_nested(whole), "per_task": per_task}
        conditions = ("text", "factors")
        splits[split]["by_condition"] = {n: summary(noisy(0.9 - 0.01 * i)) for i, n in enumerate(conditions)}
    points = [
        {
            "kind": kind,
            "accuracy": float(np.clip(quality + 0.01 * random.standard_normal(), 0, 1)),
            "max_iou": float(np.clip(centre + 0.08 * random.standard_normal(), 0, 1)),
            "nearest_l2": float(abs(6 * centre + random.standard_normal())),
        }
        for kind, quality, centre in (("generated", 0.96, 0.6), ("zoo", 0.965, 0.65), ("noise", 0.76, 0.3))
        for _ in range(96)
    ]

    def pair(accuracy: float, distance: float) -> dict:
        parts = {"accuracy": noisy(accuracy), "spread": distance + noisy(0.0), "disagreement": noisy(distance / 100)}
        return {k: summary(v) for k, v in parts.items()}

    differing = {
        "zoo": {split: pair(0.966, 4.4) for split in LEVELS},
        "generated": {split: pair(0.97, 3.2) for split in ("validation", *LEVELS)},
    }
    mixed = ("description", "condition_lerp", "condition_slerp", "weights_lerp", "weights_slerp")
    mixing = [
        {"separation": d, "accuracy": {n: summary(noisy(0.95 - 0.05 * i - d / 400)) for i, n in enumerate(mixed)}}
        for d in (10.0, 60.0, 120.0)
    ]

    pairs = [
        {"split": s, "from": "a", "to": "b", "factors": d, "background": d / 900, "accuracy": 0.95 - d / 250}
        for s in LEVELS
        for d in (2.0, 20.0, 170.0)
    ]
    near = [
        {"split": s, "task": t["task"], "nearest_factors": 1.5, "nearest_background": 0.02}
        | {"accuracy": t["generated"]["posterior_mean"], "finetuned": t["finetuned"]}
        for s, e in splits.items()
        for t in e["per_task"]
    ]
    carried = {"pairs": pairs, "generated": near, "rank_correlation": {"factors": -0.98, "background": -0.9}}

    def fit(accuracy: float, bins: int) -> dict:
        share = random.dirichlet(np.full(bins, 20 * accuracy)).round(4)
        over = {"bins": bins, "bins_hit": int((share > 0).sum()), "share": share.tolist(), "even": [1 / bins] * bins}
        over["total_variation"] = float(np.abs(share - 1 / bins).sum() / 2)
        high, inside, precision, coverage = map(float, np.clip(accuracy - 0.1 * random.random(4), 0, 1))
        return {
            "best": summary(noisy(accuracy)), "at_suited": summary(noisy(accuracy)), "high": high, "inside": inside,
            "precision": precision, "coverage": coverage, **over, "by_argmax": over,
        }  # fmt: skip

    vague = [
        {"prompt": prompt, "said": said, "tasks": 15 + i, "samples": 256}
        | {"networks": {n: fit(level, 5 + i) for n, level in FITTED.items()}}
        for i, (prompt, said) in enumerate(VAGUE.items())
    ]

    def adapted(shots: int) -> dict:
        better = 0.02 * np.log2(shots or 1)
        if not shots:
            names = ("prior", "described", "zoo", "base")
            return {"shots": 0, "accuracy": {n: summary(noisy(ADAPTED[n] / 2)) for n in names}}
        scores = {n: noisy(level + better) for n, level in ADAPTED.items()}
        ahead = {n: summary(scores["prior"] - s) for n, s in scores.items() if n != "prior"}
        scores = {n: summary(s) for n, s in scores.items()}
        return {"shots": shots, "images": 9.875 * shots, "accuracy": scores, "ahead": ahead}

    recipe = {"space": "weights", "learning_rate": 0.003, "steps": 60}
    tuned = [n for n in ADAPTED if n not in ("prior_chosen", "unlabelled")]
    adaptation = {
        "splits": {split: [adapted(shots) for shots in (0, 1, 4, 16)] for split in ("interp", "unseen")},
        "recipes": {
            str(shots): {n: recipe | {"validation": float(noisy(ADAPTED[n])[0])} for n in tuned} for shots in (1, 4, 16)
        },
    }

    def calibrated(count: int, error: float) -> dict:
        return {"networks": count, "error": summary(noisy(error)), "log_likelihood": summary(-noisy(4 * error))}

    counts = {"generated_ensemble": 8, "generated_single": 1, "finetuned_ensemble": 3, "finetuned_single": 1}
    calibration = {s: {k: calibrated(n, 0.05 - 0.001 * n) for k, n in counts.items()} for s in LEVELS}

    def of(kind: str, key: str) -> dict:
        return summary(np.array([p[key] for p in points if p["kind"] == kind]))

    return {
        "config": {
            "seed": 0,
            "tasks": {"family": "rotation", "unseen": "60:90,216:234", "num_seen": num_tasks},
            "sample": {"samplers": list(SAMPLERS), "condition": ["text"]},
            "zoo": {"dir": ""},
            "eval": {"rivals": "all", "vague_samples": 256, "calibration_samples": 8, "adapt_tasks": 16},
        },
        "seed": 0,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "command": "python -m pdiff.main --config=configs/interp.py --workdir=runs/interp",
        "created": "2025-01-02T03:04:05+00:00",
        "target": {"name": "mlp", "num_params": 2410, "symmetric": True},
        "arcs": ARCS,
        "selection": {
            "sampler": "posterior_mean",
            "many_steps": "ddim",
            "validation": {n: summary(noisy(0.94 - 0.02 * abs(i - 1))) for i, n in enumerate(SAMPLERS)},
        },
        "splits": splits,
        "spread": differing,
        "calibration": calibration,
        "vague": vague,
        "adaptation": adaptation,
        "mixing": mixing,
        "transfer": carried,
        "novelty": {
            "max_iou_to_zoo": of("generated", "max_iou"),
            "zoo_to_zoo_iou": of("zoo", "max_iou"),
            "nearest_l2": of("generated", "nearest_l2"),
            "zoo_nearest_l2": of("zoo", "nearest_l2"),
            "points": points,
        },
        "rivals": {"latent_unet": {"num_params": 1000, "seconds": 300.0}},
        "model": {"num_params": 2000, "mean_params": 500, "components": 128, "refined": 4096},
        "timing": {
            "zoo_s": 70.5,
            "train_s": 612.25,
            "sample_s_per_100": 0.061,
            "sample_s_per_100_by_sampler": {n: 0.061 if n == "posterior_mean" else 1.66 for n in SAMPLERS},
            "evaluate_s": 44.0,
            "peak_rss_mb": 1234.5,
            "total_s": 726.75,
        },
    }


def without_arcs(num_factors: int) -> dict:
    """The same of a family whose tasks have several factors and lie on no circle."""
    made = results()
    made |= {"arcs": {}, "mixing": [], "zoo": {split: 30 for split in LEVELS}}
    made["config"]["tasks"] = {"family": "class_subsets", "unseen": ""}
    for entry in made["splits"].values():
        del entry["controls"]["linear_interpolation"]
        for i, task in enumerate(entry["per_task"]):
            task["factors"] = [float(i >> f & 1) for f in range(num_factors)]
            del task["controls"]["linear_interpolation"]
    return made


def metrics(steps: int = 3000) -> list[dict]:
    """Entries of a metrics.jsonl."""
    entries = []
    for step in range(50, steps + 1, 50):
        done = step / steps
        denoising, functional = 0.4 + 0.6 * np.exp(-3 * done), 0.1 + 2 * np.exp(-6 * done)
        entries.append(
            {
                "step": step,
                "loss": denoising + functional,
                "denoising_loss": denoising,
                "functional_loss": functional,
                "learning_rate": 1e-3 * min(step / 100, (1 + np.cos(np.pi * done)) / 2),
                "grad_norm": 1 + np.sin(step) ** 2,
            }
        )
        if step % 500 == 0:
            quality = 0.95 - 0.6 * np.exp(-5 * done)
            entries.append({"step": step, "validation/heun": quality - 0.05, "validation/ddim": quality - 0.08})
            entries[-1]["validation/posterior_mean"] = quality
    return entries


def _nested(flat: dict) -> dict:
    nested = {}
    for key, value in flat.items():
        first, _, rest = key.partition(".")
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            nested[first] = value
    return nested


def _inside(angle: float, arcs: list) -> bool:
    return any((angle - a) % 360 < b - a for a, b in arcs)


def closeup(seed: int = 0) -> dict:
    """The contents of a closeup.json for `results`."""
    random = np.random.default_rng(seed)

    def noisy(level: float) -> dict:
        return summary(level + 0.01 * random.standard_normal(6))

    def points(kind: str, split: str, angles: list[float], **more) -> list[dict]:
        return [
            {"kind": kind, "split": split, "task": f"rotation_{a:g}", "factors": [float(a)]}
            | {"at": [float(9 * np.cos(np.radians(a))), float(9 * np.sin(np.radians(a)))]} | more
            for a in angles
        ]  # fmt: skip

    plane = {
        "explained": [0.25, 0.125],
        "points": points("zoo", "seen", list(range(95, 360, 5)))
        + points("finetuned", "unseen", [65, 85])
        + points("generated", "unseen", [66, 86], sampler="posterior_mean")
        + points("generated", "unseen", [67, 87], sampler="ddim"),
        "paths": [{"split": "unseen", "task": "rotation_66", "sigma": [80.0, 1.0, 0.0]}],
    }
    plane["paths"][0]["at"] = [[0.0, 0.0], [2.0, 4.0], [4.0, 8.0]]
    pair = {"averaged": 0.9, "raw": 0.875}
    images = [  # a black pixel, the smallest PNG of one
        {"png": PIXEL, "label": i, "generated": i + i % 2, "finetuned": i} for i in range(6)
    ]

    def counts(wrong: int) -> list[list[int]]:
        made = np.eye(4, dtype=int) * (100 - wrong)
        made[0, 3] += wrong
        return (made + np.diag([0, wrong, wrong, wrong])).tolist()

    return {
        "prompt": "digits rotated by 85 degrees",
        "plane": plane,
        "averaging": {
            split: {n: {k: noisy(v) for k, v in pair.items()} for n in ("posterior_mean", "ddim")}
            for split in ("interp", "seen", "unseen", "validation")
        },
        "confusion": {s: {"generated": counts(8), "finetuned": counts(2)} for s in ("interp", "seen", "unseen")},
        "images": [{"split": "unseen", "task": "rotation_66", "images": images}],
    }


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
