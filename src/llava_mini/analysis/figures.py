# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's figures 2, 3 and 5. Needs matplotlib: `pip install llava-mini-hf[visualization]`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..visualization.drawing import MISSING_MATPLOTLIB, Drawable
from .accuracy import Score
from .attention import AttentionByLayer
from .questions import KINDS, VISION


if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOURS = dict(zip(KINDS, ("tab:blue", "tab:orange", "tab:green")))


class Chart(Drawable):
    """A figure that shows itself in a notebook."""

    def __init__(self, figure: "Figure", shows: str):
        self._figure, self._shows = figure, shows

    def figure(self) -> "Figure":
        """The matplotlib figure."""
        return self._figure

    def describe(self) -> str:
        """What it shows."""
        return self._shows


def plot_attention(results: Mapping[str, AttentionByLayer], title: str | None = None) -> Chart:
    """
    How much each kind of token attends to each kind, by layer, a row a model (the paper's figure 2).

    Args:
        results: by the models' names, what `measure_attention` returned.
        title (`str`, *optional*): above everything.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there are no results.
    """
    return _draw(results, "attention", "share of attention", title)


def plot_entropy(results: Mapping[str, AttentionByLayer], title: str | None = None) -> Chart:
    """
    How evenly each kind of token attends to the tokens of each kind, by layer, a row a model (the paper's figure 3);
    dotted: as evenly as can be over all vision tokens. Arguments and errors as `plot_attention`'s.
    """
    return _draw(results, "entropy", "entropy (nats)", title)


def plot_accuracy(
    lines: Mapping[str, Sequence[Score]],
    labels: Sequence[str],
    whole: Score,
    guessing: float | None = None,
    title: str | None = None,
) -> Chart:
    """
    Right answers when vision tokens are left out of layers (the paper's figure 5).

    Args:
        lines: by what they are, a score for each of the labels.
        labels (`Sequence[str]`): of layers, or of groups of them.
        whole (`Score`): the model as it is.
        guessing (`float`, *optional*): the accuracy of not seeing the picture.
        title (`str`, *optional*): above everything.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: a line without a score for every label.
    """
    if not lines or any(len(scores) != len(labels) for scores in lines.values()):
        raise ValueError(
            f"There are {len(labels)} labels, but lines of {[len(scores) for scores in lines.values()]} scores."
        )
    figure, axes = _start(1, 1, 4.8)
    axis = axes[0, 0]
    for (name, scores), marker in zip(lines.items(), "osv^D*" * len(lines)):
        axis.plot(range(len(labels)), [score.accuracy for score in scores], marker=marker, label=name)
    axis.axhline(whole.accuracy, color="black", linestyle="--", linewidth=0.8, label="nothing left out")
    if guessing is not None:
        axis.axhline(guessing, color="grey", linestyle=":", linewidth=0.8, label="guessing")
    _name_layers(axis, labels)
    axis.set_ylim(0, 1.03)
    axis.set_ylabel(f"right answers (n = {whole.n})", fontsize=8)
    axis.legend(fontsize=7)
    return _finish(figure, title, f"accuracy without vision tokens of {', '.join(lines)}")


def _draw(results: Mapping[str, AttentionByLayer], field: str, label: str, title: str | None) -> Chart:
    """A row a model, a panel a kind of target, a line a kind of source."""
    if not results:
        raise ValueError("There are no results to draw.")
    figure, axes = _start(len(results), len(KINDS), 3.1)
    labels = {kind: f"to {kind}" for kind in KINDS}
    for row, (name, result) in zip(axes, results.items()):
        values = getattr(result, field).numpy()  # (L, targets, sources)
        places = np.arange(len(result.layers))
        for target, axis in enumerate(row):
            for source, kind in enumerate(KINDS):
                if not np.isnan(values[:, target, source]).all():
                    axis.plot(places, values[:, target, source], marker="o", color=COLOURS[kind], label=labels[kind])
            if field == "entropy":
                most = result.num_sources[:, VISION].log().numpy()
                axis.plot(places, most, color=COLOURS[KINDS[VISION]], linestyle=":", linewidth=1)
            axis.set_title(f"{name}: {KINDS[target]} tokens attend", fontsize=8)
            _name_layers(axis, result.layers)
            axis.set_ylim(bottom=0, top=1.03 if field == "attention" else None)
        row[0].set_ylabel(f"{label} (n = {result.num_samples})", fontsize=8)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label() in labels.values()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(KINDS), fontsize=8)
    return _finish(figure, title, f"{label} by layer of {', '.join(results)}")


def _start(rows: int, columns: int, width: float) -> tuple["Figure", np.ndarray]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(MISSING_MATPLOTLIB) from error
    figure = Figure(figsize=(width * columns, 2.7 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _name_layers(axis, names: Sequence[str]):
    """Short names below: P1 for "pre-fusion 1", 1 for "layer 1"; every fourth of many."""
    short = [name.replace("pre-fusion ", "P").replace("layer ", "") for name in names]
    step = 1 if len(short) <= 12 else 4
    axis.set_xticks(range(0, len(short), step), short[::step])
    axis.set_xlim(-0.3, len(short) - 0.7)
    axis.set_xlabel("layer", fontsize=8)
    axis.tick_params(labelsize=8)


def _finish(figure: "Figure", title: str | None, shows: str) -> Chart:
    if title is not None:
        figure.suptitle(title, fontsize=10)
    return Chart(figure, shows)
