"""DRAFT"""

from ml_collections import ConfigDict

from configs import class_subsets


def get_config() -> ConfigDict:
    c = class_subsets.get_config()
    with c.unlocked():
        c.tasks.update(dict(data="tfds:cifar10", data_dir="data", eval_images=1000))
        c.target.update(dict(name="resnet", widths=(64, 128, 256, 512), blocks=2))
        c.zoo.update(dict(seeds_per_task=4, reference_seeds=1, pretrain_steps=20000, steps=500, chunk_size=256))
        c.weights.token_dim = 8192
        c.model.update(dict(width=1024, depth=24, num_heads=16, mean_width=0, dtype="bfloat16", remat=True))
        c.condition.update(dict(text_width=256, text_depth=4))
        c.diffusion.update(dict(functional_weight=1.0, functional_images=16))
        c.mesh.update(dict(model=1, fsdp=True))
        c.train.update(dict(steps=50000, batch_size=256, microbatches=1, learning_rate=3e-4, warmup_steps=1000))
        c.sample.update(dict(batch_size=256))
    return c.lock()
