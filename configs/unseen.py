"""Whole regions held out: networks for arcs of 30 and 18 degrees that nothing in the zoo comes from.

    python -m pdiff.main --config=configs/unseen.py

One generator that can be asked in words or by the angle. For a look in a few minutes:

    python -m pdiff.main --config=configs/unseen.py --workdir=runs/unseen_fast --config.mean.steps=800 \\
        --config.train.steps=500 --config.train.validate_every=250
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.condition.update(dict(use=("text", "factors"), drop_text=0.2, drop_factors=0.5))
    c.mean.steps = 2500
    return c.lock()
