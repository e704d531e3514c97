# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What fits on which GPU: bytes of weights, of a kept picture and of the language model's cache, computed from the
configuration on the meta device. Nothing is measured; activations and the driver's own memory are in the headroom.

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --model DIR_OR_REPO     # of a checkpoint's configuration
"""

import argparse

import torch
from shapes import mini_config, write_results
from torch import nn

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration


GIB, MIB = 2**30, 2**20
# Bytes of a weight. bitsandbytes keeps a float32 scale for each row in 8 bits, and for each 64 weights in 4 bits.
BF16, INT8, NF4 = 2, 1, 0.5
SCALE, NF4_BLOCK = 4, 64
HOURS = 3
FRAMES = HOURS * 3600  # one a second
GPUS_GIB = (8, 12, 16, 24, 40, 80)
# Of a GPU's memory for weights and cache; the rest is for activations, fragments and the driver.
USABLE = 0.9


def build_on_meta(config: LlavaMiniConfig) -> LlavaMiniForConditionalGeneration:
    """The model without numbers, in bfloat16."""
    with torch.device("meta"):
        return LlavaMiniForConditionalGeneration(config).to(torch.bfloat16)


def count_weights(model: LlavaMiniForConditionalGeneration, bits: int = 16) -> float:
    """Bytes of all weights, with what `quantization_config` would quantise in 8 or 4 bits."""
    total = sum(parameter.numel() for parameter in model.parameters()) * BF16
    if bits == 16:
        return total
    kept = tuple(f"{name}." for name in model._modules_to_not_quantize)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not f"{name}.".startswith(kept):
            count = module.weight.numel()
            scales = module.out_features if bits == 8 else count / NF4_BLOCK
            total += count * ((INT8 if bits == 8 else NF4) - BF16) + scales * SCALE
    return total


def count_context(model: LlavaMiniForConditionalGeneration, keep: str) -> int:
    """Bytes that `encode_visuals(keep=...)` keeps of one picture or frame."""
    vision = model.config.vision_config
    pixels = torch.empty(
        1, model.config.num_crops, vision.num_channels, vision.image_size, vision.image_size,
        device="meta", dtype=torch.bfloat16,
    )  # fmt: skip
    return model.encode_visuals(pixels, keep=keep).nbytes


def count_cache(config: LlavaMiniConfig, tokens: int) -> int:
    """Bytes of the language model's cache, in bfloat16."""
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return tokens * text.num_hidden_layers * 2 * text.num_key_value_heads * head * BF16


def find_gpu(needed: float) -> str:
    """The smallest GPU that holds so many bytes."""
    return next((f"{size} GB" for size in GPUS_GIB if needed <= USABLE * size * GIB), f"over {GPUS_GIB[-1]} GB")


def to_rows(name: str, config: LlavaMiniConfig) -> list[list]:
    """A row for each number of bits."""
    model = build_on_meta(config)
    contexts = [count_context(model, keep) / MIB for keep in ("features", "key_values")]
    video = count_cache(config, FRAMES * config.num_image_tokens)
    rows = []
    for bits in (16, 8, 4):
        weights = count_weights(model, bits)
        gpus = [find_gpu(weights), find_gpu(weights + video)]
        rows.append([name, bits, weights / GIB, *contexts, video / GIB, *gpus])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint, instead of the paper's shapes")
    arguments = parser.parse_args()
    if arguments.model:
        configs = {arguments.model: LlavaMiniConfig.from_pretrained(arguments.model)}
    else:
        configs = {
            "Vicuna-7B, 336 px": mini_config("Vicuna-7B"),
            "Llama-3.1-8B, 336 px": mini_config("Llama-3.1-8B"),
            "Vicuna-7B, 672 px, 64 tokens": mini_config("Vicuna-7B", compressor_size=8, resolution_ratio=2),
        }
    rows = [row for name, config in configs.items() for row in to_rows(name, config)]
    header = [
        "model", "bits", "weights GiB", "a picture kept as features, MiB", "as key_values, MiB",
        f"cache of {HOURS} hours of video, GiB", "a picture fits on", f"{HOURS} hours fit on",
    ]  # fmt: skip
    title = "Memory, computed from the configuration"
    write_results("memory", title, header, rows, device="meta", usable=USABLE)


if __name__ == "__main__":
    main()
