# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The README's picture, from the tables that flops.py and latency.py wrote: tokens, FLOPs, time and memory.

    python examples/benchmarks/plot.py
"""

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from shapes import RESULTS


TEXT_MODEL, PIXELS = "Vicuna-7B", 336
LLAVA, MINI, AGAIN = "LLaVA-v1.5", "LLaVA-Mini", "LLaVA-Mini, second question"
COLOURS = {LLAVA: "#9a9a9a", MINI: "#1f6fb4", AGAIN: "#8fbfe6"}
FIRST_TOKEN = "first token, batch 1"
PEAK = "peak MiB beyond weights and inputs"


def read_panels(flops: dict, latency: dict) -> dict[str, dict[str, float]]:
    """`{title: {model: value}}`."""
    counted = {
        row["model"]: row for row in flops["rows"] if row["text model"] == TEXT_MODEL and row["pixels"] == PIXELS
    }
    timed = {row["model"]: row for row in latency["rows"] if row["case"] == FIRST_TOKEN}
    facts = latency["facts"]
    where = f"{facts['device']}, {facts['dtype']}"
    where += "" if facts["scale"] == 1 else f",\nwidths x {facts['scale']}"
    tflops = {name: counted[name]["TFLOPs"] for name in (LLAVA, MINI)}
    return {
        "vision tokens an image\nin the language model": {name: counted[name]["vision tokens"] for name in tflops},
        f"TFLOPs of one prefill\n{TEXT_MODEL}": tflops | {AGAIN: counted[MINI]["TFLOPs, second question"]},
        f"ms to the first token\n{where}": {name: timed[name]["median"] for name in COLOURS},
        f"peak MiB beyond weights\n{where}": {name: timed[name][PEAK] for name in COLOURS},
    }


def draw_panel(axis: Axes, title: str, values: dict[str, float]):
    """Bars with their values written behind them."""
    names = list(values)
    bars = axis.barh(range(len(names)), list(values.values()), color=[COLOURS[name] for name in names])
    axis.bar_label(bars, [f"{value:.0f}" if value >= 10 else f"{value:.3g}" for value in values.values()], padding=3)
    axis.set_title(title, fontsize=9)
    axis.set_yticks([])
    axis.set_ylim(len(COLOURS) - 0.4, -0.6)
    axis.set_xlim(0, max(values.values()) * 1.25)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=Path, default=RESULTS / "latency_cpu.json", help="a table of latency.py")
    parser.add_argument("--output", type=Path, default=RESULTS / "overview.png")
    arguments = parser.parse_args()
    panels = read_panels(json.loads((RESULTS / "flops.json").read_text()), json.loads(arguments.latency.read_text()))
    figure = Figure(figsize=(10, 2.4), layout="constrained")
    for axis, (title, values) in zip(figure.subplots(1, len(panels)), panels.items()):
        draw_panel(axis, title, values)
    handles = [figure.axes[-1].patches[i] for i in range(len(COLOURS))]
    figure.legend(handles, list(COLOURS), loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=9)
    figure.savefig(arguments.output, dpi=150)


if __name__ == "__main__":
    main()
