"""A whole run, zoo, training, evaluation and report, and what can be done with a finished one."""

import datetime
import json
import resource
from functools import partial
from pathlib import Path
from signal import default_int_handler

from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import results as results_lib
from pdiff import scenario
from pdiff import workdir as workdir_lib
from pdiff.compile import duration
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
from pdiff.system.stopping import Handler, StopSignal
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.training import stages
from pdiff.training import train as train_lib
from pdiff.zoo import build, finetune

PAGES = ("report.html", "table.md", "plots")  # what the report consists of
RIVAL_MEASURES = ("accuracy", "max_iou", "nearest_l2", "inherited")  # of an audit, kept for each rival


def run(
    config: ConfigDict,
    workdir: Path,
    command: str = "",
    at_once: Handler = default_int_handler,
    tell_time: bool = False,
) -> dict:
    """Everything: zoo, training, evaluation, report. Resumes what is there; a finished run is left as it is.

    Of a finished run all files are checked first, and what is damaged is made again. Returns the contents of
    results.json, or nothing where networks are too large to be compared in memory. `at_once` handles a second Ctrl-C;
    the first stops at the next safe point. With `tell_time` a new run measures first how long it will take, and says
    so.

    Raises:
      PdiffError: the config is not valid, or the workdir belongs to another one, or another process writes there.
    """
    logs.set_up()
    config_lib.validate(config)
    family, target = scenario.family_and_target(config, workdir)
    generator.check(config, family, target)
    for note in family.notes:
        log.info("%s", note)
    if config.refined.of == "mean" and family.grammar is None and len(family.split("seen")) == 1:
        raise PdiffError(
            f"the family {family.name} has 1 seen task, for which the mean has 1 network, and the prior nothing to "
            "learn; allowed: more tasks, or networks of many seeds (--config.refined.of=zoo "
            "--config.zoo.seeds_per_task=256)"
        )
    if family.data:
        finetune.check(target, config.zoo)
    mesh = dist.make_mesh(model=config.mesh.model)
    sharding.check(config, mesh)
    with workdir_lib.writing(workdir):
        processes.on_first(partial(workdir_lib.keep_config, config, workdir), "in one workdir")
        if processes.all_hold(not processes.is_first() or workdir_lib.is_finished(workdir)):
            log.info("%s is finished; see %s", workdir, workdir / "report.html")
            return results_lib.read(workdir / "results.json")
        if tell_time and processes.count() == 1 and not workdir_lib.timing(workdir):
            facts = scenario.load(workdir)
            imported = 0 if facts is None else sum(len(t["rows"]) for t in facts.tasks)
            for line in duration.lines(config, family, target, mesh, imported):
                log.info("%s", line)
        with StopSignal(at_once) as stop:
            networks, gen, params = learn(config, family, target, workdir, mesh, stop)
            if not build.store.holds_one_of_each(networks["seen"]):
                log.warning(
                    "warning: trained, and not evaluated: that needs a network of each seen task in memory, and "
                    "zoo.memory_mb is %g; --workdir=%s --mode=sample draws from it as it is",
                    config.zoo.memory_mb,
                    workdir,
                )
                return {}
            results = _evaluate(gen, params, networks, workdir, command, stop)
        _report(workdir)
    onwards = "sample, serve or audit" if gen.family.data else "sample"
    log.info("next: open the report in a browser; then --workdir=%s with --mode=%s", workdir, onwards)
    return results


def learn(
    config: ConfigDict, family: Family, target: Target, workdir: Path, mesh: Mesh, stop: StopSignal
) -> tuple[dict, generator.Generator, PyTree]:
    """The zoo, the generator and the prior's parameters, as far as they are not in the workdir already."""
    with workdir_lib.timed(workdir, "zoo_s"):
        networks = _zoo(family, target, config, workdir, mesh, stop)
    log.info("zoo: %d networks of %d seen tasks", len(networks["seen"]), len(family.split("seen")))
    with workdir_lib.timed(workdir, "statistics_s"):
        gen = generator.make_generator(config, family, target, networks, workdir)
    with workdir_lib.timed(workdir, "train_s"):
        return networks, *_train(gen, networks["seen"], workdir, mesh, stop)


def evaluate(workdir: Path, at_once: Handler = default_int_handler) -> dict:
    """Scores the newest checkpoint again and rewrites results.json and the report; `at_once` is as in `run`."""
    logs.set_up()
    gen = generator.load(workdir)
    with workdir_lib.writing(workdir), StopSignal(at_once) as stop:
        workdir_lib.check_rest(workdir, ("results.json", closeup.FILE, *PAGES))
        networks = _zoo(gen.family, gen.target, gen.config, workdir, dist.make_mesh(), stop)
        params = published.restore_params(gen, workdir, final=True)
        results = _evaluate(gen, params, networks, workdir, workdir_lib.command(workdir), stop)
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
    gen = generator.load(workdir)
    if not gen.family.data:
        raise PdiffError(f"{workdir}: an imported zoo without images; --mode=audit needs networks' answers")
    with workdir_lib.writing(workdir):
        workdir_lib.check_rest(workdir, ("audit.json", "audit.html"))
        networks = build.store.in_memory(_read_zoo(gen.config, workdir))
        mesh = dist.make_mesh()
        bench = Bench(gen, published.restore_params(gen, workdir, final=True), mesh)
        seen = networks["seen"]
        log.info("audit: networks of %d seen tasks against %d of the zoo", len(bench.tasks("seen")), len(seen))
        learned = copies.seen_zoo(bench, seen)
        facts = {"sampler": sampler, "seed": gen.config.seed, "commit": workdir_lib.commit()}
        findings = copies.audit_run(bench, learned, sampler) | facts | {"target": _target_facts(gen)}
        others = {n: copies.audit_rival(bench, learned, r) for n, r in trained.kept(gen, workdir, mesh).items()}
        if others:
            findings["rivals"] = {n: {k: a[k] for k in ("verdict", *RIVAL_MEASURES)} for n, a in others.items()}
        workdir_lib.unseal(workdir)
        results_lib.write(workdir / "audit.json", findings)
        audit_page.write_page(workdir, findings)
        workdir_lib.seal(workdir)
    log.info("audit: %s. %s", findings["verdict"]["kind"], findings["verdict"]["sentence"])
    log.info("audit: %s", workdir / "audit.html")
    return findings


def import_networks(config: ConfigDict, source: Path, manifest: Path | None, workdir: Path) -> None:
    """Reads networks that others made from the folder `source`, checks all of them, and makes a new workdir of them.

    A run with the same config in that workdir then trains on them. Nothing is written if anything is wrong.

    Raises:
      PdiffError: a network, the manifest or the config is wrong, or the workdir holds anything else than this import.
    """
    logs.set_up()
    config_lib.validate(config)
    zoo.check_workdir(workdir)
    networks, facts = zoo.read(config, source, manifest, workdir)
    if zoo.check_workdir(workdir, facts):
        workdir_lib.check_import(config, workdir)
        log.info("%s holds this import already", workdir)
        return
    family, target = scenario.family_and_target_of(config, facts)
    generator.check(config, family, target)
    counts = zoo.write(config, networks, facts, family, target, workdir)
    tasks = {split: len(family.split(split)) for split in counts}
    of_tasks = [f"{n} {s}" + (f" of {tasks[s]} tasks" if n != tasks[s] else "") for s, n in counts.items()]
    log.info("%s: %s networks", workdir, ", ".join(of_tasks))
    for split in ("validation", "interp", "unseen"):
        if held_out := [t.name for t in family.split(split)]:
            log.info("held out, %s: %s", split, ", ".join(held_out[:8]) + (", …" if len(held_out) > 8 else ""))
    log.info("run the same command without --mode and --source to train on them")


def _zoo(family: Family, target: Target, config: ConfigDict, workdir: Path, mesh: Mesh, stop: StopSignal) -> dict:
    """The zoo of a run, built or gone on with; imported networks are read, as nothing here can make them again."""
    if scenario.load(workdir) is not None:
        return _read_zoo(config, workdir, scenario.REMEDY)
    return build.build(family, target, config, build.directory(config, workdir), mesh, stop)


def _train(gen: generator.Generator, seen, workdir: Path, mesh: Mesh, stop: StopSignal):
    """The generator with its mean and its refined zoo, and the prior's parameters; what is there already is read."""
    name = config_lib.zoo_fingerprint(gen.config)
    mean = train_lib.train(stages.mean(gen, seen, name, mesh), workdir, mesh, stop, accuracy_by_task)
    where = workdir / generator.ARTIFACTS
    verify = partial(files.verify_manifest, where, generator.KIND, generator.REMEDY)
    if processes.all_hold(not processes.is_first() or workdir_lib.is_whole(where, verify)):
        gen = generator.load(workdir)
    else:
        gen = refined.refine(gen, mean, seen, mesh)
        processes.on_first(partial(generator.save, gen, workdir), "done with the generator's parts")
    log.info("refined zoo: %d networks in %d components", *gen.refined.coefficients.shape)
    return gen, train_lib.train(stages.prior(gen, name, mesh), workdir, mesh, stop, accuracy_by_task)


def _read_zoo(config: ConfigDict, workdir: Path, remedy: str = build.store.REMEDY) -> dict:
    """The finished zoo of a run, after a check of its files."""
    where, name = build.directory(config, workdir), config_lib.zoo_fingerprint(config)
    return build.store.read(where, name, config.zoo.memory_mb, remedy)


def _evaluate(
    gen: generator.Generator, params: PyTree, networks: dict, workdir: Path, command: str, stop: StopSignal
) -> dict:
    """Trains the rivals, measures everything, and writes results.json and closeup.json."""
    workdir_lib.unseal(workdir)
    mesh, in_memory = dist.make_mesh(), build.store.in_memory(networks)
    with workdir_lib.timed(workdir, "rivals_s"):
        seconds = workdir_lib.timing(workdir).get("train_s", 0.0)
        rivals, rival_facts = trained.fit_all(gen, in_memory["seen"], workdir, mesh, stop, seconds)
    log.info("evaluating: samplers, controls, novelty")
    has_closeups = gen.family.data and gen.config.eval.closeup_tasks
    raw = published.restore_params(gen, workdir, "params", final=True) if has_closeups else None
    bench, facts = Bench(gen, params, mesh), scenario.load(workdir)
    measured = evaluate_lib.evaluate(bench, in_memory, stop, facts=facts, rivals=rivals, raw=raw)
    closeups = measured.pop("closeup", None)
    timing = workdir_lib.timing(workdir) | measured.pop("timing")
    timing["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timing["total_s"] = sum(timing.get(k, 0) for k in ("zoo_s", "statistics_s", "train_s", "rivals_s", "evaluate_s"))
    results = _facts(gen, params, networks) | {"command": command, "rivals": rival_facts, "timing": timing} | measured
    if closeups is not None:
        processes.on_first(partial(results_lib.write, workdir / closeup.FILE, closeups), "done with the close-ups")
    processes.on_first(partial(results_lib.write, workdir / "results.json", results), "done with the results")
    _log_scores(results)
    return results


def _facts(gen: generator.Generator, params: PyTree, networks: dict) -> dict:
    """The parts of results.json that describe the run and are not measured."""
    family = gen.family
    facts = {
        "config": json.loads(config_lib.to_json(gen.config)),
        "seed": gen.config.seed,
        "commit": workdir_lib.commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "target": _target_facts(gen) | {"symmetric": gen.target.symmetry() is not None},
        "zoo": {split: len(n) for split, n in networks.items()},
        "model": {
            "num_params": count_parameters(params),
            "mean_params": count_parameters(gen.mean_params),
            "components": len(gen.subspace.basis),
            "refined": len(gen.refined.means),
        },
        "factors": {
            "names": list(family.factor_names),
            "indicators": [n for n, u in zip(family.factor_names, family.units, strict=True) if not u],
        },
        "arcs": {split: [list(a) for a in arcs] for split, arcs in family.arcs.items()},
    }
    if family.data:
        facts["base_accuracy"] = float(networks["base"].test_accuracy[0])
    return facts


def _target_facts(gen: generator.Generator) -> dict:
    return {"name": gen.target.name, "num_params": gen.spec.num_params}


def _log_scores(results: dict) -> None:
    """A line for each split: accuracies, or of an imported zoo distances."""
    sampler = results["selection"]["sampler"]
    by_weights = results.get("weight_space", {"splits": {}})
    for split, entry in by_weights["splits"].items():
        space = by_weights["spaces"][0]
        best = entry["generated"][sampler][space]["distance"]["mean"]
        near = entry["controls"].get("nearest_seen", entry["controls"]["soup"])[space]["distance"]["mean"]
        log.info("%-7s distance to its own: generated %.3f  nearest seen %.3f  (mean of the zoo: 1)", split, best, near)
    for split, entry in results.get("splits", {}).items():
        means = [part["mean"] for part in (entry["generated"][sampler], entry["finetuned"], entry["base"])]
        log.info("%-7s generated %.3f  fine-tuned %.3f  base %.3f", split, *means)


def _report(workdir: Path) -> None:
    workdir_lib.unseal(workdir)
    by_weights = "weight_space" in results_lib.read(workdir / "results.json")
    write = weights_page.write_report if by_weights else html.write_report
    processes.on_first(partial(write, workdir), "done with the report")
    workdir_lib.seal(workdir)
    log.info("report: %s", workdir / "report.html")
