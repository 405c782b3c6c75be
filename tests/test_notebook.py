"""The notebook is run, from its first cell to its last."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path("examples/tour.ipynb")


@pytest.mark.slow
def test_the_tour_runs_and_draws():
    """Takes a minute on two free cores."""
    notebook = nbformat.read(TOUR, as_version=4)
    ours = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")  # as a user has it, not as these tests do
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=environment)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    text = "".join(o.get("text", "") for o in outputs)
    generated = next(line for line in text.splitlines() if line.startswith("generated")).split()[-3:]
    base = next(line for line in text.splitlines() if line.startswith("base")).split()[-3:]
    assert all(float(g) > float(b) for g, b in zip(generated, base, strict=True))
    assert "read as any angle at all" in text
    suited = re.findall(r"^network \d: digits rotated by (\S+) degrees, accuracy (\S+)$", text, re.MULTILINE)
    assert len(suited) == 6 and len({angle for angle, _ in suited}) > 3
    assert all(float(accuracy) > 0.8 for _, accuracy in suited)
    adapted = re.search(r"adapted to 10 images: test accuracy (\S+)", text)
    assert float(adapted[1]) > max(map(float, base))
