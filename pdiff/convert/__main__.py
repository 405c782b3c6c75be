"""Turns the PyTorch files of a folder into safetensors of the same names and folders, which --mode=import reads.

    python -m pdiff.convert --source=DIR --out=NEW_DIR

Read are .pt, .pth, .bin, .ckpt and what torch.save wrote without an ending: state dicts, alone or as the one entry of a
checkpoint that has tensors, with torch.load(weights_only=True), which runs no code. What asks for code is refused, a
line each, and the rest is written; then the exit code is 1. Beside them, safetensors, .npz, .npy, .msgpack, .h5 and
.keras, JSON, text and CSV are copied as they are. NEW_DIR must not exist, or be empty; it appears when all is done.
"""

import argparse
import sys
from pathlib import Path

from pdiff.convert import states, walk
from pdiff.errors import PdiffError, complain, printable


def main() -> int:
    """Reads the flags; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pdiff.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="a folder with files of PyTorch; it is only read")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; a new one")
    parser.add_argument("--mb", type=float, default=4000, help="megabytes (10^6 bytes) that one file may hold")
    chosen = parser.parse_args()
    try:
        states.confine(chosen.mb)
        done = walk.convert(chosen.source, chosen.out, lambda path: states.load(path, chosen.mb))
    except PdiffError as e:
        complain(str(e))
        return 1
    for line in done.notes:
        print(printable(line))
    for line in done.refused:
        complain(line)
    print(f"{chosen.out}: {done.converted} files converted, {done.copied} copied, {len(done.refused)} refused")
    return 1 if done.refused else 0


if __name__ == "__main__":
    sys.exit(main())
