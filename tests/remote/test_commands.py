"""Commands on addresses: the results are those of the same commands on folders."""

import json
import time

import polars as pl
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from iisan import cli
from iisan.api import Recommender
from iisan.config import parse
from iisan.data.dataset import Dataset
from iisan.errors import RunError, StoreError
from iisan.recipes import load_config
from iisan.remote import opening
from iisan.remote.address import cache_folder
from iisan.remote.opening import local
from iisan.runs.run import Run
from iisan.states.caching import cache
from iisan.states.store import StateStore
from iisan.states.writer import StateWriter
from pictures import encoded, noise

QUICK = ["--set", "training.epochs=1", "--set", "training.batch_size=16", "--set", "loss.negatives=5"]


@pytest.fixture
def sources(tmp_path):
    """Tables and images of twelve items and nine users, by name."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = "".join(f"u{n % 9},i{(n * 5 + n // 9 * 2) % 12},{n}\n" for n in range(63))
    return {
        "raw/items.csv": ("item_id,title\n" + "".join(f"i{n},{'red ' * n}pump\n" for n in range(12))).encode(),
        "raw/log.csv": ("user_id,item_id,timestamp\n" + rows).encode(),
        "new/new.csv": b"item_id,title\nnew,red blue pump\n",
        "new/new.png": encoded(Image.fromarray(noise(rng, 16, 16))),
        **{f"raw/images/i{n}.png": encoded(Image.fromarray(noise(rng, 16, 16))) for n in range(12)},
    }


def test_from_tables_in_a_bucket_to_recommendations_in_it(bucket, iisan, sources, tmp_path, model_folders, move):
    """Every command on another machine, which has nothing but the addresses."""
    for name, body in sources.items():
        bucket.put(name, body)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    def pipeline(at, step):
        def run(*command):
            step(command[0])
            code, out, error = iisan(*command)
            assert code == 0, error
            return out

        tables, images = [at("raw/items.csv"), at("raw/log.csv")], ["--images", at("raw/images")]
        out = run("prepare", "table", *tables, *images, "--out", at("work/data"))
        assert f"iisan cache {at('work/data')} --text MODEL" in " ".join(out.split())
        models = ["--text", model_folders["bert"], "--image", model_folders["vit"], "--precision", "fp32"]
        run("cache", at("work/data"), *images, *models, "--shard-rows", 4, "--out", at("work/states"))
        folders = ["--dataset", at("work/data"), "--states", at("work/states")]
        run("train", "default", *folders, "--out", at("work/run"), *QUICK)
        lists = run("recommend", at("work/run"), "--history", "i1,i2", "--json")
        everyone = ["--all-users", "-k", 3, "--dataset", at("work/data"), "--out", at("work/lists.csv")]
        run("recommend", at("work/run"), *everyone)
        run("add-items", at("work/run"), at("new/new.csv"), "--images", at("new"), "--states", at("work/states"))
        return json.loads(lists), json.loads(run("recommend", at("work/run"), "--history", "new", "--json"))

    found = pipeline(bucket.at, move)
    assert found == pipeline(lambda name: str(tmp_path / name), lambda _: None)
    assert len(found[0]) == 10
    assert bucket["work/lists.csv"] == (tmp_path / "work" / "lists.csv").read_bytes()
    for path in (tmp_path / "work" / "states").rglob("shard-*"):
        assert bucket[path.relative_to(tmp_path).as_posix()] == path.read_bytes()
    assert not any("secret" in path.read_text("latin-1") for path in cache_folder().rglob("*") if path.is_file())
    # The Python interface.
    recommender = Recommender.load(bucket.at("work/run"))
    assert recommender.recommend(history=["new"])["item_id"].to_list() == [row["item_id"] for row in found[1]]
    recommender.save(bucket.at("copy"))
    assert Run.load(bucket.at("copy")).result["test"] == recommender.metrics
    recommender.export(bucket.at("vectors"))
    assert pl.read_parquet(bucket["vectors/vectors.parquet"]).height == 13


def test_an_interrupted_extraction_goes_on_elsewhere(bucket, prepared, model_folders, monkeypatch, move):
    dataset = Dataset.load(prepared.dataset)
    models, add = {"text": str(model_folders["bert"])}, StateWriter.add

    def shards_there():
        manifests = [key for key in bucket.keys("states") if key.endswith("manifest.json")]
        return sum(len(json.loads(bucket[key])["shards"]) for key in manifests)

    def interrupted(self, *rest):
        if len(self.manifest.shards) == 2:
            # A shard is there once the manifest, which is uploaded last, names it.
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and shards_there() < 2:
                time.sleep(0.05)
            raise KeyboardInterrupt
        add(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(opening, "_INTERVAL", 0.05)
        patch.setattr(StateWriter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache(dataset, bucket.at("states"), models, shard_rows=8)
    move("elsewhere")
    (manifest,) = local(bucket.at("states")).rglob("manifest.json")
    with pytest.raises(StoreError, match="was interrupted or is in progress: 16 rows are there"):
        StateStore.open(manifest.parent)
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(StateWriter, "add", lambda self, *rest: again.append(add(self, *rest)))
        (store,) = cache(dataset, bucket.at("states"), models, shard_rows=8).values()
    assert len(again) == 2, "no content is encoded again"
    assert len(StateStore.open(bucket.at(f"states/{store.folder.name}"))) == 28


def test_addresses_in_a_configuration_of_the_user_are_fetched_and_those_of_a_run_are_not(bucket, tmp_path):
    bucket.put("data/a", b"a")
    (tmp_path / "own.yaml").write_text(f"dataset: {bucket.at('data')}\ntraining: {{seed: 3}}\n")
    copied = cache_folder() / "s3" / bucket.name / "data"
    config = load_config(tmp_path / "own.yaml")
    assert (config.dataset, config.training.seed) == (copied, 3)
    assert load_config("ids", [f"states={bucket.at('data')}"]).states == copied
    bucket.put("own.yaml", (tmp_path / "own.yaml").read_bytes())
    assert load_config(bucket.at("own.yaml")) == config
    # A run or dataset of somebody else is parsed by this.
    found = parse({"dataset": bucket.at("elsewhere")})
    assert found.dataset is not None
    assert not found.dataset.exists()


def test_an_unfinished_artefact_is_refused_by_its_address(bucket, prepared, iisan, tmp_path):
    for path in prepared.dataset.rglob("*"):
        if path.is_file() and path.name != "dataset.json":
            bucket.put(f"data/{path.relative_to(prepared.dataset).as_posix()}", path.read_bytes())
    code, _, error = iisan("describe", bucket.at("data"))
    assert code == 2
    assert error == (
        f"error: '{bucket.at('data/dataset.json')}' does not exist; expected an iisan-dataset folder whose "
        "writing was finished: make it (again) with: iisan prepare FORMAT SOURCE… --out DATASET\n"
    )
    with pytest.raises(RunError, match="does not exist"):
        Recommender.load(bucket.at("data"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["describe", "s3://no-such-bucket/data"], "the bucket of 's3://no-such-bucket/data' does not exist"),
        (["describe", "https://host/data"], "files at 'https://…' are not read or written"),
        (["train", "ids", "--dataset", "s3://a:b@c/d", "--out", "run"], "an address s3://… with credentials"),
        (["train", "ids", "--set", "dataset=ftp://host/data", "--out", "run"], "files at 'ftp://…' are not read"),
    ],
)
def test_bad_addresses_end_with_one_sentence(bucket, iisan, command, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = iisan(*command)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {expected}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_input_leaves_nothing_in_the_bucket(bucket, iisan, sources):
    bucket.put("raw/items.csv", sources["raw/items.csv"])
    bucket.put("raw/log.csv", b"user_id,item_id,timestamp\n")
    tables = [bucket.at("raw/items.csv"), bucket.at("raw/log.csv")]
    code, _, error = iisan("prepare", "table", *tables, "--out", bucket.at("data"))
    assert code == 2, error
    assert bucket.keys("data") == []


def test_a_command_that_ends_with_an_exit_code_uploads(bucket):
    app = cli.common._Application()

    @app.command()
    def partly(out: cli.common.Out):
        out.mkdir(parents=True)
        (out / "record").write_text("one of two failed")
        raise typer.Exit(1)

    assert CliRunner().invoke(app, ["--out", bucket.at("out")]).exit_code == 1
    assert bucket.keys() == ["out/record"]


def test_items_cannot_be_added_over_http_to_a_copy(bucket, iisan, monkeypatch):
    bucket.put("run/result.json", b"{}")
    monkeypatch.setenv("IISAN_TOKEN", "token")
    code, _, error = iisan("serve", bucket.at("run"), "--port", 0)
    assert code == 2
    assert "a run is a copy of one in an object store" in error


def test_only_the_typed_address_is_shown():
    copy = cache_folder() / "s3" / "bucket" / "data"
    cli.common._addresses[copy] = "s3://bucket/data"
    assert (
        cli.common.shown(f"'{copy}/items' {copy} {copy}2") == f"'s3://bucket/data/items' s3://bucket/data {copy}2"
    )
    del cli.common._addresses[copy]
