"""Two workers and one machine make the same stores and the same lists, byte for byte."""

import functools
import json
from pathlib import Path

import pytest
import torch

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.encoders.load import load_encoder
from iisan.errors import ClusterError, DataError
from iisan.scale.extraction import ClusterJob
from iisan.serve import batch
from iisan.states.caching import cache


def files_of(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(".lock")}


@pytest.fixture(scope="module")
def one_machine(prepared, tmp_path_factory):
    """Stores of texts and images in small shards."""
    out = tmp_path_factory.mktemp("one") / "states"
    return files_of(folder_of_stores(prepared, out))


def folder_of_stores(prepared, out, **options):
    models = {"text": str(prepared.text), "image": str(prepared.image)}
    settings = {"shard_rows": 7, "precision": "fp32", "device": "cpu"}
    cache(Dataset.load(prepared.dataset), out, models, **settings, **options)
    return out


def test_the_stores_are_those_of_one_machine(prepared, one_machine, cluster, said, tmp_path):
    out = folder_of_stores(prepared, tmp_path / "states", spread=functools.partial(ClusterJob, cluster))
    assert len(one_machine) == 2 * (2 + 2 * 4)
    assert files_of(out) == one_machine
    assert sum("states: 4 of 4 shards" in line for line in said) == 2


def test_the_command_takes_relative_folders(prepared, one_machine, address, iisan, tmp_path, monkeypatch):
    monkeypatch.chdir(prepared.text.parent)
    out = tmp_path / "states"
    model = ["--text", "bert", "--last-n-layers", "2", "--precision", "fp32"]
    code, printed, err = iisan(
        "cache", prepared.dataset, *model, "--out", out, "--shard-rows", 20, "--ray", address, "--json"
    )
    assert code == 0, err
    assert json.loads(printed)["text"]["rows"] == 28
    assert "caching text states: 2 of 2 shards" in err
    assert len([name for name in files_of(out) if "shard" in name]) == 2 * 2 * 2


def test_a_worker_without_the_encoder_or_with_another_is_refused(prepared, cluster, tmp_path):
    def elsewhere(*_, **__):
        return load_encoder("text", "no-such-folder/model")

    def another(load, name, pooling):
        encoder = load(name, pooling=pooling)
        with torch.no_grad():
            next(encoder.parameters()).add_(1)
        return encoder

    def spread(broken, load, job):
        return ClusterJob(cluster, functools.partial(broken, load), job)

    dataset, models = Dataset.load(prepared.dataset), {"text": str(prepared.text)}
    for broken, message in (
        (elsewhere, r"there is no folder|is not on this machine"),
        (another, "another encoder"),
    ):
        with pytest.raises(ClusterError, match=rf"^on the worker .*{message}"):
            cache(dataset, tmp_path / "s", models, device="cpu", spread=functools.partial(spread, broken))
        assert not (tmp_path / "s").exists()


def test_an_item_that_cannot_be_read_is_named(prepared, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "content_bytes", lambda self, column, index: b"no image")
    models = {"image": str(prepared.image)}
    with pytest.raises(DataError, match=r"the image of item 'i\d+': .*prepare the dataset again"):
        cache(
            Dataset.load(prepared.dataset), tmp_path / "s", models, spread=functools.partial(ClusterJob, cluster)
        )


def test_the_lists_are_those_of_one_machine(anchored_run, cluster, said, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_USERS", 7)
    recommender = Recommender.load(anchored_run)
    options = {"where": {"item_id": [f"i{n}" for n in range(20)]}, "max_per": "text"}
    one = recommender.recommend_all(5, out=tmp_path / "one.parquet", **options).collect()
    recommender.recommend_all(5, out=tmp_path / "two.parquet", cluster=cluster, **options)
    assert recommender.recommend_all(5, cluster=cluster, **options).equals(one)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert sum("recommending: 8 of 8 shards" in line for line in said) == 2


def test_workers_with_another_run_are_refused(anchored_run, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("iisan.scale.lists.origin_of", lambda *_: {"run": "another"})
    with pytest.raises(ClusterError, match="have another run than on the machine of the command"):
        Recommender.load(anchored_run).recommend_all(out=tmp_path / "lists.parquet", cluster=cluster)
    assert not (tmp_path / "lists.parquet").exists()


def test_a_cluster_is_for_all_users(anchored_run, iisan, tmp_path):
    code, _, err = iisan("recommend", anchored_run, "--user", "u0", "--ray", "local")
    assert (code, err.count("\n")) == (2, 1)
    assert "--all-users" in err
