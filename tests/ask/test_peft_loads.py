"""The real libraries load an exported adapter onto the real model, and answer as we do."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pdiff import minilm
from pdiff.ask import adapters
from pdiff.config.fields import defaults
from pdiff.targets import get_target
from tests.models.test_sentence import needs_minilm
from tests.noise import noised

LIBRARIES = ("torch", "transformers", "peft")
TEXTS = [
    "oak: a deciduous tree of the genus Quercus",
    "loan: the temporary provision of money",
    "a",
    "philosopher: a specialist in philosophy who asks many questions of everybody that he meets, and who waits for "
    "long answers that nobody has the time to give to him, so that this text is longer than twenty-four tokens",
]
LENGTH = 24


@needs_minilm
@pytest.mark.skipif(any(importlib.util.find_spec(n) is None for n in LIBRARIES), reason=f"needs {', '.join(LIBRARIES)}")
def test_peft_answers_as_we_do(tmp_path):
    """Takes 20 s. The model is built from the wheel's files, which are those that its page has."""
    import peft
    import torch
    import transformers

    folder = minilm.find()
    config = defaults().target
    with config.unlocked():
        config.update(dict(name="minilm", lora_rank=8, lora_alpha=16.0, lora_modules="layer_.*"))
        config.generate = "lora/.*|params/classifier/.*"
    reader = minilm.Reader(folder)
    x = reader.after(TEXTS, reader.sizes.depth - minilm.TOP, LENGTH)
    target = get_target(config, (LENGTH * reader.sizes.width,), 2)
    tree = jax.jit(target.init)(jax.random.key(0))
    tree |= {"lora": noised(tree["lora"], 0.05)}
    tree["params"]["classifier"] = noised(tree["params"]["classifier"], 0.5)
    ours = np.asarray(target.apply(tree, jnp.asarray(x.reshape(len(x), -1))))
    network = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}
    adapters.write(network, tmp_path / "adapter", target.peft)

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    inputs = tokenizer(TEXTS, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).logits.numpy()
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
        theirs = loaded(**inputs).logits.numpy()
    assert np.abs(theirs - plain).max() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=5e-3)  # our lower layers' tokens are float16
    assert (theirs.argmax(-1) == ours.argmax(-1)).all()
