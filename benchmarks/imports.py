"""How much memory and time an import of many adapters takes: 128 of 9.4 million parameters by default.

    python -m benchmarks.imports --dtype=bfloat16 --import_mb=1024

Makes PEFT folders of rank 16 on the query and value of each layer of a 4096-wide model, with random factors that move
with a strength, imports them in a process of its own, and prints what that took. Needs 5 GB of disk for the adapters in
float32, and twice 5 GB for the zoo.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def make(root: Path, count: int, layers: int, width: int, rank: int, dtype: str) -> int:
    """PEFT folders strength_0.000 … strength_1.000 below `root`; returns the parameters of each."""
    modules = [f"model.layers.{i}.self_attn.{m}_proj" for i in range(layers) for m in "qv"]
    shapes = {
        f"base_model.model.{m}.lora_{k}.weight": s
        for m in modules
        for k, s in (("A", (rank, width)), ("B", (width, rank)))
    }
    common = {
        n: np.random.default_rng(i).standard_normal((2, *s), np.float32) for i, (n, s) in enumerate(shapes.items())
    }
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"],
              "bias": "none", "base_model_name_or_path": "made-up/base", "task_type": "CAUSAL_LM"}  # fmt: skip
    for i, strength in enumerate(np.linspace(0, 1, count)):
        folder, random = root / f"strength_{strength:.3f}", np.random.default_rng([1, i])
        folder.mkdir(parents=True)
        arrays = {
            n: (0.01 * (c[0] + strength * c[1]) + 0.001 * random.standard_normal(c[0].shape, np.float32))
            for n, c in common.items()
        }
        arrays = {n: a.astype(DTYPES[dtype]) for n, a in arrays.items()}
        safetensors.numpy.save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return sum(rows * columns for rows, columns in shapes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--layers", type=int, default=36, help="36 of rank 16 are 9.4 M parameters")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--import_mb", type=int, default=1024)
    parser.add_argument("--folder", default=None, help="on whose disk all lies for as long as it runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        root = Path(folder)
        size = make(root / "source", given.count, given.layers, given.width, given.rank, given.dtype)
        print(f"{given.count} adapters of {size / 1e6:.2f} M parameters, {given.dtype}", flush=True)
        command = [sys.executable, "-m", "pdiff.main", "--config=configs/imported.py", "--mode=import"]
        where = [f"--source={root / 'source'}", f"--workdir={root / 'w'}", f"--config.zoo.import_mb={given.import_mb}"]
        start = time.perf_counter()
        subprocess.run([*command, *where], check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        print(f"import: {seconds:.0f} s, peak memory {peak:.2f} GiB at zoo.import_mb={given.import_mb}")


if __name__ == "__main__":
    main()
