# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The model shapes that the benchmarks share, and how results are written."""

import json
import platform
from pathlib import Path

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from llava_mini import LlavaMiniConfig


CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
TEXT = {
    "Vicuna-7B": {"vocab_size": 32000},  # LlamaConfig's other defaults are its shape
    "Llama-3.1-8B": {
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}
RESULTS = Path(__file__).parent / "results"


def text_config(name: str, scale: float = 1.0) -> LlamaConfig:
    """A text shape, its widths (not its depth) multiplied by `scale`; head width stays 128."""
    values = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    values |= TEXT[name]
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        values[key] = int(values[key] * scale)
    return LlamaConfig(**values)


def vision_config(scale: float = 1.0) -> CLIPVisionConfig:
    """CLIP ViT-L/336, its widths multiplied by `scale`; head width stays 64."""
    values = dict(CLIP_L_336)
    for key in ("hidden_size", "intermediate_size", "num_attention_heads"):
        values[key] = int(values[key] * scale)
    return CLIPVisionConfig(**values)


def mini_config(
    name: str, compressor_size: int = 1, resolution_ratio: int = 1, scale: float = 1.0, **kwargs
) -> LlavaMiniConfig:
    """LLaVA-Mini with that text model."""
    return LlavaMiniConfig(
        text_config=text_config(name, scale),
        vision_config=vision_config(scale),
        compressor_size=compressor_size,
        resolution_ratio=resolution_ratio,
        image_token_id=3,
        video_token_id=4,
        **kwargs,
    )


def llava_config(name: str, scale: float = 1.0) -> LlavaConfig:
    """LLaVA-v1.5 with that text model."""
    vision = vision_config(scale)
    return LlavaConfig(
        text_config=text_config(name, scale),
        vision_config=vision,
        image_token_index=3,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )


def write_results(name: str, title: str, header: list[str], rows: list[list], device: str, notes: str = "", **facts):
    """Prints a markdown table and writes it, and the same unrounded as JSON, to `results/`."""
    facts = {
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        **facts,
    }
    lines = [f"# {title}", "", ", ".join(f"{key}: {value}" for key, value in facts.items()), ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(format_cell, row)) + " |" for row in rows]
    lines += ["", notes] if notes else []
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    table = {"title": title, "facts": facts, "notes": notes, "rows": [dict(zip(header, row)) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")


def format_cell(value: str | float | None) -> str:
    """Numbers with three digits, or all before the point; nothing for `None`."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
