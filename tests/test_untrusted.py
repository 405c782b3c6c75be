"""What pdiff never does with what others made: no pickles, no code from data, no network that nobody asked for."""

import ast
import contextlib
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pdiff.system import files
from pdiff.system.checkpoint import KIND, Checkpoints
from pdiff.training.state import TrainState

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("pdiff", "launch", "configs") for p in (ROOT / folder).rglob("*.py"))

# Modules that can run what they read, or reach the network: none is imported but where it says so, and why.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch", "code", "runpy",
    "urllib", "http", "requests", "httpx", "aiohttp", "socket", "ssl", "ftplib", "smtplib", "telnetlib", "xmlrpc",
    "webbrowser", "huggingface_hub", "kagglehub", "fsspec", "socketserver", "asyncio", "wandb", "xml", "yaml",
    "subprocess", "ctypes", "bottle", "waitress", "multiprocessing",
}  # fmt: skip
IMPORTED = {
    ("launch/gke.py", "yaml"): "writes a Job; safe_dump alone",
    ("launch/common.py", "subprocess"): "starts what was asked for, without a shell",
    ("launch/local.py", "subprocess"): "starts the processes of a run, without a shell",
    ("launch/local.py", "socket"): "finds a free port of this machine for the processes to meet at",
    ("launch/local.py", "ctypes"): "has children end with their parent",
    ("pdiff/system/processes.py", "ctypes"): "a signal handler that C code cannot skip",
    ("pdiff/workdir.py", "subprocess"): "git rev-parse in pdiff's own folder, without a shell",
    ("pdiff/training/metrics.py", "wandb"): "only with --config.train.wandb",
    ("pdiff/ask/serve/app.py", "bottle"): "the page on 127.0.0.1 of --mode=serve",
    ("pdiff/convert/states.py", "torch"): "state dicts by weights_only, in a process that does nothing else",
    ("pdiff/imports/keras_file.py", "subprocess"): "HDF5's library reads an open file in it, with limits",
    ("pdiff/ask/serve/app.py", "waitress"): "the page on 127.0.0.1 of --mode=serve",
}
CALLS = {  # by the last part of the name that is called
    "eval", "exec", "__import__", "import_module", "execfile", "system", "popen", "builder_from_directory", "execvp",
    "load_source", "run_path", "run_module", "unsafe_load", "full_load", "from_string", "Markup", "urlopen",
    "urlretrieve", "download_and_prepare", "literal_eval", "create_connection", "check_output", "check_call",
}  # fmt: skip
CALLED = {
    ("pdiff/tasks/__init__.py", "import_module"): "pdiff's own modules, from a list of those that are there",
    ("pdiff/targets/__init__.py", "import_module"): "pdiff's own modules, from a list of those that are there",
    ("pdiff/system/tfds_folder.py", "builder_from_directory"): "after the folder was looked through",
    ("pdiff/tasks/data/fashion_mnist.py", "download_and_prepare"): "reads files that are there",
    ("pdiff/tasks/data/wordnet.py", "download_and_prepare"): "reads files that are there",
    ("pdiff/report/html.py", "Markup"): "a script beside the code, and its hash",
    ("launch/common.py", "execvp"): "the command that was asked for, without a shell",
}
AUDIT = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        with open(os.environ["PDIFF_ASKED"], "a") as f:
            f.write(f"{event} {args[1:] if event.startswith('socket.') else args}\\n")
sys.addaudithook(hook)
"""


@functools.cache
def used(path):
    """What a source imports, by its first part, and what it calls, with the nodes of the calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported, called = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {n.name.split(".")[0] for n in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call):
            f = node.func
            called.append((f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", ""), node))
    return imported, called


def test_modules_that_run_what_they_read_or_reach_the_network_are_where_the_list_says():
    found = {(str(p.relative_to(ROOT)), m) for p in SOURCES for m in used(p)[0] & MODULES}
    assert found == set(IMPORTED)


def test_code_comes_from_data_nowhere():
    found = {(str(p.relative_to(ROOT)), name) for p in SOURCES for name, _ in used(p)[1] if name in CALLS}
    assert found == set(CALLED)


def test_no_call_is_let_do_more_than_it_has_to():
    for path in SOURCES:
        for name, node in used(path)[1]:
            where = f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
            given = {k.arg: k.value for k in node.keywords}
            for flag, safe in (("allow_pickle", False), ("shell", False), ("weights_only", True)):
                assert flag not in given or getattr(given[flag], "value", None) is safe, where
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            owner = owner.id if isinstance(owner, ast.Name) else ""
            assert name != "load" or owner not in ("np", "numpy", "jnp", "yaml"), where
            assert (owner, name) != ("torch", "load") or "weights_only" in given, where
            if (owner, name) == ("Image", "open"):
                assert "formats" in given, where
            if owner == "jinja2" and name == "Environment":
                assert given["autoescape"].value is True, where


def test_templates_escape_everything_and_every_page_has_a_policy():
    pages = [p for folder in ("pdiff/report", "pdiff/ask/serve") for p in (ROOT / folder).glob("*.html")]
    assert len(pages) >= 6
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", "") and "autoescape" not in text, path
        if path.parent.name == "report" and path.name != "macros.html":
            assert "{{ m.head(" in text.split("</head>")[0], path  # which has the Content-Security-Policy
    assert "Content-Security-Policy" in (ROOT / "pdiff/report/macros.html").read_text()


def test_orbax_imports_no_type_that_a_checkpoint_names(tmp_path, monkeypatch):
    """Its metadata name handlers and types; whoever made a checkpoint could seal it with a manifest again."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    made = {"w": jax.numpy.arange(3, dtype=np.float32)}
    state = TrainState(jax.numpy.int32(1), made, made, made)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.prepare()
    checkpoints.save(1, state.parts, {})
    checkpoints.close()
    where = tmp_path / "checkpoints" / "1"
    named = {"_CHECKPOINT_METADATA": 0, "_METADATA": 0}
    for path in [p for p in where.rglob("*") if p.name in named]:
        text = path.read_text()
        changed = re.sub(r"orbax\.checkpoint[\w.]*|np\.ndarray|jax\.Array", "shared.evil.Type", text)
        named[path.name] += changed != text
        path.write_text(changed)
    assert all(named.values())
    (where / files.MANIFEST).unlink()
    files.write_manifest(where, KIND)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    with contextlib.suppress(Exception):  # what it makes of such names is its own affair
        checkpoints.restore_part("ema", made)
    checkpoints.close()
    assert not (tmp_path / "ran").exists() and "shared.evil" not in sys.modules


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode=check"],
        ["--mode=sample", "--prompt=digits rotated by 75 degrees", "--num_samples=1", "--out={}/nets.npz"],
        ["--config=configs/smoke.py", "--config.train.steps=0"],
    ],
    ids=["check", "sample", "config"],
)
def test_no_connection_is_opened(arguments, tmp_path):
    """Takes 20 s: one of the processes samples from the generator that comes with the package."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    asked, path = tmp_path / "asked", os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "PDIFF_ASKED": str(asked)}
    for alone in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        environment.pop(alone, None)
    command = [sys.executable, "-m", "pdiff.main", *(a.format(tmp_path) for a in arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == (1 if "--config.train.steps=0" in arguments else 0), done.stderr
    assert not asked.exists(), asked.read_text()


def test_the_watch_sees_a_connection(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PDIFF_ASKED": str(tmp_path / "asked")}
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert "socket.connect" in (tmp_path / "asked").read_text()
