"""Your own images: a folder of tasks, each a folder of classes, each a folder of images (png or jpg).

    python -m pdiff.main --config=configs/folder.py --config.tasks.data_dir=cameras    # cameras/TASK/CLASS/*.png

A quarter of the tasks is held out; --config.tasks.held_out=north_gate,jetty names the unseen ones. Images larger than
16 x 16, or of several sizes, are resized to that; --config.tasks.image_side=32 keeps more of them. How long it will
take is told before it starts.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults
from pdiff.tasks.families.folder import SUITED


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(family="folder", unseen="", num_interp=0, num_unseen=SUITED, num_validation=SUITED))
    c.tasks.image_side = 16
    c.condition.update(dict(number_noise=0.0, number_period=0.0, text_max_length=128))
    return c.lock()
