"""Whole networks on a TPU pod: ResNet-18 for subsets of CIFAR-10's classes. Compiled, never yet trained.

    tfds build cifar10 --file_format=array_record --data_dir=data
    python -m pdiff.main --config=configs/pod.py
    python -m pdiff.main --config=configs/pod.py --mode=compile --topology=v5e:16x16

`configs/pod.py:vit` generates a vision transformer of ViT-S's width (21.4 M numbers). The last command needs neither a
TPU nor the images. Mean and prior have 505 M parameters; the global batch is 256 networks, 11.4 GB of them. Predicted
on v5e:4x4, not measured: 162 ms for a step of the mean and 28 ms for one of the prior, in 7.2 and 1.2 GiB of 16
(docs/scaling.md has the assumptions, and other topologies for an older generator).

On 16 chips or fewer take `--config.zoo.chunk_size=64`. The zoo, 1,000 networks or so, is 45 GB.
"""

from ml_collections import ConfigDict

from configs import class_subsets

TARGETS = {
    "resnet": dict(name="resnet", widths=(64, 128, 256, 512), blocks=2),  # ResNet-18
    "vit": dict(name="vit", widths=(384,) * 18),  # ViT-S's width, and as many parameters in blocks of half its MLP
}


def get_config(target: str = "resnet") -> ConfigDict:
    c = class_subsets.get_config()
    with c.unlocked():
        c.tasks.update(dict(data="tfds:cifar10", data_dir="data", eval_images=1000))
        c.target.update(TARGETS[target])
        c.zoo.update(dict(seeds_per_task=4, reference_seeds=1, pretrain_steps=20000, steps=500, batch_size=64))
        c.zoo.update(dict(pretrain_learning_rate=1e-3, learning_rate=1e-3, chunk_size=256))
        c.weights.token_dim = 32768  # 342 tokens of a ResNet-18
        c.model.update(dict(width=1024, depth=16, num_heads=16, dtype="bfloat16", remat=True))
        c.condition.update(dict(text_width=256, text_depth=4))
        c.mean.update(dict(width=16, batch_size=256, functional_images=16, zoo_weight=1.0))
        c.mesh.update(dict(model=1, fsdp=True))
        c.train.update(dict(steps=50000, batch_size=256, microbatches=1, learning_rate=3e-4, warmup_steps=1000))
        c.train.update(dict(ema_decay=0.9995, validate_every=5000, checkpoint_every=1000))
        c.sample.update(dict(batch_size=256))
        c.eval.update(dict(chunk_size=256, rivals=""))
    return c.lock()
