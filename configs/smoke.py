"""The path of `interp.py`, tiny: does everything still fit together?

    python -m pdiff.main --config=configs/smoke.py

A minute and a half on 2 cores. Its accuracies mean nothing.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(num_seen=12, num_interp=3, num_unseen=4, num_validation=4))
    c.zoo.update(dict(seeds_per_task=2, reference_seeds=2, pretrain_steps=300, steps=100, chunk_size=16))
    c.mean.update(dict(width=64, steps=60, batch_size=16, functional_images=32))
    c.refined.update(dict(networks=180, sentences=50))
    c.subspace.update(dict(components=16, networks=64))
    c.model.update(dict(width=64, depth=2))
    c.condition.update(dict(text_width=32))
    c.train.update(dict(steps=60, batch_size=16, warmup_steps=5, log_every=10, validate_every=30, checkpoint_every=30))
    c.sample.update(dict(num_steps=4, batch_size=16, samplers=("heun", "posterior_mean", "ddim")))
    c.eval.update(dict(samples_per_task=2, chunk_size=64))
    c.eval.update(dict(mixing_separations=(60.0,), rivals="pca_flow", rival_steps=30))
    c.adapt.update(dict(num_samples=32, steps=5, learning_rates=(1e-3, 3e-3)))
    c.eval.update(dict(vague_samples=16, vague_prompts=("digits rotated by some angle",), calibration_samples=2))
    c.eval.update(dict(adapt_tasks=2, adapt_shots=(1, 2)))
    return c.lock()
