#!/usr/bin/env bash
# Writes both files anew from setup.py. Needs the extra "release"; docs/reliability.md says how a set is tested.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() { uv pip compile setup.py --quiet --upgrade --python-version 3.11 --no-header --no-annotate "$@"; }

{
  echo "# Linux x86-64, Python 3.11: every package of the newest versions that setup.py allows, but those of the extra"
  echo "# \"gpu\" and what PyTorch and the extra \"adapters\" bring. Made by constraints/write.sh."
  compile --extra test --extra wandb --extra release --extra tpu
  compile --extra bench --extra adapters --no-deps | grep -E '^(diffusers|peft|torch|transformers)=='
} > constraints/newest.txt
{
  echo "# The oldest version that setup.py allows of each package it names. Made by constraints/write.sh."
  compile --all-extras --no-deps --resolution lowest
} > constraints/oldest.txt
