"""The doors: stored and live states are the same numbers, and live weights behave."""

from pathlib import Path
from typing import Any

import pytest
import torch

from iisan.backbones.image import ImageBackbone
from iisan.backbones.text import TextBackbone, load_text
from iisan.backbones.tuning import tune
from iisan.errors import DataError, StoreError
from iisan.states.contents import Contents
from iisan.states.extract import extract
from iisan.states.sources import CachedStates, LiveStates, NoStates

LEVELS = {"text": (0, 2, "last"), "image": (4, "last")}


@pytest.fixture
def cached(catalogue: Any, bert: TextBackbone, vit: ImageBackbone, tmp_path: Path) -> CachedStates:
    parts = {}
    for backbone in (bert, vit):
        modality = backbone.modality
        store = extract(backbone, Contents.of(catalogue, modality), tmp_path, dtype="fp32", shard_rows=16)
        parts[modality] = (store, store.rows_for(catalogue), LEVELS[modality])
    return CachedStates(parts)


@pytest.fixture
def live(catalogue: Any, bert: TextBackbone, vit: ImageBackbone) -> LiveStates:
    return LiveStates(
        {b.modality: (b, Contents.of(catalogue, b.modality), LEVELS[b.modality]) for b in (bert, vit)},
        batch_size=4,
    )


def test_live_states_are_the_cached_ones(cached: CachedStates, live: LiveStates) -> None:
    rows = torch.tensor([36, 2, 8, 20, 0, 37, 3])
    from_store, computed = cached(rows), live.train()(rows)
    assert cached.widths == live.widths == {"text": 16, "image": 16}
    assert cached.levels == live.levels == LEVELS
    assert torch.equal(from_store.rows, rows)
    # Item 36 has no text; images belong to items 0 to 8.
    assert from_store.modalities["text"][1].tolist() == [1, 2, 3, 4, 5, 6]
    assert from_store.modalities["image"][1].tolist() == [1, 2, 4, 6]
    for modality, (states, positions) in from_store.modalities.items():
        assert states.shape == (len(positions), len(LEVELS[modality]), 16)
        torch.testing.assert_close(computed.modalities[modality][0], states, rtol=1e-5, atol=1e-5)
        assert torch.equal(computed.modalities[modality][1], positions)


def test_no_item_with_a_modality(cached: CachedStates, live: LiveStates) -> None:
    rows = torch.tensor([36])
    for source in (cached, live):
        states, positions = source(rows).modalities["text"]
        assert states.shape == (0, 3, 16)
        assert positions.shape == (0,)


def test_ids_have_no_states() -> None:
    source = NoStates()
    rows = torch.tensor([4, 2])
    assert (source.widths, source.levels) == ({}, {})
    assert torch.equal(source(rows).rows, rows)
    assert source(rows).modalities == {}


def test_the_store_is_no_part_of_a_checkpoint(cached: CachedStates) -> None:
    assert cached.state_dict() == {}
    assert list(cached.parameters()) == []


def test_levels_are_checked_at_construction(cached: CachedStates, catalogue: Any) -> None:
    store = cached._stores["text"]
    with pytest.raises(StoreError, match="level 3"):
        CachedStates({"text": (store, store.rows_for(catalogue), (0, 3))})


def test_frozen_backbones_stay_as_they_are(live: LiveStates) -> None:
    model = torch.nn.Sequential(live).train()
    assert live.training
    assert not any(module.training for backbone in live.backbones.values() for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    states, _ = live(torch.tensor([0])).modalities["text"]
    assert not states.requires_grad
    assert not states.is_inference()
    model.eval()
    assert not live.training


def test_a_bad_image_names_its_item(live: LiveStates, catalogue: Any) -> None:
    catalogue.images[4] = b"no image"
    with pytest.raises(DataError, match="item 'i4'"):
        live(torch.tensor([3, 4]))


def test_trainable_backbones_learn(catalogue: Any, model_folders: dict[str, Path]) -> None:
    backbone = load_text(str(model_folders["bert"]))
    tune(backbone, "full")
    backbone.tower.embeddings.requires_grad_(False)
    parts = {"text": (backbone, Contents.of(catalogue, "text"), (1, "last"))}
    source = LiveStates(parts).train()
    assert backbone.tower.training
    states, _ = source(torch.tensor([0, 1, 2])).modalities["text"]
    states.square().sum().backward()
    trained = {name for name, parameter in source.named_parameters() if parameter.grad is not None}
    assert trained <= {name for name, parameter in source.named_parameters() if parameter.requires_grad}
    assert any("layer.3" in name for name in trained)
    assert not any("embeddings" in name for name in trained)
    with torch.no_grad():
        assert not source(torch.tensor([0])).modalities["text"][0].requires_grad
