"""From a pool of networks and a few images to one network: which is chosen, what fine-tuning moves, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.generator import adapt
from pdiff.generator.adapt import SUBSPACE, WEIGHTS, Adapter, Recipe, check_examples, recipe_for
from pdiff.tasks.support import UNKNOWN, Support
from tests.noise import noised

SHOTS = 20


@pytest.fixture(scope="module")
def adapter(tiny, mesh):
    return Adapter(tiny, mesh)


@pytest.fixture(scope="module")
def pool(tiny_zoo):
    return tiny_zoo["seen"].params


@pytest.fixture(scope="module")
def sets(tiny):
    """Images of six tasks, more than are done at a time, all with labels."""
    family, images, random, made = tiny.family, tiny.family.data["train"], np.random.default_rng(0), []
    for task in family.split("seen")[:6]:
        rows = random.choice(len(images.y), SHOTS, replace=False)
        own = jax.tree.map(lambda v, t=task.id: v[t], family.variables)
        made.append(jax.tree.map(np.asarray, family.labelled(own, images.x[rows], images.y[rows])))
    x, y = (np.stack(a) for a in zip(*made, strict=True))
    return Support(x, y.astype(np.int32), np.ones(y.shape, bool))


def log_probabilities(pool, x):
    """(nets, images, classes), by the network's own forward pass and nothing of pdiff's."""
    first, second = (pool["params"][f"Dense_{i}"] for i in range(2))
    hidden = np.maximum(np.einsum("if,nfh->nih", x, first["kernel"]) + first["bias"][:, None], 0)
    logits = np.einsum("nih,nhc->nic", hidden, second["kernel"]) + second["bias"][:, None]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def likelihoods(pool, sets):
    """(tasks, nets): mean log-likelihood of the labels that are given."""
    found = []
    for x, y, real in zip(sets.x, sets.y, sets.real, strict=True):
        known = real & (y != UNKNOWN)
        logp = log_probabilities(pool, x[known])
        found.append(np.take_along_axis(logp, y[known][None, :, None], -1).mean((1, 2)))
    return np.array(found)


def chosen_rows(pool, chosen):
    """Which of the pool was chosen for each task."""
    every, own = (np.asarray(n["params"]["Dense_0"]["kernel"]) for n in (pool, chosen))
    same = (every[None] == own[:, None]).all((2, 3))
    assert (same.sum(1) == 1).all()
    return same.argmax(1)


def some(tree, rows):
    return jax.tree.map(lambda w: w[rows], tree)


def cross_entropy(networks, sets):
    return -np.diagonal(likelihoods(networks, sets))


def test_the_network_under_which_the_labels_are_likeliest_is_chosen(adapter, tiny, pool, sets):
    found, expected = chosen_rows(pool, adapter.choose(pool, sets)), likelihoods(pool, sets)
    np.testing.assert_array_equal(found, expected.argmax(1))
    assert len(set(found)) > 1


def test_without_labels_it_is_the_one_that_is_surest(adapter, tiny, pool, sets):
    blank = Support(sets.x, np.full_like(sets.y, UNKNOWN), sets.real)
    found, entropy = chosen_rows(pool, adapter.choose(pool, blank)), []
    for x in sets.x:
        logp = log_probabilities(pool, x)
        entropy.append(-(np.exp(logp) * logp).sum(-1).mean(-1))
    np.testing.assert_array_equal(found, np.argmin(entropy, 1))
    assert (found != likelihoods(pool, sets).argmax(1)).any()


def test_images_without_a_label_say_nothing_where_others_have_one(adapter, tiny, pool, sets):
    labels = sets.y.copy()
    labels[:, 3:] = UNKNOWN
    partly = Support(sets.x, labels, sets.real)
    expected = likelihoods(pool, partly).argmax(1)
    np.testing.assert_array_equal(chosen_rows(pool, adapter.choose(pool, partly)), expected)
    assert (expected != likelihoods(pool, sets).argmax(1)).any()


@pytest.mark.parametrize("together", [3, 5, 24, 64])
def test_how_many_are_asked_at_a_time_never_changes_the_choice(tiny, mesh, pool, sets, monkeypatch, together):
    """The last ones of a pool are filled up to as many: what fills them up must not be chosen for itself."""
    monkeypatch.setattr(adapt, "TOGETHER", together)
    adapter, expected = Adapter(tiny, mesh), likelihoods(pool, sets)
    for count in (1, 2, 7, 24):
        few = some(pool, np.arange(count))
        np.testing.assert_array_equal(chosen_rows(few, adapter.choose(few, sets)), expected[:, :count].argmax(1))
    order = np.argsort(expected[0])  # the best one comes last, and is what fills up
    assert chosen_rows(some(pool, order), adapter.choose(some(pool, order), sets))[0] == len(order) - 1


def padded_with_nonsense(sets):
    """The same with as many rows again that are not real: other images, with wrong labels."""
    wrong = np.where(sets.y == UNKNOWN, UNKNOWN, (sets.y + 1) % 10)
    return Support(
        np.concatenate([sets.x, 3 * sets.x[:, ::-1]], 1), np.concatenate([sets.y, wrong], 1),
        np.concatenate([sets.real, np.zeros_like(sets.real)], 1),
    )  # fmt: skip


@pytest.mark.parametrize("labelled", [True, False])
def test_rows_that_are_not_real_are_never_asked(adapter, pool, sets, labelled):
    sets = sets if labelled else Support(sets.x, np.full_like(sets.y, UNKNOWN), sets.real)
    found = [chosen_rows(pool, adapter.choose(pool, s)) for s in (sets, padded_with_nonsense(sets))]
    np.testing.assert_array_equal(*found)
    # Nor are labels that only such rows have.
    blank = Support(sets.x, np.full_like(sets.y, UNKNOWN), sets.real)
    said = padded_with_nonsense(blank)
    said.y[:, SHOTS:] = 1
    np.testing.assert_array_equal(*(chosen_rows(pool, adapter.choose(pool, s)) for s in (blank, said)))


@pytest.mark.parametrize("space", [WEIGHTS, SUBSPACE])
def test_rows_that_are_not_real_are_never_fitted(adapter, tiny, sets, space):
    start = jax.tree.map(np.asarray, tiny.decode(tiny.encode(drawn(tiny))))
    recipe = Recipe(space, 3e-3, 7)
    found = [adapter.finetune(start, s, recipe) for s in (sets, padded_with_nonsense(sets))]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def drawn(tiny):
    """Six networks of the subspace."""
    return jax.tree.map(np.asarray, tiny.decode(tiny.refined.coefficients[::30][:6].reshape(6, *tiny.shape)))


def outside(tiny, networks):
    """How far networks lie from the subspace, in normalised weights, against how large they are."""
    z = np.asarray(tiny.normalize(networks))
    inside = np.asarray(tiny.subspace.reconstruct(tiny.subspace.project(z)))
    return np.linalg.norm(z - inside) / np.linalg.norm(z)


@pytest.mark.parametrize("space, rate", [(WEIGHTS, 3e-3), (SUBSPACE, 0.3)])
def test_fine_tuning_fits_the_examples_in_its_own_space(adapter, tiny, sets, space, rate):
    start = drawn(tiny)  # which differ little, as nothing trained them: so rates in the subspace are high
    tuned = adapter.finetune(start, sets, Recipe(space, rate, 25))
    assert (cross_entropy(tuned, sets) < 0.95 * cross_entropy(start, sets)).all()
    assert outside(tiny, start) < 1e-4
    assert (outside(tiny, tuned) < 1e-4) == (space == SUBSPACE)


def test_more_steps_fit_better_and_none_change_nothing(adapter, tiny, sets):
    start = drawn(tiny)
    assert adapter.finetune(start, sets, Recipe(steps=0)) is start
    one, many = (cross_entropy(adapter.finetune(start, sets, Recipe(WEIGHTS, 1e-3, n)), sets) for n in (1, 25))
    assert (many < one).all() and (one < cross_entropy(start, sets)).all()


def test_a_task_among_others_is_adapted_as_it_is_alone(adapter, tiny, pool, sets):
    recipe, start = Recipe(WEIGHTS, 3e-3, 7), drawn(tiny)
    together = adapter.finetune(start, sets, recipe)
    for i in (0, 5):
        alone = Support(*(a[i : i + 1] for a in (sets.x, sets.y, sets.real)))
        one = adapter.finetune(some(start, [i]), alone, recipe)
        for a, b in zip(jax.tree.leaves(some(together, [i])), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        both = adapter.choose(pool, alone), some(adapter.choose(pool, sets), [i])
        assert chosen_rows(pool, both[0]) == chosen_rows(pool, both[1])


# --- which recipe, and which examples --------------------------------------------------------------


def of_labels(*labels):
    y = np.array([labels], np.int32)
    return Support(np.zeros((1, len(labels), 64), np.float32), y, np.ones(y.shape, bool))


def test_a_recipe_is_that_of_the_nearest_number_of_labelled_images(tiny_config):
    def chosen(space, rate):
        return {"space": space, "learning_rate": rate, "steps": 60, "validation": 0.9}

    recipes = {
        str(shots): {"prior": chosen("weights", shots / 1e4), "prior_described": chosen("subspace", shots / 1e3)}
        for shots in (1, 4, 16)
    }
    results = {"adaptation": {"recipes": recipes, "splits": {}}}

    def asked(per_class, described, results=results):
        sets = of_labels(*[label for label in range(10) for _ in range(per_class)], UNKNOWN)
        return recipe_for(sets, results, tiny_config.adapt, 10, described)

    for per_class, nearest in ((1, 1), (3, 4), (7, 4), (9, 16), (40, 16)):
        assert asked(per_class, False) == Recipe("weights", nearest / 1e4, 60)
        assert asked(per_class, True) == Recipe("subspace", nearest / 1e3, 60)
    assert asked(0, False) == Recipe("weights", 1e-4, 60)
    assert asked(4, False, {}) == Recipe("weights", min(tiny_config.adapt.learning_rates), tiny_config.adapt.steps)


CLASSES = ("cat", "dog", "owl")


def test_examples_that_say_enough_are_taken_without_a_word(said):
    assert check_examples(of_labels(0, 1, 2), CLASSES, Recipe(steps=90))
    assert said() == ""


@pytest.mark.parametrize(
    "labels, steps, labelled, message",
    [
        ((UNKNOWN, UNKNOWN), 60, False, "no image has a label: the network that is surest of its answers"),
        ((0, 2, UNKNOWN), 60, True, "no labelled image of dog: what is chosen was not asked about it"),
        ((1, 1), 60, True, "no labelled image of cat, owl:"),
        ((0, 1, 2), 91, True, "steps: 91 on 3 labelled images fits these by heart; up to 90 make sense"),
    ],
)
def test_examples_that_say_little_are_warned_of_once(said, labels, steps, labelled, message):
    assert check_examples(of_labels(*labels), CLASSES, Recipe(steps=steps)) == labelled
    assert said().count("warning: ") == 1 and message in said()


def test_a_single_labelled_image_is_refused(said):
    for labels in ((2,), (2, UNKNOWN, UNKNOWN)):
        with pytest.raises(PdiffError, match="got 1 labelled image; allowed: at least 2.*: cat, dog, owl"):
            check_examples(of_labels(*labels), CLASSES, Recipe())
    padding = of_labels(2, 1)
    padding.real[0, 1] = False
    with pytest.raises(PdiffError, match="got 1 labelled image"):
        check_examples(padding, CLASSES, Recipe())
    assert said() == ""


def test_images_that_are_not_real_are_left_out_of_a_likelihood_and_an_entropy():
    def apply(network, x):
        return x * network["w"]

    x, y = jnp.ones((4, 1)), jnp.array([0, 0, 0, 1])
    w, real = {"w": np.array([0.0, 0.5], np.float32)}, jnp.array([True, False, False, True])
    logp = np.log(np.exp(w["w"]) / np.exp(w["w"]).sum())
    assert adapt.log_likelihood(apply, w, x, y, real) == pytest.approx(logp.mean())  # a 0 and a 1 of the four
    assert adapt.log_likelihood(apply, w, x, y) == pytest.approx((3 * logp[0] + logp[1]) / 4)
    other = x * jnp.array([[1.0], [9.0], [9.0], [1.0]])
    sure = adapt.negative_entropy(apply, w, other, real)
    assert sure == pytest.approx((np.exp(logp) * logp).sum()) == adapt.negative_entropy(apply, w, x)
    assert adapt.log_likelihood(apply, w, x, y, jnp.zeros(4, bool)) == 0


def test_of_what_did_better_on_validation_tasks_users_get_the_same():
    scores = {"prior": 0.8, "prior_guided": 0.9, "prior_described": 0.7}
    recipes = {name: {"validation": score} for name, score in scores.items()}
    assert adapt.row_for(recipes, False) == "prior_guided" and adapt.row_for(recipes, True) == "prior_described"
    assert adapt.row_for(recipes | {"prior": {"validation": 0.95}}, False) == "prior"
    assert adapt.row_for({"prior": {"validation": 0.1}}, False) == "prior"


def test_what_is_drawn_for_images_is_likelier_by_them_than_what_is_drawn_for_others(tiny, adapter, sets):
    params = noised(jax.jit(tiny.init)(jax.random.key(0)), 0.05)
    made, again = (adapter.draw_guided(params, sets, 6, jax.random.key(1)) for _ in range(2))
    assert all(leaf.shape[0] == len(sets.y) for leaf in jax.tree.leaves(made))
    jax.tree.map(np.testing.assert_array_equal, made, again)
    swapped = Support(sets.x, (sets.y + 1) % 10, sets.real)  # other labels, other networks
    other = adapter.draw_guided(params, swapped, 6, jax.random.key(1))
    assert cross_entropy(made, sets).mean() < cross_entropy(other, sets).mean()
