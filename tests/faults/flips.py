"""Damage to files at rest: flipped bytes, cut and longer files, empty, deleted and swapped ones.

`--mode=check` has to name the damaged file. What reads a workdir (report, sample, the run's own command) has to end in
one plain line, or with what it gives undamaged. Readers are called in a process that stays, as main calls them.
"""

import contextlib
import hashlib
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

from tests.faults import children
from tests.faults.kills import clean
from tests.faults.outcome import Outcome
from tests.faults.scenario import BOUNDARIES, Ground, Scenario

KINDS = ("flip", "flip", "flip", "cut", "longer", "empty", "deleted", "swapped")
READERS = ("report", "sample", "run")
# Files whose damage changes nothing that is kept, and why; a path of a workdir, or the folder that holds it.
HARMLESS = {
    "claim": "says who writes at the moment; of a finished run, nobody",
}
HISTORY = ("metrics.jsonl",)  # nothing but training could make it again: what is left of it is kept, with a warning
PROMPTS = {"run": "digits rotated by 75 degrees", "import": "strength 0.50", "weights": "strength 0.50"}
_SERVER = multiprocessing.get_context("forkserver")


class Readers:
    """A process that reads workdirs, as the command line does, one command after the other."""

    def __init__(self, out: Path):
        self._out = out
        self._start()

    def __call__(self, mode: str, config: str, workdir: Path, **more) -> children.Ended:
        """How `--mode=mode` of that config's run in `workdir` ends."""
        start = time.perf_counter()
        self._out.write_bytes(b"")
        try:
            self._ours.send((mode, config, str(workdir), more))
            if not self._ours.poll(children.LIMIT_S):
                raise TimeoutError(f"--mode={mode} took more than {children.LIMIT_S:g} s on {workdir}")
            code = self._ours.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):  # it died
            self._process.join()
            code = self._process.exitcode
            self._start()
        return children.Ended(code, self._out.read_text(errors="replace"), time.perf_counter() - start)

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        self._ours, theirs = _SERVER.Pipe()
        self._process = _SERVER.Process(target=_read_on, args=(theirs, str(self._out)), daemon=True)
        self._process.start()
        theirs.close()


def flip(ground: Ground, readers: Readers, seed: str, scenario: str = "", fresh: bool = False) -> Outcome:
    """One damaged file of a finished run; `check` and one other reader look at it, or `fresh`: the real command."""
    draw = random.Random(seed)
    chosen = ground.scenarios[scenario or draw.choice([n for n in ground.scenarios if n != "import"])]
    name, start = f"flip_{seed}", time.perf_counter()
    workdir = ground.folder / "work" / name
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(ground.reference(chosen.name), workdir)
    kind, damaged = damage(workdir, draw)
    done = Outcome(f"damage: {kind}", f"{chosen.name}, {' and '.join(damaged)}", seed, "detected")
    config, as_damaged = chosen.args[0].split("=", 1)[1], digest_of_all(workdir)
    if fresh:
        ended = children.fresh([f"--workdir={workdir}", "--mode=check"], ground.compiled)
    else:
        ended = readers("check", config, workdir)
    if digest_of_all(workdir) != as_damaged:
        return done.fail("different", ended, workdir, "--mode=check changed a file")
    harmless = all(d.split("/")[0] in HARMLESS for d in damaged)
    if ended.traceback:
        return done.fail("traceback", ended, workdir)
    if ended.code == 0:
        if not harmless:
            return done.fail("silent", ended, workdir)
        done.verdict = "harmless"
    elif not ended.plain_error:
        return done.fail("traceback", ended, workdir)
    elif not _named(kind, damaged, ended.error, workdir):
        return done.fail("unnamed", ended, workdir)
    reader = draw.choice(READERS)
    verdict, why = _read(ground, readers, chosen, reader, workdir, damaged)
    done.seconds = time.perf_counter() - start
    if verdict in ("silent", "traceback", "different"):
        done.verdict, done.why, done.kept = verdict, f"--mode={reader}: {why}", str(workdir)
        return done
    clean(ground, workdir, name)
    return done


def unfinished(ground: Ground, seed: str, scenario: str = "run", stage: str = "") -> Outcome:
    """One damaged file of a run that was stopped; the same command goes on, and ends as if nothing had been."""
    draw = random.Random(seed)
    chosen, stage = ground.scenarios[scenario], stage or draw.choice(BOUNDARIES)
    name = f"unfinished_{seed}"
    workdir, out = ground.place(chosen, name, stage), ground.folder / "said" / f"unfinished_{seed}.txt"
    kind, damaged = damage(workdir, draw)
    detail = f"{chosen.name} before {stage}, {' and '.join(damaged)}"
    done = Outcome(f"damage, unfinished: {kind}", detail, seed, "healed")
    ended = children.run(ground.args(chosen, workdir), out)
    done.seconds = ended.seconds
    if ended.traceback:
        return done.fail("traceback", ended, workdir)
    if ended.code == 0:
        wrong = ground.different(chosen, workdir)
        if wrong:
            return done.fail("different", ended, workdir, ", ".join(wrong[:4]))
    elif not ended.plain_error:
        return done.fail("traceback", ended, workdir)
    else:
        done.verdict = "refused"
        if not _named(kind, damaged, ended.error, workdir):
            return done.fail("unnamed", ended, workdir)
    clean(ground, workdir, name)
    return done


def _named(kind: str, damaged: list[str], error: str, workdir: Path) -> bool:
    """Whether a message names what is damaged. Without its manifest a folder is unfinished, and it is what is named."""
    if kind == "deleted" and damaged[0].endswith("manifest.json"):
        return str(workdir) in error
    return any(name in error for name in damaged)


def damage(workdir: Path, draw: random.Random) -> tuple[str, list[str]]:
    """Damages one file, or swaps two; every folder as likely as every other. Returns the kind and the files' names."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
        by_folder.setdefault(path.parent, []).append(path)
    path = draw.choice(draw.choice([by_folder[f] for f in sorted(by_folder)]))
    data, kind = path.read_bytes(), draw.choice(KINDS)
    names = [str(path.relative_to(workdir))]
    if kind == "swapped":
        others = [p for p in by_folder[path.parent] if p.read_bytes() != data]
        if not others:
            kind = "flip"
        else:
            other = draw.choice(others)
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return kind, [*names, str(other.relative_to(workdir))]
    if kind in ("flip", "cut", "empty") and not data:
        kind = "longer"
    if kind == "flip":
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :])
    elif kind == "cut":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "longer":
        path.write_bytes(data + draw.randbytes(draw.randint(1, 64)))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    return kind, names


def _read(
    ground: Ground, readers: Readers, chosen: Scenario, reader: str, workdir: Path, damaged: list[str]
) -> tuple[str, str]:
    """What a reader makes of a damaged workdir. Going back to an older checkpoint is fine if a warning says so."""
    config, before = chosen.args[0].split("=", 1)[1], digest_of_all(workdir)
    if reader == "sample":
        out = workdir.with_name(f"{workdir.name}.npz")
        ended = readers("sample", config, workdir, prompt=PROMPTS[chosen.name], out=str(out))
        made = hashlib.sha256(out.read_bytes()).hexdigest() if out.exists() else ""
        for path in out.parent.glob(f"{out.name}*"):  # its digest too
            path.unlink()
    else:
        ended = readers(reader, config, workdir)
    last = f"exit {ended.code}: " + " | ".join(ended.said.strip().splitlines()[-3:])[-400:]
    warnings = [line for line in ended.said.splitlines() if "warning: " in line]
    warned = any(name in line for name in damaged for line in warnings)
    if reader == "sample" and digest_of_all(workdir) != before:
        return "different", "it changed a file"
    if ended.traceback:
        return "traceback", last
    if ended.code:
        return ("refused", "") if ended.plain_error else ("traceback", last)
    if reader == "sample":
        expected = _sampled(ground, readers, chosen, config)
        if made != expected and not warned:
            return "silent", "other networks than from the undamaged run"
        return "healed", ""
    if reader == "report":  # what it wrote, and nothing else: other files may still be damaged
        written = ("report.html", "table.md", "plots")
        wrong = [d for d in ground.different(chosen, workdir) if d.split("/")[0] in written]
    else:
        wrong = ground.different(chosen, workdir)
    if wrong and wrong[0].startswith("--mode=check"):
        return "different", f"ended well, and yet {wrong[0]}"
    if wrong and warned and damaged[0] in HISTORY and set(wrong) <= {*HISTORY, "plots/training.svg", "report.html"}:
        return "lost", ""
    return ("silent", f"{', '.join(wrong[:4])} differ") if wrong else ("healed", "")


def digest_of_all(workdir: Path) -> str:
    """Of every file's name and contents."""
    digest = hashlib.sha256()
    for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
        digest.update(str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sampled(ground: Ground, readers: Readers, chosen: Scenario, config: str) -> str:
    """The digest of what the undamaged run samples."""
    kept = ground.folder / "said" / f"{chosen.name}.sampled"
    if not kept.exists():
        out = ground.folder / "work" / f"{chosen.name}_{os.getpid()}_sampled.npz"
        ended = readers("sample", config, ground.reference(chosen.name), prompt=PROMPTS[chosen.name], out=str(out))
        if ended.code:
            raise RuntimeError(f"{chosen.name}: cannot be sampled from undamaged: {ended.said}")
        kept.write_text(hashlib.sha256(out.read_bytes()).hexdigest())
        for path in out.parent.glob(f"{out.name}*"):
            path.unlink()
    return kept.read_text()


def _read_on(pipe, out: str) -> None:
    """Of the process that stays: (mode, config, workdir, more) in, exit codes out."""
    import importlib.util
    import shlex
    import traceback
    from unittest import mock

    from pdiff import modes, run
    from pdiff.ask import commands, serve
    from pdiff.system import exits, machine

    file = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    machine.set_up(None, all_cores=False)
    while True:
        try:
            mode, config, workdir, more = pipe.recv()
        except EOFError:
            return
        code = 0
        try:
            with exits.said():
                if mode in ("sample", "adapt"):
                    getattr(commands, mode)(Path(workdir), num_samples=2, seed=0, **more)
                elif mode == "publish":
                    commands.publish(Path(workdir), **more)
                elif mode == "serve":  # until it is ready
                    with mock.patch("waitress.server.BaseWSGIServer.run"):
                        serve.serve(Path(workdir), 0)
                elif mode == "run":
                    spec = importlib.util.spec_from_file_location("config", config)
                    module = importlib.util.module_from_spec(spec)
                    spec.loader.exec_module(module)
                    words = ["python", "-m", "pdiff.main", f"--config={config}", f"--workdir={workdir}"]
                    run.run(module.get_config(), Path(workdir), command=shlex.join(words))
                else:
                    modes.MODES[mode].call(None, Path(workdir))
        except SystemExit as e:
            code = e.code
        except BaseException:
            traceback.print_exc()
            code = 70
        with contextlib.suppress(BrokenPipeError):
            pipe.send(code)
