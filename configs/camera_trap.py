"""Camera traps: adapters for a location from its empty background image (arXiv 2506.17807), on unseen locations too.

    python -m pdiff.main --config=configs/camera_trap.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.tasks.update(dict(family="camera_trap", num_seen=448, num_interp=24, num_unseen=32, num_validation=32))
    c.target.update(dict(widths=(64, 32), generate="lora/.*", lora_rank=4, lora_modules="Dense_[01]"))
    c.zoo.update(dict(seeds_per_task=2, reference_seeds=2, steps=600))
    c.condition.update(dict(use=("background", "text"), drop_background=0.2, drop_text=0.6))
    c.condition.update(dict(number_noise=0.0, background_noise=0.05, text_max_length=96))
    c.sample.condition = ("background",)
    c.train.steps = 2000
    c.eval.update(dict(hypernetwork=True, mixing_separations=(), transfer_pairs=300))
    return c.lock()
