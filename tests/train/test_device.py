"""What a training step asks of the device it runs on: nothing, so a GPU is never waited for.

Tensors of the device ``meta`` have no numbers, so whatever would have to be asked of them is an error, and so is
every tensor that was left behind on the processor. They are the only way to see it on a machine without a GPU.
"""

import itertools

import pytest
import torch

from iisan.model import SequentialRecommender
from iisan.recipes import recipe
from iisan.states.sources import CachedStates
from iisan.train.batches import Batches
from iisan.train.loop import Trainer
from iisan.train.setup import build, resolve

META = torch.device("meta")
CASES = [
    ("default",),
    ("default", "sequence.kind=gru4rec"),
    ("default", "sequence.kind=nextitnet"),
    ("default", "items.inter=false", "training.gradient_accumulation=2"),
    ("default", "training.max_grad_norm=1"),
    ("default", "items.level_norm=none", "items.block=phm", "items.projection=double"),
    ("default", "loss.negatives=0", "loss.candidates=all", "loss.exclude=training"),
    ("frozen",),
    ("ids",),
]


def trainer(prepared, folder, case, resident):
    """One that trains on ``META``, and batches of items that all have a text, and some of them an image."""
    name, *changes = case
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    config = recipe(name).model_copy(update=folders).override(["training.batch_size=16", *changes])
    setup = build(resolve(config))
    source, dataset = setup.network.source, setup.dataset
    if setup.stores:
        least = {"text": 0, "image": -1}
        source = CachedStates(
            {
                modality: (store, store.rows_for(dataset).clip(least[modality]), source.levels[modality])
                for modality, store in setup.stores.items()
            }
        )
        assert source.reside(META, 1e9 * resident) == resident
    network = SequentialRecommender.build(config, dataset.num_items, source).to(META).train()
    batches = Batches(setup.split, config.sequence.max_length, config.training.batch_size, config.loss, "last", 0)
    found = Trainer(network, batches, config, lambda _: {}, folder)
    # The fused Adam, which asks nothing either, has no kernel for this device.
    found.optimizer = torch.optim.SGD(value for _, value in network.trainable())
    return found


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "sent"])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_asks_its_device_nothing(prepared, tmp_path, case, resident):
    training = trainer(prepared, tmp_path, case, resident)
    total = training.run(itertools.islice(training.batches.epoch(1), 3))
    assert total.is_meta
    assert all(value.grad is not None and value.grad.is_meta for _, value in training.network.trainable())


def test_what_would_have_to_be_asked_is_an_error(prepared, tmp_path):
    """Which modalities are hidden is drawn on the device: so this check can fail."""
    training = trainer(prepared, tmp_path, ("default", "training.modality_dropout=0.2"), True)
    with pytest.raises(NotImplementedError, match="nonzero"):
        training.run(training.batches.epoch(1))
