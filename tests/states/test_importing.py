"""States from elsewhere: the published per-item files, arrays with ids, columns of lists."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from iisan.errors import DataError, StoreError
from iisan.states.importing import column_source, import_states, open_source
from iisan.states.sources import CachedStates

WIDTH = 6


@pytest.fixture
def arrays() -> np.ndarray:
    """Items i0 … i29 of the catalogue's 38, and one that it does not have: 13 levels, as BERT's and ViT's."""
    return np.random.default_rng(0).normal(size=(31, 13, WIDTH)).astype(np.float32)


@pytest.fixture
def folder(arrays: np.ndarray, tmp_path: Path) -> Path:
    found = tmp_path / "published"
    found.mkdir()
    for number, array in enumerate(arrays):
        name = "stranger" if number == 30 else f"i{number}"
        torch.save(torch.from_numpy(array), found / f"{name}.pt")
    return found


def test_published_files_become_a_modality(
    catalogue: Any, folder: Path, arrays: np.ndarray, tmp_path: Path
) -> None:
    said: list[str] = []
    store = import_states(catalogue, open_source(folder), "bert", tmp_path, dtype="fp32", say=said.append)
    assert store.levels == tuple(range(13))
    assert (store.kind, store.width, store.depth) == ("imported", WIDTH, 12)
    assert said[-1] == "30 of 38 items have bert"
    rows = store.rows_for(catalogue)
    assert (rows[30:] == -1).all()
    got = store.read(torch.from_numpy(rows[:30]))
    np.testing.assert_array_equal(got.numpy(), arrays[:30])
    source = CachedStates({"bert": (store, rows, (0, 12))})
    assert source.missing
    batch = source(torch.tensor([35, 3]))
    np.testing.assert_array_equal(batch.modalities["bert"][0].numpy(), arrays[3:4, [0, 12]])
    assert batch.modalities["bert"][1].tolist() == [1]


def test_importing_again_adds_what_is_new(catalogue: Any, folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    first = import_states(catalogue, source, "bert", tmp_path, shard_rows=8)
    again = import_states(catalogue, source, "bert", tmp_path, shard_rows=8)
    assert again.folder == first.folder
    assert len(again) == 31  # all items of the source
    torch.save(torch.zeros(13, WIDTH + 1), folder / "i30.pt")
    with pytest.raises(StoreError, match=r"item 'i30' .*shape \[13, 7\]"):
        import_states(catalogue, open_source(folder), "bert", tmp_path)


def test_other_numbers_in_files_of_the_same_size_are_another_source(
    catalogue: Any, folder: Path, arrays: np.ndarray, tmp_path: Path
) -> None:
    first = import_states(catalogue, open_source(folder), "bert", tmp_path, dtype="fp32")
    for file in folder.iterdir():
        torch.save(2 * torch.load(file), file)
    again = import_states(catalogue, open_source(folder), "bert", tmp_path, dtype="fp32")
    assert again.folder != first.folder
    rows = torch.from_numpy(again.rows_for(catalogue)[:30])
    np.testing.assert_array_equal(again.read(rows).numpy(), 2 * arrays[:30])


def test_vectors_of_an_array_are_one_level(catalogue: Any, arrays: np.ndarray, tmp_path: Path) -> None:
    vectors = arrays[:30, 0].astype(np.float64)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(f"i{number}" for number in range(30)) + "\n")
    source = open_source(tmp_path / "v.npy", tmp_path / "ids.txt")
    store = import_states(catalogue, source, "vector", tmp_path, dtype="fp32")
    assert (store.levels, store.depth) == (("last",), 0)
    got = store.read(torch.from_numpy(store.rows_for(catalogue)[:30]))[:, 0]
    np.testing.assert_allclose(got.numpy(), vectors, rtol=1e-6)
    np.save(tmp_path / "w.npy", vectors + 1)
    other = import_states(catalogue, open_source(tmp_path / "w.npy", tmp_path / "ids.txt"), "vector", tmp_path)
    assert other.folder != store.folder


def test_a_column_of_lists(catalogue: Any, arrays: np.ndarray, tmp_path: Path) -> None:
    lists = [array.tolist() for array in arrays[:30, 0]]
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(30)], "v": [None, *lists[1:]]})
    items.write_parquet(tmp_path / "items.parquet")
    source = open_source(tmp_path / "items.parquet", column="v")
    store = import_states(catalogue, source, "vector", tmp_path, dtype="fp32")
    rows = store.rows_for(catalogue)
    assert rows[0] == -1
    np.testing.assert_allclose(store.read(torch.tensor(rows[5:6]))[0, 0].numpy(), arrays[5, 0], rtol=1e-6)
    for column, sentence in (("w", "no column 'w'"), ("item_id", "lists of numbers")):
        with pytest.raises(StoreError, match=sentence):
            column_source(items, column, "items")


def test_what_cannot_be_imported(catalogue: Any, arrays: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", arrays[:3])
    ids = tmp_path / "ids.txt"
    ids.write_text("a\nb\n")
    with pytest.raises(StoreError, match="for 2 ids"):
        open_source(tmp_path / "v.npy", ids)
    ids.write_text("a\nb\nc\n")
    with pytest.raises(StoreError, match=r"no item of the dataset.*'a'"):
        import_states(catalogue, open_source(tmp_path / "v.npy", ids), "v", tmp_path)
    ids.write_text("i1\ni1\ni2\n")
    with pytest.raises(StoreError, match="1 items twice"):
        import_states(catalogue, open_source(tmp_path / "v.npy", ids), "v", tmp_path)
    ids.write_text("i1\ni2\ni3\n")
    source = open_source(tmp_path / "v.npy", ids)
    for name in ("../v", "inter", ""):
        with pytest.raises(DataError, match=f"a column named '{name}'"):
            import_states(catalogue, source, name, tmp_path / "states")
    assert not (tmp_path / "states").exists()
    with pytest.raises(StoreError, match="--ids FILE"):
        open_source(tmp_path / "v.npy")
    with pytest.raises(StoreError, match="cannot be read"):
        open_source(tmp_path / "absent.parquet", column="v")


def test_a_column_of_arrays_of_one_length(catalogue: Any, arrays: np.ndarray) -> None:
    vectors = pl.Series("v", arrays[:30, 0], dtype=pl.Array(pl.Float32, WIDTH))
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(30)], "v": vectors})
    source = column_source(items, "v", "items")
    assert torch.equal(source.states([4, 7])[:, 0], torch.from_numpy(arrays[[4, 7], 0]))
    lists = items.with_columns(pl.col("v").cast(pl.List(pl.Float32)))
    assert source.digest == column_source(lists, "v", "items").digest


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.array([["red"], ["blue"]]), "holds <U4; expected one array of real numbers"),
        (np.array([[1 + 1j], [2]]), "holds complex128; expected one array of real numbers"),
        (np.zeros((2, 0)), r"item 'i0' .*shape \[1, 0\]"),
    ],
)
def test_arrays_that_hold_no_states(catalogue: Any, array: np.ndarray, sentence: str, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", array)
    (tmp_path / "ids.txt").write_text("i0\ni1\n")
    with pytest.raises(StoreError, match=sentence):
        import_states(catalogue, open_source(tmp_path / "v.npy", tmp_path / "ids.txt"), "v", tmp_path)


def test_files_that_are_no_array(arrays: np.ndarray, tmp_path: Path) -> None:
    path, ids = tmp_path / "v.npy", tmp_path / "ids.txt"
    ids.write_text("i0\n")
    path.touch()
    with pytest.raises(StoreError, match="cannot be read"):
        open_source(path, ids)
    np.savez(tmp_path / "v.npz", arrays)
    (tmp_path / "v.npz").rename(path)
    with pytest.raises(StoreError, match="holds several arrays"):
        open_source(path, ids)


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ([[1.0, None], [2.0, 3.0]], "the list of item 'i0' in 'items' has nulls"),
        ([[], []], r"item 'i0' .*shape \[1, 0\]"),
        ([[1.0], []], r"item 'i1' .*shape \[1, 0\]"),
    ],
)
def test_lists_that_hold_no_states(catalogue: Any, lists: list[Any], sentence: str, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["i0", "i1"], "v": pl.Series(lists, dtype=pl.List(pl.Float64))})
    with pytest.raises(StoreError, match=sentence):
        import_states(catalogue, column_source(items, "v", "items"), "v", tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"id,red\n1,2\n", b"0123\n"])
def test_a_text_is_no_tensor(catalogue: Any, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "i0.pt").write_bytes(content)
    with pytest.raises(StoreError, match=r"i0\.pt' cannot be read safely"):
        import_states(catalogue, open_source(tmp_path / "texts"), "v", tmp_path)


@pytest.mark.parametrize("tensor", [torch.ones(3) * 1j, torch.ones(3).to_sparse()])
def test_complex_and_sparse_tensors_are_refused(catalogue: Any, tensor: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "tensors").mkdir()
    torch.save(tensor, tmp_path / "tensors" / "i0.pt")
    with pytest.raises(StoreError, match=r"expected one tensor of real numbers"):
        import_states(catalogue, open_source(tmp_path / "tensors"), "v", tmp_path)


class Shout:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def test_a_pickle_is_never_run(catalogue: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "i0.pt").write_bytes(pickle.dumps(Shout(), protocol=2))
    with pytest.raises(StoreError, match=r"i0\.pt' cannot be read safely"):
        import_states(catalogue, open_source(folder), "bad", tmp_path)
    torch.save({"a": 1}, folder / "i0.pt")
    with pytest.raises(StoreError, match="holds a dict"):
        import_states(catalogue, open_source(folder), "bad", tmp_path)
    assert capsys.readouterr().out == ""
