import struct
import zlib

import numpy as np
import polars as pl
import pytest
from PIL import Image

from iisan.data.images import extension_of, file_stem, find_images, open_image
from iisan.data.media import inside, read_file
from iisan.data.problems import Problems
from iisan.errors import DataError
from pictures import encoded


def solid(color, mode="RGB", size=(4, 2)):
    return Image.new(mode, size, color)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_six_formats_open_as_rgb(form):
    image = open_image(encoded(solid((250, 10, 10)), form))
    assert (image.mode, image.size) == ("RGB", (4, 2))
    assert np.abs(np.asarray(image).astype(int)[0, 0] - [250, 10, 10]).max() <= 4


def test_other_formats_are_refused():
    with pytest.raises(DataError, match="not an image"):
        open_image(encoded(solid((1, 2, 3)), "PPM"))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    assert open_image(encoded(solid((9, 9, 9)), "JPEG", exif=exif)).size == (2, 4)


def test_transparency_becomes_white():
    assert open_image(encoded(solid((255, 0, 0, 0), "RGBA"))).getpixel((0, 0)) == (255, 255, 255)
    palette = solid(0, "P")
    palette.putpalette([200, 0, 0])
    assert open_image(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(palette)).getpixel((0, 0)) == (200, 0, 0)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert open_image(encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_truncated_bytes_are_refused(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, form)
    with pytest.raises(DataError):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DataError, match="not an image"):
        open_image(data)


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# Pillow only warns about the first.
@pytest.mark.parametrize("side", [10_000, 50_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(side):
    with pytest.raises(DataError, match="decompression bomb"):
        open_image(png_header(side, side))


def test_a_file_that_is_gone_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    assert read_file(path) == b"content"
    with pytest.raises(DataError, match=r"gone\.png' cannot be read"):
        read_file(tmp_path / "gone.png")


def find(folder, *items, required=True, on_bad="stop"):
    problems = Problems(on_bad)
    return find_images(folder, pl.Series("item_id", items), required, problems).to_list(), problems.skipped.rows()


def test_images_are_found_by_id_in_a_folder_and_in_those_inside_it(tmp_path):
    names = ("010/0108.jpg", "b.JPEG", "c.d.webp", "e.txt", "f", "g.jfif", "h/i/h.GIF", "i.bmp", "j.tif")
    for name in (*names, "._b.jpg", ".cache/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, _ = find(tmp_path, "f", "b", "0108", "c.d", "e", "g", "h", "i", "j")
    assert found == [None, "b.JPEG", "010/0108.jpg", "c.d.webp", None, "g.jfif", "h/i/h.GIF", "i.bmp", "j.tif"]
    with pytest.raises(DataError, match="no folder"):
        find(tmp_path / "nowhere", "a")


@pytest.mark.parametrize(
    ("item_id", "stem"),
    [
        *(("B00X_1-2.3", "B00X_1-2.3"), ("ü ñ", "ü ñ"), ("../up", "%2E.%2Fup"), ("a\\b", "a%5Cb"), (".", "%2E")),
        *(("50%", "50%25"), ("a:b", "a%3Ab"), ("a\n", "a%0A")),
    ],
)
def test_ids_as_names_of_files(tmp_path, item_id, stem):
    assert file_stem(item_id) == stem
    (tmp_path / f"{stem}.png").touch()
    assert find(tmp_path, item_id, "b") == ([f"{stem}.png", None], [])


def test_a_file_named_as_the_id_itself_goes_before_the_escaped_name(tmp_path):
    for name in ("50%.png", "50%25.png"):
        (tmp_path / name).touch()
    assert find(tmp_path, "50%")[0] == ["50%.png"]


def test_a_limit_of_pixels_is_checked_before_decoding():
    assert open_image(encoded(solid((1, 2, 3))), 8).size == (4, 2)
    with pytest.raises(DataError, match=r"too many pixels .* expected at most 7 pixels"):
        open_image(encoded(solid((1, 2, 3))), 7)


@pytest.mark.parametrize(("form", "extension"), [("JPEG", ".jpg"), ("TIFF", ".tiff"), ("PNG", ".png")])
def test_the_extension_is_that_of_the_format(form, extension):
    assert extension_of(encoded(solid((1, 2, 3)), form)) == extension


def test_no_image_of_any_item_is_a_mistake(tmp_path):
    with pytest.raises(DataError, match=r"none of the 2 items .* holds no image; expected .*'108\.jpg'"):
        find(tmp_path, "108", "109")
    (tmp_path / "0108.jpg").touch()
    with pytest.raises(DataError, match=r"holds '0108\.jpg' for example; .*\.jfif"):
        find(tmp_path, "108", "109")
    assert find(tmp_path, "108", required=False) == ([None], [])


def test_several_images_of_one_item_are_a_bad_row(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg", "other.jpg", "other.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"item 'a': several images of one item 'a\.jpg, a\.png'.*--image COLUMN"):
        find(tmp_path, "a", "b")
    found, skipped = find(tmp_path, "a", "b", on_bad="skip")
    assert found == [None, "b.jpg"]
    assert skipped == [("several images of one item", "item 'a'", "a.jpg, a.png")]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    ("kind", "head"), [(b"iCCP", b"icc\0\0"), (b"zTXt", b"note\0\0"), (b"iTXt", b"note\0\1\0\0\0")]
)
@pytest.mark.parametrize("megabytes", [3, 65])
def test_pngs_with_large_profiles_and_texts(kind, head, megabytes):
    png = encoded(solid((9, 8, 7)))
    data = png[:33] + chunk(kind, head + zlib.compress(bytes(megabytes << 20))) + png[33:]
    if megabytes == 3:
        assert open_image(data).getpixel((0, 0)) == (9, 8, 7)
    else:
        with pytest.raises(DataError, match="too large"):
            open_image(data)


def test_inside_keeps_paths_in_their_folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert inside(root, "sub/../a.png") == root.resolve() / "a.png"
    for path in ("../a.png", "/etc/hosts", "link/a.png", "a\0b", "sub/../../images2/a"):
        with pytest.raises(DataError, match="leads out"):
            inside(root, path)
