"""From two tables and a folder of images to recommendations, in Python.

The tables are a small generated catalogue, so that this runs anywhere; put your own in their place.

    python examples/quickstart.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

import iisan
from iisan.demo.catalogue import generate
from iisan.demo.run import ENCODERS


def main(folder: Path, **size: int) -> pl.DataFrame:
    # Your data: a row per item, a row per purchase, pictures named <item_id>.png (polars or pandas).
    generate(seed=1, **size).write(folder / "raw")
    items = pl.read_csv(folder / "raw" / "items.csv")
    purchases = pl.read_csv(folder / "raw" / "interactions.csv")

    dataset = iisan.Dataset.from_frames(items, purchases, images=folder / "raw" / "images").save(folder / "data")

    # Any Hugging Face encoders, by hub id or folder, such as "google-bert/bert-base-uncased" and
    # "google/vit-base-patch16-224". Each item passes them once, ever.
    models = {name: str(ENCODERS / name) for name in ("image", "text")}
    iisan.cache_states(dataset, folder / "states", models)

    recommender = iisan.Recommender.fit(
        dataset, folder / "states", out=folder / "run", overrides=["training.epochs=5", "loss.negatives=200"]
    )
    print(f"HR@10 {recommender.metrics['hr@10']:.1%}   ({recommender.run.result['protocol']})")

    print(recommender.recommend(history=["p00001", "p00002"], k=5))
    everyone = recommender.recommend_all(k=3)
    everyone.write_parquet(folder / "recommendations.parquet")
    return everyone


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name), num_items=500, num_users=800)
