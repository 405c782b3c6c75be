"""A whole run, zoo, training, evaluation and report, and what can be asked of a finished one."""

import datetime
import json
import resource
from functools import partial
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import results as results_lib
from pdiff import scenario
from pdiff import workdir as workdir_lib
from pdiff.errors import PdiffError
from pdiff.evaluation import closeup, copies
from pdiff.evaluation import evaluate as evaluate_lib
from pdiff.evaluation.bench import Bench
from pdiff.generator import generator, published, refined
from pdiff.imports import zoo
from pdiff.models.dit import count_parameters
from pdiff.report import audit_page, html, weights_page
from pdiff.report.validation import accuracy_by_task
from pdiff.rivals import trained
from pdiff.system import dist, files, logs, processes, sharding
from pdiff.system.logs import log
from pdiff.system.stopping import StopSignal
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.training import stages
from pdiff.training import train as train_lib
from pdiff.zoo import build, finetune

PAGES = ("report.html", "table.md", "plots")  # what the report is made of
RIVAL_MEASURES = ("accuracy", "max_iou", "nearest_l2", "inherited")  # of an audit, kept for each rival


def run(config: ConfigDict, workdir: Path, command: str = "") -> dict:
    """Everything: zoo, training, evaluation, report. Resumes what is there; a finished run is left as it is.

    Of a finished run all files are checked first, and what is damaged is made again. Returns the contents of
    results.json.

    Raises:
      PdiffError: the config is not valid, or the workdir belongs to another one, or another process writes there.
    """
    logs.set_up()
    config_lib.validate(config)
    family, target = scenario.family_and_target(config, workdir)
    generator.check(config, family, target)
    if family.data:
        finetune.check(target, config.zoo)
    mesh = dist.make_mesh(model=config.mesh.model)
    sharding.check(config, mesh)
    with workdir_lib.writing(workdir):
        processes.on_first(partial(workdir_lib.keep_config, config, workdir), "in one workdir")
        if processes.all_hold(not processes.is_first() or workdir_lib.is_finished(workdir)):
            log.info("%s is finished; see %s", workdir, workdir / "report.html")
            return results_lib.read(workdir / "results.json")
        with StopSignal() as stop:
            with workdir_lib.timed(workdir, "zoo_s"):
                networks = _zoo(family, target, config, workdir, mesh, stop)
            log.info("zoo: %d networks of %d seen tasks", len(networks["seen"]), len(family.split("seen")))
            made = generator.make_generator(config, family, target, networks)
            with workdir_lib.timed(workdir, "train_s"):
                made, params = _train(made, networks["seen"], workdir, mesh, stop)
            results = _evaluate(made, params, networks, workdir, command, stop)
        _report(workdir)
    onwards = "sample, serve or audit" if made.family.data else "sample"
    log.info("next: open the report in a browser; then --workdir=%s with --mode=%s", workdir, onwards)
    return results


def evaluate(workdir: Path) -> dict:
    """Scores the newest checkpoint again, from the zoo, and rewrites results.json and the report."""
    logs.set_up()
    made = generator.load(workdir)
    with workdir_lib.writing(workdir), StopSignal() as stop:
        workdir_lib.check_rest(workdir, ("results.json", closeup.FILE, *PAGES))
        networks = _zoo(made.family, made.target, made.config, workdir, dist.make_mesh(), stop)
        params = published.restore_params(made, workdir, final=True)
        results = _evaluate(made, params, networks, workdir, workdir_lib.command(workdir), stop)
        _report(workdir)
    return results


def report(workdir: Path) -> None:
    """Writes report.html and plots/ from results.json and metrics.jsonl."""
    logs.set_up()
    with workdir_lib.writing(workdir):
        workdir_lib.check_rest(workdir, PAGES)
        _report(workdir)


def audit(workdir: Path) -> dict:
    """Asks whether the networks of a finished run are copies, noised copies or averages of its zoo's, or new.

    Writes audit.json, plots/audit_*.svg and audit.html, and returns the contents of the first.

    Raises:
      PdiffError: the run is not finished, its zoo is damaged, or it has too few networks to compare with.
    """
    logs.set_up()
    if not (workdir / files.MANIFEST).exists():
        raise PdiffError(f"{workdir}: not finished, it has no manifest.json; --mode=audit works on a finished run")
    sampler = results_lib.read(workdir / "results.json")["selection"]["sampler"]
    made = generator.load(workdir)
    if not made.family.data:
        raise PdiffError(f"{workdir}: an imported zoo without images; --mode=audit needs networks' answers")
    with workdir_lib.writing(workdir):
        workdir_lib.check_rest(workdir, ("audit.json", "audit.html"))
        networks = build.store.in_memory(_read_zoo(made.config, workdir))
        mesh = dist.make_mesh()
        bench = Bench(made, published.restore_params(made, workdir, final=True), mesh)
        seen = networks["seen"]
        log.info("audit: networks of %d seen tasks against %d of the zoo", len(bench.tasks("seen")), len(seen))
        learned = copies.seen_zoo(bench, seen)
        found = copies.audit_run(bench, learned, sampler) | {
            "sampler": sampler,
            "seed": made.config.seed,
            "commit": workdir_lib.commit(),
            "target": {"name": made.target.name, "num_params": made.spec.num_params},
        }
        others = {n: copies.audit_baseline(bench, learned, r) for n, r in trained.kept(made, workdir, mesh).items()}
        if others:
            found["rivals"] = {n: {k: a[k] for k in ("verdict", *RIVAL_MEASURES)} for n, a in others.items()}
        workdir_lib.unseal(workdir)
        results_lib.write(workdir / "audit.json", found)
        audit_page.write_page(workdir, found)
        workdir_lib.seal(workdir)
    log.info("audit: %s. %s", found["verdict"]["kind"], found["verdict"]["sentence"])
    log.info("audit: %s", workdir / "audit.html")
    return found


def import_networks(config: ConfigDict, source: Path, manifest: Path | None, workdir: Path) -> None:
    """Reads networks that others made from the folder `source`, checks all of them, and makes a new workdir of them.

    A run with the same config in that workdir then trains on them. Nothing is written if anything is wrong.

    Raises:
      PdiffError: a network, the manifest or the config is wrong, or the workdir holds anything else than this import.
    """
    logs.set_up()
    config_lib.validate(config)
    zoo.check_workdir(workdir)
    found, facts = zoo.read(config, source, manifest)
    if zoo.check_workdir(workdir, facts):
        config_lib.check_same(config, workdir)
        log.info("%s holds this import already", workdir)
        return
    family, target = scenario.made_of(config, facts)
    generator.check(config, family, target)
    counts = zoo.write(config, found, facts, family, target, workdir)
    log.info("%s: %s", workdir, ", ".join(f"{n} {split}" for split, n in counts.items()) + " networks")
    for split in ("validation", "interp", "unseen"):
        if held_out := [t.name for t in family.split(split)]:
            log.info("held out, %s: %s", split, ", ".join(held_out[:8]) + (", …" if len(held_out) > 8 else ""))
    log.info("run the same command without --mode and --source to train on them")


def _zoo(family: Family, target: Target, config: ConfigDict, workdir: Path, mesh: Mesh, stop: StopSignal) -> dict:
    """The zoo of a run, built or gone on with; imported networks are read, as nothing here can make them again."""
    if scenario.load(workdir) is not None:
        return _read_zoo(config, workdir, scenario.REMEDY)
    return build.build(family, target, config, build.directory(config, workdir), mesh, stop)


def _train(made: generator.Generator, seen, workdir: Path, mesh: Mesh, stop: StopSignal):
    """The generator with its mean and its refined zoo, and the prior's parameters; what is there already is read."""
    name = build.fingerprint(made.config)
    mean = train_lib.train(stages.mean(made, seen, name, mesh), workdir, mesh, stop, accuracy_by_task)
    where = workdir / generator.ARTIFACTS
    verify = partial(files.verify_manifest, where, generator.KIND, generator.REMEDY)
    if processes.all_hold(not processes.is_first() or workdir_lib.is_whole(where, verify)):
        made = generator.load(workdir)
    else:
        made = refined.refine(made, mean, seen, mesh)
        processes.on_first(partial(generator.save, made, workdir), "done with the generator's parts")
    log.info("refined zoo: %d networks in %d components", *made.refined.coefficients.shape)
    return made, train_lib.train(stages.prior(made, name, mesh), workdir, mesh, stop, accuracy_by_task)


def _read_zoo(config: ConfigDict, workdir: Path, remedy: str = build.store.REMEDY) -> dict:
    """The finished zoo of a run, after a check of its files."""
    where, name = build.directory(config, workdir), build.fingerprint(config)
    return build.store.read(where, name, config.zoo.memory_mb, remedy)


def _evaluate(made: generator.Generator, params, networks, workdir: Path, command: str, stop: StopSignal) -> dict:
    workdir_lib.unseal(workdir)
    mesh, held = dist.make_mesh(), build.store.in_memory(networks)
    with workdir_lib.timed(workdir, "rivals_s"):
        seconds = workdir_lib.timing(workdir).get("train_s", 0.0)
        fitted, facts = trained.fit_all(made, held["seen"], workdir, mesh, stop, seconds)
    log.info("evaluating: samplers, controls, novelty")
    shown = made.family.data and made.config.eval.closeup_tasks
    raw = published.restore_params(made, workdir, "params", final=True) if shown else None
    bench = Bench(made, params, mesh)
    measured = evaluate_lib.evaluate(bench, held, stop, facts=scenario.load(workdir), rivals=fitted, raw=raw)
    looked = measured.pop("closeup", None)
    timing = workdir_lib.timing(workdir) | measured.pop("timing")
    timing["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timing["total_s"] = sum(timing.get(k, 0) for k in ("zoo_s", "train_s", "rivals_s", "evaluate_s"))
    results = {
        "config": json.loads(config_lib.to_json(made.config)),
        "seed": made.config.seed,
        "commit": workdir_lib.commit(),
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "target": {
            "name": made.target.name,
            "num_params": made.spec.num_params,
            "symmetric": made.target.symmetry() is not None,
        },
        "zoo": {split: len(n) for split, n in networks.items()},
        "model": {
            "num_params": count_parameters(params),
            "mean_params": count_parameters(made.mean_params),
            "components": len(made.subspace.basis),
            "refined": len(made.refined.means),
        },
        "rivals": facts,
        **({"base_accuracy": float(networks["base"].test_accuracy[0])} if made.family.data else {}),
        "factors": {
            "names": list(made.family.factor_names),
            "indicators": [n for n, u in zip(made.family.factor_names, made.family.units, strict=True) if not u],
        },
        "arcs": {split: [list(a) for a in arcs] for split, arcs in made.family.arcs.items()},
        "timing": timing,
        **measured,
    }
    if looked is not None:
        processes.on_first(partial(results_lib.write, workdir / closeup.FILE, looked), "done with the close-ups")
    processes.on_first(partial(results_lib.write, workdir / "results.json", results), "done with the results")
    for split, entry in results.get("weight_space", {}).get("splits", {}).items():
        space = results["weight_space"]["spaces"][0]
        best = entry["generated"][results["selection"]["sampler"]][space]["distance"]["mean"]
        near = entry["controls"].get("nearest_seen", entry["controls"]["soup"])[space]["distance"]["mean"]
        log.info("%-7s distance to its own: generated %.3f  nearest seen %.3f  (mean of the zoo: 1)", split, best, near)
    for split, entry in results.get("splits", {}).items():
        best = entry["generated"][results["selection"]["sampler"]]
        log.info(
            "%-7s generated %.3f  fine-tuned %.3f  base %.3f",
            split, best["mean"], entry["finetuned"]["mean"], entry["base"]["mean"],
        )  # fmt: skip
    return results


def _report(workdir: Path) -> None:
    workdir_lib.unseal(workdir)
    by_weights = "weight_space" in results_lib.read(workdir / "results.json")
    write = weights_page.write_report if by_weights else html.write_report
    processes.on_first(partial(write, workdir), "done with the report")
    workdir_lib.seal(workdir)
    log.info("report: %s", workdir / "report.html")
