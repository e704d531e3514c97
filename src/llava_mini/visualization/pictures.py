# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What a model looked at, on the picture that somebody passed: where it lies, how it is averaged, how it is drawn."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from .drawing import Drawable, draw_panels, overlay, shorten, shown_size
from .geometry import PatchLayout


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Panels of a figure; more are told by the mean, or asked for one by one.
MAX_TOKENS, MAX_WORDS = 8, 16
# Pixels along an overlay's longer side: as much as a screen shows of it.
MAX_SIDE = 768
# Likewise of one panel among several.
PANEL_SIDE = 320
CAPTION = "Brightness is attention, averaged over heads, each panel up to its own brightest. "
SHARES = "Percentages: the share of all attention that lies on the picture"
REST = {
    "tokens": "; the rest lies on padding. ",
    "words": "; the rest lies on padding or, of words, on text and vision tokens. ",
}
WASHED_OUT = "Washed out: not read by pre-fusion, or not seen at all. "


@dataclass(repr=False, eq=False)
class PictureAttention(Drawable):
    """
    What vision tokens and a question's words read of one picture. Shows itself in a notebook.

    Args:
        picture (`PIL.Image.Image`): upright and in RGB, as large as it came.
        layout (`PatchLayout`): where the patches lie on it.
        token_weights (`np.ndarray` of shape `(CC, G * G)`): the compressor's attention, averaged over its heads.
        is_read (`np.ndarray` of shape `(V,)`): which patches pre-fusion reads, as booleans.
        words (`list[str]`): the question's text tokens that take part in pre-fusion, as the tokenizer cuts them.
        text (`str`): the question as the prompt holds it.
        spans (`list[tuple[int, int]]`): where each word stands in `text`.
        word_weights (`np.ndarray` of shape `(layers, words, V)`, *optional*): what each word reads of the patches in
            each pre-fusion layer, averaged over heads. A part of a row that sums to 1 over patches, compressed tokens
            and earlier text.
        question, answer (`str`, *optional*).
    """

    picture: PIL.Image.Image
    layout: PatchLayout
    token_weights: np.ndarray
    is_read: np.ndarray
    words: list[str] = field(default_factory=list)
    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)
    word_weights: np.ndarray | None = None
    question: str | None = None
    answer: str | None = None

    @property
    def num_tokens(self) -> int:
        """C*C, the picture's vision tokens."""
        return len(self.token_weights)

    def token_map(self, token: int | None = None) -> np.ndarray:
        """
        What a vision token looked at, on the picture's own pixels, `(height, width)`. A patch's weight is spread
        evenly over its pixels, so that the sum is the share of the attention that lies on the picture and not on
        padding.

        Args:
            token (`int`, *optional*): of C*C, from 0; the mean of all by default.

        Raises:
            IndexError: there is no such token.
        """
        return self.layout.spread(self._token_weights(token))

    def word_map(self, word: int | str | None = None, layer: int | None = None) -> np.ndarray:
        """
        What a word read of the patches in pre-fusion, on the picture's own pixels, `(height, width)`. The sum is the
        share of its attention that lies on the picture; the rest is on padding, on compressed tokens and on text. In
        high resolution the sub-images' patches and the whole image's lie over each other and are added.

        Args:
            word (`int` or `str`, *optional*): the how manieth of `words`; or a piece of the question, whose tokens are
                averaged; the mean of all words by default.
            layer (`int`, *optional*): of the pre-fusion layers, from 0; their mean by default.

        Raises:
            IndexError: there is no such word or layer.
            ValueError: the question does not hold this piece, or nothing was asked.
        """
        return self.layout.spread(self._word_weights(word, layer))

    def token_overlay(self, token: int | None = None, max_side: int = MAX_SIDE) -> PIL.Image.Image:
        """
        `token_map` in colours over the picture, shrunk to `max_side` pixels along its longer side.

        Raises:
            IndexError: as `token_map`.
            ValueError: `max_side` is not positive.
        """
        size = shown_size(self.picture, max_side)
        seen = self.layout.cover(np.ones(self.token_weights.shape[1]), size)
        return overlay(self.picture, self.layout.spread(self._token_weights(token), size), seen)

    def word_overlay(
        self, word: int | str | None = None, layer: int | None = None, max_side: int = MAX_SIDE
    ) -> PIL.Image.Image:
        """
        `word_map` in colours over the picture, shrunk to `max_side` pixels along its longer side; washed out where
        pre-fusion reads no patch.

        Raises:
            IndexError, ValueError: as `word_map`; or `max_side` is not positive.
        """
        size = shown_size(self.picture, max_side)
        heat = self.layout.spread(self._word_weights(word, layer), size)
        return overlay(self.picture, heat, self.layout.cover(self.is_read, size))

    def figure(self) -> "Figure":
        """
        The picture, what its first eight vision tokens looked at and, with a question, what its first sixteen words
        read, averaged over the pre-fusion layers; with several tokens or words their mean too.

        Raises:
            ImportError: matplotlib is missing.
        """
        panels = [("picture", self.thumbnail()), *self._token_panels(), *self._word_panels()]
        return draw_panels(panels, self.title(), self.caption())

    def describe(self) -> str:
        """Size, tokens and words."""
        width, height = self.picture.size
        asked = "" if self.question is None else f", question {self.question!r}, {len(self.words)} words"
        answered = "" if self.answer is None else f", answer {self.answer!r}"
        kept = "" if self.is_read.all() else f", {self.is_read.sum()} of {self.is_read.size} patches read"
        tokens = f"{self.num_tokens} vision token{'s' if self.num_tokens > 1 else ''}"
        return f"{width}x{height} pixels, {tokens}{kept}{asked}{answered}"

    def thumbnail(self) -> PIL.Image.Image:
        """The picture as a panel shows it."""
        return self.picture.resize(shown_size(self.picture, PANEL_SIDE), PIL.Image.Resampling.LANCZOS)

    def title(self) -> str | None:
        """Question and answer."""
        return None if self.question is None else " → ".join(filter(None, (self.question, self.answer)))

    def caption(self) -> str:
        """What a figure of it says about its numbers."""
        of_layers = ""
        if self.word_weights is not None and len(self.word_weights) > 1:
            of_layers = f"Words: also averaged over {len(self.word_weights)} pre-fusion layers. "
        rest = REST["tokens" if self.word_weights is None else "words"]
        size = shown_size(self.picture, PANEL_SIDE)
        is_whole = self.is_read.all() and self.layout.cover(self.is_read, size).all()
        return CAPTION + of_layers + SHARES + rest + ("" if is_whole else WASHED_OUT)

    def share(self, weights: np.ndarray) -> str:
        """How much of these weights lies on the picture, for a panel's title."""
        return f"{self.layout.spread(weights, shown_size(self.picture, PANEL_SIDE)).sum():.0%}"

    def mean_token_panel(self) -> tuple[str, PIL.Image.Image]:
        """Name and overlay of the vision tokens' mean."""
        name = "vision token" if self.num_tokens == 1 else f"mean of {self.num_tokens} vision tokens"
        return f"{name}\n{self.share(self._token_weights(None))}", self.token_overlay(None, PANEL_SIDE)

    def mean_word_panel(self) -> tuple[str, PIL.Image.Image]:
        """Name and overlay of the words' mean."""
        name = f"mean of {len(self.words)} words\n{self.share(self._word_weights(None, None))}"
        return name, self.word_overlay(None, None, PANEL_SIDE)

    def _token_panels(self) -> list[tuple[str, PIL.Image.Image]]:
        panels = [self.mean_token_panel()]
        for i in range(min(self.num_tokens, MAX_TOKENS) if self.num_tokens > 1 else 0):
            name = f"vision token {i + 1}\n{self.share(self._token_weights(i))}"
            panels.append((name, self.token_overlay(i, PANEL_SIDE)))
        return panels

    def _word_panels(self) -> list[tuple[str, PIL.Image.Image]]:
        if self.word_weights is None:
            return []
        panels = [self.mean_word_panel()] if len(self.words) > 1 else []
        for i, word in enumerate(self.words[:MAX_WORDS]):
            name = f"“{shorten(word)}”\n{self.share(self._word_weights(i, None))}"
            panels.append((name, self.word_overlay(i, None, PANEL_SIDE)))
        return panels

    def _token_weights(self, token: int | None) -> np.ndarray:
        if token is None:
            return self.token_weights.mean(0)
        _check_index("token", token, self.num_tokens)
        return self.token_weights[token]

    def _word_weights(self, word: int | str | None, layer: int | None) -> np.ndarray:
        if self.word_weights is None:
            raise ValueError(
                "There are no words: pass a `question` (and a model with pre-fusion: with `num_prefusion_layers` 0 "
                "text reads no patches)."
            )
        if layer is not None:
            _check_index("layer", layer, len(self.word_weights))
        weights = self.word_weights.mean(0) if layer is None else self.word_weights[layer]
        return weights[self._find_words(word)].mean(0)

    def _find_words(self, word: int | str | None) -> list[int]:
        if word is None:
            return list(range(len(self.words)))
        if isinstance(word, int):
            _check_index("word", word, len(self.words))
            return [word]
        text, piece = self.text.lower(), word.strip().lower()
        found, start = [], text.find(piece)
        while piece and start >= 0:
            end = start + len(piece)
            found += [i for i, (first, last) in enumerate(self.spans) if first < end and last > start]
            start = text.find(piece, end)
        if not found:
            raise ValueError(
                f"`word` is {word!r}, which is no piece of the question that takes part in pre-fusion: its words are "
                f"{self.words}."
            )
        return found


def _check_index(name: str, index: int, count: int):
    if not (isinstance(index, int) and 0 <= index < count):
        raise IndexError(f"`{name}` is {index!r}, but has to be a number from 0 to {count - 1}.")


__all__ = ["PictureAttention"]
