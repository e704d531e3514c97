# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processors: the authors' pixels, every kind of input, and both backends against each other."""

import base64
import io
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from llava_mini import LlavaMiniConfig, LlavaMiniImageProcessor, LlavaMiniImageProcessorPil


GOLDEN = Path(__file__).parent / "golden" / "preprocess"
SMALL = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
STD = torch.tensor(LlavaMiniImageProcessor.image_std).view(3, 1, 1)
MEAN = torch.tensor(LlavaMiniImageProcessor.image_mean).view(3, 1, 1)
BACKENDS = [LlavaMiniImageProcessorPil, LlavaMiniImageProcessor]
# What torchvision's bicubic may differ from Pillow's, in 0..1: two steps of 8 bits, plus float32's rounding.
TORCHVISION_TOLERANCE = 2 / 255 + 1e-6

both_backends = pytest.mark.parametrize("processor_class", BACKENDS)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "tensors.safetensors")


@pytest.fixture
def photo():
    """Smooth in both directions, with no symmetry."""
    y, x = np.mgrid[0:40, 0:60]
    return PIL.Image.fromarray(np.stack([4 * x, 6 * y, 2 * (x + y)], axis=-1).astype(np.uint8))


@pytest.fixture
def server(tmp_path):
    handler = partial(
        type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None}), directory=tmp_path
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pixels_of(processor_class, images, **kwargs):
    return processor_class(**SMALL)(images, return_tensors="pt", **kwargs).pixel_values


def png_bytes(image, **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("mode", ["pad", "square"])
@pytest.mark.parametrize("index", range(4))
def test_golden_pixels(golden, index, mode, ratio):
    image = PIL.Image.open(GOLDEN / f"image{index}.png")
    expected = golden[f"image{index}.{mode}.n{ratio}"][None]
    exact, fast = (pixels_of(c, image, do_pad=mode == "pad", resolution_ratio=ratio) for c in BACKENDS)
    # The same 8-bit operations in the same order: nothing but float32 rounding can differ.
    torch.testing.assert_close(exact, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(fast * STD, expected * STD, atol=TORCHVISION_TOLERANCE, rtol=0)


@both_backends
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_crops_are_row_major_and_whole_image_is_last(processor_class, photo, ratio):
    crops = pixels_of(processor_class, photo, resolution_ratio=ratio)
    width, height = photo.width // ratio, photo.height // ratio
    boxes = [(c * width, r * height, (c + 1) * width, (r + 1) * height) for r in range(ratio) for c in range(ratio)]
    expected = pixels_of(processor_class, [photo.crop(box) for box in boxes] + [photo])
    assert crops.shape == (1, ratio**2 + 1, 3, 56, 56)
    torch.testing.assert_close(crops[0], expected[:, 0], atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(59, 29), (29, 59)])
def test_width_is_resized_before_height_with_any_pillow(shape):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    size = tuple(56 * side // min(image.size) for side in image.size)
    # One side a call leaves Pillow no choice of order. Where it had one, values would differ by 14/255 here.
    resized = image.resize((size[0], image.height), PIL.Image.BICUBIC).resize(size, PIL.Image.BICUBIC)
    expected, exact, fast = (
        pixels_of(c, i, do_pad=False) for c, i in zip([BACKENDS[0], *BACKENDS], [resized, image, image])
    )
    torch.testing.assert_close(exact, expected, atol=0, rtol=0)
    torch.testing.assert_close(fast * STD, expected * STD, atol=TORCHVISION_TOLERANCE, rtol=0)


@both_backends
def test_padding_is_centred_and_of_the_mean_colour(processor_class):
    image = PIL.Image.new("RGB", (56, 21), (255, 0, 0))
    pixels = (pixels_of(processor_class, image)[0, 0] * STD + MEAN) * 255
    colour = torch.tensor([122.0, 116.0, 104.0]).view(3, 1, 1)
    # 35 rows of padding: the odd one goes below.
    for rows, expected in (
        (slice(0, 17), colour),
        (slice(38, 56), colour),
        (slice(17, 38), [[[255.0]], [[0.0]], [[0.0]]]),
    ):
        # Undoing the normalisation costs some float32 digits.
        expected = torch.as_tensor(expected).expand_as(pixels[:, rows])
        torch.testing.assert_close(pixels[:, rows], expected, atol=1e-3, rtol=0)


@both_backends
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "HSV"])
def test_pillow_modes_are_converted_as_by_the_authors(processor_class, photo, mode):
    image = photo.convert("L").convert("I") if mode == "I" else photo.convert(mode)
    torch.testing.assert_close(
        pixels_of(processor_class, image), pixels_of(processor_class, image.convert("RGB")), atol=0, rtol=0
    )


@both_backends
@pytest.mark.filterwarnings("error")
def test_transparency_is_dropped(processor_class, photo):
    clear = photo.copy()
    clear.putalpha(0)
    palette = photo.quantize(16)
    expected = pixels_of(processor_class, [photo, palette])
    # Several transparent colours, about which Pillow warns when it makes RGB of them.
    palette.info["transparency"] = bytes(range(16))
    torch.testing.assert_close(pixels_of(processor_class, [clear, palette]), expected, atol=0, rtol=0)
    torch.testing.assert_close(pixels_of(processor_class, np.asarray(clear)), expected[:1], atol=0, rtol=0)


@both_backends
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "int32"])
def test_16_bit_grey_is_scaled_and_not_clipped(processor_class, photo, dtype, tmp_path):
    grey = np.asarray(photo.convert("L"))
    # Up to half a step off, which rounding has to undo.
    image = PIL.Image.fromarray((grey.astype(np.uint16) * 257 + 100).astype(dtype))
    assert image.mode in ("I;16", "I;16B", "I")
    expected = pixels_of(processor_class, PIL.Image.fromarray(grey))
    torch.testing.assert_close(pixels_of(processor_class, image), expected, atol=0, rtol=0)
    if dtype == "<u2":
        image.save(tmp_path / "deep.png")
        torch.testing.assert_close(pixels_of(processor_class, tmp_path / "deep.png"), expected, atol=0, rtol=0)
        array = np.asarray(image)[..., None]
        torch.testing.assert_close(pixels_of(processor_class, array), expected, atol=0, rtol=0)


@both_backends
def test_exif_orientation_is_undone(processor_class, photo, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    (tmp_path / "turned.png").write_bytes(png_bytes(photo, exif=exif))
    upright = pixels_of(processor_class, photo.transpose(PIL.Image.Transpose.ROTATE_270))
    for image in (str(tmp_path / "turned.png"), PIL.Image.open(tmp_path / "turned.png")):
        torch.testing.assert_close(pixels_of(processor_class, image), upright, atol=0, rtol=0)


@both_backends
def test_arrays_and_tensors(processor_class, photo):
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = {
        "channels last": array,
        "channels first": tensor.numpy(),
        "tensor": tensor,
        "tensor, channels last": tensor.permute(1, 2, 0),
        "integers": array.astype(np.int64),
        "floating point in 0..255": array.astype(np.float32),
        "bfloat16": tensor.bfloat16().round().clamp(0, 255),
        "16-bit": array.astype(np.uint16) * 257,
    }
    expected = pixels_of(processor_class, photo)
    for name, image in kinds.items():
        wanted = expected
        if name == "bfloat16":
            wanted = pixels_of(processor_class, image.to(torch.uint8))
        assert torch.equal(pixels_of(processor_class, image), wanted), name


@both_backends
def test_floating_point_in_0_to_1_without_rescaling(processor_class, photo):
    scaled = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1) / 255
    # Half an 8-bit step, for torchvision resizes these in floating point; and what padding's rounding adds.
    torch.testing.assert_close(
        pixels_of(processor_class, scaled, do_rescale=False) * STD,
        pixels_of(processor_class, photo) * STD,
        atol=1.5 / 255,
        rtol=0,
    )
    # Sharp edges overshoot in bicubic: out of 0..1 without clamping.
    edges = (torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    result = pixels_of(processor_class, edges, do_rescale=False, do_normalize=False)
    assert result.min() == 0 and result.max() == 1 and len(result.unique()) > 20


@both_backends
@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_grey_arrays_without_channels(processor_class, photo, dtype):
    grey = np.asarray(photo.convert("1" if dtype is bool else "L"))
    expected = pixels_of(processor_class, PIL.Image.fromarray(grey))
    for images in (grey, [grey], torch.from_numpy(grey.copy()), grey[..., None]):
        torch.testing.assert_close(pixels_of(processor_class, images), expected, atol=0, rtol=0)


@both_backends
def test_files_urls_and_encoded_images(processor_class, photo, tmp_path, server):
    content = png_bytes(photo)
    (tmp_path / "photo.png").write_bytes(content)
    encoded = base64.encodebytes(content).decode()
    images = [
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        content,
        encoded,
        f"data:image/png;base64,{encoded}",
        f"{server}/photo.png",
    ]
    expected = pixels_of(processor_class, photo).expand(len(images), -1, -1, -1, -1)
    torch.testing.assert_close(pixels_of(processor_class, images), expected, atol=0, rtol=0)


@both_backends
def test_nesting_and_batches(processor_class, photo):
    single = pixels_of(processor_class, photo)
    for images, count in (([photo] * 2, 2), ([[photo], [], [photo, photo]], 3), (np.stack([np.asarray(photo)] * 2), 2)):
        torch.testing.assert_close(
            pixels_of(processor_class, images), single.expand(count, -1, -1, -1, -1), atol=0, rtol=0
        )
    for images in ([], [[], []]):
        assert pixels_of(processor_class, images, resolution_ratio=2).shape == (0, 5, 3, 56, 56)


@both_backends
def test_images_of_different_sizes_in_one_batch(processor_class, photo):
    other = photo.resize((31, 77))
    both = pixels_of(processor_class, [photo, other], resolution_ratio=2)
    for image, pixels in zip((photo, other), both):
        torch.testing.assert_close(pixels_of(processor_class, image, resolution_ratio=2)[0], pixels, atol=0, rtol=0)


@both_backends
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "5x0 pixels"),
        (PIL.Image.new("RGB", (0, 5)), "0x5 pixels"),
        (np.zeros((5, 5, 2), np.uint8), "channel"),
        (np.full((5, 5, 3), 256), "from 256 to 256; expected 0..255"),
        (np.full((5, 5, 3), -1), "from -1"),
        (np.full((5, 5, 3), np.nan, np.float32), "from nan"),
        (np.full((5, 5, 3), 0.5, np.float32), "do_rescale=False"),
        (PIL.Image.fromarray(np.full((5, 5), 70000, np.int32)), "0..65535"),
        (np.zeros((12000, 1, 3), np.uint8), "Cut it into shorter pieces"),
        ({"no": "image"}, "type dict"),
        ("missing.png", "check the path"),
        ("not+an+image", "no format|in no format"),
        (b"not an image", "in no format"),
        ("http://127.0.0.1:9/nobody.png", "Could not download"),
    ],
)
def test_bad_images_are_refused(processor_class, image, message):
    with pytest.raises(ValueError, match=message):
        pixels_of(processor_class, image)


@both_backends
def test_damaged_files_are_refused(processor_class, photo, tmp_path):
    (tmp_path / "cut.png").write_bytes(png_bytes(photo.effect_spread(9))[:2000])
    for image in (str(tmp_path / "cut.png"), PIL.Image.open(tmp_path / "cut.png")):
        with pytest.raises(ValueError, match="damaged or cut off"):
            pixels_of(processor_class, image)


@both_backends
def test_bad_settings_are_refused(processor_class, photo):
    with pytest.raises(ValueError, match="60x3 pixels can't be cut into 4x4"):
        pixels_of(processor_class, photo.crop((0, 0, 60, 3)), resolution_ratio=4)
    for ratio in (0, -1, 1.5):
        with pytest.raises(ValueError, match="`resolution_ratio` is"):
            processor_class(resolution_ratio=ratio)
    with pytest.raises(ValueError, match="`resolution_ratio` is 0"):
        pixels_of(processor_class, photo, resolution_ratio=0)
    with pytest.raises(ValueError, match="different sizes"):
        pixels_of(processor_class, [photo, photo.resize((20, 50))], do_center_crop=False, do_pad=False)
    with pytest.raises(ValueError, match="do_convert_rgb"):
        pixels_of(processor_class, photo.convert("L"), do_convert_rgb=False)
    with pytest.raises(ValueError, match="1 channels"):
        pixels_of(processor_class, np.asarray(photo.convert("L")), do_convert_rgb=False)


def test_save_and_load_with_either_backend(tmp_path, photo):
    LlavaMiniConfig().save_pretrained(tmp_path)
    for processor_class in BACKENDS:
        processor_class(**SMALL, resolution_ratio=3, do_pad=False).save_pretrained(tmp_path)
        for backend, loaded_class in (("pil", BACKENDS[0]), ("torchvision", BACKENDS[1]), (None, BACKENDS[1])):
            loaded = AutoImageProcessor.from_pretrained(tmp_path, **({"backend": backend} if backend else {}))
            assert type(loaded) is loaded_class
            assert (loaded.resolution_ratio, loaded.do_pad, loaded.crop_size.height) == (3, False, 56)
            assert loaded(photo, return_tensors="np").pixel_values.shape == (1, 10, 3, 56, 56)


@both_backends
def test_defaults_are_clip_336(processor_class, photo):
    assert processor_class()(photo, return_tensors="pt").pixel_values.shape == (1, 1, 3, 336, 336)
    assert processor_class.model_input_names == ["pixel_values"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    long=st.integers(1, 4000),
    short=st.integers(1, 50),
    upright=st.booleans(),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "CMYK", "1"]),
    ratio=st.integers(1, 4),
    do_pad=st.booleans(),
    seed=st.integers(0, 9),
)
def test_backends_agree_on_anything(long, short, upright, mode, ratio, do_pad, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (short, long, 3), np.uint8)
    image = PIL.Image.fromarray(noise.transpose(1, 0, 2) if upright else noise).convert(mode)
    options = {"resolution_ratio": ratio, "do_pad": do_pad, "size": {"shortest_edge": 28}, "crop_size": 28}
    if min(long, short) < ratio:
        for processor_class in BACKENDS:
            with pytest.raises(ValueError, match="can't be cut"):
                pixels_of(processor_class, image, **options)
        return
    exact, fast = (pixels_of(c, image, **options) for c in BACKENDS)
    assert exact.shape == (1, ratio**2 + 1 if ratio > 1 else 1, 3, 28, 28)
    assert exact.dtype == fast.dtype == torch.float32
    torch.testing.assert_close(fast * STD, exact * STD, atol=TORCHVISION_TOLERANCE, rtol=0)
