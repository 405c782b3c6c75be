"""How time, memory and accuracy go with the size of networks: zoos of 128 from 10 k to 10 M parameters, or more.

    python -m benchmarks.size --sizes=10k,100k,1M,10M --folder=/scratch --out=docs/size.json

Each zoo is made up, so that the truth is known: a network is a curved function of two factors, times the noise of its
seed. It goes the way of a user's networks, in processes of their own whose peak memory is told apart: files are
imported (`--mode=import`), statistics, basis, mean and prior are computed (`pdiff.run.learn`), and a network that no
task is like is drawn and exported (`--mode=sample`). Then networks for 16 descriptions between the seen ones are drawn
and compared with the truth, beside the nearest seen network, ridge regression and linear interpolation, which are
linear in the zoo's networks and so are computed from inner products alone.

`--basis=never` measures the mean with a last layer as wide as the networks, where that fits. Needs five times as much
disk as the zoo. Run again, a stopped one goes on.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

# Square layers with a bias: their width, and how many.
SIZES = {"10k": (32, 10), "100k": (64, 24), "1M": (256, 15), "10M": (1024, 10), "100M": (2048, 24)}
NETWORKS, TESTED = 128, 16
WAVES, FREQUENCY = 32, 2.5  # of which a network is a sum; in radians over the range of a factor
SIGNAL, NOISE = 0.01, 0.005  # rms of what the factors and the seed change, of weights whose rms is 0.05
NUMBER_NOISE = 0.06  # condition.number_noise: of .01, .03 and .06 the best at 10 k, on descriptions of no test
FACTORS = ("warmth", "sharpness")
SLICE = 1 << 16  # weights at a time
STAGES = ("import", "train", "sample")  # what a user's networks go through
SMALL_MB = 1024  # zoo.memory_mb and zoo.import_mb


def leaves(size: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's arrays."""
    width, depth = SIZES[size]
    shapes = {f"layer_{i:02d}/kernel": (width, width) for i in range(depth)}
    return dict(sorted((shapes | {f"layer_{i:02d}/bias": (width,) for i in range(depth)}).items()))


def num_params(size: str) -> int:
    return sum(map(math.prod, leaves(size).values()))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Networks as a function of two factors from 0 to 1, known weight by weight: sums of waves over the square."""

    size: str

    def waves(self, factors: Float[np.ndarray, "nets 2"]) -> Float[np.ndarray, "nets waves"]:
        random = np.random.default_rng(7)
        turns, phases = FREQUENCY * random.standard_normal((2, WAVES)), random.uniform(0, 2 * np.pi, WAVES)
        return np.sqrt(2 / WAVES) * np.cos(factors @ turns + phases)

    def slices(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(weights, what all networks share, what each wave adds to them) all over the network."""
        total = num_params(self.size)
        for number, start in enumerate(range(0, total, SLICE)):
            part, random = slice(start, min(start + SLICE, total)), np.random.default_rng([11, number])
            drawn = random.standard_normal((WAVES + 1, part.stop - part.start), np.float32)
            yield part, 0.05 * drawn[0], SIGNAL * drawn[1:]

    @staticmethod
    def noise(networks: int, part: slice) -> Float[np.ndarray, "nets weights"]:
        """Of the seeds of the zoo's networks."""
        random = np.random.default_rng([13, part.start])
        return NOISE * random.standard_normal((networks, part.stop - part.start), np.float32)


def seen_factors(count: int) -> Float[np.ndarray, "nets 2"]:
    """Spread evenly over the square, with three digits, as the descriptions have them."""
    from scipy.stats import qmc

    return qmc.Halton(2, rng=np.random.default_rng(3)).random(count).round(3)


def other_factors(stream: int) -> Float[np.ndarray, "tested 2"]:
    """Between them, where nothing was trained."""
    return np.random.default_rng([5, stream]).uniform(0.1, 0.9, (TESTED, 2)).round(3)


def described(factors: np.ndarray) -> str:
    return " and ".join(f"{name} {value:.3f}" for name, value in zip(FACTORS, factors, strict=True))


def make_zoo(source: Path, size: str, count: int) -> None:
    """A safetensors file for each network, written slice by slice, and the manifest."""
    source.mkdir(parents=True)
    factors, curve = seen_factors(count), Curve(size)
    offset, header = 0, {}
    for path, shape in leaves(size).items():
        end = offset + 4 * math.prod(shape)
        header[path] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    lines = [",".join(("file", "task", "description", *(f"factor:{name}" for name in FACTORS)))]
    files = []
    for i, (a, b) in enumerate(factors):
        name = f"network_{i:03d}"
        files.append(open(source / f"{name}.safetensors", "wb"))  # noqa: SIM115  closed below
        files[-1].write(len(text).to_bytes(8, "little") + text)
        lines.append(f"{name}.safetensors,{name},{described((a, b))},{a},{b}")
    waves = curve.waves(factors).astype(np.float32)
    for part, shared, directions in curve.slices():
        values = shared + waves @ directions + curve.noise(count, part)
        for file, row in zip(files, values, strict=True):
            file.write(row.tobytes())
    for file in files:
        file.close()
    (source / "manifest.csv").write_text("\n".join(lines) + "\n")


def flags(size: str, basis: str, dtype: str) -> list[str]:
    fields = {"tasks.num_unseen": 0, "tasks.num_validation": 0, "zoo.import_mb": SMALL_MB, "zoo.memory_mb": SMALL_MB}
    fields |= {"weights.basis": basis, "weights.basis_dtype": dtype, "condition.number_noise": NUMBER_NOISE}
    return ["--config=configs/imported.py", *(f"--config.{name}={value}" for name, value in fields.items())]


def config_of(size: str, basis: str, dtype: str):
    from configs import imported

    config = imported.get_config()
    with config.unlocked():
        for flag in flags(size, basis, dtype)[1:]:
            name, _, value = flag.removeprefix("--config.").partition("=")
            part, leaf = name.split(".")
            config[part][leaf] = type(config[part][leaf])(value)
    return config.lock()


# --- stages, each in a process of its own --------------------------------------------------------


def train(workdir: Path, config) -> dict:
    """What a run does before it evaluates."""
    from pdiff import run, scenario
    from pdiff.system import dist, files, logs, machine
    from pdiff.system.stopping import StopSignal

    machine.set_up(config)
    logs.set_up()
    family, target = scenario.family_and_target(config, workdir)
    with StopSignal() as stop:
        _, generator, _ = run.learn(config, family, target, workdir, dist.make_mesh(), stop)
    timing = files.read_json(workdir / "timing.json", "")
    return {k: timing[k] for k in ("zoo_s", "statistics_s", "train_s")} | {
        "coordinates": generator.stored.count if generator.stored else 0,
        "components": len(generator.subspace.basis),
    }


def compare(workdir: Path, size: str, count: int) -> dict:
    """Draws networks for descriptions between the seen ones, and measures their distance from the truth."""
    from pdiff.ask import api
    from pdiff.controls.neighbours import Nearest
    from pdiff.controls.ridge import Ridge
    from pdiff.system import logs, machine
    from pdiff.weights.spec import flatten

    machine.set_up()
    logs.set_up()
    loaded = api.load(workdir)
    tested, choosing, seen = other_factors(0), other_factors(1), seen_factors(count)
    samplers, seconds = loaded.config.sample.samplers, []
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        drawn = {s: np.lib.format.open_memmap(Path(scratch) / f"{s}.npy", "w+", np.float32,
                                              (TESTED, num_params(size))) for s in samplers}  # fmt: skip
        for sampler, rows in drawn.items():
            for row, factors in zip(rows, tested, strict=True):
                start = time.perf_counter()
                network = loaded.sample(described(factors), sampler=sampler)
                seconds.append(time.perf_counter() - start)
                row[:] = np.concatenate([np.asarray(value).reshape(-1) for _, value in flatten(network)])
                rows.flush()
        gram, blocks = _products(Curve(size), seen, [tested, choosing], list(drawn.values()))
    if not np.allclose(loaded.family.factors(), in_order_of(loaded.family, seen)):
        raise SystemExit("the tasks are not those of the zoo that was made, in its order")
    zoo = _identity_zoo(loaded.family, count)

    def distance(weights: np.ndarray, truth: str) -> Float[np.ndarray, " tested"]:
        """Of combinations of the zoo's networks from the truth, rms over weights, in units of the factors' changes."""
        rows = np.zeros((TESTED, len(gram)))
        rows[:, blocks["zoo"]] = weights
        return _norms(gram, rows, blocks[truth]) / (SIGNAL * np.sqrt(num_params(size)))

    def control(model, factors) -> np.ndarray:
        ordered = in_order_of(loaded.family, factors)
        tasks = [dataclasses.replace(loaded.family.tasks[0], id=-1, split="unseen", factors=tuple(f)) for f in ordered]
        return model.sample(tasks, 1, np.random.default_rng(0)).reshape(len(tasks), -1)

    ridge = Ridge.select(zoo, lambda model: -distance(control(model, choosing), "choosing").mean())
    unit = SIGNAL * np.sqrt(num_params(size))
    result = {f"generated, {s}": _between(gram, blocks[f"drawn {i}"], blocks["tested"]) / unit
              for i, s in enumerate(samplers)}  # fmt: skip
    result |= {
        "nearest": distance(control(Nearest.fit(zoo), tested), "tested"),
        "ridge": distance(control(ridge, tested), "tested"),
        "interpolation": distance(_barycentric(seen, tested), "tested"),
        "mean of the zoo": distance(np.full((TESTED, count), 1 / count), "tested"),
    }
    means = {name: [float(d.mean()), float(d.std(ddof=1) / np.sqrt(TESTED))] for name, d in result.items()}
    first = {s: seconds[i * TESTED] for i, s in enumerate(samplers)}
    again = {s: float(np.median(seconds[i * TESTED + 1 : (i + 1) * TESTED])) for i, s in enumerate(samplers)}
    return {"distance": means, "first_draw_s": first, "draw_s": again, "ridge": [ridge.harmonics, ridge.penalty]}


def in_order_of(family, factors: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Factors as the family has them, which has them by name."""
    return factors[:, [FACTORS.index(name) for name in family.factor_names]]


def _products(curve: Curve, seen: np.ndarray, truths: list[np.ndarray], drawn: list[np.ndarray]):
    """Inner products of the zoo's networks, true ones and drawn ones, less what all share, and where each lies."""
    sizes = [len(seen), *map(len, truths), *map(len, drawn)]
    names = ["zoo", "tested", "choosing", *(f"drawn {i}" for i in range(len(drawn)))]
    ends = np.cumsum(sizes)
    blocks = {name: slice(end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)}
    waves = np.float32(curve.waves(np.concatenate([seen, *truths])))
    gram = np.zeros((ends[-1], ends[-1]))
    for part, shared, directions in curve.slices():
        rows = np.zeros((ends[-1], len(shared)))
        rows[: len(waves)] = waves @ directions
        rows[blocks["zoo"]] += curve.noise(len(seen), part)
        for i, one in enumerate(drawn):
            rows[blocks[f"drawn {i}"]] = one[:, part] - shared
        gram += rows @ rows.T
    return gram, blocks


def _norms(gram: np.ndarray, rows: np.ndarray, truth: slice) -> np.ndarray:
    """Norm of each combination of networks less its true one."""
    rows = rows.copy()
    rows[np.arange(len(rows)), np.arange(truth.start, truth.stop)] -= 1
    return np.sqrt(np.maximum(np.einsum("ti,ij,tj->t", rows, gram, rows), 0))


def _between(gram: np.ndarray, a: slice, b: slice) -> np.ndarray:
    rows = np.zeros((a.stop - a.start, len(gram)))
    rows[np.arange(len(rows)), np.arange(a.start, a.stop)] = 1
    return _norms(gram, rows, b)


def _identity_zoo(family, count: int):
    """A zoo whose network i is the i-th unit vector: what a linear control makes of it are its coefficients."""
    from pdiff.controls import SeenZoo

    base = np.full((1, count), 1 / count, np.float32)  # their mean, as an import without a base has it
    return SeenZoo(family, np.eye(count, dtype=np.float32)[:, None], base, np.arange(count), np.zeros(count, int))


def _barycentric(seen: np.ndarray, tested: np.ndarray) -> Float[np.ndarray, "tested nets"]:
    """Linear interpolation within the triangle of seen tasks around each."""
    from scipy.interpolate import LinearNDInterpolator

    return LinearNDInterpolator(seen, np.eye(len(seen)))(tested)


def stage(name: str, workdir: Path, given: argparse.Namespace) -> dict:
    size = given.size
    if name == "make":
        make_zoo(workdir.parent / "source", size, given.networks)
        return {}
    if name == "train":
        return train(workdir, config_of(size, given.basis, given.dtype))
    return compare(workdir, size, given.networks)


def measured(command: list[str]) -> dict:
    """Runs a process; its seconds, those of processors (of all cores, so up to as many times more), and peak memory,
    its own alone, with what the last line that it prints says, if that is JSON."""
    script = (
        "import resource, subprocess, sys; "
        "code = subprocess.run(sys.argv[1:]).returncode; "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    processor, peak = done.stderr.split()[-2:]
    found = {"s": seconds, "cpu_s": float(processor), "gib": int(peak) / 1024**2}
    last = done.stdout.strip().splitlines()[-1:] or [""]
    return found | (json.loads(last[0]) if last[0].startswith("{") else {})


def of_size(size: str, given: argparse.Namespace) -> dict:
    """All that is measured of one size. What was stopped goes on: with the stage at which it was, begun anew."""
    root = Path(given.folder or tempfile.gettempdir()) / f"size_{size}_{given.networks}_{given.basis}_{given.dtype}"
    source, workdir, kept = root / "source", root / "workdir", root / "row.json"
    root.mkdir(parents=True, exist_ok=True)
    main = [sys.executable, "-m", "pdiff.main", f"--workdir={workdir}"]
    own = [sys.executable, "-m", "benchmarks.size", f"--size={size}", f"--workdir={workdir}"]
    own += [f"--basis={given.basis}", f"--dtype={given.dtype}", f"--networks={given.networks}"]
    prompt, out = f"--prompt={described(other_factors(0)[0])}", root / "net.safetensors"
    commands = {
        "make": [*own, "--stage=make"],
        "import": [*main, *flags(size, given.basis, given.dtype), "--mode=import", f"--source={source}"],
        "train": [*own, "--stage=train"],
        "sample": [*main, "--mode=sample", prompt, "--num_samples=1", f"--out={out}"],
        "compare": [*own, "--stage=compare"],
    }
    row = {"size": size, "params": num_params(size), "networks": given.networks}
    row |= {"basis": given.basis, "dtype": given.dtype}
    if kept.exists():
        row = json.loads(kept.read_text())
    for name, command in commands.items():
        if name not in row:
            _begin(name, root)
            row[name] = measured(command)
            if name == "train":
                row["disk_gb"] = {p.name: _size(p) / 1e9 for p in workdir.iterdir() if p.is_dir()}
            kept.write_text(json.dumps(row))
    for total, part, of in (("total_s", "s", sum), ("cpu_s", "cpu_s", sum), ("peak_gib", "gib", max)):
        row[total] = of(row[name][part] for name in STAGES)
    shutil.rmtree(root)
    return row


def _begin(name: str, root: Path) -> None:
    """Removes what a stopped stage has left, and what is needed no more."""
    leftovers = {
        "make": ["source"],
        "import": ["workdir"],
        "train": ["source", *(f"workdir/{n}" for n in ("basis", "mean", "generator", "checkpoints", "timing.json"))],
        "sample": ["net.safetensors", "net.safetensors.sha256"],
        "compare": [],
    }
    for path in (root / n for n in leftovers[name]):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def slopes(rows: list[dict]) -> dict[str, float]:
    """Exponents of the number of parameters from the smallest size to the largest."""
    first, last = min(rows, key=lambda r: r["params"]), max(rows, key=lambda r: r["params"])
    if first is last:
        return {}
    span = math.log(last["params"] / first["params"])
    return {n: math.log(last[n] / first[n]) / span for n in ("total_s", "cpu_s", "peak_gib")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10k,100k,1M,10M", help=f"some of {', '.join(SIZES)}")
    parser.add_argument("--networks", type=int, default=NETWORKS)
    parser.add_argument("--basis", default="auto", choices=("auto", "always", "never"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the basis")
    parser.add_argument("--folder", default=None, help="on whose disk all lies for as long as it runs")
    parser.add_argument("--out", default=None, help="a JSON file, to which rows are added")
    for name in ("--size", "--workdir", "--stage"):  # of the processes that it starts
        parser.add_argument(name, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(stage(given.stage, Path(given.workdir), given)))
        return
    out = Path(given.out) if given.out else None
    rows = json.loads(out.read_text())["rows"] if out and out.exists() else []
    for size in given.sizes.split(","):
        rows.append(of_size(size, given))
        print(json.dumps(rows[-1]), flush=True)
        if out:
            text = {"cores": len(os.sched_getaffinity(0)), "slopes": slopes(rows), "rows": rows}
            out.write_text(json.dumps(text, indent=1) + "\n")
    print(f"slopes: {slopes(rows)}")


if __name__ == "__main__":
    main()
