"""Many seen tasks, each by its id and by its description: does one generator keep what fine-tuning found for each?

    python -m pdiff.main --config=configs/multi.py

128 angles, 8 networks of each. Of the generator before (commit b2033d2), test accuracy, seed 0:
by id .986, by text .985, fine-tuned .974 (soup .254, nearest seen .962). The task on which most is lost against
fine-tuning loses .006 by id and .012 by text.
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(unseen="", num_seen=128, num_interp=0, num_unseen=0, num_gaps=0, validation_gaps=(5.0, 5.0)))
    c.tasks.num_validation = 8
    c.zoo.seeds_per_task = 8
    c.condition.update(dict(use=("id", "text"), drop_id=0.4, drop_text=0.4))
    c.eval.update(dict(max_tasks=128, mixing_separations=()))
    return c.lock()
