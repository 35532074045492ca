"""The examples run as they stand, and so do those of the documentation's guides."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import polars as pl
import pytest

from iisan import cli
from iisan.demo.catalogue import generate
from iisan.demo.run import ENCODERS

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(python|console|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: The encoders that the guides name, and what stands in for them offline.
STAND_INS = {
    "sentence-transformers/all-MiniLM-L6-v2": str(ENCODERS / "text"),
    "google/vit-base-patch16-224": str(ENCODERS / "image"),
}
QUICK = ["--set", "training.epochs=1", "--set", "loss.negatives=20"]


def test_quickstart(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["main"]
    everyone = main(tmp_path, num_items=150, num_users=60)
    assert everyone["user_id"].n_unique() == 60
    assert everyone.group_by("user_id").len()["len"].unique().to_list() == [3]
    assert (tmp_path / "recommendations.parquet").exists()
    assert "full ranking of 150 items" in capsys.readouterr().out


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Follow a page in an empty folder: its python, console and yaml blocks, in order, in one session."""
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "guide"}

    def run(command):
        arguments = shlex.split(command)[1:]
        monkeypatch.setattr(sys, "argv", ["iisan", *arguments, *(QUICK if arguments[0] == "train" else ())])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, command

    def page(name):
        for language, text in BLOCK.findall((ROOT / "docs" / name).read_text(encoding="utf-8")):
            for encoder, folder in STAND_INS.items():
                text = text.replace(encoder, folder)
            if language == "python":
                exec(compile(text, name, "exec"), session)
            elif language == "yaml":
                Path("my-settings.yaml").write_text(text, encoding="utf-8")
            else:
                for line in text.splitlines():
                    run(line.removeprefix("$ "))
        return session

    return page


def test_the_quickstart_page(follow):
    session = follow("quickstart.md")
    assert session["dataset"].num_items == 150
    assert pl.read_parquet("recommendations.parquet")["user_id"].n_unique() == 200


def test_your_own_data_and_the_cookbook(follow):
    """On a shop's tables as these pages assume them: ids such as SKU-1 and 4711, photos, descriptions."""
    generate(seed=1, num_items=100, num_users=80).write(Path())
    Path("images").rename("photos")
    for photo in list(Path("photos").iterdir()):
        photo.rename(photo.with_name(f"SKU-{int(photo.stem[1:])}.png"))
    item_id, user_id = (pl.col(name).str.slice(1).cast(pl.Int64) for name in ("item_id", "user_id"))
    items, purchases = pl.read_csv("items.csv"), pl.read_csv("interactions.csv")
    sku = pl.format("SKU-{}", item_id).alias("item_id")
    number = pl.int_range(pl.len())
    brand = pl.when(number % 3 == 0).then(pl.lit("Acme")).when(number % 3 == 1).then(pl.lit("Apex"))
    columns = {"description": "title", "brand": brand, "in_stock": number % 4 > 0}
    # Nothing is fetched: all photos are there.
    columns["image_url"] = pl.format("https://shop.example/{}.png", item_id)
    items.with_columns(sku, **columns).write_csv("items.csv")
    purchases.with_columns(sku, user_id + 4700).write_csv("purchases.csv")

    queries = "user_id,history,target\n4711,SKU-1 SKU-2,SKU-3\n4711,SKU-1,SKU-7\nelse,SKU-5,SKU-6\n"
    for name in ("valid", "test", "january"):
        Path(f"{name}.csv").write_text(queries)

    Path("users.csv").write_text("user_id,subset\n4711,validation\n4712,test\n")

    Path("new.csv").write_text("item_id,title,image,brand\nNEW-1,a red lamp,photos/SKU-5.png,Acme\n")

    follow("your-own-data.md")
    assert pl.read_parquet("recommendations.parquet")["user_id"].n_unique() == 80
    session = follow("cookbook.md")
    assert pl.read_parquet("ranks.parquet").height == 80
    # That of the item that was added, too.
    assert session["embeddings"].shape == (101, 128)
