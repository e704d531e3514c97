# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Images to pixels with Pillow alone: the authors' numbers. Also what every backend shares: checks and cutting."""

import os
from typing import TypedDict

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
    is_valid_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .image_reading_llava_mini import (
    MAX_PIXELS,
    as_array,
    check_num_pixels,
    describe_image,
    open_image,
    pillow_pixels,
    to_8_bit,
)


class LlavaMiniImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Settings of the image processors, also of a call. Those of `ImagesKwargs` are CLIP's by default: shortest edge to
    336 pixels, bicubic, centre crop of 336x336, 1/255, OpenAI's mean and deviation.

    Attributes:
        resolution_ratio (`int`, defaults to 1):
            N: the image is cut into N*N sub-images in row-major order, and the whole image follows them (N > 1), or is
            taken alone (N = 1). Has to be the model's.
        max_pixels (`int`, *optional*, defaults to 89478485):
            Refuse images with more pixels, by their header and before decoding; `None` for no limit but Pillow's own
            (an error at twice `PIL.Image.MAX_IMAGE_PIXELS`).
        do_pad (`bool`, defaults to `True`):
            Pad each crop to a square with the mean colour (the authors' `image_aspect_ratio="pad"`). Without it the
            centre crop cuts the long sides.
    """

    resolution_ratio: int | None
    max_pixels: int | None


class CropSettings(TypedDict):
    """What a backend makes crops by, as the base class has completed it; see `LlavaMiniImageProcessorKwargs`."""

    do_pad: bool
    do_resize: bool
    size: SizeDict
    resample: PILImageResampling | None
    do_center_crop: bool
    crop_size: SizeDict
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    max_pixels: int | None


def count_crops(resolution_ratio: int) -> int:
    """K: N*N sub-images and the whole image, or the image alone when N is 1."""
    return resolution_ratio**2 + 1 if resolution_ratio > 1 else 1


def cut_crops(image: np.ndarray | torch.Tensor, resolution_ratio: int) -> list:
    """
    Cuts N*N sub-images of `(width // N, height // N)` pixels, row-major, and puts the whole image last; the image alone
    when N is 1.

    Args:
        image (`np.ndarray` or `torch.Tensor` of shape `(..., height, width)`).
        resolution_ratio (`int`): N.

    Raises:
        ValueError: a side has fewer than N pixels.
    """
    if resolution_ratio == 1:
        return [image]
    full_height, full_width = image.shape[-2:]
    if min(full_height, full_width) < resolution_ratio:
        raise ValueError(
            f"An image of {full_width}x{full_height} pixels can't be cut into {resolution_ratio}x{resolution_ratio} "
            f"pieces (`resolution_ratio={resolution_ratio}`). Enlarge it to at least {resolution_ratio} pixels a side."
        )
    height, width = full_height // resolution_ratio, full_width // resolution_ratio
    return [
        image[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(resolution_ratio)
        for column in range(resolution_ratio)
    ] + [image]


def square_padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom padding that centres an image in a square, the odd pixel at the end."""
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, side - width - left, side - height - top


def padding_colour(image: np.ndarray | torch.Tensor, image_mean: tuple[float, ...]) -> list[float]:
    """The mean colour as the authors round it, in the image's own units (8-bit, or 0..1 in floating point)."""
    unit = 255 if "float" in str(image.dtype) else 1
    return [int(mean * 255) / unit for mean in image_mean]


def check_workload(height: int, width: int, settings: CropSettings) -> None:
    """
    Refuses shapes that padding or resizing would blow up (a line of 60000x1 pixels becomes a 60000x60000 square).

    Raises:
        ValueError: the picture in between would have more than `max_pixels`, and than their default.
    """
    short, long = sorted((height, width))
    if settings["do_pad"]:
        short = long
    pixels = short * long
    size, max_pixels = settings["size"], settings["max_pixels"]
    if settings["do_resize"] and size.shortest_edge:
        pixels = max(pixels, size.shortest_edge**2 * long // short)
    # A limit for what comes from outside can be lower than the size that the model itself needs.
    if max_pixels is not None and pixels > max(max_pixels, MAX_PIXELS):
        raise ValueError(
            f"An image or crop of {width}x{height} pixels is too long: on the way it would grow to {pixels} pixels, "
            f"more than {max(max_pixels, MAX_PIXELS)} (`max_pixels` of the processor). Cut it into shorter pieces."
        )


def resize_passes(image: np.ndarray | torch.Tensor, size: SizeDict) -> tuple[SizeDict, SizeDict]:
    """
    The sizes to resize `(..., height, width)` to, one after the other: the width first, then the height, each rounded
    to 8 bits. So did Pillow up to 12 for the authors in one call. Pillow 13 and torchvision start with the height where
    that is cheaper, or don't round in between: differences of 30 and more at sharp edges.

    Raises:
        ValueError: `size` has other keys than CLIP's.
    """
    if size.shortest_edge and not size.longest_edge:
        height, width = get_resize_output_image_size(
            image, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    elif size.height and size.width:
        height, width = size.height, size.width
    else:
        raise ValueError(f"`size` is {dict(size)}; expected 'shortest_edge', or 'height' and 'width'.")
    return SizeDict(height=image.shape[-2], width=width), SizeDict(height=height, width=width)


def check_same_size(pixels: list) -> list:
    """
    Raises:
        ValueError: the arrays have different shapes, so that they can't be stacked.
    """
    shapes = sorted({tuple(array.shape) for array in pixels})
    if len(shapes) > 1:
        raise ValueError(
            f"Images or crops come out in different sizes {shapes}. Keep `do_center_crop` on, or resize to one size."
        )
    return pixels


class LlavaMiniImageInputMixin:
    """How every backend reads images and checks its settings, so that the backends can't drift apart."""

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 336}
    default_to_square = False
    crop_size = {"height": 336, "width": 336}
    do_convert_rgb = True
    do_pad = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    resolution_ratio = 1
    max_pixels = MAX_PIXELS

    def fetch_images(self, image_url_or_urls: ImageInput | str | bytes | os.PathLike | list, **kwargs):
        """
        Opens paths, URLs, base64 strings and bytes with Pillow, in nested lists too; images pass through.

        Args:
            max_pixels (`int`, *optional*): as the processor's, which is the default.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image, **kwargs) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, bytes, os.PathLike)):
            return open_image(image_url_or_urls, kwargs.get("max_pixels", self.max_pixels))
        if is_valid_image(image_url_or_urls):
            # Lists of images are told from images by their dimensions, so grey ones need a channel.
            is_grey = getattr(image_url_or_urls, "ndim", 3) == 2
            return image_url_or_urls[None] if is_grey else image_url_or_urls
        raise ValueError(
            f"Got an image of type {type(image_url_or_urls).__name__}; expected a Pillow image, a numpy array, a torch "
            "tensor, a path, a URL, base64 or bytes."
        )

    def _prepare_image_like_inputs(self, images: ImageInput, *args, **kwargs: Unpack[LlavaMiniImageProcessorKwargs]):
        # The base class opens them too, but without the call's own settings.
        images = self.fetch_images(images, max_pixels=kwargs["max_pixels"])
        return super()._prepare_image_like_inputs(images, *args, **kwargs)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        max_pixels: int | None = None,
        **kwargs: Unpack[LlavaMiniImageProcessorKwargs],
    ) -> np.ndarray:
        """
        One image as `(3, height, width)`: 8-bit, or floating point in 0..1 when it came so and `do_rescale` is off.

        Raises:
            ValueError: no or too many pixels, values out of range, or channels that are no image's.
        """
        if isinstance(image, PIL.Image.Image):
            if not do_convert_rgb and image.mode != "RGB":
                raise ValueError(f"The image has mode {image.mode!r}; only RGB works without `do_convert_rgb`.")
            _check_not_empty(*image.size)
            check_num_pixels(*image.size, max_pixels, describe_image(image))
            return pillow_pixels(image, do_rescale)
        image = as_array(image)
        if image.ndim == 2:
            image, input_data_format = image[None], ChannelDimension.FIRST
        if input_data_format is None:
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        if input_data_format == ChannelDimension.LAST:
            image = np.moveaxis(image, -1, 0)
        _check_not_empty(image.shape[-1], image.shape[-2])
        check_num_pixels(image.shape[-1], image.shape[-2], max_pixels)
        image = to_8_bit(image, do_rescale)
        channels = image.shape[0]
        if channels != 3 and not (do_convert_rgb and channels in (1, 4)):
            raise ValueError(
                f"The image has {channels} channels; expected 3, or 1 (grey) or 4 (RGBA) with `do_convert_rgb`. "
                "Check `input_data_format` if this is not its number of channels."
            )
        return np.repeat(image, 3, axis=0) if channels == 1 else image[:3]

    def _standardize_kwargs(self, resolution_ratio: int | None = None, max_pixels: int | None = None, **kwargs) -> dict:
        settings = {"resolution_ratio": resolution_ratio, "max_pixels": max_pixels}
        for name, value in settings.items():
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"`{name}` is {value!r}, but has to be an integer of at least 1.")
        return {**super()._standardize_kwargs(**kwargs), **settings}


def _check_not_empty(width: int, height: int) -> None:
    if width == 0 or height == 0:
        raise ValueError(f"The image has {width}x{height} pixels, so there is nothing to see. Leave it out.")


class LlavaMiniImageProcessorPil(LlavaMiniImageInputMixin, PilBackend):
    r"""
    Images to pixel values with Pillow, equal to the authors' pixels (their crops, padding and CLIP processor).

    Args (also of a call): see `LlavaMiniImageProcessorKwargs`.

    Returns:
        `BatchFeature` with `pixel_values` of shape `(images, K, 3, height, width)`, K = N*N + 1 crops or 1, flat over
        the batch.

    Raises:
        ValueError: an image that is empty, damaged, too large, smaller than N pixels a side, or out of the range of
            values.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = LlavaMiniImageProcessorKwargs

    def __init__(self, **kwargs: Unpack[LlavaMiniImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
        resolution_ratio: int,
        crop_size: SizeDict,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        units = [
            np.stack(check_same_size([self.process_crop(crop, crop_size=crop_size, **kwargs) for crop in crops]))
            for crops in (cut_crops(image, resolution_ratio) for image in images)
        ]
        empty = np.zeros((0, count_crops(resolution_ratio), 3, crop_size.height, crop_size.width), np.float32)
        pixel_values = np.stack(check_same_size(units)) if units else empty
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def process_crop(self, crop: np.ndarray, **settings: Unpack[CropSettings]) -> np.ndarray:
        """One crop `(3, height, width)` to the vision tower's pixels `(3, crop height, crop width)`."""
        check_workload(*crop.shape[-2:], settings)
        if settings["do_pad"]:
            left, top, right, bottom = square_padding(*crop.shape[-2:])
            colour = padding_colour(crop, settings["image_mean"])
            crop = np.stack(
                [np.pad(c, ((top, bottom), (left, right)), constant_values=v) for c, v in zip(crop, colour)]
            )
        if settings["do_resize"]:
            crop = self.resize(crop, size=settings["size"], resample=settings["resample"])
        if settings["do_center_crop"]:
            crop = self.center_crop(crop, settings["crop_size"])
        if settings["do_rescale"]:
            crop = self.rescale(crop, settings["rescale_factor"])
        if settings["do_normalize"]:
            crop = self.normalize(crop, settings["image_mean"], settings["image_std"])
        return crop

    def resize(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """
        As the base class, in `resize_passes`, and through 8-bit in floating point too, where the base class would guess
        from the values whether to scale them.
        """
        is_8_bit = image.dtype == np.uint8
        image = image if is_8_bit else (image * 255).round().astype(np.uint8)
        for step in resize_passes(image, size):
            image = super().resize(image, size=step, **kwargs)
        return image if is_8_bit else image.astype(np.float32) / 255


__all__ = ["LlavaMiniImageProcessorPil"]
