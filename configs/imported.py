"""Your own networks, imported: ten LoRA folders of one base model, or a few hundred, or networks of any kind.

    python -m pdiff.main --config=configs/imported.py --mode=import --source=my_zoo --workdir=runs/mine
    python -m pdiff.main --config=configs/imported.py --workdir=runs/mine

The first reads and checks the folder, the second trains a generator on it, compares what it draws with the tasks' own
networks, and writes the report; two minutes on 2 cores for adapters of some thousand parameters. Nothing is known of
images here, so all is measured in weights: `distance` is 1 for the mean of the zoo and 0 for the task's own network.
Ten LoRAs that PEFT trained for strengths from 0 to 1, seed 0, distance of updates: seen .080, unseen .749 (nearest seen
task 1.059, ridge .971). docs/importing.md has the whole way.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    # Held out where the manifest does not say what is; with a few tasks each is dear, so one of each.
    c.tasks.update(dict(family="imported", unseen="", num_seen=100_000, num_interp=0, num_unseen=1, num_validation=1))
    c.tasks.update(dict(num_gaps=0, validation_gaps=()))
    c.target.name = "imported"
    c.zoo.align = "balanced"  # LoRA factors in one gauge, other networks as they are; "none" keeps every bit
    c.weights.update(dict(token_dim=0, scale="param"))
    c.model.update(dict(width=64, depth=2))
    c.condition.update(dict(drop_id=0.9, drop_factors=0.0, text_vocab_size=0, text_width=32))
    c.condition.update(dict(number_noise=0.01, number_period=0.0, num_harmonics=2))
    c.mean.update(dict(width=64, steps=800, batch_size=32, functional_weight=0.0, zoo_weight=1.0))
    c.refined.update(dict(of="zoo", vague=0.0))
    c.train.update(dict(steps=800, batch_size=32, warmup_steps=50, validate_every=800, checkpoint_every=400))
    c.sample.update(dict(samplers=("posterior_mean", "heun"), batch_size=16))
    c.eval.update(dict(mixing_separations=(), vague_samples=0, adapt_tasks=0))
    return c.lock()
