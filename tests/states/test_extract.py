"""From contents to stores: right numbers, once per content, and whole after a kill at any moment."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from contents import contents_of
from iisan.encoders import precision as precision_module
from iisan.encoders.contents import Contents
from iisan.encoders.text import TextEncoder, load_text
from iisan.errors import ConfigError, DataError, EncoderError, StoreError
from iisan.files import sha256_file
from iisan.states import extract as extract_module
from iisan.states.caching import cache
from iisan.states.extract import Job, extract
from iisan.states.manifest import Manifest
from iisan.states.store import StateStore
from iisan.states.writer import StateWriter

DTYPES = ["fp32", "bf16", "fp16", "int8"]


def bf16_wins(*_: object) -> dict[str, list[float]]:
    return {"fp32": [2.0], "bf16": [1.0]}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@torch.inference_mode()
def naive(encoder: Any, contents: list[Any], levels: tuple = (0, 2, 4, "last")) -> torch.Tensor:
    return torch.cat([encoder(encoder.prepare([content]), levels) for content in contents])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that goes through a text encoder."""
    texts: list[str] = []
    prepare = TextEncoder.prepare

    def recorded(self: TextEncoder, contents: list[str]) -> dict[str, torch.Tensor]:
        texts.extend(contents)
        return prepare(self, contents)

    monkeypatch.setattr(TextEncoder, "prepare", recorded)
    return texts


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_states_are_the_encoders(catalogue: Any, bert: TextEncoder, tmp_path: Path, dtype: str) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path, dtype=dtype, shard_rows=16, batch_size=5)
    assert store.levels == (0, 2, 4, "last")
    assert [shard.rows for shard in store.manifest.shards] == [16, 16, 4]
    rows = store.rows_for(catalogue)
    assert rows[36] == -1
    assert rows[37] == rows[3]
    assert sorted(rows[:36]) == list(range(36))
    wanted = naive(bert, catalogue.texts[:36])
    got = store.read(torch.from_numpy(rows[:36]))
    spread = (wanted - wanted.mean(0)).square().mean((0, 2)).sqrt()
    in_all = (got - wanted).square().mean((0, 2)).sqrt() / spread
    by_channel = (got - wanted).square().mean(0).sqrt() / wanted.std(0, correction=0)
    error = in_all.maximum(by_channel.sort(1).values[:, 7])
    recorded = torch.tensor(store.manifest.error)
    torch.testing.assert_close(error, recorded, rtol=0.02, atol=1e-5)
    assert (recorded < {"fp32": 1e-6, "fp16": 3e-4, "bf16": 0.003, "int8": 0.02}[dtype]).all()
    assert [error.item() == 0 for error in recorded] == [dtype == "fp32"] * 4


def test_the_files_are_what_the_format_says(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path, dtype="int8", shard_rows=16)
    assert store.folder.parent == tmp_path
    assert store.folder.name == f"text-{store.fingerprint[:16]}"
    second = load_file(store.folder / "shard-00001.safetensors")
    assert (second["states"].dtype, second["states"].shape) == (torch.int8, (16, 4, 16))
    assert (second["scales"].dtype, second["scales"].shape) == (torch.float32, (16, 4))
    mean = load_file(store.folder / "mean.safetensors")["mean"]
    keys = pl.read_parquet(store.folder / "shard-00001.parquet")
    assert keys.columns == ["key", "row", "count"]
    assert keys["row"].to_list() == list(range(16))
    assert keys["count"].to_list() == [1] * 16
    rows = store.rows_of(keys["key"].to_list())
    assert rows.tolist() == list(range(16, 32))
    by_hand = second["states"].float() * second["scales"].unsqueeze(-1) + mean
    torch.testing.assert_close(store.read(torch.from_numpy(rows)), by_hand)
    wanted = naive(bert, catalogue.texts[:36])
    torch.testing.assert_close(mean, wanted.mean(0), rtol=1e-5, atol=1e-5)


def test_equal_contents_are_encoded_once(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_module, "SAMPLE", 7)
    # Where bf16 is fast, the sample would be encoded once more to measure its error.
    extract(bert, contents_of(["red pump", None, "blue pump", "red pump"]), tmp_path, precision="fp32")
    assert sorted(encoded) == sorted(2 * ["red pump", "blue pump"])  # once for the sample, once for the store
    encoded.clear()
    extract(bert, contents_of(["blue pump", "green pump", "red pump"]), tmp_path, precision="fp32")
    assert encoded == ["green pump"]
    encoded.clear()
    extract(bert, contents_of(["green pump"]), tmp_path, precision="fp32")
    assert encoded == []


def test_new_contents_are_appended(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    first = contents_of(catalogue.texts[:20])
    before = extract(bert, first, tmp_path, shard_rows=16)
    old = files_of(before.folder)
    after = extract(bert, Contents.of(catalogue, "text"), tmp_path, shard_rows=16)
    new = files_of(after.folder)
    assert {name: new[name] for name in old if name != "manifest.json"} == {
        name: content for name, content in old.items() if name != "manifest.json"
    }
    assert [shard.rows for shard in after.manifest.shards] == [16, 4, 16]
    assert (before.rows_of(first.keys()) == after.rows_of(first.keys())).all()
    with pytest.raises(StoreError, match=r"16 items are not in the store .* run `iisan cache` again"):
        before.rows_for(dataclasses.replace(catalogue, texts=catalogue.texts[:36], images=[]))
    wanted = naive(bert, catalogue.texts[20:36])
    got = after.read(torch.from_numpy(after.rows_for(catalogue)[20:36]))
    assert (got - wanted).square().mean().sqrt() < 0.003 * wanted.std()


def test_a_kill_at_any_moment_loses_nothing_but_the_shard_at_work(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = Contents.of(catalogue, "text")
    run: Callable[[Path], StateStore] = lambda out: extract(  # noqa: E731
        bert, contents, out, shard_rows=16, batch_size=8
    )
    whole = files_of(run(tmp_path / "whole").folder)
    replace = Path.replace
    steps = 2 + 3 * 3 + 1  # means and manifest; states, keys and manifest of three shards; the end
    for step in range(steps + 1):
        for after in (False, True):
            calls = 0

            def killed(path: Path, target: Path, step: int = step, after: bool = after) -> Path:
                nonlocal calls
                calls += 1
                if calls <= step or after:
                    replace(path, target)
                if calls == step + 1:
                    (target.parent / f".{target.name}.x.part").write_bytes(b"left behind")
                    raise KeyboardInterrupt
                return target

            out = tmp_path / f"killed-{step}-{after}"
            monkeypatch.setattr(Path, "replace", killed)
            if step < steps:
                with pytest.raises(KeyboardInterrupt):
                    run(out)
                if step + after < steps and [*out.glob("*/manifest.json")]:
                    rows = min(36, 16 * max(0, (step + after - 2) // 3))
                    with pytest.raises(StoreError, match=f"{rows} rows are there; .*run the same `iisan cache`"):
                        StateStore.find(out, "text")
            monkeypatch.setattr(Path, "replace", replace)
            resumed = run(out)
            assert files_of(resumed.folder) == whole


class Backwards:
    """An extractor whose shards come last first, and which stops before the first of them."""

    def __init__(self, job: Job, stops: bool = True) -> None:
        self.job, self.stops, self.encoded = job, stops, list[int]()
        self.measure = job.measure

    def encode(self, shards: Any, *arguments: Any) -> Any:
        for number, shard in reversed([*self.job.encode(shards, *arguments)]):
            if number == 0 and self.stops:
                raise KeyboardInterrupt
            self.encoded.append(number)
            yield number, shard


def test_shards_that_come_in_any_order_are_adopted_after_a_kill(
    catalogue: Any, bert: TextEncoder, tmp_path: Path
) -> None:
    contents, made = Contents.of(catalogue, "text"), []

    def run(out: str, shard_rows: int = 10, **options: bool) -> StateStore:
        def extractor(job: Job) -> Backwards:
            made.append(Backwards(job, **options))
            return made[-1]

        return extract(bert, contents, tmp_path / out, shard_rows=shard_rows, extractor=extractor)

    whole = files_of(extract(bert, contents, tmp_path / "whole", shard_rows=10).folder)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    (folder,) = StateStore.folders(tmp_path / "killed", "text")
    assert Manifest.read(folder).shards == []
    (folder / "shard-00002.safetensors").write_bytes(b"cut short")
    assert files_of(run("killed", stops=False).folder) == whole
    assert [each.encoded for each in made] == [[3, 2, 1], [1, 0]]
    # Shards of other contents are not taken.
    with pytest.raises(KeyboardInterrupt):
        run("other")
    other = run("other", shard_rows=16, stops=False)
    assert made[-1].encoded == [2, 1, 0]
    assert files_of(other.folder) == files_of(extract(bert, contents, tmp_path / "16", shard_rows=16).folder)


def test_a_full_disk_leaves_a_store_to_go_on_with(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "shard-00001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        extract(bert, Contents.of(catalogue, "text"), tmp_path, shard_rows=16)
    (folder,) = StateStore.folders(tmp_path, "text")
    store = StateStore(folder, Manifest.read(folder))
    store.verify()
    assert len(store) == 16
    assert set(files_of(folder)) == {
        "manifest.json", "mean.safetensors", "shard-00000.parquet", "shard-00000.safetensors"
    }  # fmt: skip


def test_shards_that_were_cut_short_are_made_again(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    contents, said = Contents.of(catalogue, "text"), []
    store = extract(bert, contents, tmp_path, shard_rows=16)
    before = store.read(torch.from_numpy(store.rows_for(catalogue)[:36]))
    path = store.folder / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"shard-00001.* cut short.*run `iisan cache` again"):
        StateStore.open(store.folder)
    healed = extract(bert, contents, tmp_path, shard_rows=16, say=said.append)
    assert said == [f"1 shards in '{store.folder}' are absent or cut short and are computed again"]
    healed.verify()
    after = healed.read(torch.from_numpy(healed.rows_for(catalogue)[:36]))
    torch.testing.assert_close(after, before, rtol=0.01, atol=1e-4)


def test_one_writer_at_a_time(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    contents = Contents.of(catalogue, "text")
    store = extract(bert, contents, tmp_path)
    with (
        StateWriter(store.folder, None, print),
        pytest.raises(StoreError, match="written by another process"),
    ):
        extract(bert, contents, tmp_path)


def test_constant_levels_are_exempt(catalogue: Any, model_folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_text(str(model_folders["bert"]), "cls")
    store = extract(encoder, Contents.of(catalogue, "text"), tmp_path, dtype="int8")
    constant, *others = store.manifest.error
    assert constant is None
    assert all(error is not None and 0 < error < 0.02 for error in others)
    got = store.read(torch.arange(36), (0,))
    torch.testing.assert_close(got, naive(encoder, ["red"], (0,)).expand(36, 1, 16))


def test_bf16_computation_that_is_too_coarse_falls_back(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, said = Contents.of(catalogue, "text"), []
    monkeypatch.setattr(precision_module, "time_products", bf16_wins)
    monkeypatch.setattr(extract_module, "MAX_ERROR", 100)
    fast = extract(bert, contents, tmp_path / "fine", dtype="fp32", say=said.append)
    assert fast.manifest.precision == "bf16"
    assert all(1e-4 < error < 100 for error in fast.manifest.error[1:])
    assert said == []
    monkeypatch.setattr(extract_module, "MAX_ERROR", 1e-4)
    for _ in range(2):  # the second time the fp32 store is found
        exact = extract(bert, contents, tmp_path / "coarse", dtype="fp32", say=said.append)
        assert exact.manifest.precision == "fp32"
    assert len(said) == 1
    assert "so fp32 is used" in said[0]
    with pytest.raises(StoreError, match=r"fp32 storage with bf16 computation .* --precision fp32"):
        extract(bert, contents, tmp_path / "asked", dtype="fp32", precision="bf16")
    with pytest.raises(StoreError, match="int8 storage with fp32 computation changes level"):
        extract(bert, contents, tmp_path / "int8", dtype="int8", precision="fp32")


@pytest.mark.parametrize("existing", ["fp32", "bf16"])
def test_auto_continues_a_store_of_either_precision_and_measures_nothing(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: str
) -> None:
    monkeypatch.setattr(extract_module, "MAX_ERROR", 100)
    store = extract(bert, contents_of(catalogue.texts[:5]), tmp_path, precision=existing)
    monkeypatch.delattr(precision_module, "time_products")
    again = extract(bert, Contents.of(catalogue, "text"), tmp_path)
    assert (again.folder, again.manifest.precision, len(again)) == (store.folder, existing, 36)


def test_a_batch_of_the_encoders_width_is_what_is_timed(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(precision_module, "time_products", lambda *given: asked.append(given) or bf16_wins())
    extract(bert, Contents.of(catalogue, "text"), tmp_path, batch_size=5)
    assert asked == [(torch.device("cpu"), [(5 * (bert.max_tokens or 0), 16, 64)], False)]


def test_overflow_is_found_before_anything_is_written(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = load_text(str(model_folders["bert"]))
    with torch.no_grad():
        encoder.tower.embeddings.LayerNorm.weight.mul_(1e8)
    with pytest.raises(StoreError, match=r"level 0 of item 'i\d+' is infinite .* in fp16"):
        extract(encoder, Contents.of(catalogue, "text"), tmp_path, dtype="fp16", levels=(0, "last"))
    assert list(tmp_path.iterdir()) == []
    store = extract(encoder, Contents.of(catalogue, "text"), tmp_path, dtype="bf16", levels=(0, "last"))
    assert store.read(torch.arange(36)).isfinite().all()


def test_an_overflow_outside_the_sample_names_its_item(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path, dtype="fp16")
    before = files_of(store.folder)
    states = torch.zeros(2, 4, 16)
    states[1, 2, 0] = 1e6
    with (
        StateWriter(store.folder, None, print) as writer,
        pytest.raises(StoreError, match="level 4 of row 1"),
    ):
        writer.append(["a", "b"], states, [1, 1], lambda row: f"row {row}")
    assert files_of(store.folder) == before


def test_another_spelling_of_a_folder_is_the_same_encoder(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(shutil.copytree(model_folders["bert"], tmp_path / "m" / "bert"))
    monkeypatch.chdir(tmp_path)
    contents = Contents.of(catalogue, "text")
    for spelling in ("m/bert", "./m/bert", "m/../m/bert/", str(first)):
        store = extract(load_text(spelling), contents, tmp_path)
        assert store.settings["encoder"] == str(first)
        for wanted in ("m/bert", "./m/bert", str(first)):
            assert StateStore.find(tmp_path, "text", {"encoder": wanted}).folder == store.folder
    monkeypatch.chdir(tmp_path / "m")
    with pytest.raises(StoreError, match="expected encoder 'm/bert'"):
        StateStore.find(tmp_path, "text", {"encoder": "m/bert"})


def test_a_model_that_moved_is_found_again_once_it_is_cached_again(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    contents = Contents.of(catalogue, "text")
    old, new = str(model_folders["bert"]), str(shutil.copytree(model_folders["bert"], tmp_path / "bert"))
    store = extract(load_text(old), contents, tmp_path)
    with pytest.raises(StoreError, match="run `iisan cache` again"):
        StateStore.find(tmp_path, "text", {"encoder": new})
    again = extract(load_text(new), contents, tmp_path)
    assert (again.folder, len(again)) == (store.folder, len(store))
    assert StateStore.find(tmp_path, "text", {"encoder": new}).manifest == again.manifest


def test_nothing_to_encode(bert: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no item has text"):
        extract(bert, contents_of([None, None]), tmp_path)


def test_unusable_arguments(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    contents = Contents.of(catalogue, "text")
    with pytest.raises(EncoderError, match="'5'"):
        extract(bert, contents, tmp_path, levels=(0, 5))
    with pytest.raises(ConfigError, match="'fp8'"):
        extract(bert, contents, tmp_path, dtype="fp8")
    with pytest.raises(ConfigError, match="batch size 0"):
        extract(bert, contents, tmp_path, batch_size=0)


def test_cache_both_modalities(catalogue: Any, model_folders: dict[str, Path], tmp_path: Path) -> None:
    stores = cache(
        catalogue,
        tmp_path,
        {"text": str(model_folders["roberta"]), "image": str(model_folders["vit"])},
        max_tokens=6,
        poolings={"text": "cls"},
        levels="2,last",
        device="cpu",
    )
    assert {name: len(store) for name, store in stores.items()} == {"text": 36, "image": 8}
    assert stores["text"].settings["max_tokens"] == 6
    assert stores["text"].settings["pooling"] == "cls"
    assert stores["image"].levels == (2, "last")
    rows = stores["image"].rows_for(catalogue)
    assert rows[8] == rows[2]
    assert (rows[9:] == -1).all()
    with pytest.raises(ConfigError, match="--text or --image"):
        cache(catalogue, tmp_path, {})


def test_a_bad_image_names_its_item_and_leaves_the_text(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    catalogue.images[5] = b"no image"
    models = {"text": str(model_folders["bert"]), "image": str(model_folders["vit"])}
    with pytest.raises(DataError, match=r"item 'i5'.*prepare the dataset again"):
        cache(catalogue, tmp_path, models, device="cpu")
    StateStore.find(tmp_path, "text").verify()


def test_a_store_from_before_there_were_counts_is_read_and_added_to(bert: TextEncoder, tmp_path: Path) -> None:
    contents = contents_of(["red pump", "blue pump"])
    store = extract(bert, contents, tmp_path, precision="fp32")
    before = store.read(torch.from_numpy(store.rows_of(contents.keys())))
    path = store.folder / "shard-00000.parquet"
    pl.read_parquet(path).drop("count").write_parquet(path)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    manifest["shards"][0]["keys"] |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (store.folder / "manifest.json").write_text(json.dumps(manifest))
    more = contents_of(["red pump", "blue pump", "green pump"])
    again = extract(bert, more, tmp_path, precision="fp32")
    rows = again.rows_of(more.keys())
    assert sorted(rows) == [0, 1, 2]
    assert torch.equal(again.read(torch.from_numpy(rows[:2])), before)
