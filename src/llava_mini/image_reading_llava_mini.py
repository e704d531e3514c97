# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Image files to upright pixels in 8-bit, and what a person may write for a file: a path, a URL, base64, bytes."""

import base64
import os
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from io import BytesIO
from typing import IO

import numpy as np
import PIL.Image
import torch
from transformers.utils import is_torch_tensor


URL_TIMEOUT_SECONDS = 60
# Some hosts refuse the default agent of urllib.
URL_HEADERS = {"User-Agent": "llava-mini-hf"}
# What an address may hold unquoted (RFC 3986), and the percent signs of what is quoted already.
URL_CHARACTERS = ":/?#[]@!$&'()*+,;=%~"
# Above this Pillow itself warns of a decompression bomb: a quarter of a GiB in RGB.
MAX_PIXELS = 89_478_485
# Characters of base64 or of an address that a message repeats.
SHOWN_CHARACTERS = 80
# Markers SOT and EOC (ISO 15444-1, A.2).
JPEG_2000_TILE = b"\xff\x90"
JPEG_2000_END = b"\xff\xd9"
EXIF_ORIENTATION = 0x0112
# Where Pillow looks for it in an image that it has no file of.
EXIF_PLACES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# What makes a picture with this orientation upright (Exif 2.32, 4.6.4).
TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


@contextmanager
def open_source(source: str | bytes | os.PathLike, kind: str) -> Iterator[str | IO[bytes]]:
    """
    A path, URL, base64 string or bytes as something that decoders open: a path or a seekable binary file.

    Args:
        source: local path, `http(s)://`, `file://` or `data:` URL, base64 text (padded or not, in the URL-safe alphabet
            or not) or the bytes of a file.
        kind (`str`): "image" or "video", for the error message.

    Raises:
        ValueError: the source can't be read.
    """
    if isinstance(source, bytes):
        yield BytesIO(source)
        return
    source = os.fspath(source)
    scheme = source.partition(":")[0].lower()
    if os.path.isfile(source):
        yield source
    elif scheme in ("http", "https"):
        with tempfile.NamedTemporaryFile() as file:
            _download(source, file, kind)
            file.seek(0)
            yield file
    elif scheme == "file":
        yield _local_path(source, kind)
    else:
        yield BytesIO(_decode_text(source, kind))


def _download(url: str, file: IO[bytes], kind: str) -> None:
    try:
        # Spaces and letters beyond ASCII, as people copy them from a browser.
        request = urllib.request.Request(urllib.parse.quote(url.strip(), safe=URL_CHARACTERS), headers=URL_HEADERS)
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            shutil.copyfileobj(response, file)
            announced = response.headers.get("Content-Length")
    # What urllib raises for addresses and for answers that are none.
    except (OSError, HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"Could not download the {kind} {url}: {reason}. Check the address.") from error
    if announced is not None and announced.isdigit() and file.tell() < int(announced):
        raise ValueError(
            f"Could not download the {kind} {url}: it broke off after {file.tell()} of {announced} bytes. Try again."
        )


def _local_path(url: str, kind: str) -> str:
    """The path of a `file://` URL."""
    parts = urllib.parse.urlsplit(url)
    path = urllib.request.url2pathname(parts.path)
    if parts.netloc not in ("", "localhost") or not os.path.isfile(path):
        raise ValueError(f"Got {url!r} as {kind}, which is no file here. Check the path.")
    return path


def _decode_text(source: str, kind: str) -> bytes:
    """The bytes of a `data:` URL (RFC 2397) or of base64."""
    header, comma, encoded = source.partition(",")
    if source[:5].lower() == "data:" and comma:
        content = urllib.parse.unquote_to_bytes(encoded)
        if not header.lower().endswith(";base64"):
            return content
        encoded = content.decode("latin-1")
    else:
        encoded = source
    encoded = "".join(encoded.split()).rstrip("=")
    try:
        # One alphabet or the other: paths have slashes and dashes.
        if not set("+/") & set(encoded):
            encoded = encoded.replace("-", "+").replace("_", "/")
        if os.path.exists(source):
            raise ValueError("a directory or device")
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:
        raise ValueError(
            f"Got {describe_source(source)!r} as {kind}, which is no file here, no http(s) URL and no base64. Pass one "
            "of these, or check the path."
        ) from error


def describe_source(source: str | bytes | os.PathLike) -> str:
    """What a message calls a file by."""
    if isinstance(source, bytes):
        return "given as bytes"
    name = os.fspath(source)
    return name if len(name) <= SHOWN_CHARACTERS or os.path.isfile(name) else f"{name[:SHOWN_CHARACTERS]}..."


def check_num_pixels(width: int, height: int, max_pixels: int | None, name: str = "The image") -> None:
    """
    Raises:
        ValueError: there are more than `max_pixels`.
    """
    if max_pixels is not None and width * height > max_pixels:
        raise ValueError(
            f"{name} has {width}x{height} pixels, more than {max_pixels} (`max_pixels` of the processor). Make it "
            "smaller, or set `max_pixels` higher if you trust where it comes from."
        )


def open_image(source: str | bytes | os.PathLike, max_pixels: int | None = MAX_PIXELS) -> PIL.Image.Image:
    """
    The image at a path, URL, base64 string or in bytes, upright and in RGB; in mode "F" or "I", which have no range
    of their own, as it is.

    Args:
        source: see `open_source`.
        max_pixels (`int`, *optional*): refuse more.

    Raises:
        ValueError: it can't be read, is no image or too large.
    """
    name = f"The image {describe_source(source)}"
    with open_source(source, "image") as file:
        try:
            image = PIL.Image.open(file)
        except PIL.UnidentifiedImageError as error:
            raise ValueError(
                f"Got {describe_source(source)!r} as image, which is in no format that Pillow knows, or no file here."
            ) from error
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise ValueError(f"{name} is too large: {error} Make it smaller.") from error
        # Decoders raise whatever their libraries do (OSError, RuntimeError, struct.error, ...).
        except Exception as error:
            raise ValueError(f"{name} can't be read, its file is damaged or cut off: {error}. Save it anew.") from error
        with image:
            check_num_pixels(*image.size, max_pixels, name)
            upright = make_upright(image, name)
            if image.format == "JPEG2000":
                _check_jpeg_2000(file, name)
            return to_rgb(upright, name)


def _check_jpeg_2000(file: str | IO[bytes], name: str) -> None:
    """Its decoder leaves tiles black that are cut off. The end marker follows the last one and is in no tile."""
    if isinstance(file, str):
        with open(file, "rb") as opened:
            content = opened.read()
    else:
        file.seek(0)
        content = file.read()
    if not -1 < content.rfind(JPEG_2000_TILE) < content.rfind(JPEG_2000_END):
        raise ValueError(f"{name} can't be decoded, its file is cut off. Save it anew.")


def make_upright(image: PIL.Image.Image, name: str | None = None) -> PIL.Image.Image:
    """
    A Pillow image decoded, and turned as its EXIF orientation says. Nothing else in its EXIF matters.

    Raises:
        ValueError: the file behind the image is damaged.
    """
    try:
        image.load()
    # As in `open_image`.
    except Exception as error:
        name = name or describe_image(image)
        raise ValueError(f"{name} can't be decoded, its file is damaged or cut off: {error}. Save it anew.") from error
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
        transposition = TRANSPOSITIONS.get(orientation)
    # EXIF that can't be read says nothing about the pixels.
    except Exception:
        transposition = None
    if transposition is None:
        return image
    image = image.transpose(transposition)
    for place in EXIF_PLACES:
        # Or whoever reads the image next turns it once more.
        image.info.pop(place, None)
    return image


def to_rgb(image: PIL.Image.Image, name: str | None = None) -> PIL.Image.Image:
    """
    An upright Pillow image as 8-bit RGB, in mode "F" or "I" as it is. Transparency is dropped, as by the authors, not
    blended onto a background. 16-bit grey is scaled, where Pillow's own conversion would clip it to white.

    Raises:
        ValueError: Pillow can't convert its mode.
    """
    if image.mode in ("F", "I"):
        return image
    if image.mode.startswith("I;16"):
        image = PIL.Image.fromarray(to_8_bit(np.asarray(image), is_16_bit=True))
    try:
        if image.mode == "P" and "transparency" in image.info:
            # In one step Pillow warns about palettes with several transparent colours.
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name or describe_image(image)} can't be converted to RGB: {error}. Save it anew."
        ) from error


def describe_image(image: PIL.Image.Image) -> str:
    """What a message calls an image by: its file, if it still knows it."""
    name = getattr(image, "filename", "")
    return f"The image {os.fspath(name)}" if name else "The image"


def pillow_pixels(image: PIL.Image.Image, do_rescale: bool = True) -> np.ndarray:
    """
    An image of any mode as `(3, height, width)`. Values without a range of their own (modes "F" and "I") follow the
    rule for arrays, `to_8_bit`; integers beyond 255 are 16-bit grey, for which Pillow has used "I".

    Raises:
        ValueError: as `make_upright`, `to_rgb` and `to_8_bit`.
    """
    image = to_rgb(make_upright(image))
    array = np.asarray(image)
    if image.mode == "RGB":
        return np.moveaxis(array, -1, 0).copy()
    array = to_8_bit(array, do_rescale, image.mode == "I" and array.max() > 255, describe_image(image))
    return np.repeat(array[None], 3, axis=0)


def as_array(pixels: np.ndarray | torch.Tensor) -> np.ndarray:
    """A numpy array of an array or a tensor on any device."""
    if is_torch_tensor(pixels):
        pixels = pixels.detach().cpu()
        # numpy knows no bfloat16.
        return (pixels.float() if pixels.is_floating_point() else pixels).numpy()
    return pixels


def to_8_bit(
    array: np.ndarray, do_rescale: bool = True, is_16_bit: bool = False, name: str = "The image"
) -> np.ndarray:
    """
    Pixels of any type as 8-bit. Floating-point pixels have to be in 0..255; those in 0..1 stay as they are when
    `do_rescale` is off.

    Raises:
        ValueError: values out of range, or in 0..1 although they would be rescaled once more.
    """
    if array.dtype == np.uint8 or array.size == 0:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    largest = 65535 if is_16_bit or array.dtype == np.uint16 else 255
    if not (low >= 0 and high <= largest):
        raise ValueError(
            f"{name} has values from {low} to {high}; expected 0..{largest} (0..65535 in `uint16`, or 0..1 in "
            "floating point with `do_rescale=False`)."
        )
    if largest == 65535:
        return (array / 257).round().astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and high <= 1:
        if not do_rescale:
            return array.astype(np.float32)
        if high > 0:
            raise ValueError(
                f"{name} has floating-point values up to {high:.3g}, so it is rescaled already, but `do_rescale` "
                "is on. Pass `do_rescale=False`, or the image as integers in 0..255."
            )
    return array.round().astype(np.uint8)
