"""A whole run that is as small as it can be and still has checkpoints of both its models, four chunks of its zoo, a
rival, a report.

Its numbers mean nothing. How it was shrunk: what takes time in so small a run is tracing and compiling programs, so
there is one sampler, one transformer block, no loss on images, and no study that has programs of its own.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(num_seen=4, num_interp=1, num_unseen=1, num_validation=1, unseen="40:80"))
    c.zoo.update(dict(seeds_per_task=2, reference_seeds=1, pretrain_steps=10, steps=4, chunk_size=3))
    c.mean.update(dict(width=16, steps=4, batch_size=4, functional_weight=0.0, zoo_weight=1.0))
    c.refined.update(dict(networks=40, sentences=4))
    c.subspace.update(dict(components=8, networks=40))
    c.model.update(dict(width=16, num_heads=2, depth=1))
    c.condition.update(dict(text_width=16, text_depth=0, text_vocab_size=300, text_max_length=96))
    c.train.update(dict(steps=6, batch_size=4, warmup_steps=1, log_every=1, validate_every=6, checkpoint_every=2))
    c.sample.update(dict(num_steps=4, batch_size=8, samplers=("posterior_mean",)))
    c.eval.update(dict(samples_per_task=1, chunk_size=8, closeup_tasks=0))
    c.eval.update(dict(mixing_separations=(), rivals="pca_flow", rival_steps=2))
    c.eval.update(dict(vague_samples=0, calibration_samples=0, adapt_tasks=0))
    return c.lock()
