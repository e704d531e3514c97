# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Which patches pre-fusion reads when it is not to read all: those that the compressor looked at most. Not in the paper.
Shapes: see `modeling_llava_mini.py`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class PatchBudget:
    """
    How many patches of a unit pre-fusion reads: a share of them, or as many as hold a share of the compressor's
    attention. One of both is set.

    Args:
        share (`float`, *optional*): in (0, 1), of the number of patches, rounded.
        mass (`float`, *optional*): in (0, 1), of the attention.
    """

    share: float | None = None
    mass: float | None = None

    def count(self, num_patches: int) -> int:
        """How many of `num_patches` a share keeps."""
        return round(self.share * num_patches)

    def mark(self, weights: torch.Tensor) -> torch.Tensor:
        """Which patches are kept, as booleans, by their weights, both `(U, patches)`; of equals the first."""
        ranked, order = weights.sort(dim=1, descending=True, stable=True)
        if self.mass is None:
            is_kept = torch.arange(weights.shape[1], device=weights.device) < self.count(weights.shape[1])
            is_kept = is_kept.expand_as(order)
        else:
            held_before = ranked.cumsum(1) - ranked
            is_kept = held_before < self.mass * ranked.sum(1, keepdim=True)
        return torch.zeros_like(is_kept).scatter(1, order, is_kept)


def check_budget(config: PreTrainedConfig, patches: float | None, mass: float | None) -> None:
    """
    Raises:
        ValueError: a share outside (0, 1] or of less than one patch, a mass outside (0, 1), or both.
    """
    if patches is not None and mass is not None:
        raise ValueError(
            f"`prefusion_patches` is {patches!r} and `prefusion_mass` is {mass!r}, but only one of them can say how "
            "many patches pre-fusion reads: leave one out."
        )
    if patches is not None and not (_is_number(patches) and 0 < patches <= 1):
        raise ValueError(
            f"`prefusion_patches` is {patches!r}, but has to be a share of the patches above 0 and at most 1, which "
            "reads all."
        )
    if mass is not None and not (_is_number(mass) and 0 < mass < 1):
        raise ValueError(
            f"`prefusion_mass` is {mass!r}, but has to be a share of the compressor's attention above 0 and below 1."
        )
    crop = config.vision_grid_size**2
    if patches is not None and patches * crop < 1:
        raise ValueError(
            f"`prefusion_patches` is {patches!r}, which is less than one of the {crop} patches of an image: give at "
            f"least {1 / crop:.2g}."
        )


def read_budget(config: PreTrainedConfig, patches: float | None, mass: float | None) -> PatchBudget | None:
    """
    What a call asks for, or else the configuration; `None` reads all patches.

    Raises:
        ValueError: see `check_budget`.
    """
    check_budget(config, patches, mass)
    if patches is None and mass is None:
        patches, mass = config.prefusion_patches, config.prefusion_mass
    return None if mass is None and patches in (None, 1) else PatchBudget(patches, mass)


def choose_patches(
    config: PreTrainedConfig, budget: PatchBudget, attentions: torch.Tensor
) -> tuple[torch.Tensor, list[int]]:
    """
    Which patches pre-fusion reads, by the compressor's attention averaged over its queries and heads. In high
    resolution the sub-images' raster by it, and the whole image by the same weights pooled to its grid.

    Args:
        attentions (`torch.Tensor` of shape `(U, CC, G * G)`): averaged over heads.

    Returns:
        Positions in [raster | whole image], `(U, V)`, of each unit those of the kept patches first, in ascending
        order; and how many these are.
    """
    weights = attentions.detach().float().mean(1)
    parts = [weights]
    ratio = config.resolution_ratio
    if ratio > 1:
        grid = weights.unflatten(1, (1, ratio * config.vision_grid_size, -1))
        parts.append(nn.functional.avg_pool2d(grid, ratio).flatten(1))
    is_kept = torch.cat([budget.mark(part) for part in parts], dim=1)
    positions = is_kept.logical_not().long().argsort(dim=1, stable=True)
    if budget.mass is None:  # known without a look at the device
        return positions, [sum(budget.count(part.shape[1]) for part in parts)] * len(weights)
    return positions, is_kept.sum(1).tolist()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
