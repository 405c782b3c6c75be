"""Discrete and continuous factors together: networks for seven kinds of corruption, each at any severity.

    python -m pdiff.main --config=configs/corruptions.py

Not yet run at its full length. After 600 of its 2,000 steps, without the hypernetwork, seed 0, one call from the
description alone (fine-tuned, nearest seen, ridge): seen .949 (.927, .920, .859), interp .966 (.939, .931, .885),
unseen .933 (.934, .913, .728); of unseen the severities from 85 percent on .891 (.897, .858, .544). That run's
blur had a standard deviation linear in the severity; now its variance is.

Inversion at 50 percent is grey, and from there to 65 percent fine-tuning from the base does badly: the generator is
above it, which is most of its lead on seen and interp tasks.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.tasks.update(dict(family="corruptions", unseen="30:45,85:100", num_seen=252, gap_width=6.0, num_gaps=2))
    c.tasks.update(dict(num_interp=28, num_unseen=56, num_validation=42, validation_gaps=(6.0, 12.0)))
    # Gentler than the default, at which images that are nearly inverted leave no unit of the network alive.
    c.zoo.update(dict(seeds_per_task=3, reference_seeds=2, steps=1500, learning_rate=3e-3, weight_decay=0.1))
    c.condition.update(dict(use=("text", "factors"), drop_text=0.2, drop_factors=0.5))
    c.condition.update(dict(text_max_length=96, number_noise=4.0, number_period=200.0))
    c.mean.steps = 2000
    c.sample.condition = ("text",)
    c.eval.update(dict(mixing_separations=()))
    return c.lock()
