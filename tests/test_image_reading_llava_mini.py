# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Image files as people have them: odd EXIF, float pixels, cut headers, bombs, addresses that are none."""

import base64
import io
import socket
import struct
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from llava_mini import LlavaMiniImageProcessor, LlavaMiniImageProcessorPil
from llava_mini.image_reading_llava_mini import open_image


CASES = Path(__file__).parent / "cases"
SMALL = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
both_backends = pytest.mark.parametrize("processor_class", [LlavaMiniImageProcessorPil, LlavaMiniImageProcessor])


@pytest.fixture
def photo():
    """Smooth in both directions, with no symmetry."""
    y, x = np.mgrid[0:12, 0:16]
    return PIL.Image.fromarray(np.stack([15 * x, 20 * y, 7 * (x + y)], axis=-1).astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(processor_class, image, **options):
    return processor_class(**SMALL)(image, return_tensors="pt", **options).pixel_values


def exif_of(entries):
    """EXIF with any entries `(tag, type, count, 4 bytes)`, valid or not."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


ORIENTATION_6 = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
ODD_ENTRIES = {
    "resolution as text": (0x011A, 2, 3, b"72\0\0"),
    "resolution out of the file": (0x011B, 5, 1, b"\xff\xff\0\0"),
    "maker of no type": (0x010F, 77, 1, b"abcd"),
    "date as fractions": (0x0132, 10, 2, b"\x08\0\0\0"),
    "EXIF directory nowhere": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "GPS as bytes": (0x8825, 7, 4, b"abcd"),
    "huge count": (0x9C9B, 1, 2**31, b"\x08\0\0\0"),
}


@both_backends
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("odd", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
def test_odd_exif_does_not_keep_pixels_from_being_turned(processor_class, photo, kind, odd):
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        # Whose own directory EXIF is: only what Pillow can write.
        exif = PIL.Image.Exif()
        exif[0x0112], exif[0x010F] = 6, b"\xff\xfe"
        content = encode(photo, kind, exif=exif)
    else:
        content = encode(photo, kind, exif=exif_of([ORIENTATION_6, odd]), **options)
    upright = pixels_of(processor_class, photo.transpose(PIL.Image.Transpose.ROTATE_270))
    assert torch.equal(pixels_of(processor_class, content), upright)
    assert torch.equal(pixels_of(processor_class, PIL.Image.open(io.BytesIO(content))), upright)


@both_backends
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0garbage and more", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_garbage_in_place_of_exif(processor_class, photo, exif):
    expected = pixels_of(processor_class, photo)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert torch.equal(pixels_of(processor_class, encode(photo, kind, exif=exif, **options)), expected)


@both_backends
def test_case_of_odd_exif(processor_class):
    path = CASES / "exif_XResolution_as_ASCII.jpg"
    image = PIL.Image.open(path)
    upright = PIL.Image.fromarray(np.rot90(np.asarray(image), -1))
    expected = pixels_of(processor_class, upright)
    assert torch.equal(pixels_of(processor_class, path), expected)
    assert torch.equal(pixels_of(processor_class, image), expected)
    # Opened by one and processed by another: turned once.
    assert torch.equal(pixels_of(processor_class, open_image(path)), expected)


@both_backends
def test_float_and_integer_pictures_follow_the_rule_of_arrays(processor_class, photo, tmp_path):
    grey = np.asarray(photo.convert("L")).astype(np.float32)
    expected = pixels_of(processor_class, grey)
    PIL.Image.fromarray(grey).save(tmp_path / "grey.tif")
    assert torch.equal(pixels_of(processor_class, PIL.Image.fromarray(grey)), expected)
    assert torch.equal(pixels_of(processor_class, tmp_path / "grey.tif"), expected)
    scaled = PIL.Image.fromarray(grey / 255)
    expected = pixels_of(processor_class, grey / 255, do_rescale=False)
    assert torch.equal(pixels_of(processor_class, scaled, do_rescale=False), expected)
    for values, message in (
        (grey / 255, "do_rescale=False"),
        (grey - 1, "has values from -1"),
        (grey * 2, "has values from"),
        (np.full_like(grey, np.nan), "has values from nan"),
        (grey.astype(np.int32) - 1, "has values from -1"),
        (grey.astype(np.int32) + 65500, "0..65535"),
    ):
        for image in (PIL.Image.fromarray(values), values):
            with pytest.raises(ValueError, match=message.replace("0..65535", r"expected 0\.\.")):
                pixels_of(processor_class, image)
    with pytest.raises(ValueError, match="float_0_1.tif has floating-point values up to 1"):
        pixels_of(processor_class, CASES / "float_0_1.tif")
    assert pixels_of(processor_class, CASES / "float_0_1.tif", do_rescale=False).std() > 0.5


KINDS = {
    "BMP": {},
    "GIF": {},
    "ICO": {},
    "JPEG": {},
    "JPEG2000": {"tile_size": (8, 8)},
    "PCX": {},
    "PNG": {},
    "PPM": {},
    "TGA": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {},
    "AVIF": {},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_cut_files_are_refused_or_right(kind, photo, tmp_path):
    PIL.Image.init()
    if kind not in PIL.Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    content = encode(photo, kind, **KINDS[kind])
    whole = open_image(content)
    path = tmp_path / f"cut.{kind.lower()}"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            image = open_image(path)
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert image.size == whole.size and image.tobytes() == whole.tobytes(), length
    with pytest.raises(ValueError, match=path.name):
        path.write_bytes(content[: len(content) // 2])
        open_image(path)


@both_backends
@pytest.mark.parametrize("name", ["cut.webp", "damaged_avif_RuntimeError.avif"])
def test_damaged_cases_are_named(processor_class, name):
    with pytest.raises(ValueError, match=rf"{name}.* Save it anew|{name}.* Pillow knows"):
        pixels_of(processor_class, CASES / name)


@both_backends
def test_pixel_limit_is_checked_before_decoding(processor_class, photo, tmp_path, monkeypatch):
    # 20 KB that become 13,000 x 13,000 pixels.
    bomb = tmp_path / "bomb.png"
    PIL.Image.new("1", (13000, 13000)).save(bomb)
    opened = PIL.Image.open(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image.Image, "load", lambda *args: pytest.fail("decoded"))
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda *args: pytest.fail("decoded"))
    for image in (bomb, bomb.read_bytes(), opened):
        with pytest.raises(ValueError, match=r"(bomb.png|given as bytes) has 13000x13000 pixels, more than 89478485"):
            pixels_of(processor_class, image)
    with pytest.raises(ValueError, match="`max_pixels` is 0"):
        processor_class(max_pixels=0)


@both_backends
def test_pixel_limit_is_a_setting(processor_class, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    processor = processor_class(**SMALL, max_pixels=16 * 12 - 1)
    for image in (tmp_path / "photo.png", photo, np.asarray(photo), torch.from_numpy(np.array(photo))):
        with pytest.raises(ValueError, match="16x12 pixels, more than 191 .*`max_pixels`"):
            processor(image)
        for limit in (16 * 12, None):
            assert processor(image, max_pixels=limit, return_tensors="pt").pixel_values.shape == (1, 1, 3, 28, 28)
    processor.save_pretrained(tmp_path)
    assert processor_class.from_pretrained(tmp_path).max_pixels == 191
    processor_class(max_pixels=None).save_pretrained(tmp_path)
    assert processor_class.from_pretrained(tmp_path).max_pixels is None


def test_pillows_own_limit_is_a_value_error(tmp_path, photo, monkeypatch):
    photo.save(tmp_path / "photo.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="photo.png is too large"):
        open_image(tmp_path / "photo.png", max_pixels=None)


def test_base64_and_file_urls(photo, tmp_path):
    content = encode(photo.effect_spread(5), "PNG")
    (tmp_path / "a b%20ü:x.png").write_bytes(content)
    expected = open_image(content).tobytes()
    standard, url_safe = base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode()
    assert set("-_") & set(url_safe) and "=" in standard + base64.b64encode(content + b"x").decode()
    for encoded in (standard, url_safe):
        for text in (encoded, encoded.rstrip("="), f"data:image/png;base64,{encoded.rstrip('=')}"):
            assert open_image(text).tobytes() == expected
    percent = "data:image/png," + "".join(f"%{byte:02x}" for byte in content)
    assert open_image(percent).tobytes() == expected
    assert open_image("DATA:image/png;base64," + standard.replace("+", "%2B")).tobytes() == expected
    assert open_image((tmp_path / "a b%20ü:x.png").as_uri()).tobytes() == expected
    for missing in ("file:///nowhere/x.png", "file://host/x.png", str(tmp_path), "some/path-to/a_file", "a"):
        with pytest.raises(ValueError, match="(?i)check the path"):
            open_image(missing)


@contextmanager
def answering(answer: bytes):
    """An address that gives this answer to whoever asks, and what was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        thread.join(timeout=5)


@pytest.mark.parametrize(
    "answer",
    [
        b"no HTTP at all\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    ],
    ids=["no status line", "nothing", "too short", "chunk too short", "404", "to a file"],
)
def test_bad_answers_are_value_errors(answer):
    with answering(answer) as (url, _), pytest.raises(ValueError, match=f"Could not download the image {url}/x.png"):
        open_image(f"{url}/x.png")


def test_addresses_with_spaces_and_letters(photo):
    content = encode(photo, "PNG")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    with answering(answer) as (url, asked):
        assert open_image(f"{url}/a picture é.png?x=1&y=%20").size == photo.size
    assert asked[0].startswith(b"GET /a%20picture%20%C3%A9.png?x=1&y=%20 HTTP")
    for url in ("http://[bad/x.png", "http://", "http://127.0.0.1:port/x.png"):
        with pytest.raises(ValueError, match="Could not download the image"):
            open_image(url)
