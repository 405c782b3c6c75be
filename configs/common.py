"""Every field of a pdiff run with its default. Scenarios change a few of them.

Any field can be overridden on the command line: `--config.train.steps=20000`.
`pdiff/config.py` says what each may hold and refuses everything else before any work starts.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0

    # What a network must do. Regions and widths are in the family's own units. For rotation: degrees, 'start:end'
    # with the end past the start going counter-clockwise ('350:10' crosses zero), separated by commas. For
    # corruptions: percent of the highest severity, the same for each kind.
    c.tasks = ConfigDict(
        dict(
            family="rotation",  # rotation | corruptions | class_subsets | camera_trap | folder
            data="digits",  # the images that the tasks share: digits | fashion_mnist | tfds:NAME
            data_dir="",  # where they, or the tasks of a folder, lie, if not in an installed package
            eval_images=0,  # most validation and most test images, chosen by a fixed permutation; 0 is all of them
            unseen="60:90,216:234",  # regions held out as `unseen`
            num_seen=256,  # tasks in the zoo, spread evenly over what is not held out
            num_interp=16,  # tasks strictly inside the interp gaps
            num_unseen=16,  # tasks inside the unseen regions
            num_validation=20,  # tasks inside the validation gaps, which select everything
            gap_width=10.0,  # width of one interp gap
            num_gaps=3,  # interp gaps, placed evenly over the seen region
            validation_gaps=(10.0, 30.0),  # widths of the gaps that validation tasks come from
            corruptions=("contrast", "blur", "inversion", "noise", "occlusion", "shear", "scale"),  # kinds in use
        )
    )

    # The network whose weights are generated.
    c.target = ConfigDict(
        dict(
            name="mlp",  # mlp | cnn | vit | resnet
            widths=(32,),  # hidden widths; channels of a cnn's or resnet's stages; a vit's width, once for each block
            blocks=1,  # blocks of each stage of a resnet; 1 for all others
            generate=".*",  # regex over leaf paths: what is fine-tuned and generated; other leaves stay the base's
            lora_rank=0,  # above 0: low-rank adapters, and then generate="lora/.*" (or "(lora|batch_stats)/.*")
            lora_alpha=8.0,  # an adapter counts lora_alpha / lora_rank times
            lora_modules=".*",  # regex over module paths, such as "Dense_0": which kernels are adapted
        )
    )

    # How networks are fine-tuned.
    c.zoo = ConfigDict(
        dict(
            dir="",  # '' is <workdir>/zoo; name a directory to share one zoo between runs
            import_mb=4096.0,  # --mode=import: most MB that all its networks may hold
            memory_mb=4096.0,  # seen networks that take more MB (10^6 bytes) are read from disk, batch by batch
            seeds_per_task=6,
            reference_seeds=3,  # networks for each interp, unseen and validation task
            pretrain_steps=2000,
            pretrain_learning_rate=3e-3,
            # Where fine-tuning starts: the pretrained base, or a random initialisation of each network's own. Then
            # mean.base_penalty should be 0, as the distance from the base means nothing.
            init="base",  # base | random
            # weight_matching: hidden units reordered to fit those of the seen networks' mean. balanced: imported LoRA
            # factors brought into one gauge, see pdiff/imports/gauge.py.
            align="none",  # none | weight_matching | balanced
            steps=1000,
            batch_size=64,
            learning_rate=1e-2,
            schedule="cosine",  # constant | cosine
            weight_decay=1e-2,
            keep_last=1,  # late checkpoints kept of each run
            keep_every=1,  # optimizer steps between two kept checkpoints
            chunk_size=0,  # networks trained together; 0 is 16 for each device of a CPU, and 128 for each accelerator
        )
    )

    # Weights <-> tokens.
    c.weights = ConfigDict(
        dict(
            token_dim=256,  # width of a token; 0 is chosen by the network's size
            center="mean",  # mean | base
            scale="leaf",  # param | leaf | global
        )
    )

    # The mean: from a condition to one network. `train` says the rest of how it is trained.
    c.mean = ConfigDict(
        dict(
            width=256,  # of the layer before the weights
            steps=2000,
            batch_size=64,
            learning_rate=2e-3,
            functional_weight=1.0,  # of the cross-entropy of its networks on images of their tasks
            functional_images=128,  # images of the task for each network there
            base_penalty=3e-5,  # mu of a penalty mu ||W - base||^2 beside it, which prefers the least change that works
            zoo_weight=0.0,  # of the squared distance, in normalised weights, from a network of the zoo
        )
    )

    # What the prior learns from: the mean's networks for many conditions, see pdiff/refined.py.
    c.refined = ConfigDict(
        dict(
            of="mean",  # mean | zoo: the zoo itself, where there are no tasks between tasks
            networks=2880,  # most, spread evenly over all that can be described
            sentences=2000,  # vague descriptions in training
            vague=0.5,  # share of training examples that have a set of tasks in place of one
        )
    )

    # Where the prior draws: principal components of the refined zoo, see pdiff/weights/subspace.py.
    c.subspace = ConfigDict(
        dict(
            components=64,  # most
            explained=0.9999,  # share of the variance of held-out networks that the components are to explain
            token_dim=8,  # coefficients in one token of the transformer; divides `components`
            networks=1024,  # most that the components are computed from: their inner products are held in memory
        )
    )

    # The diffusion transformer, and the width of the condition encoders.
    c.model = ConfigDict(
        dict(
            width=128,
            depth=3,
            num_heads=4,
            mlp_ratio=4.0,
            dtype="float32",  # float32 | bfloat16, for activations only
            remat=False,
        )
    )

    # Condition tokens: what the models are told of the task. In training a condition is dropped to its null token with
    # its own probability; the prior, and rivals, do without any with `drop_all`.
    c.condition = ConfigDict(
        dict(
            use=("text",),
            drop_id=0.9,
            drop_factors=0.3,
            drop_text=0.0,
            drop_sentence=0.3,  # "sentence" is a frozen encoder of the same descriptions; see pdiff/models/sentence.py
            drop_background=0.0,
            background_noise=0.0,  # standard deviation of the noise on background images in training, of white
            drop_all=0.1,
            text_vocab_size=0,  # 0 is as many pieces as the descriptions fill, about 400 at most
            text_max_length=64,
            text_width=64,
            text_depth=1,
            num_harmonics=4,  # Fourier harmonics of a number in a text, and of a factor
            number_noise=8.0,  # standard deviation of the noise on them in training, in the numbers' own units
            # The numbers' period: those harmonics of it are told apart. 0 is twice the range of the numbers in the seen
            # tasks' descriptions, and of each factor; number_noise then counts in periods.
            number_period=360.0,
        )
    )

    c.diffusion = ConfigDict(
        dict(
            path="ve",  # ve | vp | rectified_flow
            sigma_min=0.02,  # lowest and highest noise-to-signal ratio
            sigma_max=40.0,
            p_mean=0.3,  # training noise: log sigma ~ N(p_mean, p_std^2) (ve)
            p_std=1.8,
            at_sigma_max=0.02,  # share of training examples put at sigma_max
        )
    )

    # How training is laid out over the devices. Nothing that is learned depends on it, beyond rounding.
    c.mesh = ConfigDict(
        dict(
            model=1,  # devices that share one copy of each transformer block; the others split the batch
            fsdp=False,  # devices that split the batch also split parameters, their average and the optimizer's state
        )
    )

    c.train = ConfigDict(
        dict(
            steps=2000,
            batch_size=128,
            microbatches=1,  # parts that a batch is computed in, one after the other, to take less memory
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=1e-2,
            grad_clip=1.0,
            ema_decay=0.998,
            log_every=50,
            validate_every=500,
            checkpoint_every=500,
            keep_checkpoints=2,
            wandb="",  # a project of Weights & Biases to log to as well; needs pip install -e '.[wandb]'
        )
    )

    c.sample = ConfigDict(
        dict(
            samplers=("heun", "posterior_mean", "dpmpp_2m", "ddim", "euler_maruyama"),
            num_steps=18,
            rho=7.0,  # spacing of the noise levels, EDM equation 5
            guidance=1.0,  # classifier-free guidance; 1 is none
            condition=("text",),  # which conditions are given; the others are null
            batch_size=64,  # samples drawn together; smaller requests are padded to it
        )
    )

    # From the prior and a few labelled images to one network, see pdiff/adapt.py.
    c.adapt = ConfigDict(
        dict(
            num_samples=512,  # networks drawn, of which the likeliest is kept
            steps=60,  # of fine-tuning from there
            learning_rates=(1e-3, 3e-3, 1e-2),  # of which validation tasks choose one for each number of images
        )
    )

    c.eval = ConfigDict(
        dict(
            samples_per_task=3,
            max_tasks=64,  # tasks scored in each split, evenly chosen
            chunk_size=256,  # networks scored together
            noise=0.2,  # relative rms of the `noise` control
            # Other generators to train on the same zoo, by name and comma, or "all", each for as long as the
            # generator's own training took: latent_unet, p_diff, g_pt, pca_flow, latent_kde.
            rivals="",
            rival_steps=0,  # updates of each stage of a rival in place of equal time
            novelty_networks=512,  # zoo networks that a task's are compared with: its own, then its nearest tasks'
            mixing_separations=(10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0),  # between two tasks that are mixed
            transfer_pairs=0,  # (network of a seen task, other task) scored against the distance of the two
            vague_samples=256,  # networks for each vague description that is measured; 0 is none
            vague_prompts=(),  # these descriptions; () is one of each kind that the family has
            calibration_samples=8,  # networks in an ensemble, whose answers are held against their labels; 0 is none
            adapt_tasks=16,  # of each held-out split, to which networks are adapted by a few images; 0 is none
            adapt_shots=(1, 4, 16),  # labelled images of a class
            closeup_tasks=16,  # of each split, of which the report shows networks on a plane and at work; 0 is none
        )
    )
    return c
