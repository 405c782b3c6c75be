"""Every field of a config: its default, what it may hold and what it means. Scenarios in `configs/` change a few.

Any of them can be overridden on the command line: `--config.train.steps=20000`.
"""

import dataclasses
import sys
from typing import Any

from ml_collections import ConfigDict

CONDITIONS = ("id", "factors", "text", "sentence", "background")
DESCRIBING = ("text", "sentence")  # those that a prompt gives
CORRUPTIONS = ("contrast", "blur", "inversion", "noise", "occlusion", "shear", "scale")
SAMPLERS = ("heun", "posterior_mean", "dpmpp_2m", "ddim", "euler_maruyama", "ancestral")
# Generators that are trained on the same zoo beside pdiff's own.
RIVALS = ("latent_unet", "p_diff", "g_pt", "pca_flow", "latent_kde")


@dataclasses.dataclass(frozen=True)
class Field:
    """Default, type and range of a field. A tuple holds values of that type each."""

    default: Any
    low: float | None = None
    high: float | None = None
    above: float | None = None  # exclusive lower bound
    choices: tuple[str, ...] | None = None
    each: type | None = None  # of a tuple, what it holds

    @property
    def type(self) -> type:
        """Type of the value, or of each in a tuple."""
        return self.each or type(self.default)

    @property
    def most(self) -> float | None:
        """The highest value. Whole numbers become int32 on devices."""
        return 2**31 - 1 if self.type is int and self.high is None else self.high

    def __str__(self) -> str:
        if self.choices:
            what = ", ".join(self.choices)
        else:
            limits = {"at least": self.low, "above": self.above, "at most": self.most}
            bounds = [f"{words} {limit:.10g}" for words, limit in limits.items() if limit is not None]
            names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
            what = " ".join([names[self.type], " and ".join(bounds)]).strip()
        return f"a tuple, each {what}" if self.each else what

    def allows(self, value: Any) -> bool:
        """Whether `value` is of the type and in the range."""
        if self.each:
            single = dataclasses.replace(self, default=self.each(), each=None)
            return isinstance(value, tuple) and all(single.allows(v) for v in value)
        if isinstance(value, bool) != (self.type is bool):
            return False
        if not isinstance(value, (int, float) if self.type is float else self.type):
            return False
        if self.type in (int, float):
            limit = sys.float_info.max  # whole numbers may be too large for a float; comparisons with NaN are false
            low, most = -limit if self.low is None else self.low, limit if self.most is None else self.most
            return low <= value <= most and (self.above is None or value > self.above)
        return self.choices is None or value in self.choices


def count(default: int, low: int = 1) -> Field:
    """A whole number."""
    return Field(default, low=low)


def positive(default: float, high: float | None = None) -> Field:
    """A number above 0."""
    return Field(default, above=0, high=high)


def share(default: float) -> Field:
    """A number from 0 to 1."""
    return Field(default, low=0, high=1)


def one_of(default: str, *choices: str) -> Field:
    """One of some names."""
    return Field(default, choices=choices)


def several(default: tuple, each: type, **limits: Any) -> Field:
    """A tuple, each of that type and in that range."""
    return Field(default, each=each, **limits)


FIELDS: dict[str, Field] = {
    "seed": count(0, low=0),
    # What a network must do. Regions and widths are in the family's own units. For rotation: degrees, 'start:end'
    # with the end past the start going counter-clockwise ('350:10' crosses zero), separated by commas. For
    # corruptions: percent of the highest severity, the same for each kind.
    "tasks.family": Field("rotation"),  # rotation | corruptions | class_subsets | camera_trap | folder | text_rules
    # What the tasks share: images, digits | fashion_mnist | tfds:NAME, or the texts of text_rules, wordnet.
    "tasks.data": Field("digits"),
    "tasks.data_dir": Field(""),  # where they, or the tasks of a folder, lie, if not in an installed package
    "tasks.eval_images": count(0, low=0),  # most of validation and of test, by a fixed permutation; 0 is all
    "tasks.unseen": Field("60:90,216:234"),  # regions held out as `unseen`
    "tasks.num_seen": count(256),  # tasks in the zoo, spread evenly over what is not held out
    "tasks.num_interp": count(16, low=0),  # tasks strictly inside the interp gaps
    "tasks.num_unseen": count(16, low=-1),  # tasks inside the unseen regions; of a folder, -1 is as many as suit
    "tasks.num_validation": count(20, low=-1),  # tasks inside the validation gaps, which select everything; -1 likewise
    "tasks.num_practice": count(0, low=0),  # of text_rules: more rules for the mean's functional loss, not in the zoo
    "tasks.num_unheard": Field(0, low=0, high=3),  # of text_rules: tasks of a kind that no other task names
    "tasks.held_out": Field(""),  # of a folder: names of the unseen tasks, separated by commas; '' draws them
    # Of a folder: images that are larger, or not all of one size, are resized to squares of this side; 0: none is.
    "tasks.image_side": Field(0, low=0, high=4096),
    "tasks.gap_width": positive(10.0),  # width of one interp gap
    "tasks.num_gaps": count(3, low=0),  # interp gaps, placed evenly over the seen region
    "tasks.validation_gaps": several((10.0, 30.0), float, above=0),  # widths of gaps with validation tasks
    "tasks.corruptions": several(CORRUPTIONS, str, choices=CORRUPTIONS),  # kinds in use
    # The network whose weights are generated.
    "target.name": Field("mlp"),  # mlp | cnn | vit | resnet | minilm
    "target.widths": several((32,), int, low=1),  # hidden; of a cnn's or resnet's stages; of a vit, once for each block
    "target.blocks": count(1),  # blocks of each stage of a resnet; 1 for all others
    "target.generate": Field(".*"),  # regex over leaf paths: what is fine-tuned and generated; others stay the base's
    "target.lora_rank": count(0, low=0),  # above 0: adapters; then generate="lora/.*" (or "(lora|batch_stats)/.*")
    "target.lora_alpha": positive(8.0),  # an adapter counts lora_alpha / lora_rank times
    "target.lora_modules": Field(".*"),  # regex over module paths, such as "Dense_0": which kernels are adapted
    # What matrices are rounded to where networks are differentiated, in fine-tuning and in the functional loss, and
    # where a few examples choose among many; sums and whatever is scored are float32. Of minilm alone: 3 to 5 times as
    # fast on a CPU with AMX.
    "target.dtype": one_of("float32", "float32", "bfloat16"),
    # How networks are fine-tuned.
    "zoo.dir": Field(""),  # '' is <workdir>/zoo; name a directory to share one zoo between runs
    "zoo.import_mb": positive(4096.0),  # --mode=import: MB (10^6 bytes) in memory; of a larger zoo the rest is on disk
    "zoo.rank": count(0, low=0),  # --mode=import: of all LoRAs, by SVD; 0 keeps theirs, the largest where they differ
    "zoo.memory_mb": positive(4096.0),  # seen networks of more MB (10^6 bytes) are read from disk, batch by batch
    "zoo.seeds_per_task": count(6),
    "zoo.reference_seeds": count(3),  # networks for each interp, unseen and validation task
    "zoo.pretrain_steps": count(2000),
    "zoo.pretrain_learning_rate": positive(3e-3, high=1),
    # Where fine-tuning starts: the pretrained base, or a random initialisation of each network's own. Then
    # mean.base_penalty should be 0, as the distance from the base means nothing.
    "zoo.init": one_of("base", "base", "random"),
    # weight_matching: hidden units reordered to fit those of the seen networks' mean. balanced: imported LoRA
    # factors brought into one gauge, see pdiff/imports/gauge.py.
    "zoo.align": one_of("none", "none", "weight_matching", "balanced"),
    "zoo.steps": count(1000),
    "zoo.batch_size": count(64),
    "zoo.learning_rate": positive(1e-2, high=1),
    "zoo.schedule": one_of("cosine", "constant", "cosine"),
    "zoo.weight_decay": Field(1e-2, low=0),
    "zoo.keep_last": count(1),  # late checkpoints kept of each run
    "zoo.keep_every": count(1),  # optimizer steps between two kept checkpoints
    "zoo.chunk_size": count(0, low=0),  # networks trained together; 0 is 16 a device of a CPU, and 128 an accelerator
    # Weights <-> tokens.
    "weights.token_dim": count(256, low=0),  # width of a token; 0 is chosen by the network's size
    "weights.center": one_of("mean", "mean", "base"),
    "weights.scale": one_of("leaf", "param", "leaf", "global"),
    # Whether the mean and the subspace work in coordinates on all principal components of the seen networks, which lie
    # on disk, and not in weights. auto: where the mean's last layer would otherwise have more than 4.2 M parameters;
    # with a functional loss more than 16.8 M, and either more than the zoo or, in training, more than zoo.memory_mb.
    "weights.basis": one_of("auto", "auto", "always", "never"),
    "weights.basis_dtype": one_of("float32", "float32", "bfloat16"),  # of these components, in their file
    # The mean: from a condition to one network. `train` says the rest of how it is trained.
    "mean.width": count(256),  # of the layer before the weights
    "mean.steps": count(2000),
    "mean.batch_size": count(64),
    "mean.learning_rate": positive(2e-3, high=1),
    "mean.functional_weight": Field(1.0, low=0),  # of the cross-entropy of its networks on images of their tasks
    "mean.functional_images": count(128),  # images of the task for each network there
    "mean.base_penalty": Field(3e-5, low=0),  # mu of mu ||W - base||^2 beside it, to prefer the least change that works
    "mean.zoo_weight": Field(0.0, low=0),  # of the squared distance, in normalised weights, from a network of the zoo
    # What the prior learns from: the mean's networks for many conditions, see pdiff/generator/refined.py.
    "refined.of": one_of("mean", "mean", "zoo"),  # zoo: itself, where there are no tasks between tasks
    "refined.networks": count(2880, low=2),  # most, spread evenly over all that can be described
    "refined.sentences": count(2000),  # vague descriptions in training
    "refined.vague": share(0.5),  # share of training examples that have a set of tasks in place of one
    # Where the prior draws: principal components of the refined zoo, see pdiff/weights/subspace.py.
    "subspace.components": count(64),  # most
    "subspace.explained": positive(0.9999, high=1),  # share of held-out networks' variance to be explained
    "subspace.token_dim": count(8),  # coefficients in one token of the transformer; divides `components`
    "subspace.networks": count(1024, low=2),  # most that they are computed from: inner products are held in memory
    # The diffusion transformer, and the width of the condition encoders.
    "model.width": count(128),
    "model.depth": count(3),
    "model.num_heads": count(4),
    "model.mlp_ratio": positive(4.0),
    "model.dtype": one_of("float32", "float32", "bfloat16"),  # for activations only
    "model.remat": Field(False),
    # Condition tokens: what the models know of the task. In training a condition is dropped to its null token with
    # its own probability; the prior, and rivals, do without any with `drop_all`.
    "condition.use": several(("text",), str, choices=CONDITIONS),
    "condition.drop_id": share(0.9),
    "condition.drop_factors": share(0.3),
    "condition.drop_text": share(0.0),
    "condition.drop_sentence": share(0.3),  # a frozen encoder of descriptions; see pdiff/models/sentence.py
    "condition.drop_background": share(0.0),
    "condition.background_noise": Field(0.0, low=0),  # standard deviation of white noise on those images in training
    "condition.drop_all": share(0.1),
    "condition.text_vocab_size": count(0, low=0),  # 0 is as many pieces as the descriptions fill, about 400 at most
    "condition.text_max_length": count(64),
    "condition.text_width": count(64),
    "condition.text_depth": count(1, low=0),
    "condition.num_harmonics": count(4),  # Fourier harmonics of a number in a text, and of a factor
    "condition.number_noise": Field(8.0, low=0),  # its standard deviation in training, in the numbers' own units
    # The numbers' period: those harmonics of it are told apart. 0 is twice the range of the numbers in the seen
    # tasks' descriptions, and of each factor; number_noise then counts in periods.
    "condition.number_period": Field(360.0, low=0),
    "diffusion.path": one_of("ve", "ve", "vp", "rectified_flow"),
    "diffusion.sigma_min": positive(0.02),  # lowest and highest noise-to-signal ratio
    "diffusion.sigma_max": positive(40.0),
    "diffusion.p_mean": Field(0.3),  # training noise: log sigma ~ N(p_mean, p_std^2) (ve)
    "diffusion.p_std": positive(1.8),
    "diffusion.at_sigma_max": share(0.02),  # share of training examples put at sigma_max
    # How training is laid out over the devices. Nothing that is learned depends on it, beyond rounding.
    "mesh.model": count(1),  # devices that share one copy of each transformer block; the others split the batch
    "mesh.fsdp": Field(False),  # whether these others also split parameters, their average and the optimizer's state
    "train.steps": count(2000),
    "train.batch_size": count(128),
    "train.microbatches": count(1),  # parts that a batch is computed in, one after the other, to take less memory
    "train.learning_rate": positive(2e-3, high=1),
    "train.warmup_steps": count(100, low=0),
    "train.weight_decay": Field(1e-2, low=0),
    "train.grad_clip": positive(1.0),
    "train.ema_decay": Field(0.998, low=0, high=0.999999),
    "train.log_every": count(50),
    "train.validate_every": count(500),
    "train.checkpoint_every": count(500),
    "train.keep_checkpoints": count(2),
    "train.wandb": Field(""),  # a project of Weights & Biases to log to as well; needs pip install -e '.[wandb]'
    "sample.samplers": several(("heun", "posterior_mean", "dpmpp_2m", "ddim", "euler_maruyama"), str, choices=SAMPLERS),
    "sample.num_steps": count(18, low=4),  # with fewer, Heun's corrector divides by far too small a level
    "sample.rho": positive(7.0),  # spacing of the noise levels, EDM equation 5
    "sample.guidance": Field(1.0, low=0),  # classifier-free guidance; 1 is none
    "sample.condition": several(("text",), str, choices=CONDITIONS),  # the conditions in use; the others are null
    "sample.batch_size": count(64),  # samples drawn together; smaller requests are padded to it
    # From the prior and a few labelled images to one network, see pdiff/generator/adapt.py.
    "adapt.num_samples": count(512),  # networks drawn, of which the likeliest is kept
    # Networks drawn for the images' likelihood, where validation tasks say that this is better; 0 does not ask. For
    # families of more tasks than `num_samples` networks can hold: a draw takes as long as 20 training steps.
    "adapt.guided": count(0, low=0),
    "adapt.steps": count(60, low=0),  # of fine-tuning from there
    "adapt.learning_rates": several((1e-3, 3e-3, 1e-2), float, above=0, high=1),  # chosen for each number of images
    "eval.reptile": Field(
        True
    ),  # of adaptation, a learned initialisation beside it, which takes 40,000 short trainings
    "eval.samples_per_task": count(3),
    "eval.max_tasks": count(64),  # tasks scored in each split, evenly chosen
    "eval.chunk_size": count(256),  # networks scored together
    "eval.noise": Field(0.2, low=0),  # relative rms of the `noise` control
    # Other generators to train on the same zoo, by name and comma, or "all", each for as long as the
    # generator's own training took: latent_unet, p_diff, g_pt, pca_flow, latent_kde.
    "eval.rivals": Field(""),
    "eval.rival_steps": count(0, low=0),  # updates of each stage of a rival in place of equal time
    # Zoo networks that a task's are compared with: its own, then its nearest tasks'. The fewest: itself, the nearest
    # other, and one more to tell it from.
    "eval.novelty_networks": count(512, low=3),
    # between two tasks that are mixed
    "eval.mixing_separations": several((10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0), float, above=0),
    "eval.transfer_pairs": count(0, low=0),  # (network of a seen task, other task) scored against their distance
    "eval.vague_samples": count(256, low=0),  # networks for each vague description that is measured; 0 is none
    "eval.vague_prompts": several((), str),  # these descriptions; () is one of each kind that the family has
    "eval.calibration_samples": count(8, low=0),  # networks in an ensemble, compared with their labels; 0 is none
    "eval.adapt_tasks": count(16, low=0),  # of each held-out split, for which networks are adapted by images; 0 is none
    "eval.adapt_shots": several((1, 4, 16), int, low=1),  # labelled images of a class
    "eval.closeup_tasks": count(16, low=0),  # of each split, shown as networks on a plane and at work; 0 is none
}


def defaults() -> ConfigDict:
    """A config with the default of every field."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        part, _, leaf = name.rpartition(".")
        if part and part not in config:
            config[part] = ConfigDict()
        (config[part] if part else config)[leaf] = field.default
    return config
