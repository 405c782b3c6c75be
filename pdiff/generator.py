"""Everything static about a generator: what it generates, for which tasks, and by which model.

Training, sampling and evaluation all start from one `Generator`. It holds no trained parameters;
those come from a checkpoint. `save` and `load` keep the part that a zoo was needed for, so that
sampling needs no zoo.
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
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import files
from pdiff.diffusion import denoiser, sde
from pdiff.errors import PdiffError
from pdiff.imports import scenario
from pdiff.models.conditions import Context, Mixture, mix
from pdiff.models.dit import ConditionalDiT, make_model
from pdiff.models.sentence import SentenceEncoder, find_minilm
from pdiff.models.text import Tokenizer, train_tokenizer, usual_length
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.tasks import support as support_lib
from pdiff.tasks.base import Task
from pdiff.tasks.support import Support
from pdiff.weights import codec, permutations, stats
from pdiff.weights.spec import Spec, make_spec
from pdiff.zoo.networks import Networks, StoredNetworks

ARTIFACTS = KIND = "generator"
REMEDY = "delete that folder and run the run's command again to rebuild it"
PERMUTE = "weights.permute: got True"  # for messages


@dataclasses.dataclass(frozen=True)
class Generator:
    """Static parts of a generator.

    See the fields' types. `base` supplies leaves that are not generated, `spread` is the standard deviation of
    normalised weights within a task (see `diffusion.denoiser`), `sentences` is there if a condition needs it. A
    `deterministic` generator never looks at z: its denoiser is a hypernetwork, a function of the condition alone.
    """

    config: ConfigDict
    family: Family
    target: Target
    spec: Spec
    stats: stats.Stats
    spread: float
    base: PyTree
    tokenizer: Tokenizer
    model: ConditionalDiT
    path: sde.Path
    sentences: SentenceEncoder | None = None
    deterministic: bool = False

    def arrays(self) -> dict:
        """The arrays among the parts, as steps take them: baked into a program, large ones would fill it."""
        return {"stats": self.stats, "base": self.base}

    def bind(self, arrays: dict) -> "Generator":
        """The same generator with `arrays`, traced or laid out over devices, in place of its own."""
        return dataclasses.replace(self, **arrays)

    def init(self, key: PRNGKeyArray) -> PyTree:
        """Fresh parameters of the transformer."""
        condition = self.condition([self.family.tasks[0]], given=())  # shapes are all that counts
        tokens = jnp.zeros((1, self.spec.num_tokens, self.spec.token_dim))
        return self.model.init(key, tokens, jnp.zeros(1), condition)["params"]

    def context(self, params: PyTree, condition: dict | Mixture) -> Context:
        """The encoded condition, which `denoiser` takes."""
        if isinstance(condition, Mixture):
            a, b = self.context(params, condition.a), self.context(params, condition.b)
            return mix(a, b, condition.weight, condition.spherical)
        return self.model.apply({"params": params}, condition, method="encode")

    def denoiser(self, params: PyTree, context: Context) -> Callable:
        """D(z, sigma): the estimate of the normalised weights, zero where they do not vary."""
        varying = stats.varying(self.stats)
        visible = varying & (not self.deterministic)
        network = denoiser.precondition(
            lambda x, c: self.model.apply({"params": params}, x, c, context, method="denoise"), self.spread
        )

        def denoise(z, sigma):
            # Noise on padding and on constants would only be a distraction, so the network never sees it.
            return jnp.where(varying, network(jnp.where(visible, z, 0), sigma), 0)

        return denoise

    def encode(self, networks: PyTree[Float[Array, "batch ..."]]) -> Float[Array, "batch tokens dim"]:
        """Networks, as the generated part of their trees, to normalised tokens."""
        return jax.vmap(lambda p: stats.normalize(self.stats, codec.encode_part(self.spec, p)))(networks)

    def decode(self, x: Float[Array, "batch tokens dim"]) -> PyTree[Float[Array, "batch ..."]]:
        """Normalised tokens to networks, as the generated part of their trees."""
        return jax.vmap(lambda z: codec.decode_part(self.spec, stats.denormalize(self.stats, z)))(x)

    def permute(self, networks: PyTree[Float[Array, "batch ..."]], keys: PRNGKeyArray) -> PyTree:
        """Networks, as generated parts, with their hidden units in an order that each one's key draws."""
        symmetry = self.target.generated_permutations(PERMUTE)

        def reorder(network, key):
            return permutations.apply_permutation(symmetry, permutations.random_permutations(symmetry, key), network)

        return jax.vmap(reorder)(networks, keys)

    def apply(self, network: PyTree, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """Logits of one network, given as its generated part; the base's leaves are the rest."""
        return self.target.apply(codec.complete(self.spec, network, self.base), x)

    def condition(
        self,
        tasks: Sequence[Task],
        texts: Sequence[str] | None = None,
        given: Sequence[str] | None = None,
        support: Support | None = None,
    ) -> dict[str, dict[str, Any]]:
        """The condition of each task as arrays; names not in `given` are null. `texts` default to the first wording.

        Without `support` there are no support images, whatever `given` says.
        """
        use = self.config.condition.use
        given = [n for n in (use if given is None else given) if n != "support" or support is not None]
        texts = [t.descriptions[0] for t in tasks] if texts is None else texts
        inputs = {}
        if "id" in use:
            inputs["id"] = np.array([t.id for t in tasks], np.int32)
        if "factors" in use:
            inputs["factors"] = self.family.factors(tasks)
        if "text" in use:
            inputs["text"] = self.tokenizer.encode_all(texts).tree
        if "sentence" in use:  # the frozen encoder takes time, so it runs only for what is given
            absent = np.zeros((len(tasks), self.sentences.width), np.float32)
            inputs["sentence"] = self.sentences.encode_all(texts) if "sentence" in given else absent
        if "background" in use:
            inputs["background"] = self.family.backgrounds[np.array([t.id for t in tasks]), 0]
        if "support" in use:
            images = self.config.condition.support_images * self.family.source_classes
            support = support or support_lib.nothing(len(tasks), 1, self.family.features)
            inputs["support"] = support.padded(images).tree
        return {n: {"inputs": inputs[n], "keep": np.full(len(tasks), n in given)} for n in use}


def null_condition(condition: dict | Mixture) -> dict:
    """The same condition with every name null."""
    condition = condition.a if isinstance(condition, Mixture) else condition
    return {name: c | {"keep": jnp.zeros_like(c["keep"])} for name, c in condition.items()}


def make_generator(
    config: ConfigDict, family: Family, target: Target, networks: dict[str, Networks | StoredNetworks]
) -> Generator:
    """A generator for a zoo: statistics from its seen networks, tokenizer from the training descriptions.

    Raises:
      PdiffError: the zoo, the descriptions and the config do not fit together.
    """
    base = jax.tree.map(lambda a: a[0], networks["base"].params)
    spec = _spec(config, target)
    seen, together = networks["seen"], max(1, stats.BLOCK_ELEMENTS // spec.num_params)

    def blocks():  # never all tokens at once: there may be more of them than fit into memory
        return (codec.encode_stacked(spec, block.params) for block in seen.blocks(together))

    orbits = None
    if config.weights.permute:
        orbits = permutations.orbits(target.generated_permutations(PERMUTE), spec)
    fitted = stats.fit(
        spec,
        blocks(),
        center=config.weights.center,
        scale=config.weights.scale,
        base_tokens=np.asarray(codec.encode(spec, base)),
        orbits=orbits,
    )
    spread = 1.0
    if config.diffusion.precondition == "conditional":
        spread = stats.spread_within(fitted, blocks(), seen.task, orbits=orbits)
    return _assemble(config, family, target, fitted, spread, base, make_tokenizer(config, family))


def abstract(config: ConfigDict, family: Family, target: Target) -> Generator:
    """A generator of shapes: what a zoo would decide is absent, so programs can be compiled from it and not run.

    Raises:
      PdiffError: the descriptions and the config do not fit together.
    """
    spec = _spec(config, target)
    tokens = jax.ShapeDtypeStruct((spec.num_tokens, spec.token_dim), jnp.float32)
    fitted = stats.Stats(center=tokens, scale=tokens)
    return _assemble(config, family, target, fitted, 0.5, target.abstract(), make_tokenizer(config, family))


def make_tokenizer(config: ConfigDict, family: Family) -> Tokenizer:
    """The tokenizer of the training descriptions of the seen tasks.

    Raises:
      PdiffError: the vocabulary does not suit them, or a description of any task is longer than
        `condition.text_max_length` or has characters that these lack.
    """
    seen = [d for t in family.split("seen") for d in t.descriptions]
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
    encoder = SentenceEncoder(find_minilm())
    for text in (d for t in family.tasks for d in t.descriptions):
        encoder.tokens(text)
    return encoder


def check(config: ConfigDict, family: Family, target: Target) -> None:
    """Raises, before any work, what `make_generator` would raise after the zoo is built."""
    make_model(config, _spec(config, target), family, make_tokenizer(config, family).vocab_size)
    make_sentences(config, family)
    sde.make_path(config.diffusion)
    if config.weights.permute:
        target.generated_permutations(PERMUTE)


def save(generator: Generator, workdir: Path) -> None:
    """Keeps the parts that came from the zoo, with a manifest, in `<workdir>/generator`."""
    where = Path(workdir) / ARTIFACTS
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    kept = {
        "base": generator.base,
        "stats": vars(generator.stats),
        "spread": np.float64(generator.spread),
        "usual_length": np.int64(generator.tokenizer.usual_length),
    }
    arrays = traverse_util.flatten_dict(kept, sep="/")
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    files.write_atomic(where / "arrays.safetensors", safetensors.numpy.save(arrays))
    files.write_atomic(where / "tokenizer.model", generator.tokenizer.model)
    config_lib.write(where / "config.json", generator.config)
    files.write_manifest(where, KIND)


def load(workdir: Path) -> Generator:
    """The generator that `save` kept.

    Raises:
      PdiffError: there is none, or it is damaged.
    """
    where = Path(workdir) / ARTIFACTS
    if not where.exists():
        raise PdiffError(f"{workdir}: no generator here; allowed: a --workdir where a run has finished its zoo")
    files.verify_manifest(where, KIND, REMEDY)
    config = config_lib.read(where / "config.json", REMEDY)
    arrays = safetensors.numpy.load_file(where / "arrays.safetensors")
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    family, target = scenario.family_and_target(config, workdir)
    model = (where / "tokenizer.model").read_bytes()
    tokenizer = Tokenizer(model, config.condition.text_max_length, tree["usual_length"].item())
    return _assemble(
        config, family, target, stats.Stats(**tree["stats"]), tree["spread"].item(), tree["base"], tokenizer
    )


def _spec(config: ConfigDict, target: Target) -> Spec:
    tree, weights = target.abstract(), config.weights
    width = weights.token_dim or suited_token_dim(make_spec(tree, generate=target.generate).num_params)
    return make_spec(tree, generate=target.generate, layout=weights.layout, token_dim=width)


def suited_token_dim(num_params: int) -> int:
    """The width of chunk tokens for networks of that size: the power of two next above twice its square root.

    The sequence, and what a token says, then grow alike: 10 k parameters are 40 tokens of 256, 4 M are 977 of 4096.
    """
    return 1 << max(5, math.ceil(math.log2(2 * math.sqrt(num_params))))


def _assemble(config, family, target, fitted, spread, base, tokenizer) -> Generator:
    spec = _spec(config, target)
    return Generator(
        config=config,
        family=family,
        target=target,
        spec=spec,
        stats=fitted,
        spread=spread,
        base=base,
        tokenizer=tokenizer,
        model=make_model(config, spec, family, tokenizer.vocab_size),
        path=sde.make_path(config.diffusion),
        sentences=make_sentences(config, family),
    )
