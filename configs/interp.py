"""The main job: networks for seen angles, for angles between seen ones, and for arcs that were held out.

    python -m pdiff.main --config=configs/interp.py

4 minutes on 2 cores without an accelerator. Test accuracy from the description alone, three seeds (fine-tuned):
seen .985 (.975), interp .981 (.981), unseen .930 (.971); the base has .28, .21 and .13. From 1 / 4 / 16 labelled images
a class and no description, unseen: .935, .948, .963. These are the defaults.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.eval.vague_prompts = (
        "digits rotated by some angle",
        "digits rotated by between 100 and 140 degrees",
        "digits rotated by either 40 or 200 degrees",
    )
    return c.lock()
