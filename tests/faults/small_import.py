"""The same of ten small adapters that others made: import, training, comparison by weights."""

from ml_collections import ConfigDict

from configs import imported


def get_config() -> ConfigDict:
    c = imported.get_config()
    c.mean.update(dict(width=16, steps=4, batch_size=4))
    c.model.update(dict(width=16, num_heads=2, depth=1))
    c.condition.update(dict(text_width=16, text_depth=0))
    c.train.update(dict(steps=6, batch_size=4, warmup_steps=1, log_every=1, validate_every=6, checkpoint_every=2))
    c.sample.update(dict(samplers=("posterior_mean",), batch_size=8))
    c.eval.update(dict(samples_per_task=1))
    return c.lock()
