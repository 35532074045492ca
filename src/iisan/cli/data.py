"""Commands from a dataset to stored states, and the demo."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from typer import Argument, Option

from iisan.cli.common import (
    DatasetFolder,
    ImagesOption,
    Json,
    Out,
    RayOption,
    SharesOption,
    app,
    check_shares,
    cluster_at,
    pairs_of,
    say_to,
)
from iisan.printing import print_json, print_recommendations, print_stores, print_table

if TYPE_CHECKING:
    from iisan.states.store import StateStore

Precision: TypeAlias = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], Option(help="Precision of the computation.")
]
StoredAs: TypeAlias = Annotated[
    Literal["bf16", "fp16", "int8", "fp32"], Option(help="Storage format of the states.")
]
Model: TypeAlias = Annotated[str | None, Option(metavar="MODEL", help="Encoder: hub id[@revision] or folder.")]
Trust: TypeAlias = Annotated[bool, Option("--trust-remote-code", help="Run code that comes with the model.")]


@app.command()
def demo(
    out: Annotated[Path | None, Option(help="Output folder: iisan-demo, or iisan-demo-extended.")] = None,
    seed: Annotated[int, Option(help="Random seed of the catalogue and of all training runs.")] = 0,
    extended: Annotated[
        bool, Option("--extended", help="Products also have tones and clips (extras audio and video).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the complete pipeline on a generated catalogue, in minutes on a CPU, without a network."""
    from iisan.demo.run import run_demo
    from iisan.machine import keep_freed_memory

    keep_freed_memory()
    out = out or Path("iisan-demo-extended" if extended else "iisan-demo")
    report = run_demo(out, seed, extended, say=say_to(as_json))
    if as_json:
        print_json(asdict(report))
        return
    print_table(*report.table())
    print_recommendations("recommendations of IISAN for one user", report.recommended)
    print(report.closing())


@app.command()
def describe(
    dataset: DatasetFolder,
    split: Annotated[
        Literal["auto", "given", "leave-one-out", "temporal", "ratio", "users"],
        Option(help="Split to describe; auto is that which runs of the dataset have by default."),
    ] = "auto",
    shares: SharesOption = None,
    as_json: Json = False,
) -> None:
    """Describe a dataset and what can distort its evaluation."""
    from iisan.config import Config
    from iisan.data.dataset import Dataset
    from iisan.evaluate.describe import describe as describe_dataset

    loaded, changes = Dataset.load(dataset), {"split": split, "shares": shares and f"[{shares}]"}
    config = Config().override(f"evaluation.{key}={value}" for key, value in changes.items() if value)
    subsets = loaded.split(config.evaluation)
    check_shares(shares, subsets.name)
    description = describe_dataset(loaded, subsets)
    if as_json:
        print_json(description.to_json())
        return
    print_table(f"{dataset}, {subsets} split", ["", "value#", "why it matters"], description.rows())


@app.command()
def caption(
    dataset: DatasetFolder,
    out: Out,
    model: Annotated[str, Option(metavar="MODEL", help="Image-to-text model: hub id[@revision] or folder.")],
    images: ImagesOption = None,
    column: Annotated[str, Option(help="Column of images or videos.")] = "image",
    name: Annotated[str, Option(help="Name of the new column.")] = "caption",
    prompt: Annotated[str | None, Option(help="Prompt of a model with a chat template.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Maximum tokens per caption.")] = None,
    batch_size: Annotated[
        int, Option(min=1, help="Images per forward pass (the most an interruption loses).")
    ] = 16,
    precision: Precision = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write captions of images, or of the middle frames of videos, to a dataset with one more text column."""
    from iisan.data.dataset import Dataset
    from iisan.encoders.captioning import caption as write_captions
    from iisan.encoders.captions import MAX_TOKENS, PROMPT

    captioned = write_captions(
        Dataset.load(dataset, images),
        out,
        model,
        column=column,
        name=name,
        prompt=PROMPT if prompt is None else prompt,
        max_tokens=max_tokens or MAX_TOKENS,
        batch_size=batch_size,
        precision=precision,
        trust_remote_code=trust_remote_code,
        say=say_to(as_json),
    )
    if as_json:
        print_json(captioned.manifest)
        return
    examples = captioned.items.select("item_id", name).drop_nulls()
    print_table(f"{out}: {len(examples):,} captions, the first of them", ["item", name], examples.head(3).rows())
    print(f"next: iisan cache {out} --model {name}=TEXTMODEL --out my-states")


@app.command()
def cache(
    dataset: DatasetFolder,
    out: Out,
    text: Model = None,
    image: Model = None,
    model: Annotated[
        list[str] | None, Option(metavar="COLUMN=MODEL", help="Encoder of another column; repeatable.")
    ] = None,
    images: ImagesOption = None,
    recipe: Annotated[str, Option(help="Recipe that provides default poolings and text length.")] = "default",
    levels: Annotated[
        str, Option(help="Stored levels: layerdrop, group-N, all, or a list such as 0,6,12,last.")
    ] = "layerdrop",
    pooling: Annotated[
        list[str] | None, Option(metavar="COLUMN=POOLING", help="Pooling: mean, cls or last; repeatable.")
    ] = None,
    max_tokens: Annotated[
        int | None, Option(min=1, help="Maximum tokens per text, including special tokens.")
    ] = None,
    max_seconds: Annotated[float | None, Option(help="Maximum encoded duration per sound, in seconds.")] = None,
    frames: Annotated[int | None, Option(min=1, help="Number of frames per video.")] = None,
    last_n_layers: Annotated[
        int | None, Option(min=1, help="Also store tokens for training the last N layers (recipe 'partial').")
    ] = None,
    dtype: StoredAs = "bf16",
    precision: Precision = "auto",
    weights: Annotated[
        Literal["fp32", "bf16", "auto"], Option(help="Number format of the encoders' weights.")
    ] = "fp32",
    quantise: Annotated[
        Literal["8bit", "4bit"] | None, Option(help="Quantisation of the weights (CUDA and the extra 'large').")
    ] = None,
    device_map: Annotated[
        str | None, Option(help="Placement of a model on several devices, such as 'auto' (extra 'large').")
    ] = None,
    shard_rows: Annotated[int, Option(min=1, help="Contents per file (the most an interruption loses).")] = 4096,
    verify: Annotated[bool, Option("--verify", help="Compare all files with their checksums.")] = False,
    trust_remote_code: Trust = False,
    ray: RayOption = None,
    as_json: Json = False,
) -> None:
    """Encode every item once with frozen models and store the hidden states."""
    from iisan.data.dataset import Dataset
    from iisan.encoders.loading import Loading
    from iisan.recipes import recipe as named_recipe
    from iisan.scale.extraction import ClusterJob
    from iisan.states.caching import cache as cache_states

    base, loaded = named_recipe(recipe), Dataset.load(dataset, images)
    models = {name: each for name, each in (("image", image), ("text", text)) if each}
    poolings: dict[str, str | None] = {name: base.section_of(kind).pooling for name, kind in loaded.kinds.items()}
    say = say_to(as_json)
    cache_all = partial(
        cache_states,
        loaded,
        out,
        models | pairs_of(model, "COLUMN=MODEL"),
        levels=levels,
        poolings=poolings | pairs_of(pooling, "COLUMN=POOLING"),
        max_tokens=max_tokens or base.text.max_tokens,
        max_seconds=max_seconds,
        frames=frames,
        dtype=dtype,
        precision=precision,
        shard_rows=shard_rows,
        last_n_layers=last_n_layers,
        trust_remote_code=trust_remote_code,
        loading=Loading(weights, device_map, quantise),
        say=say,
    )
    with cluster_at(ray, say) as cluster:
        stores = cache_all() if cluster is None else cache_all(spread=partial(ClusterJob, cluster), device="cpu")
    for store in stores.values() if verify else ():
        store.verify()
    _show_stores(stores, dataset, out, as_json)


def _show_stores(stores: dict[str, "StateStore"], dataset: Path, out: Path, as_json: bool) -> None:
    if as_json:
        print_json({modality: store.facts() for modality, store in stores.items()})
        return
    print_stores(out, stores)
    print(f"next: iisan train default --dataset {dataset} --states {out} --out my-run")


@app.command("import-states")
def import_states(
    dataset: DatasetFolder,
    out: Out,
    name: Annotated[str, Option(help="Name of the new modality.")],
    source: Annotated[
        Path | None,
        Argument(
            metavar="SOURCE",
            help="Folder of <item_id>.pt files, .npy file, or .parquet file. Defaults to the dataset itself.",
        ),
    ] = None,
    ids: Annotated[Path | None, Option(help="File of the item ids of a .npy file, one per line.")] = None,
    column: Annotated[str | None, Option(help="Column of lists in the table. Defaults to --name.")] = None,
    dtype: StoredAs = "bf16",
    as_json: Json = False,
) -> None:
    """Import hidden states or vectors that were computed elsewhere as a new modality."""
    from iisan.data.dataset import Dataset
    from iisan.states.importing import column_source, open_source
    from iisan.states.importing import import_states as import_from

    loaded = Dataset.load(dataset)
    if source is None:
        opened = column_source(loaded.items, column or name, str(dataset))
    else:
        opened = open_source(source, ids, column or name)
    store = import_from(loaded, opened, name, out, dtype=dtype, say=say_to(as_json))
    _show_stores({name: store}, dataset, out, as_json)
