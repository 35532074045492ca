"""From raw files to stored states."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from iisan.cli.common import DatasetFolder, ImagesOption, Json, Out, app, pairs_of, say_to
from iisan.printing import print_json, print_recommendations, print_stores, print_table


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write: iisan-demo, or iisan-demo-extended.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the catalogue and of all trainings.")] = 0,
    extended: Annotated[
        bool, typer.Option("--extended", help="Products have tones and clips, too (extras audio, video).")
    ] = False,
    as_json: Json = False,
) -> None:
    """The whole path on a generated catalogue, in minutes, on a CPU, offline."""
    from iisan.demo.run import run_demo
    from iisan.machine import keep_freed_memory

    keep_freed_memory()
    out = out or Path("iisan-demo-extended" if extended else "iisan-demo")
    report = run_demo(out, seed, extended, say=say_to(as_json))
    if as_json:
        print_json(report.as_json())
        return
    print_table(*report.table())
    print_recommendations("what IISAN recommends to one user", report.recommended)
    print(report.closing())


@app.command()
def prepare(
    form: Annotated[Literal["reference", "table"], typer.Argument(metavar="FORMAT", help="reference | table")],
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE…", help="Items file and interactions file, or their folder.")
    ],
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images named <item_id>.jpg (png, webp, …), or the root of paths."),
    ] = None,
    item_id: Annotated[str | None, typer.Option(help="Column of item ids.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Column of user ids.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of titles.")] = None,
    image: Annotated[
        str | None, typer.Option(help="Column of image paths or bytes; 'none' if no column holds images.")
    ] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of timestamps.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=KIND",
            help="A further column with contents: text, image, audio or video; repeatable.",
        ),
    ] = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Fewest interactions of a user.")] = None,
    k_core: Annotated[int | None, typer.Option(min=0, help="Fewest of a user and of an item, repeated.")] = None,
    keep_last: Annotated[int | None, typer.Option(min=0, help="Keep a user's last ones only; 0 is all.")] = None,
    items: Annotated[
        Literal["all", "interacted"] | None, typer.Option(help="Keep all items, or those that were taken.")
    ] = None,
    on_bad: Annotated[
        Literal["stop", "skip"], typer.Option(help="Stop at bad rows, or skip, count and list them.")
    ] = "stop",
    check_images: Annotated[
        bool, typer.Option(help="Decode every image, sound and clip now, not only read it.")
    ] = True,
    quotes: Annotated[bool | None, typer.Option(help="Fields may be quoted (CSV: yes, TSV: no).")] = None,
    as_json: Json = False,
) -> None:
    """Raw files -> a dataset folder."""
    from iisan.data.prepare import parse_options
    from iisan.data.prepare import prepare as prepare_dataset

    options = parse_options(
        {
            "images": images,
            "item_id": item_id,
            "user_id": user_id,
            "text": text,
            "image": image,
            "timestamp": timestamp,
            "columns": pairs_of(column, "COLUMN=KIND"),
            "min_length": min_length,
            "k_core": k_core,
            "keep_last": keep_last,
            "items": items,
            "on_bad": on_bad,
            "check_images": check_images,
            "quotes": quotes,
        }
    )
    dataset = prepare_dataset(form, sources, out, options)
    if as_json:
        print_json(dataset.manifest)
        return
    counts = dataset.manifest["counts"]
    print_table(
        str(out),
        ["", "users#", "items#", "interactions#"],
        [
            [step["step"], *(f"{step[key]:,}" for key in ("users", "items", "interactions"))]
            for step in counts["steps"]
        ],
    )
    missing = ", ".join(f"{count:,} without {what}" for what, count in counts["missing"].items() if count)
    print(f"of {counts['items']:,} items: {missing or 'all have everything'}")
    if counts["timestamps"] is None:
        print("no timestamps: the order of the rows is taken as the order of time")
    for reason, count in dataset.manifest["skipped"].items():
        print(f"skipped: {count:,} × {reason} (listed in {out / 'skipped.jsonl'})")
    more = "".join(f" --model {name}=MODEL" for name in options.columns)
    print(f"next: iisan describe {out}   |   iisan cache {out} --text MODEL --image MODEL{more} --out my-states")


@app.command()
def describe(
    dataset: DatasetFolder,
    split: Annotated[Literal["leave-one-out", "temporal"], typer.Option(help="Which split to look at.")] = (
        "leave-one-out"
    ),
    as_json: Json = False,
) -> None:
    """What is in a dataset, and what will make evaluation lie."""
    from iisan.data.dataset import Dataset
    from iisan.data.splits import split as make_split
    from iisan.evaluate.describe import describe as describe_dataset

    loaded = Dataset.load(dataset)
    description = describe_dataset(loaded, make_split(loaded.sequences, loaded.num_items, split))
    if as_json:
        print_json(description.to_json())
        return
    print_table(f"{dataset}, {split} split", ["", "value#", "why it matters"], description.rows())


@app.command()
def caption(
    dataset: DatasetFolder,
    out: Out,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Image-to-text model: hub id[@revision] or folder.")],
    images: ImagesOption = None,
    column: Annotated[str, typer.Option(help="What is described: a column of images or videos.")] = "image",
    name: Annotated[str, typer.Option(help="Name of the new column.")] = "caption",
    prompt: Annotated[
        str | None, typer.Option(help="What a model with a chat template is asked; others are asked nothing.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest caption.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures per forward pass: the most that a kill can lose.")
    ] = 16,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="How the model computes.")
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write captions of images, or of videos' middle frames -> a dataset with one more column of texts."""
    from iisan.data.dataset import Dataset
    from iisan.encoders.captioning import caption as write_captions

    asked = {"prompt": prompt, "max_tokens": max_tokens}
    captioned = write_captions(
        Dataset.load(dataset, images),
        out,
        model,
        column=column,
        name=name,
        batch_size=batch_size,
        precision=precision,
        trust_remote_code=trust_remote_code,
        say=say_to(as_json),
        **{option: value for option, value in asked.items() if value is not None},  # type: ignore[arg-type]
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
    text: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Text encoder: hub id[@revision] or folder.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Image encoder: hub id[@revision] or folder.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=MODEL", help="An encoder of any other column; repeatable."),
    ] = None,
    images: ImagesOption = None,
    recipe: Annotated[
        str, typer.Option(help="Pooling and text length that this recipe trains on; the options below win.")
    ] = "default",
    levels: Annotated[str, typer.Option(help="layerdrop, group-N, all, or a list such as 0,6,12,last.")] = (
        "layerdrop"
    ),
    pooling: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=POOLING", help="mean, cls or last; repeatable.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest text, special tokens included.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Longest part of a sound that is heard.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video that are looked at.")] = None,
    last_n_layers: Annotated[
        int | None, typer.Option(min=1, help="Also store the tokens below the last N blocks (recipe 'partial').")
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "int8", "fp32"], typer.Option(help="How states are stored.")
    ] = "bf16",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="How the encoders compute.")
    ] = "auto",
    weights: Annotated[
        Literal["fp32", "bf16", "auto"], typer.Option(help="How the encoders' weights are held.")
    ] = "fp32",
    quantise: Annotated[
        Literal["8bit", "4bit"] | None, typer.Option(help="Quantise the weights (CUDA and the extra 'large').")
    ] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Spread a model over devices, e.g. 'auto' (extra 'large').")
    ] = None,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Contents per file: the most that a kill can lose.")
    ] = 4096,
    verify: Annotated[bool, typer.Option("--verify", help="Also compare every file with its checksum.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every item through the frozen models once and store the hidden states."""
    from iisan.data.dataset import Dataset
    from iisan.encoders.loading import Loading
    from iisan.recipes import recipe as named_recipe
    from iisan.states.caching import cache as cache_states

    wanted, loaded = named_recipe(recipe), Dataset.load(dataset, images)
    models = {name: each for name, each in (("image", image), ("text", text)) if each}
    poolings: dict[str, str | None] = {
        name: wanted.section_of(kind).pooling for name, kind in loaded.kinds.items()
    }
    stores = cache_states(
        loaded,
        out,
        models | pairs_of(model, "COLUMN=MODEL"),
        levels=levels,
        poolings={**poolings, **pairs_of(pooling, "COLUMN=POOLING")},
        max_tokens=max_tokens or wanted.text.max_tokens,
        max_seconds=max_seconds,
        frames=frames,
        dtype=dtype,
        precision=precision,
        shard_rows=shard_rows,
        last_n_layers=last_n_layers,
        trust_remote_code=trust_remote_code,
        loading=Loading(weights, device_map, quantise),
        say=say_to(as_json),
    )
    for store in stores.values():
        if verify:
            store.verify()
    if as_json:
        print_json({modality: store.facts() for modality, store in stores.items()})
        return
    print_stores(out, stores)
    print(f"next: iisan train default --dataset {dataset} --states {out} --out my-run")


@app.command("import-states")
def import_states(
    dataset: DatasetFolder,
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the new modality.")],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of <item_id>.pt files, a .npy file, or a .parquet file; by default the dataset itself.",
        ),
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Ids of the rows of a .npy file, one a line.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of lists in the table; by default --name.")] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "int8", "fp32"], typer.Option(help="How states are stored.")
    ] = "bf16",
    as_json: Json = False,
) -> None:
    """States or vectors made elsewhere -> a modality of their own."""
    from iisan.data.dataset import Dataset
    from iisan.states.importing import column_source, open_source
    from iisan.states.importing import import_states as import_from

    loaded = Dataset.load(dataset)
    if source is None:
        opened = column_source(loaded.items, column or name, str(dataset))
    else:
        opened = open_source(source, ids, column or name)
    store = import_from(loaded, opened, name, out, dtype=dtype, say=say_to(as_json))
    if as_json:
        print_json({name: store.facts()})
        return
    print_stores(out, {name: store})
    print(f"next: iisan train default --dataset {dataset} --states {out} --out my-run")
