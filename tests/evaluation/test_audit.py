"""Planted copiers, averagers and noisers against an honest generator, on real zoos of small digit MLPs."""

import functools
import html

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from pdiff import results as results_lib
from pdiff.config.fields import defaults
from pdiff.controls import SeenZoo
from pdiff.controls.blind import Gaussian
from pdiff.errors import PdiffError
from pdiff.evaluation import audit as audit_lib
from pdiff.measures import novelty
from pdiff.measures.accuracy import Answers
from pdiff.report import audit_page
from pdiff.targets import get_target
from pdiff.tasks.data import images
from pdiff.weights import codec
from pdiff.weights.spec import make_spec
from pdiff.zoo import finetune
from tests.annotations import unchecked

ZOO, FRESH, STEPS = 100, 12, 200
CONFIG = defaults()
TARGET = get_target(CONFIG.target, (8, 8), 10)
SPEC = make_spec(TARGET.abstract(), token_dim=250)  # 2,410 parameters and some padding
DATA = images.digits(CONFIG.tasks).parts


def fine_tuned(starts, seeds, steps=STEPS, keep_last=1):
    """Tokens (nets * kept, tokens, dim) of networks trained from `starts` by AdamW with their seeds' minibatches."""
    optimizer = finetune.make_optimizer(1e-2, 1e-2, steps, "cosine")
    draw = finetune.minibatches(DATA["train"].x, DATA["train"].y, 64)

    def one(start, seed):
        key = jax.random.fold_in(jax.random.key(1), seed)
        return finetune.train(TARGET, optimizer, start, draw, key, steps=steps, keep_last=keep_last)

    kept = jax.jit(jax.vmap(one))(starts, jnp.asarray(seeds))
    made = jax.vmap(jax.vmap(lambda p: codec.encode_part(SPEC, p)))(kept)
    return np.asarray(made).reshape(-1, *made.shape[2:])


@jax.jit
def logits(tokens):
    return jax.vmap(lambda t: TARGET.apply(codec.decode_part(SPEC, t), jnp.asarray(DATA["test"].x)))(tokens)


def ask(tokens, task):
    said = np.asarray(logits(jnp.asarray(tokens)))
    predicted = said.argmax(-1)
    return Answers(predicted, predicted == DATA["test"].y, np.asarray(jax.nn.softmax(said[:, :200])))


@functools.cache
def zoo(kind):
    """(zoo of one task, fresh networks): of random initialisations, or all from one base as a run makes them."""
    seeds = np.arange(ZOO + FRESH)
    if kind == "independent":
        starts = jax.vmap(TARGET.init)(jax.vmap(jax.random.key)(seeds))
    else:
        base = TARGET.init(jax.random.key(99))
        base = codec.decode_part(SPEC, fine_tuned(jax.tree.map(lambda a: a[None], base), [999])[0])
        starts = jax.tree.map(lambda a: jnp.repeat(a[None], len(seeds), 0), base)
    made = fine_tuned(starts, seeds)
    return made[:ZOO], made[ZOO:]


ONE_TASK = {0: novelty.Compared(np.arange(ZOO), ZOO, np.arange(ZOO))}


def audit(tokens, of, **options):
    return audit_lib.audit({0: tokens}, of, ONE_TASK, ask, SPEC, **options)


def noised(of, scale):
    rms = np.sqrt((of**2).sum() / len(of) / SPEC.num_params)
    noise = np.random.default_rng(5).standard_normal((FRESH, *of.shape[1:]))
    return (of[:FRESH] + scale * rms * noise * SPEC.mask).astype(np.float32)


def averaged(of, count):
    random = np.random.default_rng(6)
    return np.stack([of[random.choice(ZOO, count, replace=False)].mean(0) for _ in range(FRESH)])


PLANTED = {
    "copies": lambda of, fresh: of[::8][:FRESH],
    "noised copies 0.05": lambda of, fresh: noised(of, 0.05),
    "noised copies 0.2": lambda of, fresh: noised(of, 0.2),
    "averages 2": lambda of, fresh: averaged(of, 2),
    "averages 16": lambda of, fresh: averaged(of, 16),
    "new": lambda of, fresh: fresh,
}


@functools.cache
def audited(kind, planted):
    return audit(PLANTED[planted](*zoo(kind)), zoo(kind)[0])


@pytest.mark.parametrize("kind", ["independent", "shared base"])
@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_planted_is_found(kind, planted):
    found = audited(kind, planted)["verdict"]
    wanted = planted.rstrip("0.12356789 ")
    assert found["kind"] == wanted, found
    assert found["shares"]["generated"][wanted] > 0.9 and found["shares"]["zoo"]["new"] > 0.9
    if planted == "new":
        told_apart = audited(kind, planted)["two_sample"]
        assert min(t["p_value"] for t in told_apart.values()) > 0.02


def test_the_source_of_a_noised_copy_is_found_among_more_networks_than_are_judged(monkeypatch):
    monkeypatch.setattr(audit_lib, "MOST_JUDGED", 20)
    of, _ = zoo("independent")
    found = audit(noised(of, 0.2), of)
    assert found["accuracy"]["zoo"]["n"] == 20
    assert found["verdict"]["kind"] == "noised copies" and found["verdict"]["shares"]["generated"]["noised copies"] == 1


def test_copies_have_no_distance_and_full_overlap():
    found = audited("independent", "copies")
    assert found["nearest_l2"]["generated"]["max"] < 1e-5 and found["nearest_function"]["generated"]["max"] < 1e-5
    assert found["max_iou"]["generated"]["min"] == 1 > found["max_iou"]["zoo"]["mean"]
    assert found["nearest_cosine"]["generated"]["max"] < 1e-9 < 0.1 < found["nearest_cosine"]["zoo"]["min"]
    assert found["two_sample"]["function"]["accuracy"] < found["two_sample"]["function"]["expected"]


def test_the_zoos_own_figures_are_those_of_leaving_one_out():
    """Recomputed one by one, without the audit's own functions."""
    of = zoo("independent")[0]
    flat, found = of.reshape(ZOO, -1).astype(np.float64), audited("independent", "new")
    l2 = [min(np.linalg.norm(a - b) for j, b in enumerate(flat) if j != i) for i, a in enumerate(flat)]
    assert found["nearest_l2"]["zoo"]["mean"] == pytest.approx(np.mean(l2), rel=1e-6)
    wrong = [set(np.flatnonzero(~r)) for r in ask(of, 0).right]
    iou = [max(len(a & b) / len(a | b) for j, b in enumerate(wrong) if j != i) for i, a in enumerate(wrong)]
    assert found["max_iou"]["zoo"]["mean"] == pytest.approx(np.mean(iou), rel=1e-6)
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(flat) for b in flat[:i]]
    assert found["spread"]["zoo"]["mean"] == pytest.approx(np.mean(pairs), rel=1e-6)
    assert found["spread"]["zoo"]["n"] == ZOO * (ZOO - 1) // 2


def test_averages_have_lost_their_diversity():
    for kind in ("independent", "shared base"):
        two, sixteen = (audited(kind, f"averages {k}")["spread"]["generated"]["mean"] for k in (2, 16))
        own = audited(kind, "averages 16")["spread"]["zoo"]["mean"]
        # Of two independent means of k, the distance is that of two networks over the root of k; those of 16 of 100
        # share 2.56 networks on average.
        assert two == pytest.approx(own / 2**0.5, rel=0.1)
        assert sixteen == pytest.approx(own / 4 * (1 - 16 / ZOO) ** 0.5, rel=0.1)


def test_what_noise_and_averaging_cost_is_on_the_curves():
    """Independent seeds: noise of 0.2 x rms keeps the accuracy at a far lower overlap; means lose nearly everything."""
    found = audited("independent", "new")
    accuracy, overlap = found["accuracy"]["zoo"]["mean"], found["max_iou"]["zoo"]["mean"]
    noise = {p["scale"]: p for p in found["noise_curve"]}
    assert accuracy > 0.94
    assert noise[0.2]["accuracy"]["mean"] > accuracy - 0.02 and noise[0.2]["max_iou"]["mean"] < overlap - 0.15
    assert noise[0.05]["accuracy"]["mean"] == pytest.approx(accuracy, abs=0.005)
    means = {p["networks"]: p["accuracy"]["mean"] for p in found["averaging_curve"]}
    assert means[2] < accuracy - 0.05 and means[16] < 0.5
    assert list(means) == [2, 4, 8, 16] and means[2] > means[4] > means[8] > means[16]


@unchecked()  # of tasks there is nothing to know
def gaussian(of):
    nothing = np.zeros(len(of), int)
    fitted = Gaussian.fit(SeenZoo(None, of, of[0], nothing, nothing))
    return fitted.sample([None], FRESH, np.random.default_rng(3))[0]


def test_a_gaussian_matches_consecutive_steps_of_one_run_but_not_independent_runs():
    start = jax.tree.map(lambda a: a[None], TARGET.init(jax.random.key(0)))
    steps = fine_tuned(start, [0], keep_last=ZOO)
    assert len(steps) == ZOO
    one_run = {0: novelty.Compared(np.arange(ZOO), ZOO, np.zeros(ZOO, int))}
    found = audit_lib.audit({0: gaussian(steps)}, steps, one_run, ask, SPEC)
    assert found["accuracy"]["generated"]["mean"] > found["accuracy"]["zoo"]["mean"] - 0.01
    assert found["accuracy"]["zoo"]["mean"] > 0.94
    independent = zoo("independent")[0]
    found = audit(gaussian(independent), independent)
    assert found["accuracy"]["generated"]["mean"] < 0.2
    assert found["verdict"]["kind"] == "new" and "Test accuracy is 0.1" in found["verdict"]["sentence"]


def match_hidden(reference, part):
    """Hungarian matching of the hidden units of an MLP with one hidden layer, by all weights of a unit."""
    reference, part = jax.tree.map(np.asarray, (reference, part))
    a, b = (
        np.concatenate([p["params"]["Dense_0"]["kernel"], p["params"]["Dense_0"]["bias"][None],
                        p["params"]["Dense_1"]["kernel"].T])
        for p in (reference, part)
    )  # fmt: skip
    _, order = linear_sum_assignment(a.T @ b, maximize=True)
    return permuted(part, order)


def permuted(part, order):
    first, second = part["params"]["Dense_0"], part["params"]["Dense_1"]
    first = {"kernel": first["kernel"][:, order], "bias": first["bias"][order]}
    return {"params": {"Dense_0": first, "Dense_1": second | {"kernel": second["kernel"][order]}}}


def shuffled(tokens, seed):
    order = np.random.default_rng(seed).permutation(32)
    return np.asarray(codec.encode_part(SPEC, permuted(codec.decode_part(SPEC, tokens), order)))


def test_hidden_units_in_another_order_hide_no_copy_and_no_noised_copy():
    of = zoo("independent")[0][:40]
    compared = {0: novelty.Compared(np.arange(40), 40, np.arange(40))}

    def judged(tokens, match):
        made = np.stack([shuffled(t, i) for i, t in enumerate(tokens[:6])])
        return audit_lib.audit({0: made}, of, compared, ask, SPEC, match=match)

    copies, blind = judged(of, match_hidden), judged(of, None)
    assert copies["nearest_l2_matched"]["generated"]["max"] < 1e-4 < copies["nearest_l2"]["generated"]["min"]
    assert copies["nearest_cosine_matched"]["generated"]["max"] < 1e-6
    # Honest networks come nearer too, but not much.
    own = {n: copies[n]["zoo"]["mean"] for n in ("nearest_l2", "nearest_l2_matched")}
    assert 0.6 * own["nearest_l2"] < own["nearest_l2_matched"] < own["nearest_l2"]
    assert copies["verdict"]["kind"] == blind["verdict"]["kind"] == "copies"  # by weights, and by predictions alone
    assert not [n for n in (*blind, *blind["points"][0], *blind["verdict"]["medians"]) if "matched" in n]
    noisy = noised(zoo("independent")[0], 0.05)
    assert judged(noisy, match_hidden)["verdict"]["kind"] == "noised copies"


def test_several_tasks_of_few_networks_and_their_neighbours():
    """Two tasks of three runs each: means of 4 take networks of the neighbour; a task's reference is its own."""
    of, fresh = zoo("shared base")
    task, run = np.repeat([0, 1], 3), np.tile([7, 8, 9], 2)
    compared = {t: novelty.compared(task, run, np.array([t, 1 - t]), 512) for t in (0, 1)}
    found = audit_lib.audit({t: fresh[2 * t : 2 * t + 2] for t in (0, 1)}, of[:6], compared, ask, SPEC)
    assert found["num_tasks"] == 2 and found["num_generated"] == 4 and found["accuracy"]["zoo"]["n"] == 6
    assert [p["networks"] for p in found["averaging_curve"]] == [2, 4]
    assert found["spread"]["generated"]["n"] == 2 and found["spread"]["zoo"]["n"] == 6
    assert found["verdict"]["kind"] == "new"


def test_one_sample_of_a_task_has_no_diversity_and_no_two_sample_test():
    of, fresh = zoo("shared base")
    found = audit(fresh[:1], of)
    assert set(found["spread"]) == {"zoo"} and found["two_sample"] == found["precision_recall"] == {}
    assert "<table" in audit_page.render(found | WHOSE, audit_page.figures(found))
    evil = "<script>alert(1)</script>\"'&$\\frac{$"
    hostile = found | WHOSE | {"commit": evil, "target": WHOSE["target"] | {"name": evil}}
    hostile["leaves"] = [leaf | {"path": evil} for leaf in found["leaves"]]
    text = audit_page.render(hostile, audit_page.figures(hostile))
    assert "<script" not in text and "&lt;script&gt;" in text and "script-src 'none'" in html.unescape(text)


WHOSE = {"sampler": "heun", "seed": 0, "commit": "abc", "target": {"name": "mlp", "num_params": SPEC.num_params}}


def test_an_audit_is_a_function_of_its_arguments(tmp_path):
    of, fresh = zoo("independent")
    written = []
    for i in range(2):
        results_lib.write(tmp_path / f"{i}.json", audit(fresh, of))
        written.append((tmp_path / f"{i}.json").read_bytes())
    assert written[0] == written[1]
    results_lib.write(tmp_path / "other.json", audit(fresh, of, seed=1))
    assert (tmp_path / "other.json").read_bytes() != written[0]  # other noise


@pytest.mark.parametrize("count, networks, message", [(0, 9, "no task"), (2, 2, "at least 2"), (2, 1, "at least 2")])
def test_what_cannot_be_audited_is_refused(count, networks, message):
    of, rows = zoo("independent")[0], np.arange(networks)
    with pytest.raises(PdiffError, match=message):
        audit_lib.audit({0: of[:count]}, of, {0: novelty.Compared(rows, networks, rows)}, ask, SPEC)
