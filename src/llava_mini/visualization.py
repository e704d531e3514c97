# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What the compressor looked at, as pictures. Needs matplotlib: `pip install llava-mini-hf[visualization]`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch


if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_TOKENS = 8


def seen_picture(pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> np.ndarray:
    """
    The picture whose patches the compressor reads: with padding, cut and resized as the model gets it.

    Args:
        pixel_values (`torch.Tensor` of shape `(K, 3, height, width)`): the crops of one image or frame.
        image_mean, image_std: of the image processor.

    Returns:
        `np.ndarray` of shape `(N * height, N * width, 3)`, 8-bit; the sub-images put together when there are any.

    Raises:
        ValueError: the number of crops is neither 1 nor N*N + 1.
    """
    count = len(pixel_values)
    ratio = round(max(count - 1, 1) ** 0.5)
    if pixel_values.ndim != 4 or count != (ratio**2 + 1 if ratio > 1 else 1):
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}, but has to be (crops, 3, height, width) of one "
            "image, with 1 or N*N + 1 crops."
        )
    pixels = pixel_values.detach().float().cpu()
    mean, std = (torch.tensor(list(values)).view(3, 1, 1) for values in (image_mean, image_std))
    crops = (pixels * std + mean).clamp(0, 1)[: ratio**2].unflatten(0, (ratio, ratio))
    raster = crops.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # rows, height, columns, width, channels
    return (raster * 255).round().byte().numpy()


def plot_compression(
    pixel_values: torch.Tensor,
    attentions: torch.Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    title: str | None = None,
) -> "Figure":
    """
    One image beside what each of its vision tokens looked at, the brighter the more (paper section 5.4).

    Args:
        pixel_values (`torch.Tensor` of shape `(K, 3, height, width)`): of one image or frame.
        attentions (`torch.Tensor` of shape `(C * C, G * G)`):
            Its `compressor_attentions`, from the model called with `output_compressor_attentions=True`.
        image_mean, image_std: of the image processor.
        title (`str`, *optional*): above everything.

    Returns:
        A matplotlib figure: the picture, the first eight tokens and, with several tokens, their mean.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the attentions cover no square grid.

    Example:

    ```python
    >>> features = model.get_image_features(inputs["pixel_values"], output_compressor_attentions=True)
    >>> part = processor.image_processor
    >>> figure = plot_compression(
    ...     inputs["pixel_values"][0], features.compressor_attentions[0], part.image_mean, part.image_std
    ... )
    >>> figure.savefig("compression.png")
    ```
    """
    grid = round(attentions.shape[-1] ** 0.5)
    if attentions.ndim != 2 or grid**2 != attentions.shape[-1]:
        raise ValueError(
            f"`attentions` has shape {tuple(attentions.shape)}, but has to be (tokens, patches) of one image, the "
            "patches a square."
        )
    picture = seen_picture(pixel_values, image_mean, image_std)
    maps = attentions.detach().float().cpu().unflatten(-1, (grid, grid)).numpy()
    panels = [(f"token {i + 1}", weights) for i, weights in enumerate(maps[:MAX_TOKENS])]
    if len(maps) > 1:
        panels.insert(0, (f"mean of {len(maps)}", maps.mean(0)))

    return _draw_panels(picture, panels, title)


def _draw_panels(picture: np.ndarray, panels: list[tuple[str, np.ndarray]], title: str | None) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: `pip install llava-mini-hf[visualization]`.") from error
    figure = Figure(figsize=(2.4 * (len(panels) + 1), 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1)
    axes[0].imshow(picture)
    axes[0].set_title("what it saw", fontsize=9)
    height, width = picture.shape[:2]
    for axis, (name, weights) in zip(axes[1:], panels):
        axis.imshow(picture.mean(-1), cmap="gray", alpha=0.5)
        axis.imshow(weights, cmap="inferno", alpha=0.7, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axis.set_title(f"{name}: at most {weights.max():.2f}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    if title is not None:
        figure.suptitle(title, fontsize=10)
    return figure


__all__ = ["plot_compression", "seen_picture"]
