# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
FLOPs of one prefill, counted by torch on the meta device at true sizes, stage by stage.

    python examples/benchmarks/flops.py

Counted are matrix products, convolutions and attention, two FLOPs a multiply-add; only the last token's logits.
"""

import torch
from shapes import llava_config, mini_config, write_results
from transformers import LlavaForConditionalGeneration

from llava_mini import LlavaMiniForConditionalGeneration
from llava_mini.flops import count_llava, count_mini


TEXT_TOKENS = 43
BUDGET_MODEL, BUDGETS = "Vicuna-7B", (1.0, 0.5, 0.25, 0.1)


def count_budgets() -> list[list]:
    """The prefill with fewer patches in pre-fusion, at both resolutions."""
    rows = []
    for size, ratio in ((1, 1), (8, 2)):
        config = mini_config(BUDGET_MODEL, compressor_size=size, resolution_ratio=ratio)
        with torch.device("meta"):
            mini = LlavaMiniForConditionalGeneration(config)
        for share in BUDGETS:
            stages = count_mini(mini, TEXT_TOKENS, prefusion_patches=share)
            total, tower = sum(stages.values()), stages["tower"]
            rows.append([BUDGET_MODEL, 336 * ratio, config.num_image_tokens, share, total / 1e12, tower / 1e12])
    return rows


def main():
    rows = []
    for name in ("Vicuna-7B", "Llama-3.1-8B"):
        with torch.device("meta"):
            llava = LlavaForConditionalGeneration(llava_config(name))
        baseline = sum(count_llava(llava, TEXT_TOKENS).values())
        rows.append([name, "LLaVA-v1.5", 336, 576, TEXT_TOKENS, baseline / 1e12, 1.0, None])
        for size, ratio in ((1, 1), (8, 2)):
            config = mini_config(name, compressor_size=size, resolution_ratio=ratio)
            with torch.device("meta"):
                mini = LlavaMiniForConditionalGeneration(config)
            stages = count_mini(mini, TEXT_TOKENS)
            total = sum(stages.values())
            again = total - stages["tower"] - stages["compressor, projector, pre-fusion of vision"]
            rows.append(
                [
                    name,
                    "LLaVA-Mini",
                    336 * ratio,
                    config.num_image_tokens,
                    TEXT_TOKENS,
                    total / 1e12,
                    total / baseline,
                    again / 1e12,
                ]
            )
    header = [
        "text model",
        "model",
        "pixels",
        "vision tokens",
        "text tokens",
        "TFLOPs",
        "relative to LLaVA-v1.5",
        "TFLOPs, second question",
    ]
    write_results("flops", "FLOPs of one prefill", header, rows, device="meta")
    header = ["text model", "pixels", "vision tokens", "prefusion_patches", "TFLOPs", "TFLOPs, tower alone"]
    title = "FLOPs of one prefill with fewer patches in pre-fusion"
    write_results("flops_budget", title, header, count_budgets(), device="meta")


if __name__ == "__main__":
    main()
