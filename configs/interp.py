"""The main job: networks for seen angles, for angles between seen ones, and for arcs that were held out.

    python -m pdiff.main --config=configs/interp.py

About 8 minutes on 2 cores without an accelerator. Test accuracy from the description alone, seed 0 (fine-tuned):
seen .985 (.974), interp .979 (.978), unseen .922 (.968); the base has .28, .21 and .13. These are the defaults of
`common.py`, with a hypernetwork trained as a rival.
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
