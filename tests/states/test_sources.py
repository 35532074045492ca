"""State sources: stored and live states have the same values, and live weights are trained and saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iisan.encoders.contents import Contents
from iisan.encoders.image import ImageEncoder
from iisan.encoders.text import TextEncoder, load_text
from iisan.encoders.tuning import tune
from iisan.errors import ConfigError, DataError, EncoderError, StoreError
from iisan.nn.hidden import Hidden
from iisan.states.corruption import CorruptedStates, hide_modalities
from iisan.states.extract import extract
from iisan.states.sources import CachedStates, ItemBatch, LiveStates, NoStates

LEVELS = {"text": (0, 2, "last"), "image": (4, "last")}


@pytest.fixture
def cached(catalogue: Any, bert: TextEncoder, vit: ImageEncoder, tmp_path: Path) -> CachedStates:
    parts = {}
    for encoder in (bert, vit):
        modality = encoder.kind
        store = extract(encoder, Contents.of(catalogue, modality), tmp_path, dtype="fp32", shard_rows=16)
        parts[modality] = (store, store.rows_for(catalogue), LEVELS[modality])
    return CachedStates(parts)


@pytest.fixture
def live(catalogue: Any, bert: TextEncoder, vit: ImageEncoder) -> LiveStates:
    return LiveStates(
        {b.kind: (b, Contents.of(catalogue, b.kind), LEVELS[b.kind]) for b in (bert, vit)},
        batch_size=4,
    )


def test_under_autocast_a_store_of_low_precision_gives_its_differences(
    catalogue: Any, bert: TextEncoder, tmp_path: Path
) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path, dtype="bf16", shard_rows=16)
    source = CachedStates({"text": (store, store.rows_for(catalogue), LEVELS["text"])})
    rows = torch.tensor([36, 2, 8, 20])
    whole = source(rows).modalities["text"]
    with torch.autocast("cpu", torch.bfloat16):
        low = source(rows).modalities["text"]
    assert whole.mean is None
    assert low.values.dtype == torch.bfloat16
    assert torch.equal(low.positions, whole.positions)
    assert torch.equal(low.whole(), whole.values)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
def test_resident_states_are_those_that_are_read(
    catalogue: Any, bert: TextEncoder, vit: ImageEncoder, tmp_path: Path, dtype: str
) -> None:
    parts = {}
    for encoder in (bert, vit):
        contents = Contents.of(catalogue, encoder.kind)
        store = extract(encoder, contents, tmp_path, dtype=dtype, shard_rows=16)
        parts[encoder.kind] = (store, store.rows_for(catalogue), LEVELS[encoder.kind])
    read, resident = CachedStates(parts), CachedStates(parts)
    size = {"bf16": 2, "fp16": 2}.get(dtype, 4)
    needed = sum(len(store) * len(levels) * 16 * size for store, _, levels in parts.values())
    assert not resident.reside(torch.device("cpu"), needed - 1)
    assert resident.reside(torch.device("cpu"), needed)
    rows = torch.tensor([36, 2, 8, 20, 0, 37, 3])
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            ours, theirs = resident(rows).modalities, read(rows).modalities
        for modality, hidden in theirs.items():
            assert torch.equal(ours[modality].positions, hidden.positions)
            assert torch.equal(ours[modality].values, hidden.values)
            assert torch.equal(ours[modality].whole(), hidden.whole())


def test_a_batch_goes_to_a_device_as_a_whole() -> None:
    hidden = Hidden(torch.ones(2, 3, 4), torch.tensor([0, 2]), torch.ones(3, 4))
    batch = ItemBatch(torch.arange(3), {"text": hidden, "image": hidden._replace(mean=None)})
    moved = batch.to(torch.device("meta"))
    tensors = [moved.rows, *moved.modalities["text"], *moved.modalities["image"][:2]]
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.modalities["image"].mean is None


def test_a_level_beyond_the_depth_is_one_sentence(catalogue: Any, bert: TextEncoder) -> None:
    with pytest.raises(EncoderError, match=r"level '9' in .* from 0 to 4, or 'last'"):
        LiveStates({"text": (bert, Contents.of(catalogue, "text"), (0, 9))})


def test_live_states_are_the_cached_ones(cached: CachedStates, live: LiveStates) -> None:
    rows = torch.tensor([36, 2, 8, 20, 0, 37, 3])
    from_store, computed = cached(rows), live.train()(rows)
    assert cached.widths == live.widths == {"text": 16, "image": 16}
    assert cached.levels == live.levels == LEVELS
    assert torch.equal(from_store.rows, rows)
    # Item 36 has no text; images belong to items 0 to 8.
    assert from_store.modalities["text"][1].tolist() == [1, 2, 3, 4, 5, 6]
    assert from_store.modalities["image"][1].tolist() == [1, 2, 4, 6]
    for modality, (states, positions, _) in from_store.modalities.items():
        assert states.shape == (len(positions), len(LEVELS[modality]), 16)
        torch.testing.assert_close(computed.modalities[modality][0], states, rtol=1e-5, atol=1e-5)
        assert torch.equal(computed.modalities[modality][1], positions)


def test_the_size_of_the_encoders_is_known_either_way(
    cached: CachedStates, live: LiveStates, model_folders: dict[str, Path]
) -> None:
    # What lies in the files, but for the pooler, which no state depends on.
    expected = {}
    for modality, folder in (("text", "bert"), ("image", "vit")):
        weights = load_file(model_folders[folder] / "model.safetensors")
        expected[modality] = sum(weight.numel() for name, weight in weights.items() if "pooler" not in name)
    assert cached.encoder_parameters == live.encoder_parameters == expected
    tuned = load_text(str(model_folders["bert"]))
    tune(tuned, "adapter", bottleneck=2)
    assert tuned.parameter_count == expected["text"] < sum(weight.numel() for weight in tuned.parameters())
    assert NoStates().encoder_parameters == {}


def test_no_item_with_a_modality(cached: CachedStates, live: LiveStates) -> None:
    rows = torch.tensor([36])
    for source in (cached, live):
        states, positions, *_ = source(rows).modalities["text"]
        assert states.shape == (0, 3, 16)
        assert positions.shape == (0,)


def test_ids_have_no_states() -> None:
    source = NoStates()
    rows = torch.tensor([4, 2])
    assert (source.widths, source.levels) == ({}, {})
    assert torch.equal(source(rows).rows, rows)
    assert source(rows).modalities == {}


def test_the_store_is_not_part_of_a_checkpoint(cached: CachedStates) -> None:
    assert cached.state_dict() == {}
    assert list(cached.parameters()) == []


def test_levels_are_checked_at_construction(cached: CachedStates, catalogue: Any) -> None:
    store = cached._stores["text"]
    with pytest.raises(StoreError, match="level 3"):
        CachedStates({"text": (store, store.rows_for(catalogue), (0, 3))})


def test_frozen_encoders_stay_as_they_are(live: LiveStates) -> None:
    model = torch.nn.Sequential(live).train()
    assert live.training
    assert not any(module.training for encoder in live.encoders.values() for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    states, _, *_ = live(torch.tensor([0])).modalities["text"]
    assert not states.requires_grad
    assert not states.is_inference()
    model.eval()
    assert not live.training


@pytest.fixture
def tuned(catalogue: Any, model_folders: dict[str, Path]) -> LiveStates:
    encoder = load_text(str(model_folders["bert"]))
    tune(encoder, "full", last_n_layers=2)
    return LiveStates({"text": (encoder, Contents.of(catalogue, "text"), ("last",))}, batch_size=8)


def test_held_states_are_computed_once_and_are_those_of_the_weights_as_they_are(tuned: LiveStates) -> None:
    rows = torch.tensor([37, 2, 36, 8])
    encoder: Any = tuned.encoders["text"]
    passes: list[int] = []
    encoder.register_forward_hook(lambda *_: passes.append(1))
    before, positions, *_ = tuned.eval()(rows).modalities["text"]
    tuned.train().hold(True)
    passes.clear()
    served, where, _ = tuned(rows).modalities["text"]
    # 37 items with a text, eight at a time; dropout is off meanwhile, and on again afterwards.
    assert len(passes) == 5
    assert tuned.training
    assert encoder.layers[3].training
    torch.testing.assert_close(served, before.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(where, positions)
    assert not served.requires_grad
    assert torch.equal(tuned.eval()(rows.flip(0)).modalities["text"][0], served.flip(0))
    assert tuned(torch.tensor([36])).modalities["text"][0].shape == (0, 1, 16)
    assert len(passes) == 5

    with torch.no_grad():
        encoder.layers[3].output.dense.weight.mul_(2)
    tuned.hold(False)
    after = tuned(rows).modalities["text"][0].detach()
    assert (after - before).abs().max() > 0.1
    tuned.hold(True)
    torch.testing.assert_close(tuned(rows).modalities["text"][0], after, rtol=1e-5, atol=1e-5)


def test_held_states_are_the_same_bits_in_training_and_evaluation(tuned: LiveStates) -> None:
    rows = torch.arange(38)
    tuned.eval().hold(True)
    first = tuned(rows).modalities["text"][0]
    tuned.hold(False)
    tuned.train().hold(True)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        second = tuned(rows[:3]).modalities["text"][0]
    drawn = torch.rand(3)
    assert torch.equal(second, first[:3])
    # The training step that fills the cache draws the same dropout as one that does not.
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)


def test_a_bad_image_names_its_item(live: LiveStates, catalogue: Any) -> None:
    catalogue.images[4] = b"no image"
    with pytest.raises(DataError, match="item 'i4'"):
        live(torch.tensor([3, 4]))


def test_trainable_encoders_learn(catalogue: Any, model_folders: dict[str, Path]) -> None:
    encoder = load_text(str(model_folders["bert"]))
    tune(encoder, "full")
    encoder.tower.embeddings.requires_grad_(False)
    parts = {"text": (encoder, Contents.of(catalogue, "text"), (1, "last"))}
    source = LiveStates(parts).train()
    assert encoder.tower.training
    states, _, *_ = source(torch.tensor([0, 1, 2])).modalities["text"]
    states.square().sum().backward()
    trained = {name for name, parameter in source.named_parameters() if parameter.grad is not None}
    assert trained <= {name for name, parameter in source.named_parameters() if parameter.requires_grad}
    assert any("layer.3" in name for name in trained)
    assert not any("embeddings" in name for name in trained)
    with torch.no_grad():
        assert not source(torch.tensor([0])).modalities["text"][0].requires_grad


def test_hidden_modalities_leave_something_of_every_item() -> None:
    torch.manual_seed(0)
    count = 4000
    image, text = torch.arange(count), torch.arange(0, count, 2)
    states = {"image": Hidden(image[:, None, None], image), "text": Hidden(text[:, None, None], text)}
    batch = ItemBatch(torch.arange(count), states)
    hidden = hide_modalities(batch, 0.3)
    left = {name: set(positions.tolist()) for name, (_, positions, _) in hidden.modalities.items()}
    for values, positions, _ in hidden.modalities.values():
        assert torch.equal(values[:, 0, 0], positions)  # states stay with their items
    assert left["image"] | left["text"] == set(range(count))
    assert left["image"] >= set(range(1, count, 2))  # the only one that odd items have
    # Of two, text stays with 0.7, and where both were to go: 0.7 + 0.3² = 0.79; 5 deviations of 2,000 draws.
    assert abs(len(left["text"]) / 2000 - 0.79) < 0.05


def test_a_removed_modality_is_gone_for_the_chosen_items_alone(cached: CachedStates) -> None:
    rows = torch.tensor([0, 3, 7, 20])
    whole = cached(rows)
    chosen = np.zeros(38, dtype=bool)
    chosen[[3, 20]] = True
    corrupted = CorruptedStates(cached, "text", chosen, "remove")
    assert corrupted.missing
    batch = corrupted(rows)
    assert batch.modalities["text"][1].tolist() == [0, 2]
    assert torch.equal(batch.modalities["text"][0], whole.modalities["text"][0][[0, 2]])
    assert torch.equal(batch.modalities["image"][0], whole.modalities["image"][0])
    with pytest.raises(ConfigError, match="no modality 'sound'"):
        CorruptedStates(cached, "sound", chosen, "remove")


def test_swapped_contents_are_those_of_other_chosen_items(cached: CachedStates) -> None:
    chosen = np.zeros(38, dtype=bool)
    chosen[[1, 4, 9]] = True
    rows = torch.arange(36)
    whole, batch = (
        source(rows).modalities["text"][0] for source in (cached, CorruptedStates(cached, "text", chosen, "swap"))
    )
    own = torch.from_numpy(~chosen[:36])
    assert torch.equal(batch[own], whole[own])
    for item in (1, 4, 9):
        origin = [other for other in (1, 4, 9) if torch.equal(batch[item], whole[other])]
        assert len(origin) == 1
        assert origin[0] != item


def test_noise_is_as_strong_as_the_states_and_depends_on_no_batch(cached: CachedStates) -> None:
    corrupted = CorruptedStates(cached, "text", np.ones(38, dtype=bool), "noise", seed=3)
    rows = torch.arange(36)
    whole, noisy = cached(rows).modalities["text"][0], corrupted(rows).modalities["text"][0]
    ratio = ((noisy - whole) / whole.std(-1, keepdim=True)).std()
    assert abs(float(ratio) - 1) < 0.1  # 36 × 3 × 16 draws
    assert torch.equal(corrupted(torch.tensor([11])).modalities["text"][0][0], noisy[11])
    without = (~cached.present["text"]).nonzero().flatten()
    assert len(corrupted(without).modalities["text"][0]) == 0
    some = np.arange(38) % 2 == 0
    half = CorruptedStates(cached, "text", some, "noise", seed=3)(rows).modalities["text"][0]
    assert torch.equal(half[::2], noisy[::2])
    assert torch.equal(half[1::2], whole[1::2])
