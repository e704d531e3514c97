# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Images to pixels with torchvision: the default backend, which can run on an accelerator."""

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, is_torch_tensor

from .image_processing_pil_llava_mini import (
    CropSettings,
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

    def make_crops(self, images: torch.Tensor, resolution_ratio: int, **settings: Unpack[CropSettings]) -> torch.Tensor:
        """
        Images of one size `(U, 3, height, width)` to the vision tower's pixels `(U, K, 3, crop height, crop width)`.
        """
        crops = []
        for crop in cut_crops(images, resolution_ratio):
            check_workload(*crop.shape[-2:], settings)
            if settings["do_pad"]:
                fill = padding_colour(crop, settings["image_mean"])
                crop = tvF.pad(crop, list(square_padding(*crop.shape[-2:])), fill=fill)
            if settings["do_resize"]:
                crop = self.resize(crop, size=settings["size"], resample=settings["resample"])
            if settings["do_center_crop"]:
                crop = self.center_crop(crop, settings["crop_size"])
            crops.append(crop)
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return self.rescale_and_normalize(
            torch.stack(check_same_size(crops), dim=1), **{name: settings[name] for name in names}
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

    Args (also of a call): see `LlavaMiniImageProcessorKwargs`, and:
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
