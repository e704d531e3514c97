# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Where the vision tower's patches lie on the picture that somebody passed: what an image processor did, undone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend

from ..image_processing_pil_llava_mini import resize_passes, square_padding


@dataclass(frozen=True)
class Box:
    """
    A rectangle on a picture, in its pixels from the left upper corner; beyond the picture where there is padding.

    Args:
        left, top, right, bottom (`float`): the edges; pixel `x` reaches from `x` to `x + 1`.
    """

    left: float
    top: float
    right: float
    bottom: float

    def scale(self, horizontal: float, vertical: float) -> "Box":
        """The box on a picture resized by these factors."""
        return Box(self.left * horizontal, self.top * vertical, self.right * horizontal, self.bottom * vertical)


def locate_crops(processor, width: int, height: int) -> list[Box]:
    """
    What each crop that the tower sees shows of an upright picture: N*N sub-images in row-major order, then the whole
    picture; the picture alone when N is 1.

    Args:
        processor (`LlavaMiniImageProcessor`, `LlavaMiniImageProcessorPil` or `LlavaMiniVideoProcessor`): with the
            settings that the picture is processed by.
        width, height (`int`): of the upright picture, in pixels.
    """
    if not getattr(processor, "keep_aspect_ratio", True):  # frames become squares before anything else
        crop = processor.crop_size
        boxes = _locate_crops(processor, crop["width"], crop["height"])
        return [box.scale(width / crop["width"], height / crop["height"]) for box in boxes]
    return _locate_crops(processor, width, height)


def _locate_crops(processor, width: int, height: int) -> list[Box]:
    ratio = processor.resolution_ratio
    whole = _locate_view(processor, width, height)
    if ratio == 1:
        return [whole]
    part_width, part_height = width // ratio, height // ratio
    part = _locate_view(processor, part_width, part_height)
    parts = []
    for i in range(ratio**2):
        left, top = i % ratio * part_width, i // ratio * part_height
        parts.append(Box(part.left + left, part.top + top, part.right + left, part.bottom + top))
    return [*parts, whole]


def _locate_view(processor, width: int, height: int) -> Box:
    """What the tower sees of one crop of `width` x `height` pixels, in the crop's own pixels."""
    left, top, right, bottom = square_padding(height, width) if processor.do_pad else (0, 0, 0, 0)
    padded_width, padded_height = left + width + right, top + height + bottom
    seen_width, seen_height = padded_width, padded_height
    if processor.do_resize:
        shape_alone = np.broadcast_to(np.uint8(0), (3, padded_height, padded_width))
        size = resize_passes(shape_alone, processor.size)[-1]
        seen_width, seen_height = size.width, size.height
    across, down = padded_width / seen_width, padded_height / seen_height
    first_column = first_row = 0
    if processor.do_center_crop:
        crop = processor.crop_size
        first_column = _first_kept(processor, seen_width, crop["width"])
        first_row = _first_kept(processor, seen_height, crop["height"])
        seen_width, seen_height = crop["width"], crop["height"]
    return Box(
        first_column * across - left,
        first_row * down - top,
        (first_column + seen_width) * across - left,
        (first_row + seen_height) * down - top,
    )


def _first_kept(processor, length: int, kept: int) -> int:
    """The first of `length` pixels that a centre crop keeps; negative where it pads, as each backend rounds."""
    return (length - kept) // 2 if isinstance(processor, PilBackend) else int((length - kept) / 2)


@dataclass(frozen=True)
class PatchLayout:
    """
    Where a picture's patches lie on it.

    Args:
        width, height (`int`): of the picture, in pixels.
        crops (`list[Box]`): what each crop shows, of `locate_crops`.
        grid (`int`): patches along a side of a crop.
        covered (`float`): the share of a crop's side that whole patches cover.
    """

    width: int
    height: int
    crops: list[Box]
    grid: int
    covered: float = 1.0

    @classmethod
    def of(cls, config: PreTrainedConfig, processor, width: int, height: int) -> "PatchLayout":
        """The layout for a model's configuration and the processor of its images or videos, see `locate_crops`."""
        vision = config.vision_config
        covered = config.vision_grid_size * vision.patch_size / vision.image_size
        return cls(width, height, locate_crops(processor, width, height), config.vision_grid_size, covered)

    def spread(self, weights: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """
        Each patch's weight spread evenly over the pixels that the patch shows, in full or in part. What lies on
        padding is left out, so that the sum is the weight that lies on the picture.

        Args:
            weights (`np.ndarray` of shape `(G * G,)` or `(V,)`): of the sub-images' raster, or of that and the whole
                image, whose weights are added.
            size (`tuple[int, int]`, *optional*): width and height to show the picture in; its own by default.

        Returns:
            `np.ndarray` of shape `(height, width)`, float32.
        """
        width, height = size or (self.width, self.height)
        total = np.zeros((height, width), np.float32)
        for patches, down, across in self._overlaps(weights, width, height):
            total += (down.pixels / down.patch) @ patches @ (across.pixels / across.patch).T
        return total

    def cover(self, flags: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """
        Which pixels lie, by half at least, in patches whose flag is set: booleans `(height, width)`. Arguments: see
        `spread`.
        """
        width, height = size or (self.width, self.height)
        covered = np.zeros((height, width), bool)
        for patches, down, across in self._overlaps(flags, width, height):
            covered |= down.pixels @ patches @ across.pixels.T >= 0.5
        return covered

    def _overlaps(
        self, weights: np.ndarray, width: int, height: int
    ) -> Iterator[tuple[np.ndarray, "_Overlap", "_Overlap"]]:
        """A crop's weights `(grid, grid)` and how its rows and columns of patches lie on those of pixels."""
        for box, patches in zip(self.crops, self._split(weights)):
            box = box.scale(width / self.width, height / self.height)
            down = _Overlap.of(box.top, box.bottom, self.grid, self.covered, height)
            yield patches, down, _Overlap.of(box.left, box.right, self.grid, self.covered, width)

    def _split(self, weights: np.ndarray) -> list[np.ndarray]:
        """Weights `(G * G,)` or `(V,)` a crop, `(grid, grid)` each."""
        grid, ratio = self.grid, max(1, round((len(self.crops) - 1) ** 0.5))
        tiles, whole = np.split(np.asarray(weights, np.float32), [(ratio * grid) ** 2])
        tiles = tiles.reshape(ratio, grid, ratio, grid).swapaxes(1, 2).reshape(-1, grid, grid)
        return [*tiles, *whole.reshape(-1, grid, grid)]


@dataclass(frozen=True)
class _Overlap:
    """
    How patches in a row lie on pixels in a row.

    Args:
        pixels (`np.ndarray` of shape `(length, grid)`): how much of each pixel each patch covers.
        patch (`float`): a patch's length in pixels.
    """

    pixels: np.ndarray
    patch: float

    @classmethod
    def of(cls, start: float, end: float, grid: int, covered: float, length: int) -> "_Overlap":
        """Of `grid` patches that cover this share of what reaches from `start` to `end`, on `length` pixels."""
        patch = (end - start) * covered / grid
        edges = start + patch * np.arange(grid + 1)
        pixels = np.arange(length + 1)[:, None]
        shared = np.minimum(pixels[1:], edges[1:]) - np.maximum(pixels[:-1], edges[:-1])
        return cls(shared.clip(0).astype(np.float32), patch)


__all__ = ["Box", "PatchLayout", "locate_crops"]
