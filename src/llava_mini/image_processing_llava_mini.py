# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Images to pixels with torchvision: the default backend, which can run on an accelerator."""

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, is_torch_tensor

from .image_processing_pil_llava_mini import (
    LlavaMiniImageInputMixin,
    LlavaMiniImageProcessorKwargs,
    check_same_size,
    check_workload,
    count_crops,
    cut_crops,
    padding_colour,
    resize_passes,
    square_padding,
)
from .image_reading_llava_mini import MAX_PIXELS


class LlavaMiniTorchvisionMixin(LlavaMiniImageInputMixin):
    """Cutting and processing of stacked images with torchvision, for images and for video frames."""

    def process_image(
        self,
        image: ImageInput,
        device: "torch.device | str | None" = None,
        **kwargs: Unpack[LlavaMiniImageProcessorKwargs],
    ) -> torch.Tensor:
        """One image as a tensor `(3, height, width)` on `device`, by default the image's own."""
        if device is None and is_torch_tensor(image):
            device = image.device
        return torch.tensor(super().process_image(image, **kwargs), device=device)

    def make_crops(
        self,
        images: torch.Tensor,
        *,
        resolution_ratio: int,
        do_pad: bool,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        max_pixels: int | None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Images of one size `(U, 3, height, width)` to the vision tower's pixels `(U, K, 3, crop height, crop width)`.
        """
        crops = []
        for crop in cut_crops(images, resolution_ratio):
            check_workload(*crop.shape[-2:], do_pad, size if do_resize else None, max_pixels)
            if do_pad:
                crop = tvF.pad(crop, list(square_padding(*crop.shape[-2:])), fill=padding_colour(crop, image_mean))
            if do_resize:
                crop = self.resize(crop, size=size, resample=resample)
            if do_center_crop:
                crop = self.center_crop(crop, crop_size)
            crops.append(crop)
        return self.rescale_and_normalize(
            torch.stack(check_same_size(crops), dim=1), do_rescale, rescale_factor, do_normalize, image_mean, image_std
        )

    def resize(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        """As the base class, in `resize_passes`; floating point is clamped where bicubic overshoots, as 8-bit is."""
        for step in resize_passes(image, size):
            image = super().resize(image, size=step, **kwargs)
            image = image.clamp(0, 1) if image.is_floating_point() else image
        return image


class LlavaMiniImageProcessor(LlavaMiniTorchvisionMixin, TorchvisionBackend):
    r"""
    Images to pixel values with torchvision. Its bicubic resize rounds otherwise than Pillow's: pixels differ from the
    authors' by at most 2/255 (before normalisation, in units of 0..1), everything else is equal. For the authors' exact
    pixels load the Pillow backend: `AutoProcessor.from_pretrained(..., backend="pil")`.

    Args (also of a call):
        resolution_ratio (`int`, defaults to 1):
            N: N*N sub-images cut from the original image in row-major order, then the whole image; for 1 it alone.
        max_pixels (`int`, *optional*, defaults to 89478485):
            Refuse images with more pixels, by their header and before decoding; `None` for no limit but Pillow's own
            (an error at twice `PIL.Image.MAX_IMAGE_PIXELS`).
        do_pad (`bool`, defaults to `True`):
            Pad each crop to a square with the mean colour (the authors' `image_aspect_ratio="pad"`). Without it the
            centre crop cuts the long sides.
        size, crop_size, resample, rescale_factor, image_mean, image_std and their switches:
            CLIP's: shortest edge to 336 pixels, bicubic, centre crop of 336x336, 1/255, OpenAI's mean and deviation.
        device (`str`, *optional*): where to compute; by default where a tensor image is, else the CPU.

    Returns:
        `BatchFeature` with `pixel_values` of shape `(images, K, 3, height, width)`, K = N*N + 1 crops or 1, flat over
        the batch.

    Raises:
        ValueError: an image that is empty, damaged, too large, smaller than N pixels a side, or out of the range of
            values.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = LlavaMiniImageProcessorKwargs

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

    def __init__(self, **kwargs: Unpack[LlavaMiniImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        resolution_ratio: int,
        crop_size: SizeDict,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        units = [
            self.make_crops(image[None], resolution_ratio=resolution_ratio, crop_size=crop_size, **kwargs)
            for image in images
        ]
        empty = torch.zeros(0, count_crops(resolution_ratio), 3, crop_size.height, crop_size.width)
        pixel_values = torch.cat(check_same_size(units)) if units else empty
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


__all__ = ["LlavaMiniImageProcessor"]
