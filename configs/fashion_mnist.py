"""A real 28x28 data set and a CNN: 24,754 generated parameters for subsets of Fashion-MNIST's classes.

    python -m pdiff.tasks.data.fashion_mnist --source=/usr/share/datasets/fashion-mnist --data_dir=data
    python -m pdiff.main --config=configs/fashion_mnist.py

The first command reads the files of Debian's package `dataset-fashion-mnist`, once (half a minute). The second takes
about 40 minutes on 2 cores, a third of it evaluation. Test accuracy, seed 0, one call (fine-tuned, nearest seen,
majority): seen .892 (.870, .775, .621), interp .863 (.867, .790, .623), unseen .864 (.851, .721, .555).
"""

from ml_collections import ConfigDict

from configs import class_subsets


def get_config() -> ConfigDict:
    c = class_subsets.get_config()
    with c.unlocked():
        c.tasks.update(dict(data="fashion_mnist", data_dir="data", eval_images=1000))
        c.tasks.update(dict(num_seen=96, num_interp=8, num_unseen=16, num_validation=8))
        c.target.update(dict(name="cnn", widths=(8, 16, 32, 64)))
        c.zoo.update(dict(seeds_per_task=2, reference_seeds=1, steps=150, batch_size=32, chunk_size=8))
        c.weights.token_dim = 1024  # 25 tokens: a transformer over 97 would take most of the time
        c.mean.update(dict(width=64, steps=800, batch_size=32, functional_images=16))
        c.train.update(dict(steps=800, batch_size=32, validate_every=200, checkpoint_every=200))
        c.sample.batch_size = 16
        c.eval.update(dict(samples_per_task=1, chunk_size=8, max_tasks=24))
    return c.lock()
