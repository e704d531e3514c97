# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
FLOPs of one prefill, counted by torch on models that may lie on the meta device, stage by stage.

Counted are matrix products, convolutions and attention, two FLOPs a multiply-add; only the last token's logits.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration

from .configuration_llava_mini import LlavaMiniConfig
from .modeling_llava_mini import LlavaMiniForConditionalGeneration
from .patch_budget_llava_mini import read_budget


def count(function: Callable) -> int:
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


class PrefillCosts:
    """
    FLOPs of any prefill of a model, and of LLaVA-v1.5 made of the same tower and text model, at once: counted at two
    lengths on the meta device, of which all others follow, since they grow with the tokens that run (linear layers)
    and with the pairs of tokens that run and are read (attention).

    Args:
        config (`LlavaMiniConfig`).

    Attributes:
        llava_tokens (`int`): vision tokens that LLaVA-v1.5 has an image.
    """

    def __init__(self, config: LlavaMiniConfig):
        self.llava_tokens = config.vision_grid_size**2
        self.mini_tokens, self.num_patches = config.num_image_tokens, config.num_crops * config.vision_grid_size**2
        with torch.device("meta"):
            mini = LlavaMiniForConditionalGeneration(config)
            llava = LlavaForConditionalGeneration(llava_twin_config(config))
        one, two = count_mini(mini, 1), count_mini(mini, 2)
        self.head = one["head"]
        self.image = one["tower"] + one["compressor, projector, pre-fusion of vision"]
        past = self.num_patches + self.mini_tokens
        self.fusion = _solve((1, past + 1, one["pre-fusion of text"]), (2, past + 2, two["pre-fusion of text"]))
        lengths = [self.mini_tokens + count for count in (1, 2)]
        self.language = _solve(*((n, n, part["language model"]) for n, part in zip(lengths, (one, two))))
        self.llava_image = count_llava(llava, 1)["tower and projector"]

    def mini(
        self,
        num_images: int,
        text_tokens: int,
        fused_tokens: int,
        kept_tokens: int = 0,
        kept_fused_tokens: int = 0,
        is_encoded: bool = False,
    ) -> int:
        """
        FLOPs of LLaVA-Mini's prefill.

        Args:
            num_images (`int`): images, or frames of videos.
            text_tokens, fused_tokens (`int`): of the whole prompt, those that are text, and those of them that take
                part in pre-fusion.
            kept_tokens, kept_fused_tokens (`int`): those of the whole prompt (vision tokens included) and of the fused
                text that a `vision_context` has kept and nobody runs again.
            is_encoded (`bool`): whether it has kept the images, too.
        """
        total = num_images * self.mini_tokens + text_tokens
        new, new_fused = total - kept_tokens, fused_tokens - kept_fused_tokens
        linear, pairs = self.fusion
        past = self.num_patches + self.mini_tokens
        fusion = num_images * new_fused * (linear + pairs * (past + fused_tokens))
        linear, pairs = self.language
        return (0 if is_encoded else num_images * self.image) + fusion + new * (linear + pairs * total) + self.head

    def llava(self, num_images: int, text_tokens: int) -> int:
        """FLOPs of LLaVA-v1.5's prefill of the same prompt, everything run."""
        total = num_images * self.llava_tokens + text_tokens
        linear, pairs = self.language
        return num_images * self.llava_image + total * (linear + pairs * total) + self.head


def _solve(first: tuple[int, int, int], second: tuple[int, int, int]) -> tuple[int, int]:
    """FLOPs a token that runs and FLOPs a pair, from two counts: (tokens that run, tokens they read, FLOPs)."""
    (runs, reads, flops), (more_runs, more_reads, more_flops) = first, second
    pairs = (more_flops // more_runs - flops // runs) // (more_reads - reads)
    return flops // runs - pairs * reads, pairs


def llava_twin_config(config: LlavaMiniConfig) -> LlavaConfig:
    """LLaVA-v1.5 made of the same vision tower and text model, to compare with."""
    vision = config.vision_config
    return LlavaConfig(
        text_config=config.text_config,
        vision_config=vision,
        image_token_index=config.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
