"""Pictures from addresses to a dataset: resumption, failures, limits; against a server on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from iisan.data import download as module
from iisan.data.download import DownloadLimits
from iisan.data.prepare import PrepareOptions, prepare
from iisan.errors import DataError
from pictures import encoded, moving, noise
from web import Server, permit

QUICK = DownloadLimits(rate=1e6, workers=4, backoff=0.0, timeout=5.0)
download_images = partial(module.download_images, limits=QUICK, permitted=permit)
PNG = encoded(Image.new("RGB", (4, 3), (9, 99, 9)))


def table(path, addresses, name="image"):
    """A table of items i0, i1, … or of the ids of a mapping."""
    pairs = addresses if isinstance(addresses, dict) else {f"i{n}": each for n, each in enumerate(addresses)}
    pl.DataFrame({"item_id": list(pairs), name: list(pairs.values())}).write_parquet(path)
    return path


def failures(folder):
    return {
        each["item_id"]: each for each in map(json.loads, (folder / "failures.jsonl").read_text().splitlines())
    }


def pictures(folder):
    return sorted(path.name for path in folder.iterdir() if path.name not in ("failures.jsonl", ".lock"))


def image_routes():
    """Answers that are pictures, and some that only seem to be."""
    frames = [Image.new("RGB", (4, 3), (shade, 0, 0)) for shade in (0, 99)]
    jpeg = encoded(Image.fromarray(noise(0, 30, 30)), "JPEG")
    return {
        "/jpeg": (200, {"content-type": "image/jpeg"}, jpeg),
        "/png.jpg": (200, {"content-type": "image/jpeg"}, PNG),
        "/webp": (200, {"content-type": "application/octet-stream"}, encoded(Image.new("RGB", (4, 3)), "WEBP")),
        "/gif": (200, {}, moving(frames)),
        "/html": (200, {"content-type": "text/html"}, b"<html>gone</html>"),
        "/svg": (200, {"content-type": "image/svg+xml"}, b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "/half": (200, {"content-type": "image/jpeg"}, jpeg[: len(jpeg) // 2]),
        "/empty": (200, {"content-type": "image/jpeg"}, b""),
        "/pixel": (200, {"content-type": "image/gif"}, encoded(Image.new("L", (1, 1)), "GIF")),
        "/wide": (200, {"content-type": "image/png"}, encoded(Image.new("1", (1001, 1000)))),
        "/large": (200, {"content-type": "image/png"}, PNG + bytes(50_000)),
    }


def test_types_are_decided_by_the_bytes(tmp_path):
    limits = DownloadLimits(rate=1e6, backoff=0.0, max_bytes=50_000, max_pixels=1_000_000)
    with Server(image_routes()) as server:
        items = table(tmp_path / "items.parquet", {path[1:]: server.url(path) for path in server.routes})
        found = module.download_images(items, tmp_path / "photos", limits=limits, permitted=permit)
        assert (tmp_path / "photos" / "png.jpg.png").read_bytes() == PNG
    assert pictures(tmp_path / "photos") == ["gif.gif", "jpeg.jpg", "png.jpg.png", "webp.webp"]
    reasons = {item_id: each["reason"] for item_id, each in failures(tmp_path / "photos").items()}
    assert reasons == {
        "html": "bytes that are not an image",
        "svg": "bytes that are not an image",
        "empty": "bytes that are not an image",
        "half": "an unreadable or truncated image",
        "pixel": "a single pixel",
        "wide": "an image that unpacks to too many pixels",
        "large": "too large",
    }
    assert "sent as text/html" in failures(tmp_path / "photos")["html"]["detail"]
    assert all(each["final"] for each in failures(tmp_path / "photos").values())
    assert (found.downloaded, found.retried, found.failed["bytes that are not an image"]) == (4, 0, 3)


def test_finished_pictures_and_final_failures_are_not_asked_for_again(tmp_path):
    out = tmp_path / "photos"
    with Server({"/a": (200, {}, PNG), "/later": (503, {}, b"")}) as server:
        items = table(
            tmp_path / "items.parquet", [server.url(path) for path in ("/a", "/gone", "/later")] + [None]
        )
        first = download_images(items, out)
        assert (first.downloaded, first.failed, first.retried) == (1, {"status 404": 1, "status 503": 1}, 1)
        assert (first.without_address, first.present) == (1, 0)
        assert sorted(server.requested) == ["/a", "/gone", *["/later"] * 3]
        server.requested.clear()
        server.routes["/later"] = (200, {}, PNG)
        again = download_images(items, out)
        assert server.requested == ["/later"]
        assert (again.present, again.downloaded, again.failed, again.retried) == (1, 1, {"status 404": 1}, 0)
        assert list(failures(out)) == ["i1"]
        server.requested.clear()
        # Another address of the item is another matter.
        server.routes["/new"] = (200, {}, PNG)
        table(items, [server.url(path) for path in ("/a", "/new", "/later")])
        assert download_images(items, out).downloaded == 1
        assert server.requested == ["/new"]
        assert download_images(items, out).failed == {}
        assert failures(out) == {}


def test_a_report_that_a_kill_cut_short(tmp_path):
    out = tmp_path / "photos"
    with Server({"/a": (200, {}, PNG)}) as server:
        items = table(tmp_path / "items.parquet", [server.url("/a"), server.url("/gone")])
        download_images(items, out)
        with (out / "failures.jsonl").open("a") as report:
            report.write('{"item_id": 9, "addresses": [], "reason": "", "detail": "", "final": true}\n')
            report.write('{"item_id": "i9", "addre')
        (out / ".i9.png.x1.part").write_bytes(PNG[:9])
        server.requested.clear()
        download_images(items, out)
        assert (server.requested, list(failures(out)), pictures(out)) == ([], ["i1"], ["i0.png"])


CHILD = """
import sys
from pathlib import Path
from iisan.data.download import DownloadLimits, download_images
limits = DownloadLimits(rate=1e6, workers=3, backoff=0.0)
found = download_images(Path(sys.argv[1]), Path(sys.argv[2]), limits=limits, permitted=lambda *_: True)
print(found.downloaded, found.present)
"""


def test_kills_lose_at_most_what_was_on_its_way(tmp_path):
    count, out = 60, tmp_path / "photos"

    def answer():
        time.sleep(0.02)
        return 200, {}, PNG

    def missing():
        time.sleep(0.02)
        return 404, {}, b""

    with Server({f"/{n}": missing if n % 10 == 9 else answer for n in range(count)}) as server:
        items = table(tmp_path / "items.parquet", [server.url(f"/{n}") for n in range(count)])
        command = [sys.executable, "-c", CHILD, items, out]
        for kills in range(1, 4):
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while len(server.requested) < kills * 12:
                time.sleep(0.005)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert all(path.read_bytes() == PNG for path in out.glob("*.png"))
        finished = len(list(out.glob("*.png")))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(54 - finished), str(finished)]
        assert pictures(out) == sorted(f"i{n}.png" for n in range(count) if n % 10 < 9)
        assert {*failures(out)} == {f"i{n}" for n in range(9, count, 10)}
        # Three requests are on their way at a time.
        assert len(server.requested) <= count + 3 * 3


def test_an_interruption_ends_transfers_that_are_running(tmp_path):
    def drips():
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
        while True:
            yield b"x"
            time.sleep(0.05)

    with Server(raw=drips()) as server:
        items = table(tmp_path / "items.parquet", [server.url("/a")])
        command = [sys.executable, "-c", CHILD, items, tmp_path / "photos"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not server.requested:
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=20)
        assert error.rstrip().endswith("KeyboardInterrupt")
        assert (server.requested, pictures(tmp_path / "photos")) == (["/a"], [])


def test_the_first_address_that_gives_a_picture_is_taken(tmp_path):
    with Server({"/small": (200, {}, PNG)}) as server:
        large, small = server.url("/large"), server.url("/small")
        frame = pl.DataFrame({"sku": ["text", "list"], "photo": [[f"{large}  {small}"], [large, small]]})
        frame.write_ndjson(tmp_path / "items.jsonl")
        found = download_images(tmp_path / "items.jsonl", tmp_path / "photos", image="photo", item_id="sku")
        assert (found.downloaded, found.failed) == (2, {})
        assert sorted(server.requested) == ["/large", "/large", "/small", "/small"]


def test_an_item_is_tried_again_if_one_of_its_addresses_may_work_later(tmp_path):
    routes = {"/busy": (503, {}, b""), "/a": (200, {}, PNG)}
    with Server(routes) as server:
        pair = f"{server.url('/busy')} {server.url('/gone')}"
        items = table(tmp_path / "items.parquet", [server.url("/a"), pair])
        assert download_images(items, tmp_path / "photos").retried == 1
        found = failures(tmp_path / "photos")["i1"]
        assert (found["reason"], found["final"], found["addresses"]) == ("status 404", False, pair.split())


def test_addresses_with_spaces(tmp_path):
    with Server({"/my%20photo.png": (200, {}, PNG)}) as server:
        items = table(tmp_path / "items.parquet", [f" {server.url('/my photo.png')} "])
        assert download_images(items, tmp_path / "photos").downloaded == 1


IDS = [
    "../../up",
    "/etc/x",
    "a/b\\c",
    ".",
    "..",
    ".hidden",
    "50%",
    "a:b|c?",
    "tab\tline\n",
    "ü ñ",
    "x" * 300,
    "-rf",
]


def test_ids_become_names_inside_the_folder_that_prepare_finds(tmp_path):
    out = tmp_path / "deep" / "photos"
    with Server({"/a": (200, {}, PNG)}) as server:
        items = table(tmp_path / "items.parquet", dict.fromkeys(IDS, server.url("/a")))
        found = download_images(items, out)
        assert download_images(items, out).present == found.downloaded == len(IDS) - 1
    assert failures(out)["x" * 300]["reason"] == "long item id"
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in everything} == {tmp_path, out}
    log = pl.DataFrame({"user_id": "u", "item_id": IDS})
    log.write_parquet(tmp_path / "interactions.parquet")
    sources = [items, tmp_path / "interactions.parquet"]
    dataset = prepare("table", sources, tmp_path / "data", PrepareOptions(images=out))
    assert dataset.items.filter(pl.col("image").is_null())["item_id"].to_list() == ["x" * 300]
    assert dataset.items["image"].n_unique() == len(IDS)


def test_a_host_gets_no_more_requests_per_second_than_allowed(tmp_path):
    times = []

    def answer():
        times.append(time.monotonic())
        return 200, {}, PNG

    with Server({f"/{n}": answer for n in range(6)}) as server:
        items = table(tmp_path / "items.parquet", [server.url(f"/{n}") for n in range(6)])
        began = time.monotonic()
        download_images(items, tmp_path / "photos", limits=DownloadLimits(rate=20, workers=4))
    assert max(times) - began >= 5 / 20


def test_no_more_requests_at_once_than_workers(tmp_path):
    lock, running, most = threading.Lock(), 0, 0

    def answer():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return 200, {}, PNG

    with Server({f"/{n}": answer for n in range(9)}) as server:
        items = table(tmp_path / "items.parquet", [server.url(f"/{n}") for n in range(9)])
        download_images(items, tmp_path / "photos", limits=DownloadLimits(rate=1e6, workers=3))
    assert 1 < most <= 3


def test_a_host_that_asks_to_wait_is_given_the_time(tmp_path):
    times = []

    def answer():
        times.append(time.monotonic())
        return (503, {"retry-after": "1"}, b"") if len(times) == 1 else (200, {}, PNG)

    with Server({"/a": answer, "/b": answer}) as server:
        items = table(tmp_path / "items.parquet", [server.url("/a"), server.url("/b")])
        limits = DownloadLimits(rate=1e6, workers=1, backoff=0.0)
        assert download_images(items, tmp_path / "photos", limits=limits).downloaded == 2
    assert times[1] - times[0] >= 1


def test_a_host_that_asks_for_an_hour_is_left_alone(tmp_path):
    routes = {"/a": (200, {}, PNG), "/busy": (429, {"retry-after": "3600"}, b"")}
    with Server(routes) as server:
        items = table(tmp_path / "items.parquet", [server.url("/a"), *[server.url("/busy")] * 5])
        found = download_images(items, tmp_path / "photos", limits=DownloadLimits(rate=1e6, workers=1, backoff=0))
        assert (found.downloaded, found.failed, found.retried) == (1, {"host left alone": 5}, 5)
        assert server.requested == ["/a", "/busy"]


def test_a_host_that_gives_nothing_is_left_alone(tmp_path):
    with Server({"/a": (200, {}, PNG), "/down": (500, {}, b"")}) as server:
        addresses = [server.url("/a"), *(f"{server.url('/down')}?{n}" for n in range(60))]
        server.routes |= {f"/down?{n}": (500, {}, b"") for n in range(60)}
        items = table(tmp_path / "items.parquet", addresses)
        found = download_images(items, tmp_path / "photos", limits=DownloadLimits(rate=1e6, workers=1, backoff=0))
        assert found.failed == {"status 500": 20, "host left alone": 40}
        assert (found.retried, len(server.requested)) == (60, 1 + 20 * 3)


def test_redirects_to_private_addresses_are_failures_for_good(tmp_path):
    with Server({"/a": (200, {}, PNG)}) as server:
        server.routes["/inside"] = (302, {"location": f"http://127.0.0.2:{server.port}/a"}, b"")
        items = table(tmp_path / "items.parquet", [server.url("/a"), server.url("/inside")])
        only = lambda address, port: str(address) == "127.0.0.1"  # noqa: E731
        found = download_images(items, tmp_path / "photos", permitted=only)
        assert found.failed == {"not a public address or port": 1}
        assert failures(tmp_path / "photos")["i1"]["final"]


def test_without_permission_this_machine_is_refused(tmp_path):
    with Server({"/a": (200, {}, PNG)}) as server:
        items = table(tmp_path / "items.parquet", [server.url("/a")])
        with pytest.raises(DataError, match=r"none of 1 pictures was downloaded \(1 × not a public address"):
            module.download_images(items, tmp_path / "photos", limits=QUICK)
        assert server.requested == []


def test_a_full_disk_stops_the_download(tmp_path, monkeypatch):
    real = Path.write_bytes

    def full(path, data):
        if path.suffix == ".part":
            raise OSError(28, "No space left on device")
        return real(path, data)

    with Server({"/a": (200, {}, PNG)}) as server:
        items = table(tmp_path / "items.parquet", [server.url("/a")] * 30)
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            download_images(items, tmp_path / "photos")
        assert pictures(tmp_path / "photos") == []


@pytest.mark.parametrize("name", ["rate", "workers", "max_bytes", "max_pixels", "timeout"])
def test_limits_are_above_zero(name):
    for value in (0, -1, float("nan")):
        with pytest.raises(DataError, match=f"{name} = .*; expected a number above 0: change --"):
            DownloadLimits(**{name: value})


def test_from_a_table_with_addresses_to_a_described_dataset(tmp_path, iisan, monkeypatch):
    monkeypatch.setattr(module, "download_images", partial(module.download_images, permitted=permit))
    colours = [encoded(Image.new("RGB", (8, 8), (9 * n, 0, 0))) for n in range(8)]
    with Server({f"/{n}.jpg": (200, {}, content) for n, content in enumerate(colours)}) as server:
        lines = [f"i{n},pump {n},{server.url(f'/{n}.jpg')}\n" for n in range(9)]
        (tmp_path / "items.csv").write_text("item_id,title,image\n" + "".join(lines))
        log = "".join(f"u{n % 5},i{n * 7 % 9}\n" for n in range(45))
        (tmp_path / "log.csv").write_text("user_id,item_id\n" + log)
        tables = [tmp_path / "items.csv", tmp_path / "log.csv"]
        code, out, _ = iisan("prepare", "table", *tables, "--out", tmp_path / "draft")
        assert (code, "9 without image" in out) == (0, True)
        # From a dataset or its table, the same.
        code, out, _ = iisan("download-images", tmp_path / "draft", "--out", tmp_path / "photos", "--rate", "1000")
        assert code == 0
        assert out.splitlines() == [
            f"{tmp_path / 'photos'}: 8 pictures downloaded",
            "not downloaded: 1 × status 404",
            f"listed in {tmp_path / 'photos' / 'failures.jsonl'}",
            f"next: iisan prepare FORMAT SOURCE --images {tmp_path / 'photos'} --out my-data",
        ]
        code, out, _ = iisan("download-images", tmp_path / "items.csv", "--out", tmp_path / "photos", "--json")
        found = json.loads(out)
        assert (code, found["present"], found["failed"], found["retried"]) == (0, 8, {"status 404": 1}, 0)
    arguments = ["--images", tmp_path / "photos", "--out", tmp_path / "data"]
    code, out, _ = iisan("prepare", "table", *tables, *arguments)
    assert (code, "of 9 items: 1 without image" in out) == (0, True)
    code, out, _ = iisan("describe", tmp_path / "data", "--json")
    assert (code, json.loads(out)["items"]) == (0, 9)


@pytest.mark.parametrize(
    ("columns", "arguments", "sentence"),
    [
        ({"photo": ["http://a.example/1"]}, [], "has no column 'image_url', only 'item_id', 'photo'"),
        ({"photo": ["http://a.example/1"]}, ["--image", "photos"], "did you mean 'photo'?"),
        ({"image": ["a.png"]}, [], "has no web address in the column of pictures"),
        ({"image": [None]}, [], "has no web address in the column of pictures"),
        ({"image": [b"png"]}, [], "has no web address in the column of pictures"),
        ({"image": ["http://a.example/1"]}, ["--rate", "0"], "rate = 0.0; expected a number above 0"),
        ({"image": ["http://127.0.0.1/1"]}, [], "none of 1 pictures was downloaded (1 × not a public address"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, iisan, columns, arguments, sentence):
    pl.DataFrame({"item_id": ["a"], **columns}).write_parquet(tmp_path / "items.parquet")
    code, out, error = iisan(
        "download-images", tmp_path / "items.parquet", "--out", tmp_path / "photos", *arguments
    )
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert sentence in error


def test_what_is_no_dataset_and_no_table(tmp_path, iisan):
    for source in (tmp_path, tmp_path / "none.csv"):
        code, _, error = iisan("download-images", source, "--out", tmp_path / "photos")
        assert (code, len(error.splitlines())) == (2, 1)
        assert not (tmp_path / "photos").exists()
