"""What a store refuses, and how it reads."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from iisan.encoders.contents import Contents
from iisan.encoders.image import load_image
from iisan.encoders.text import TextEncoder
from iisan.errors import StoreError
from iisan.files import sha256_json
from iisan.states.extract import extract
from iisan.states.manifest import Manifest
from iisan.states.store import StateStore
from iisan.states.writer import StateWriter

#: Reads a small store, as libraries need memory when first used, then some rows of a large one; prints the sum of
#: these and the growth of private memory in bytes.
READING = """
import sys
from pathlib import Path

import torch

from iisan.states.store import StateStore


def private_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


torch.set_num_threads(1)
small, large = sys.argv[1:]
StateStore.open(small).read(torch.arange(64))
before = private_bytes()
store = StateStore.open(large)
states = store.read(torch.arange(0, 4096, 64))
print(int(states.sum()), private_bytes() - before)
"""


@pytest.fixture
def store(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> StateStore:
    return extract(bert, Contents.of(catalogue, "text"), tmp_path, shard_rows=16, levels="all", dtype="int8")


def test_reading_any_rows_and_levels(store: StateStore) -> None:
    everything = store.read(torch.arange(36))
    rows = torch.tensor([35, 0, 16, 15, 35, 7])
    torch.testing.assert_close(store.read(rows), everything[rows])
    torch.testing.assert_close(store.read(rows, ("last", 1)), everything[rows][:, [5, 1]])
    torch.testing.assert_close(store.read(torch.tensor([20, 17]), (3,)), everything[[20, 17]][:, [3]])
    assert store.read(torch.empty(0, dtype=torch.int64)).shape == (0, 6, 16)
    with pytest.raises(IndexError):
        store.read(torch.tensor([-1]))
    with pytest.raises(IndexError):
        store.read(torch.tensor([36]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
def test_differences_and_means_are_the_states(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, dtype: str
) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path, shard_rows=16, levels="all", dtype=dtype)
    rows, levels = torch.tensor([35, 0, 16, 35]), ("last", 1)
    differences = store.read_differences(rows, levels, torch.float32)
    assert torch.equal(differences + store.mean[[5, 1]], store.read(rows, levels))
    assert torch.equal(store.read_differences(rows, levels, torch.bfloat16), differences.bfloat16())


def test_rows_of_unknown_keys(store: StateStore, catalogue: Any) -> None:
    known = Contents.of(catalogue, "text").keys()[0]
    assert store.rows_of([None, "no such key", known, known]).tolist() == [
        -1, -1, *store.rows_of([known, known])
    ]  # fmt: skip
    assert store.rows_of([]).shape == (0,)
    assert store.rows_of([known]).dtype == "int64"


def test_a_level_that_is_not_stored(catalogue: Any, bert: TextEncoder, tmp_path: Path) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path)
    with pytest.raises(StoreError, match=r"level 3 is not .* one of 0, 2, 4, last"):
        store.read(torch.tensor([0]), (0, 3))


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "shard-00000.parquet", "mean.safetensors"])
def test_cut_or_absent_files(store: StateStore, name: str) -> None:
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"{name}' is absent or cut short"):
        StateStore.open(store.folder)
    path.unlink()
    with pytest.raises(StoreError, match=f"{name}' is absent or cut short"):
        StateStore.open(store.folder)


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "shard-00000.parquet", "mean.safetensors"])
def test_a_changed_byte_is_found_by_verify(store: StateStore, name: str) -> None:
    store.verify()
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{name}' is not what was written"):
        StateStore.open(store.folder).verify()


def use(store: StateStore) -> None:
    store.rows_of(["a key"])
    store.read(torch.tensor([35]))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shard-00002.safetensors", b"{", b"["),
        ("shard-00002.safetensors", b'"states"', b'"status"'),
        ("shard-00002.safetensors", b'"I8"', b'"U8"'),
        ("mean.safetensors", b"{", b"["),
        ("mean.safetensors", b'"mean"', b'"meal"'),
        ("shard-00000.parquet", b"PAR1", b"PAR2"),
    ],
)
def test_a_damaged_file_of_the_right_size_is_one_sentence(
    store: StateStore, name: str, old: bytes, new: bytes
) -> None:
    path = store.folder / name
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    damaged = StateStore.open(store.folder)
    with pytest.raises(StoreError, match=f"{name}' is not what was written.*run `iisan cache` again"):
        use(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(kind="iisan-dataset"), "was not written as an iisan-states"),
        (lambda m: m.update(schema=3), "has schema 3.*upgrade iisan"),
        (lambda m: m.pop("levels"), "damaged at 'levels'"),
        (lambda m: m.update(extra=1), "damaged at 'extra'"),
        (lambda m: m["settings"].update(pooling="cls"), "was changed after it was written"),
        (lambda m: m["mean"].update(name="../mean.safetensors"), "was changed after it was written"),
    ],
)
def test_manifests_that_are_not_ours(
    store: StateStore, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=message):
        StateStore.open(store.folder)


def test_a_folder_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        StateStore.open(tmp_path / "absent")
    with pytest.raises(StoreError, match="holds no text states"):
        StateStore.find(tmp_path, "text")


@pytest.mark.parametrize(
    ("name", "value"),
    [("pooling", "cls"), ("weight_digest", "0" * 64), ("max_tokens", 30), ("encoder", "other/model")],
)
def test_states_made_under_other_settings(store: StateStore, name: str, value: Any) -> None:
    actual = store.settings[name]
    assert StateStore.open(store.folder, {name: actual}).settings == store.settings
    with pytest.raises(StoreError) as raised:
        StateStore.open(store.folder, {name: value})
    assert f"{name} {actual!r}" in str(raised.value)
    assert f"{name} {value!r}" in str(raised.value)
    with pytest.raises(StoreError, match=name):
        StateStore.find(store.folder.parent, "text", {name: value})


def test_a_hub_model_is_named_with_its_revision_with_its_commit_or_without(store: StateStore) -> None:
    commit = "0123abcd" * 5
    manifest = json.loads((store.folder / "manifest.json").read_text())
    manifest["settings"] |= {"encoder": "some/model@v1", "revision": commit}
    (store.folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("some/model@v1", "some/model", f"some/model@{commit}"):
        assert StateStore.open(store.folder, {"encoder": name}).settings["revision"] == commit
    for name in ("some/model@v2", "some/other", "some/other@v1"):
        with pytest.raises(StoreError, match=f"expected encoder '{name}'"):
            StateStore.open(store.folder, {"encoder": name})


def test_states_of_jpegs_in_draft_mode_are_refused_and_passed_over(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    store = extract(load_image(str(model_folders["vit"])), Contents.of(catalogue, "image"), tmp_path)
    draft = tmp_path / f"image-{'0' * 16}"
    shutil.copytree(store.folder, draft)
    settings = store.settings | {"jpeg_draft": True}
    store.manifest.model_copy(update={"settings": settings}).write(draft)
    with pytest.raises(StoreError, match=r"JPEGs decoded in draft mode; expected .* whole images"):
        StateStore.open(draft)
    assert StateStore.find(tmp_path, "image").folder == store.folder
    shutil.rmtree(store.folder)
    with pytest.raises(StoreError, match="draft mode"):
        StateStore.find(tmp_path, "image")


def test_fingerprints_of_image_stores_are_those_of_earlier_versions(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = load_image(str(model_folders["vit"]))
    fields = {**encoder.processor.to_dict(), "decoder": "pillow", "backend": "pil", "jpeg_draft": False}
    assert encoder.settings["processor_digest"] == sha256_json(fields)
    assert "jpeg_draft" not in encoder.settings


def test_finding_one_of_several(
    store: StateStore, catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    assert StateStore.find(tmp_path, "text").folder == store.folder
    assert StateStore.find(store.folder, "text").folder == store.folder
    with pytest.raises(StoreError, match="modality 'text'"):
        StateStore.find(store.folder, "image")
    from iisan.encoders.text import load_text

    other = extract(
        load_text(str(model_folders["roberta"]), max_tokens=9), Contents.of(catalogue, "text"), tmp_path
    )
    assert StateStore.folders(tmp_path, "text") == sorted([store.folder, other.folder])
    with pytest.raises(StoreError) as raised:
        StateStore.find(tmp_path, "text")
    assert store.folder.name in str(raised.value)
    assert other.folder.name in str(raised.value)
    assert StateStore.find(tmp_path, "text", {"max_tokens": 9}).folder == other.folder


def test_of_stores_that_differ_in_their_levels_alone_the_whole_one_is_found(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    from iisan.encoders.text import load_text

    bert, contents = load_text(str(model_folders["bert"])), Contents.of(catalogue, "text")
    some, _, every = (extract(bert, contents, tmp_path, levels=levels) for levels in ("layerdrop", "last", "all"))
    assert StateStore.find(tmp_path, "text").folder == every.folder
    shutil.rmtree(every.folder)
    extract(bert, contents, tmp_path, levels="0,1")
    with pytest.raises(StoreError, match=r"holds several text stores.*move the others elsewhere"):
        StateStore.find(tmp_path, "text")
    assert StateStore.find(some.folder, "text").folder == some.folder


def test_every_decision_changes_the_fingerprint(
    catalogue: Any, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    from iisan.encoders.text import load_text

    contents, folder = Contents.of(catalogue, "text"), str(model_folders["bert"])
    stores = [
        extract(load_text(folder, pooling, tokens), contents, tmp_path, levels=levels, dtype=dtype)
        for pooling, tokens, levels, dtype in [
            ("mean", 10, "all", "bf16"),
            ("cls", 10, "all", "bf16"),
            ("mean", 9, "all", "bf16"),
            ("mean", 10, "layerdrop", "bf16"),
            ("mean", 10, "all", "int8"),
        ]
    ]
    assert len({store.fingerprint for store in stores}) == 5


def test_reading_maps_the_files_instead_of_loading_them(tmp_path: Path) -> None:
    """64 MB of states are opened and sampled; private memory must not grow by a quarter of that."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured through /proc")
    levels = tuple(range(8))
    manifest = Manifest(
        settings={"modality": "text"}, levels=levels, dtype="fp32", precision="fp32", width=512, depth=7,
        error=[None] * 8, shards=[], made_with={},
    )  # fmt: skip
    for name, size in (("small", 64), ("large", 4096)):
        with StateWriter(tmp_path / name, (manifest, torch.zeros(8, 512)), print) as writer:
            states = torch.ones(size, 8, 512)
            states[0] = 2
            writer.append([str(key) for key in range(size)], states, [1] * size, str)
            writer.finish()
    # In a process of its own: the memory of this one also depends on the tests before.
    command = [sys.executable, "-c", READING, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total, grown = map(int, done.stdout.split())
    assert total == 65 * 8 * 512
    assert grown < 16 << 20
