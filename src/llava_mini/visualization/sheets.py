# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What a model looked at in several pictures: the frames of a video, a picture with and without a patch budget."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .drawing import Drawable, draw_panels, shorten
from .pictures import PictureAttention


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Of a contact sheet; more are told by some of them, evenly spread.
MAX_SHOWN_FRAMES = 12


@dataclass(repr=False, eq=False)
class VideoAttention(Drawable):
    """
    What vision tokens and a question's words read of a video's sampled frames. Shows itself in a notebook, as a
    contact sheet.

    Args:
        frames (`list[PictureAttention]`): in order.
        times (`list[float]`, *optional*): when each is shown, in seconds; `None` for frames without a rate.
        question, answer (`str`, *optional*).
    """

    frames: list[PictureAttention]
    times: list[float] | None = None
    question: str | None = None
    answer: str | None = None

    @property
    def words(self) -> list[str]:
        """The question's text tokens that take part in pre-fusion, the same for every frame."""
        return self.frames[0].words

    def figure(self) -> "Figure":
        """
        A contact sheet: each frame with its time above what its vision tokens looked at and, with a question, what the
        words read, each averaged; of more than twelve frames as many, evenly spread.

        Raises:
            ImportError: matplotlib is missing.
        """
        count = len(self.frames)
        shown = [i * count // MAX_SHOWN_FRAMES for i in range(MAX_SHOWN_FRAMES)] if count > MAX_SHOWN_FRAMES else None
        shown = list(range(count)) if shown is None else shown
        columns = min(len(shown), 6)
        panels: list = []
        for start in range(0, len(shown), columns):
            own = shown[start : start + columns]
            rows = [[(self._name(i), self.frames[i].thumbnail()) for i in own]]
            rows.append([self.frames[i].mean_token_panel() for i in own])
            if self.frames[0].word_weights is not None:
                rows.append([self.frames[i].mean_word_panel() for i in own])
            for row in rows:
                panels += row + [("", None)] * (columns - len(row))
        caption = self.frames[0].caption()
        if len(shown) < count:
            caption = f"{len(shown)} of {count} frames. {caption}"
        return draw_panels(panels, self.frames[0].title(), caption, columns)

    def describe(self) -> str:
        """Frames, times and what each is."""
        count = len(self.frames)
        times = "" if not self.times else f", {self.times[0]:.1f} s to {self.times[-1]:.1f} s"
        return f"{count} frame{'' if count == 1 else 's'}{times}, each {self.frames[0].describe()}"

    def _name(self, frame: int) -> str:
        return f"frame {frame + 1}" if self.times is None else f"{self.times[frame]:.1f} s"


@dataclass(repr=False, eq=False)
class PatchBudgetComparison(Drawable):
    """
    What a patch budget leaves for pre-fusion to read, and what is answered then. Shows itself in a notebook.

    Args:
        before (`PictureAttention`): with all patches.
        after (`PictureAttention`): with the budget.
    """

    before: PictureAttention
    after: PictureAttention

    def figure(self) -> "Figure":
        """
        The picture, and what the words read on average without and with the budget, with both answers.

        Raises:
            ImportError: matplotlib is missing.
        """
        panels = [("picture", self.before.thumbnail())]
        for look in (self.before, self.after):
            name, shown = look.mean_token_panel() if look.word_weights is None else look.mean_word_panel()
            reads = f"{look.is_read.sum()} of {look.is_read.size} patches"
            panels.append((f"{reads}: {shorten(look.answer)}\n{name}".replace("words\n", "words, "), shown))
        return draw_panels(panels, self.before.question, self.after.caption())

    def describe(self) -> str:
        """Patches and answers."""
        return f"before: {self.before.describe()}; after: {self.after.describe()}"


__all__ = ["PatchBudgetComparison", "VideoAttention"]
