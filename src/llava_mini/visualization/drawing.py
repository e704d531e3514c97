# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Attention laid over pictures, and figures of several such. Only figures need matplotlib."""

import os
import textwrap
from abc import ABC, abstractmethod
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image


if TYPE_CHECKING:
    from matplotlib.figure import Figure


MISSING_MATPLOTLIB = "Figures need matplotlib: `pip install llava-mini-hf[visualization]`."
# From nothing to the most: black, violet, red, orange, pale yellow, as matplotlib's "inferno" at these shares.
HEAT_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
HEAT_COLOURS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
# How much of an overlay is colour, and not the picture in grey below it.
HEAT_OPACITY = 0.55
# What is left of the picture where nothing is read.
UNREAD_OPACITY = 0.2
# Inches and letters: a panel a little wider than a thumbnail, with a title of two lines of 8 points.
PANEL_WIDTH, TITLE_HEIGHT, CAPTION_LINE = 2.2, 0.45, 0.16
TITLE_LETTERS, LETTERS_PER_INCH = 30, 15
# Panels side by side; a seventh would be too small to read in a notebook's column.
MAX_COLUMNS = 6
# Of a panel, so that a very long picture leaves room for the others.
SLIMMEST, WIDEST = 0.5, 2.0
DPI = 110


def overlay(picture: PIL.Image.Image, heat: np.ndarray, is_read: np.ndarray | None = None) -> PIL.Image.Image:
    """
    A picture in grey with a map over it in colours from black (nothing) to pale yellow (the map's largest weight).

    Args:
        picture (`PIL.Image.Image`).
        heat (`np.ndarray` of shape `(height, width)`): of the size that the overlay shall have.
        is_read (`np.ndarray` of shape `(height, width)`, *optional*): elsewhere the picture is washed out.
    """
    height, width = heat.shape
    grey = picture.resize((width, height), PIL.Image.Resampling.LANCZOS).convert("L")
    shown = np.asarray(grey, np.float32)[..., None]
    scaled = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    colours = np.stack([np.interp(scaled, HEAT_SHARES, channel) for channel in zip(*HEAT_COLOURS)], axis=-1)
    mixed = HEAT_OPACITY * colours + (1 - HEAT_OPACITY) * shown
    if is_read is not None:
        washed_out = 255 - UNREAD_OPACITY * (255 - shown)
        mixed = np.where(is_read[..., None], mixed, washed_out)
    return PIL.Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def shown_size(picture: PIL.Image.Image, max_side: int) -> tuple[int, int]:
    """Width and height of a picture shrunk, if it has to be, to `max_side` pixels along its longer side."""
    if max_side < 1:
        raise ValueError(f"`max_side` is {max_side!r}, but has to be a positive number of pixels.")
    shrink = min(1, max_side / max(picture.size))
    width, height = (max(1, round(side * shrink)) for side in picture.size)
    return width, height


def draw_panels(
    panels: list[tuple[str, PIL.Image.Image | None]], title: str | None, caption: str, columns: int = MAX_COLUMNS
) -> "Figure":
    """
    Pictures in rows, each below its title; `None` leaves a place empty.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(MISSING_MATPLOTLIB) from error
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    pictures = [picture for _, picture in panels if picture is not None]
    shape = min(max(max(p.height / p.width for p in pictures), SLIMMEST), WIDEST)
    # One or two panels alone would leave no room for the words around them.
    width = PANEL_WIDTH * max(columns, 2)
    title_lines = _wrap(title or "", width)
    caption_lines = _wrap(caption, width)
    words = CAPTION_LINE * (1.5 * len(title_lines) + len(caption_lines) + 1)
    height = rows * (PANEL_WIDTH * shape + TITLE_HEIGHT) + words
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Titles hold people's words, in which a dollar sign is no formula.
    for axis, (name, picture) in zip(axes, panels):
        if picture is None:
            axis.set_axis_off()
            continue
        axis.imshow(picture)
        axis.set_title(name, fontsize=8, parse_math=False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("lightgrey")  # where a white picture ends
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if title_lines:
        figure.suptitle("\n".join(title_lines), fontsize=10, parse_math=False)
    figure.supxlabel("\n".join(caption_lines), fontsize=7, color="dimgrey", parse_math=False)
    return figure


def _wrap(text: str, inches: float) -> list[str]:
    return textwrap.wrap(text, int(inches * LETTERS_PER_INCH))


def shorten(word: str) -> str:
    """Words in one line, as a panel's title has room for them."""
    word = " ".join(word.split())
    return word if len(word) <= TITLE_LETTERS else f"{word[: TITLE_LETTERS - 3]}..."


class Drawable(ABC):
    """What shows itself as a picture, as the last line of a notebook's cell or in a file."""

    @abstractmethod
    def figure(self) -> "Figure":
        """A matplotlib figure of it."""

    @abstractmethod
    def describe(self) -> str:
        """It in one line, without numbers of tensors."""

    def save(self, path: str | os.PathLike):
        """
        Writes the figure to a file whose format the name tells (.png, .pdf, .svg).

        Raises:
            ImportError: matplotlib is missing.
        """
        self.figure().savefig(path)

    def __repr__(self) -> str:
        hint = "" if find_spec("matplotlib") else f" {MISSING_MATPLOTLIB}"
        return f"{type(self).__name__}({self.describe()}){hint}"

    def _repr_png_(self) -> bytes | None:
        if not find_spec("matplotlib"):
            return None  # then notebooks show `repr`, which says what is missing
        file = BytesIO()
        self.figure().savefig(file, format="png")
        return file.getvalue()


__all__ = ["Drawable", "draw_panels", "overlay"]
