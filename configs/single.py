"""One task: its distribution of fine-tuned networks, from many independent seeds of one shared base. Unconditional.

    python -m pdiff.main --config=configs/single.py

The prior learns from the zoo itself here. Of the generator before (commit b2033d2), 128 samples, seed 0: .9778 on test
images (fine-tuned .9770, soup .965, noise .959). They share .96 of their wrong answers with the most similar zoo
network; zoo networks share .99 with one another.

With networks kept along each run, the source paper's saving intervals (every 1, 10 or 100 steps):

    python -m pdiff.main --config=configs/single.py --workdir=runs/single_10 --config.zoo.seeds_per_task=64 \\
        --config.zoo.keep_last=8 --config.zoo.keep_every=10
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(unseen="", num_seen=1, num_interp=0, num_unseen=0, num_validation=0, num_gaps=0))
    c.tasks.validation_gaps = ()
    c.zoo.seeds_per_task = 512
    c.condition.update(dict(use=("id",), drop_id=0.0, drop_all=0.0))
    # One task has one mean: what differs between its networks is in the zoo alone.
    c.mean.steps = 100
    c.refined.update(dict(of="zoo", vague=0.0))
    # Not one call: with one condition it draws one network.
    c.sample.update(dict(condition=("id",), samplers=("heun", "ddim", "dpmpp_2m", "euler_maruyama")))
    c.eval.update(dict(samples_per_task=128, mixing_separations=()))
    return c.lock()
