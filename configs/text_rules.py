"""Rules over texts: 111,362 weights, which are LoRA adapters of all-MiniLM-L6-v2 and a head, from "plants or food".

    python -m pdiff.tasks.data.wordnet --source=/usr/share/wordnet --data_dir=data
    python -m pdiff.main --config=configs/text_rules.py

The first command reads data.noun of Debian's package `wordnet-base`, once (a minute). Both need the extra `text` and
the wheel of MiniLM. Accuracies are balanced: half of a rule's texts are of it, so a constant answer is right on .5.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(family="text_rules", data="wordnet", data_dir="data", unseen="", eval_images=460))
    c.tasks.update(dict(num_seen=128, num_practice=1000, num_interp=8, num_unseen=16, num_validation=8, num_unheard=3))
    c.target.update(
        dict(name="minilm", widths=(), lora_rank=8, lora_alpha=8.0, lora_modules="layer_.*", dtype="bfloat16")
    )
    c.target.update(dict(generate="lora/.*|params/classifier/.*", dtype="bfloat16"))
    c.zoo.update(dict(seeds_per_task=1, reference_seeds=1, pretrain_steps=20, chunk_size=8))
    c.zoo.update(dict(steps=320, batch_size=8, learning_rate=3e-3))
    c.weights.token_dim = 1024
    # Words of the rule in both conditions; the frozen encoder's vector is what an unheard kind is described by.
    c.condition.update(dict(use=("text", "sentence", "factors"), drop_text=0.2, drop_sentence=0.3, drop_factors=0.7))
    c.condition.update(dict(text_vocab_size=0, text_max_length=160))
    # Factors are 0 or 1, opposite on their circle. Nothing lies between them.
    c.condition.update(dict(number_noise=0.0, number_period=4.0, num_harmonics=1))
    # So wide that the mean works in coordinates on the zoo's networks: as good in as many steps, and a third faster.
    c.mean.update(dict(width=256, steps=2000, batch_size=64, functional_images=4, learning_rate=1.5e-3, zoo_weight=0.1))
    c.refined.networks = 512
    c.train.update(dict(steps=1000, batch_size=64, validate_every=200, checkpoint_every=200))
    c.sample.update(dict(condition=("text", "sentence"), samplers=("heun", "posterior_mean"), batch_size=16))
    c.adapt.update(dict(num_samples=128, steps=24, learning_rates=(1e-3, 3e-3)))
    c.eval.update(dict(samples_per_task=1, chunk_size=8, max_tasks=16, adapt_tasks=16, adapt_shots=(4,), reptile=False))
    c.eval.update(dict(vague_samples=8, vague_prompts=("is it about plants and some other kinds", "any kinds")))
    c.eval.update(dict(calibration_samples=0, mixing_separations=(), closeup_tasks=0, novelty_networks=8))
    return c.lock()
