"""The main job: networks for seen angles, for angles between seen ones, and for arcs that were held out.

python -m pdiff.main --config=configs/interp.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    return c.lock()
