"""The command from web addresses of pictures to files."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iisan.cli.common import Json, app
from iisan.printing import print_json


@app.command("download-images")
def download_images(
    source: Annotated[
        Path,
        Argument(metavar="SOURCE", help="Dataset written by `iisan prepare`, or a table of items."),
    ],
    out: Annotated[Path, Option(help="Folder of the pictures, for `iisan prepare --images`.")],
    image: Annotated[
        str | None, Option(help="Column of web addresses. Defaults to image_url, image_original or image.")
    ] = None,
    item_id: Annotated[str | None, Option(help="Column of item ids.")] = None,
    rate: Annotated[float, Option(help="Maximum requests per second to one host.")] = 10.0,
    workers: Annotated[int, Option(min=1, help="Maximum simultaneous requests.")] = 8,
    timeout: Annotated[
        float, Option(help="Maximum seconds per picture, from the request to the last byte.")
    ] = 60.0,
    max_bytes: Annotated[int, Option(min=1, help="Maximum size of a picture's file.")] = 2**25,
    max_pixels: Annotated[int, Option(min=1, help="Maximum number of pixels of a picture.")] = 25_000_000,
    as_json: Json = False,
) -> None:
    """Download the pictures of items from public web addresses. Resumes an interrupted download."""
    from iisan.data.download import DownloadLimits
    from iisan.data.download import download_images as download

    limits = DownloadLimits(rate, workers, max_bytes, max_pixels, timeout)
    outcome = download(source, out, image=image, item_id=item_id, limits=limits)
    if as_json:
        print_json(outcome.to_json())
        return
    there = f", {outcome.present:,} were there" if outcome.present else ""
    print(f"{out}: {outcome.downloaded:,} pictures downloaded{there}")
    if outcome.without_address:
        print(f"{outcome.without_address:,} items have no address")
    for reason, count in outcome.failed.most_common():
        print(f"not downloaded: {count:,} × {reason}")
    if outcome.failed:
        again = f"; the same command tries {outcome.retried:,} of them again" if outcome.retried else ""
        print(f"listed in {outcome.report}{again}")
    print(f"next: iisan prepare FORMAT SOURCE --images {out} --out my-data")
