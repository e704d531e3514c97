# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
FLOPs of one prefill, counted by torch on the meta device at true sizes, stage by stage.

    python examples/benchmarks/flops.py

Counted are matrix products, convolutions and attention, two FLOPs a multiply-add; only the last token's logits.
"""

import torch
from shapes import llava_config, mini_config, write_results
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration

from llava_mini import LlavaMiniForConditionalGeneration
from llava_mini.patch_budget_llava_mini import read_budget


TEXT_TOKENS = 43
BUDGET_MODEL, BUDGETS = "Vicuna-7B", (1.0, 0.5, 0.25, 0.1)


def count(function) -> int:
    """FLOPs of one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def count_language_model(language_model: torch.nn.Module, prompt: torch.Tensor) -> int:
    """FLOPs over a prompt `(1, length, D)`; with a ready mask, since making one looks at values."""
    length = prompt.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=prompt.device)
    return count(lambda: language_model(inputs_embeds=prompt, attention_mask=mask, use_cache=False))


def count_mini(
    model: LlavaMiniForConditionalGeneration, text_tokens: int, num_images: int = 1, prefusion_patches: float = 1.0
) -> dict[str, int]:
    """
    Stage by stage, with the calls that the forward pass makes: reading placeholders needs real ids, which the meta
    device has none of. A test compares the sum with a whole forward pass at a small size.
    """
    budget = read_budget(model.config, prefusion_patches, None)
    base, config = model.model, model.config
    vision, device = config.vision_config, model.device
    size = vision.image_size
    pixels = torch.empty(
        num_images, config.num_crops, vision.num_channels, size, size, device=device, dtype=model.dtype
    )
    width = config.text_config.hidden_size
    text = torch.empty(num_images, text_tokens, width, device=device, dtype=model.dtype)
    length = num_images * config.num_image_tokens + text_tokens
    prompt = torch.empty(1, length, width, device=device, dtype=model.dtype)
    with torch.no_grad():
        features = base.extract_features(pixels)
        chunk = base.encode_features(features, budget=budget)
    return {
        "tower": count(lambda: base.extract_features(pixels)),
        "compressor, projector, pre-fusion of vision": count(lambda: base.encode_features(features, budget=budget)),
        "pre-fusion of text": count(lambda: base.prefusion(text, chunk.key_values)),
        "language model": count_language_model(base.language_model, prompt),
        "head": count(lambda: model.lm_head(prompt[:, -1:])),
    }


def count_llava(model: LlavaForConditionalGeneration, text_tokens: int) -> dict[str, int]:
    """The same stages of LLaVA-v1.5, whose tower runs all its layers."""
    base = model.model
    vision, text = model.config.vision_config, model.config.text_config
    pixels = torch.empty(1, 3, vision.image_size, vision.image_size, device=model.device)
    length = (vision.image_size // vision.patch_size) ** 2 + text_tokens
    prompt = torch.empty(1, length, text.hidden_size, device=model.device)
    return {
        "tower and projector": count(lambda: base.get_image_features(pixels, return_dict=True)),
        "language model": count_language_model(base.language_model, prompt),
        "head": count(lambda: model.lm_head(prompt[:, -1:])),
    }


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
