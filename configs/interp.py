"""The main job: networks for seen angles, for angles between seen ones, and for arcs that were held out.

    python -m pdiff.main --config=configs/interp.py

4 to 8 minutes on 2 cores without an accelerator. Test accuracy from the description alone, seed 0 (fine-tuned):
seen .984 (.974), interp .981 (.978), unseen .928 (.968); the base has .28, .21 and .13. From 1 / 4 / 16 labelled images
a class and no description, unseen: .926, .944, .962. These are the defaults of `common.py`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.eval.vague_prompts = (
        "digits rotated by some angle",
        "digits rotated by between 100 and 140 degrees",
        "digits rotated by either 40 or 200 degrees",
    )
    return c.lock()
