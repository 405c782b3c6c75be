"""Subsets of the classes: is an image's class in the subset that was asked for? The task of RPG, on digits.

    python -m pdiff.main --config=configs/class_subsets.py

240 subsets of 2 to 5 classes, asked for in words; the unseen ones differ by two classes or more from each of them and
from their complements. Seed 0, test images, means; 13 minutes beside much other work, 8 of processor time.

                        seen   interp  unseen
    fine-tuned          .982   .983    .982
    generated, one call .988   .988    .986
    held-out wordings   .910   .893    .902
    hypernetwork        .988   .988    .986
    16 images, no words        .955    .971
    ridge               .927   .928    .909
    nearest seen        .879   .886    .783
    majority            .610   .635    .552
    task-blind          .605   .635    .541
    base                .605   .634    .541
"""

from ml_collections import ConfigDict

from pdiff.config.fields import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.tasks.update(dict(family="class_subsets", unseen="", num_seen=240, num_unseen=24, num_validation=16))
    c.zoo.seeds_per_task = 3
    # A vocabulary with room for the names of the classes, so that each is a piece or two.
    c.condition.update(dict(use=("text", "factors"), drop_text=0.2, drop_factors=0.7, text_vocab_size=0))
    # Factors are 0 or 1, a quarter of this period apart: at right angles on its circle. Nothing lies between them.
    c.condition.update(dict(number_noise=0.0, number_period=4.0, num_harmonics=1))
    c.mean.steps = 800
    c.adapt.guided = 64  # 512 draws cannot hold 627 subsets, of which no two are between one another
    c.eval.update(dict(mixing_separations=()))
    return c.lock()
