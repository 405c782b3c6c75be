"""Injects faults into small runs, and says what became of each.

  python -m tests.faults --kills=200 --power=40 --flips=500 --full=50 --starts=100 --reads=100 --out=faults.json
  python -m tests.faults --soak=3600 --jobs=2          all of them mixed, at random, for an hour
  python -m tests.faults --only='kill:0.17'            one again, by the name that a failure was printed with

Exits with 1 if anything went wrong; the workdirs of failures stay in --folder.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.faults import access, disk, flips, kills, reads, starts
from tests.faults.outcome import Outcome, failures, table
from tests.faults.scenario import Ground

FRESH = 25  # of so many kills, and of so many damaged files, one is met by `python -m pdiff.main` in a new process
MIXED = (*3 * ("kill",), "power", *4 * ("flip",), "unfinished", "full", "start", "read", *access.KINDS)


class Campaign:
    """Faults by name, `kind:seed.number`, which says all about one."""

    def __init__(self, ground: Ground):
        self.ground, self._local = ground, threading.local()
        self._mounts = disk.can_mount()

    def inject(self, name: str) -> Outcome:
        kind, seed = name.split(":")
        try:
            return self._kinds()[kind](seed)
        except Exception as e:  # of the injector, or a command that never ends
            return Outcome(kind, "", seed, "stuck", f"{type(e).__name__}: {e}", kept=str(self.ground.folder))

    def _kinds(self) -> dict[str, Callable[[str], Outcome]]:
        ground = self.ground
        hinder = {k: (lambda seed, k=k: access.hinder(ground, seed, k)) for k in access.KINDS}
        return hinder | {
            "kill": lambda seed: kills.kill_fresh(ground, seed) if _fresh(seed) else kills.kill(ground, seed),
            "power": lambda seed: kills.kill(ground, seed, cut=True),
            "flip": lambda seed: flips.flip(ground, self._readers(), seed, fresh=_fresh(seed)),
            "unfinished": lambda seed: flips.unfinished(ground, seed),
            "full": lambda seed: disk.full(ground, seed, mount=self._mounts),
            "read": lambda seed: reads.read(ground, self._readers(), seed),
            "start": lambda seed: starts.start(ground, seed),
        }

    def _readers(self) -> flips.Readers:
        """Of this thread."""
        if not hasattr(self._local, "readers"):
            out = self.ground.folder / "said" / f"readers_{threading.get_ident()}.txt"
            self._local.readers = flips.Readers(out)
        return self._local.readers


def _fresh(seed: str) -> bool:
    return int(seed.split(".")[1]) % FRESH == FRESH // 2


def names(asked: dict[str, int], seed: int, soak: bool) -> Iterator[str]:
    """What to inject, kinds in turn, so that a campaign cut short has some of each."""
    number = 0
    while soak:
        yield f"{MIXED[number % len(MIXED)]}:{seed}.{number}"
        number += 1
    longest = max(asked.values(), default=0)
    places = sorted((i * longest / count, kind, i) for kind, count in asked.items() for i in range(count))
    yield from (f"{kind}:{seed}.{i}" for _, kind, i in places)


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    began = time.monotonic()
    limit = args.soak or args.limit_s or float("inf")
    folder = Path(args.folder or tempfile.mkdtemp(prefix="pdiff_faults_"))
    ground = Ground(folder, Path(args.compiled) if args.compiled else None)
    print(f"references in {time.monotonic() - began:.0f} s, in {folder}", file=sys.stderr)
    campaign, outcomes = Campaign(ground), []
    asked = {kind: getattr(args, flag) for kind, flag in COUNTED.items()}
    todo = iter(args.only) if args.only else names(asked, args.seed, args.soak > 0)
    lock = threading.Lock()

    def work() -> None:
        while time.monotonic() - began < limit:
            with lock:
                name = next(todo, None)
            if name is None:
                return
            done = campaign.inject(name)
            with lock:
                outcomes.append(done)
                print(f"{len(outcomes)} {done.verdict}: {name} {done.fault}, {done.detail} {done.why}", file=sys.stderr)

    with ThreadPoolExecutor(args.jobs) as pool:
        for job in as_completed([pool.submit(work) for _ in range(args.jobs)]):
            job.result()
    outcomes.sort(key=lambda o: o.fault)
    print(table(outcomes))
    bad = [o for o in outcomes if o.bad]
    if bad:
        print(failures(outcomes))
    seconds = time.monotonic() - began
    print(f"{len(outcomes)} faults, {len(bad)} bad, {seconds:.0f} s, --seed={args.seed} --jobs={args.jobs}")
    if args.out:
        kept = {"seed": args.seed, "seconds": seconds, "outcomes": [dataclasses.asdict(o) for o in outcomes]}
        Path(args.out).write_text(json.dumps(kept, indent=1))
    return 1 if bad else 0


COUNTED = {
    "kill": "kills", "power": "power", "flip": "flips", "unfinished": "unfinished", "full": "full", "start": "starts",
    "read": "reads",
    "permission": "permissions", "clock": "clocks", "late": "late",
}  # fmt: skip


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in COUNTED.values():
        parser.add_argument(f"--{name}", type=int, default=0, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="at a time; each wants a core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of all kinds mixed, in place of counts")
    parser.add_argument("--limit_s", type=float, default=0.0, help="begin no more after so many seconds; 0 is no limit")
    parser.add_argument("--only", nargs="*", default=[], help="faults by name, kind:seed.number")
    parser.add_argument("--out", default="", help="a JSON file of all outcomes")
    parser.add_argument("--folder", default="", help="a new folder for workdirs, by default a temporary one")
    parser.add_argument("--compiled", default="", help="where compiled programs are kept from one campaign to the next")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
