"""Everything about a generator but the prior's parameters: what it generates, for which tasks, and by which models.

It has two models. The mean (`models.mean`) turns a condition into one network. The prior (`models.dit`) is a diffusion
model of networks in a subspace, conditioned on some of the mean's networks: `members`. Training the mean comes first;
`refined.refine` then adds what it has learned, `mean_params`, `subspace` and `refined`, without which nothing can be
drawn. The prior's parameters come from a checkpoint. `save` and `load` keep all but these, so that sampling needs
no zoo.

Both work in the normal form of networks: their normalised weights, or of large ones (`large`) coordinates on a basis.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import minilm, scenario
from pdiff.diffusion import denoiser, sde
from pdiff.errors import RERUN, PdiffError
from pdiff.generator import large
from pdiff.generator.members import MEMBERS, RefinedZoo
from pdiff.models.conditions import Context, Mixture, make_conditions, mix
from pdiff.models.dit import DiT, make_dit
from pdiff.models.mean import MeanNetwork
from pdiff.models.sentence import SentenceEncoder
from pdiff.models.text import Tokenizer, train_tokenizer, usual_length
from pdiff.system import files
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.tasks.base import Task
from pdiff.weights import basis, codec, stats
from pdiff.weights.basis import Basis, Loaded
from pdiff.weights.spec import Spec, make_spec
from pdiff.weights.subspace import Subspace
from pdiff.zoo.networks import Networks, StoredNetworks

ARTIFACTS = KIND = "generator"
REMEDY = f"delete that folder and {RERUN} to rebuild it"
SENTENCES = 512  # vague descriptions that the tokenizer is trained with

Networked = PyTree[Float[Array | np.ndarray, "batch ..."]]
Strings = Sequence[str] | None
Members = Float[np.ndarray, "batch members components"] | None


@dataclasses.dataclass(frozen=True)
class Generator:
    """The parts of a generator.

    Attributes:
      base: supplies leaves that are not generated.
      sentences: the frozen encoder, if a condition needs it.
      mean_params: of the trained mean.
      subspace: in which the prior works.
      coordinates: how many the normal form of networks has; 0 where it is their normalised weights.
      stored: the basis of large networks, on disk.
      basis: the same in memory, where it fits and networks are run on images.
      refined: the networks that the prior learns from, and that sets of tasks are drawn from.
    """

    config: ConfigDict
    family: Family
    target: Target
    spec: Spec
    stats: stats.Stats
    base: PyTree
    tokenizer: Tokenizer
    mean: MeanNetwork
    dit: DiT
    path: sde.Path
    sentences: SentenceEncoder | None = None
    mean_params: PyTree | None = None
    subspace: Subspace | None = None
    refined: RefinedZoo | None = None
    coordinates: int = 0
    stored: Basis | None = None
    basis: Loaded | None = None

    def arrays(self) -> dict:
        """The arrays among the parts, as steps take them: baked into a program, large ones would fill it."""
        names = ("base", "mean_params", "subspace", "refined", "basis" if self.coordinates else "stats")
        return {n: getattr(self, n) for n in names}

    def bind(self, arrays: dict) -> "Generator":
        """The same generator with `arrays`, traced or laid out over devices, in place of its own."""
        return dataclasses.replace(self, **arrays)

    @property
    def streams(self) -> bool:
        """Whether networks are decoded slice by slice, from a basis on disk, and not within a step."""
        return bool(self.coordinates) and self.basis is None

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, token_dim) of a network's coefficients."""
        width = self.config.subspace.token_dim
        return len(self.subspace.basis) // width, width

    def init_mean(self, key: PRNGKeyArray) -> PyTree:
        """Fresh parameters of the mean."""
        condition = self.condition([self.family.tasks[0]], given=())  # only its shapes count
        condition = jax.tree.map(jnp.asarray, {n: condition[n] for n in self.config.condition.use})
        return self.mean.init(key, condition)["params"]

    def init(self, key: PRNGKeyArray) -> PyTree:
        """Fresh parameters of the prior."""
        tokens, width = self.shape
        members = jnp.zeros((1, MEMBERS, tokens * width))
        return self.dit.init(key, jnp.zeros((1, tokens, width)), jnp.zeros(1), members)["params"]

    def mean_context(self, condition: dict | Mixture) -> Context:
        """What the mean's encoders make of a condition."""
        if isinstance(condition, Mixture):
            a, b = self.mean_context(condition.a), self.mean_context(condition.b)
            return mix(a, b, condition.weight, condition.spherical)
        return self.mean.apply({"params": self.mean_params}, condition, method="encode")

    def mean_tokens(self, condition: dict | Mixture) -> Float[Array, "batch tokens dim"]:
        """The mean's network for each condition, in normal form; a weight that does not vary is zero."""
        z = self.mean.apply({"params": self.mean_params}, self.mean_context(condition), method="decode")
        return z if self.coordinates else jnp.where(stats.varying(self.stats), z, 0)

    def members(self, condition: dict | Mixture) -> Float[Array, "batch members components"]:
        """The networks that the prior is conditioned on: the condition's own members, else the mean's network for it,
        else, where every name is null, some of all."""
        network = self.subspace.project(self.mean_tokens(condition))[:, None]
        plain = condition.a if isinstance(condition, Mixture) else condition
        described = jnp.stack([plain[n]["keep"] for n in self.config.condition.use]).any(0)
        members = jnp.where(described[:, None, None], network, self.refined.everything)
        return jnp.where(plain["members"]["keep"][:, None, None], plain["members"]["inputs"], members)

    def denoiser(self, params: PyTree, members: Float[Array, "batch members components"]) -> Callable:
        """D(z, sigma): the estimate of a network's coefficients."""
        return denoiser.precondition(lambda x, c: self.dit.apply({"params": params}, x, c, members))

    def encode(self, networks: PyTree[Float[ArrayLike, "batch ..."]]) -> Float[Array, "batch tokens dim"]:
        """Networks, as the generated part of their trees, to tokens of coefficients: the nearest in the subspace."""
        return self.subspace.project(self.normalize(networks)).reshape(-1, *self.shape)

    def decode(self, x: Float[ArrayLike, "batch tokens dim"]) -> Networked:
        """Tokens of coefficients to networks, as the generated part of their trees."""
        return self.denormalize(self.subspace.reconstruct(x.reshape(len(x), -1)))

    def normalize(self, networks: PyTree[Float[ArrayLike, "batch ..."]]) -> Float[Array, "batch tokens dim"]:
        """Networks, as the generated part of their trees, to their normal form."""
        if self.coordinates:
            return jnp.asarray((self.basis or self.stored).encode(networks))[:, None]
        return jax.vmap(lambda p: stats.normalize(self.stats, codec.encode_part(self.spec, p)))(networks)

    def denormalize(self, z: Float[ArrayLike, "batch tokens dim"]) -> Networked:
        """Normal forms to networks, as the generated part of their trees; NumPy arrays where it `streams`."""
        if self.coordinates:
            return (self.basis or self.stored).decode(z.reshape(len(z), -1))
        return jax.vmap(lambda x: codec.decode_part(self.spec, stats.denormalize(self.stats, x)))(z)

    def apply(self, network: PyTree, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """Logits of one network, given as its generated part; the base's leaves are the rest."""
        return self.target.apply(codec.complete(self.spec, network, self.base), x)

    def differentiated(self, network: PyTree, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """The same, where gradients are taken (`target.dtype`)."""
        return self.target.differentiated(codec.complete(self.spec, network, self.base), x)

    def condition(
        self, tasks: Sequence[Task], texts: Strings = None, given: Strings = None, members: Members = None
    ) -> dict[str, dict[str, Any]]:
        """The condition of each task as arrays; names not in `given` are null. `texts` default to the first wording.

        `members` are coefficients of networks for the tasks that each condition may mean, if it may mean several.
        """
        use, count = self.config.condition.use, len(tasks)
        given = use if given is None else given
        texts = [t.descriptions[0] for t in tasks] if texts is None else texts
        ids = np.array([t.id for t in tasks], np.int32)

        def sentences():  # the frozen encoder takes time, so it runs only where its vectors are read
            width = self.sentences.width
            return self.sentences.encode_all(texts) if "sentence" in given else np.zeros((count, width), np.float32)

        inputs = {
            "id": lambda: ids,
            "factors": lambda: self.family.factors(tasks),
            "text": lambda: self.tokenizer.encode_all(texts).tree,
            "sentence": sentences,
            "background": lambda: self.family.backgrounds[ids, 0],
        }
        condition = {n: {"inputs": inputs[n](), "keep": np.full(count, n in given)} for n in use}
        if self.subspace is None:  # the mean's own condition, which has no members yet
            return condition
        keep = np.full(count, members is not None)
        if members is None:
            members = np.zeros((count, MEMBERS, len(self.subspace.basis)), np.float32)
        return condition | {"members": {"inputs": members, "keep": keep}}


def null_condition(condition: dict | Mixture) -> dict:
    """The same condition with every name null."""
    condition = condition.a if isinstance(condition, Mixture) else condition
    return {name: c | {"keep": jnp.zeros_like(c["keep"])} for name, c in condition.items()}


def make_generator(
    config: ConfigDict,
    family: Family,
    target: Target,
    networks: dict[str, Networks | StoredNetworks],
    workdir: Path | None = None,
) -> Generator:
    """A generator for a zoo: statistics from its seen networks, tokenizer from the training descriptions.

    Args:
      workdir: where the basis of large networks is kept.

    Raises:
      PdiffError: the zoo, the descriptions and the config do not fit together.
    """
    base = jax.tree.map(lambda a: a[0], networks["base"].params)
    spec, weights = _spec(config, target), config.weights

    def encoded() -> np.ndarray:
        return np.asarray(codec.encode(spec, base))

    if large.suits(config, spec.num_params, len(networks["seen"])):
        if workdir is None:
            raise PdiffError("workdir: missing; allowed for networks of this size: the folder to keep their basis in")
        stored, fitted = large.prepared(config, spec, networks["seen"], encoded, workdir)
        return _assemble(config, family, target, fitted, base, make_tokenizer(config, family), stored)
    base_tokens = encoded()
    # Never all tokens at once: there may be more of them than fit into memory.
    blocks = networks["seen"].blocks(max(1, stats.BLOCK_ELEMENTS // spec.num_params))
    tokens = (codec.encode_stacked(spec, block.params) for block in blocks)
    fitted = stats.fit(spec, tokens, center=weights.center, scale=weights.scale, base_tokens=base_tokens)
    return _assemble(config, family, target, fitted, base, make_tokenizer(config, family))


def abstract(config: ConfigDict, family: Family, target: Target) -> Generator:
    """A generator of shapes: what comes from a zoo is abstract, so programs can be compiled from it but not run.

    The refined zoo, which is small, holds zeros for the tasks that it would have.

    Raises:
      PdiffError: the descriptions and the config do not fit together.
    """
    spec = _spec(config, target)
    shape, most, count = (spec.num_tokens, spec.token_dim), config.subspace.components, config.refined.networks
    fitted = jax.eval_shape(lambda: stats.Stats(center=jnp.zeros(shape), scale=jnp.zeros(shape)))
    generator = _assemble(config, family, target, fitted, target.abstract(), make_tokenizer(config, family))
    seen = large.count_seen(config, family)
    if large.suits(config, spec.num_params, seen):
        used = large.spanning(config, seen)
        shape = (1, used - 1)
        generator = dataclasses.replace(generator, coordinates=used - 1, mean=generator.mean.clone(shape=shape))
        if family.data and basis.size_on_disk(spec, used, config.weights.basis_dtype) <= config.zoo.memory_mb * 1e6:
            of_zoo = basis.abstract(spec, used, config.weights.basis_dtype)
            generator = dataclasses.replace(generator, basis=of_zoo)
    mean_params = jax.eval_shape(generator.init_mean, jax.random.key(0))
    subspace = jax.eval_shape(lambda: Subspace(jnp.zeros(shape), jnp.zeros((most, *shape)), jnp.zeros(())))
    factors = np.asarray(family.grammar.grid(count) if family.grammar else np.zeros((count, 0)), np.float32)
    rows = np.zeros((len(factors), most), np.float32)
    refined = RefinedZoo(rows, rows, factors)
    return dataclasses.replace(generator, mean_params=mean_params, subspace=subspace, refined=refined)


def make_tokenizer(config: ConfigDict, family: Family) -> Tokenizer:
    """The tokenizer of the training descriptions of the seen tasks, and of vague ones where the family has them.

    Raises:
      PdiffError: the vocabulary does not suit them, or a description of any task is longer than
        `condition.text_max_length` or has characters that these lack.
    """
    seen = [d for t in family.split("seen") for d in t.descriptions]
    if family.grammar is not None:
        random = np.random.default_rng(0)
        seen += [family.grammar.sentence(random)[0] for _ in range(SENTENCES)]
    model, longest = train_tokenizer(seen, config.condition.text_vocab_size), config.condition.text_max_length
    every = {d for t in family.tasks for d in (*t.descriptions, *t.held_out_descriptions)}
    return Tokenizer(model, longest, usual_length(Tokenizer(model, longest), sorted(every)))


def make_sentences(config: ConfigDict, family: Family) -> SentenceEncoder | None:
    """The frozen sentence encoder, if a condition needs it.

    Raises:
      PdiffError: it is not installed, or cannot read a description.
    """
    if "sentence" not in config.condition.use:
        return None
    encoder = SentenceEncoder(minilm.find())
    for text in (d for t in family.tasks for d in t.descriptions):
        encoder.tokens(text)
    return encoder


def check(config: ConfigDict, family: Family, target: Target) -> None:
    """Raises, before any work, what `make_generator` would raise after the zoo is built."""
    make_conditions(config, family, make_tokenizer(config, family).vocab_size)
    make_sentences(config, family)
    sde.make_path(config.diffusion)


def save(generator: Generator, workdir: Path) -> None:
    """Writes all parts that come from the zoo and the mean's training, with a manifest, to `<workdir>/generator`."""
    where = Path(workdir) / ARTIFACTS
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    parts = {
        "base": generator.base,
        "mean": generator.mean_params,
        "subspace": vars(generator.subspace),
        "refined": vars(generator.refined),
        "usual_length": np.int64(generator.tokenizer.usual_length),
    }
    if generator.stored is None:
        parts["stats"] = vars(generator.stats)
    else:
        generator.stored.copy_to(Path(workdir) / large.FOLDER)
    arrays = traverse_util.flatten_dict(parts, sep="/")
    # Safetensors saves strided arrays wrong, and `np.ascontiguousarray` gives a scalar an axis.
    arrays = {k: np.array(v, order="C") for k, v in arrays.items()}
    files.write_atomic(where / "arrays.safetensors", safetensors.numpy.save(arrays))
    files.write_atomic(where / "tokenizer.model", generator.tokenizer.model)
    config_lib.write(where / "config.json", generator.config)
    files.write_manifest(where, KIND)


def load(workdir: Path) -> Generator:
    """The generator that `save` wrote.

    Raises:
      PdiffError: there is none, or it is damaged.
    """
    where = Path(workdir) / ARTIFACTS
    if not where.exists():
        raise PdiffError(f"{workdir}: no generator here; allowed: a --workdir where a run has trained its mean")
    files.verify_manifest(where, KIND, REMEDY)
    config = config_lib.read(where / "config.json", REMEDY)
    arrays = safetensors.numpy.load_file(where / "arrays.safetensors")
    arrays = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}  # of a published one
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    if "subspace" not in tree:
        raise files.OtherFormat(f"{where}: made by a pdiff whose generator had no subspace; run that run again")
    family, target = scenario.family_and_target(config, workdir)
    model = (where / "tokenizer.model").read_bytes()
    tokenizer = Tokenizer(model, config.condition.text_max_length, tree["usual_length"].item())
    spec = _spec(config, target)
    stored, fitted = large.read(spec, workdir) or (None, None)
    if stored is None:
        if "stats" not in tree:
            raise PdiffError(f"{Path(workdir) / large.FOLDER}: missing; {REMEDY}")
        fitted = stats.Stats(**tree["stats"])
    generator = _assemble(config, family, target, fitted, tree["base"], tokenizer, stored)
    subspace, refined = Subspace(**tree["subspace"]), RefinedZoo(**tree["refined"])
    return dataclasses.replace(generator, mean_params=tree["mean"], subspace=subspace, refined=refined)


def _spec(config: ConfigDict, target: Target) -> Spec:
    tree = target.abstract()
    width = config.weights.token_dim or suited_token_dim(make_spec(tree, generate=target.generate).num_params)
    return make_spec(tree, generate=target.generate, token_dim=width)


def suited_token_dim(num_params: int) -> int:
    """The width of tokens for networks of that size: the power of two next above twice its square root, at least 32.

    The number of tokens and their width then grow alike: 10 k parameters are 40 tokens of 256, 4 M are 977 of 4096.
    """
    return 1 << max(5, math.ceil(math.log2(2 * math.sqrt(num_params))))


def _assemble(config, family, target, fitted, base, tokenizer, stored: Basis | None = None) -> Generator:
    spec, conditions = _spec(config, target), make_conditions(config, family, tokenizer.vocab_size)
    shape = (spec.num_tokens, spec.token_dim) if stored is None else (1, stored.count)
    # Images are what networks are run on in steps; without any, nothing needs the basis in memory.
    fits = stored is not None and family.data and stored.nbytes <= config.zoo.memory_mb * 1e6
    return Generator(
        config=config,
        family=family,
        target=target,
        spec=spec,
        stats=fitted,
        base=base,
        tokenizer=tokenizer,
        mean=MeanNetwork(conditions, config.mean.width, shape),
        dit=make_dit(config.model),
        path=sde.make_path(config.diffusion),
        sentences=make_sentences(config, family),
        coordinates=stored.count if stored else 0,
        stored=stored,
        basis=stored.load() if fits else None,
    )
