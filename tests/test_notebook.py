"""The notebook is run, from its first cell to its last."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path("examples/tour.ipynb")


@pytest.mark.slow
def test_the_tour_runs_and_draws():
    """Takes a minute and a half on two free cores."""
    notebook = nbformat.read(TOUR, as_version=4)
    ours = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")  # as a user has it, not as these tests do
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=environment)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    text = "".join(o.get("text", "") for o in outputs)
    generated = next(line for line in text.splitlines() if line.startswith("generated")).split()[-3:]
    base = next(line for line in text.splitlines() if line.startswith("base")).split()[-3:]
    assert all(float(g) > float(b) for g, b in zip(generated, base, strict=True))
