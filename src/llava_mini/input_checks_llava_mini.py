# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What a model refuses: arguments with wrong names, tensors of wrong types and shapes. Every check looks at names, dtypes
and shapes and never at values, which would make the processor wait for the device.

A mask is of booleans or of numbers, of which those above 0.5 mean yes and all others, not-a-number among them, no.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from inspect import Parameter, signature

import torch
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.utils import TransformersKwargs


# Above it a number in a mask means yes: 1 does, in whatever precision, and nothing in an additive mask.
MASK_THRESHOLD = 0.5
# What the loss reads of them.
LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")
# What transformers hands through a model's keyword arguments to its text model, its attention and its loss.
PASSED_THROUGH = {
    *TransformersKwargs.__optional_keys__,
    *FlashAttentionKwargs.__optional_keys__,
    *LOSS_OPTIONS,
    "use_cache",
    "return_dict",
}


def check_arguments(names: Iterable[str], method: Callable):
    """
    Refuses what came as `**kwargs` of `method` and nobody would read.

    Raises:
        TypeError: an unknown name, as Python raises it.
    """
    for name in names:
        if name not in PASSED_THROUGH:
            close = get_close_matches(name, signature(method).parameters, n=1)
            hint = f": did you mean `{close[0]}`?" if close else "."
            raise TypeError(f"{method.__name__}() got an unexpected keyword argument '{name}'{hint}")


def with_parameters_of(inner: Callable) -> Callable:
    """
    Shows a method that hands its `**kwargs` to `inner` with the parameters of both, for `help`, and for everybody in
    transformers who asks a signature what a model takes.
    """

    def decorate(method: Callable) -> Callable:
        own = [p for p in signature(method).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        handed = [p for p in signature(inner).parameters.values() if p.name not in {p.name for p in own}]
        handed = [p if p.kind is Parameter.VAR_KEYWORD else p.replace(kind=Parameter.KEYWORD_ONLY) for p in handed]
        method.__signature__ = signature(method).replace(parameters=own + handed)
        return method

    return decorate


def check_ids(name: str, ids: torch.Tensor | None, shape: tuple[int, ...] | None = None):
    """
    Raises:
        ValueError: `ids` are not integers `(B, S)`, or not of `shape` when one is given.
    """
    if ids is None:
        return
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or not _is_integer(ids):
        raise ValueError(f"`{name}` {describe(ids)}, but has to be integers of shape (rows, tokens).")
    if shape is not None and tuple(ids.shape) != tuple(shape):
        raise ValueError(f"`{name}` has shape {tuple(ids.shape)}, but the prompt has {tuple(shape)} (rows, tokens).")


def check_embeds(inputs_embeds: torch.Tensor | None, width: int):
    """
    Raises:
        ValueError: not floating point `(B, S, D)`.
    """
    if inputs_embeds is not None and not (
        isinstance(inputs_embeds, torch.Tensor)
        and inputs_embeds.is_floating_point()
        and inputs_embeds.ndim == 3
        and inputs_embeds.shape[-1] == width
    ):
        raise ValueError(
            f"`inputs_embeds` {describe(inputs_embeds)}, but has to be floating point of shape (rows, tokens, {width})."
        )


def check_mask(
    name: str, mask: torch.Tensor | None, shape: tuple[int, int], follows_cache: bool = False
) -> torch.Tensor | None:
    """
    The mask as integers 0 and 1, which positions are counted by.

    Args:
        shape: rows and tokens of the prompt `(B, S)`.
        follows_cache (`bool`): the mask may also cover what comes before these tokens.

    Raises:
        ValueError: complex numbers, or not one a token.
    """
    if mask is None:
        return None
    length = mask.shape[-1] if isinstance(mask, torch.Tensor) and mask.ndim else 0
    expected = (shape[0], max(shape[1], length) if follows_cache else shape[1])
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != expected:
        raise ValueError(f"`{name}` {describe(mask)}, but has to have shape {expected}, one flag a token a row.")
    if mask.is_complex():
        raise ValueError(f"`{name}` {describe(mask)}, but a mask has to be of booleans or real numbers.")
    return (mask if mask.dtype == torch.bool else mask > MASK_THRESHOLD).long()


def check_rows_attend(counts: list[int]):
    """
    Raises:
        ValueError: a row of `counts` attended tokens has none.
    """
    if empty := [row for row, count in enumerate(counts) if not count]:
        raise ValueError(
            f"`attention_mask` leaves no token of row {empty[0]}. It has to be 1 (above {MASK_THRESHOLD}) where a token "
            "counts and 0 at padding; an additive mask (0 and large negative numbers) is none."
        )


def check_positions(position_ids: torch.Tensor | None, shape: tuple[int, int]):
    """
    Raises:
        ValueError: not integers `(B, S)` or `(1, S)`.
    """
    if position_ids is None:
        return
    rows, length = shape
    if not isinstance(position_ids, torch.Tensor) or not _is_integer(position_ids) or position_ids.ndim != 2:
        raise ValueError(f"`position_ids` {describe(position_ids)}, but has to be integers of shape {shape}.")
    if position_ids.shape[0] not in (1, rows) or position_ids.shape[1] != length:
        raise ValueError(f"`position_ids` has shape {tuple(position_ids.shape)}, but has to be {(rows, length)}.")


def check_logits_to_keep(logits_to_keep: int | torch.Tensor):
    """
    Raises:
        ValueError: a negative number, or a tensor of something else than positions.
    """
    is_tensor = isinstance(logits_to_keep, torch.Tensor)
    if is_tensor and not (_is_integer(logits_to_keep) or logits_to_keep.dtype == torch.bool):
        raise ValueError(f"`logits_to_keep` {describe(logits_to_keep)}, but has to be positions in the prompt.")
    if not is_tensor and (not isinstance(logits_to_keep, int) or logits_to_keep < 0):
        raise ValueError(
            f"`logits_to_keep` is {logits_to_keep!r}, but has to be how many of the last logits to compute, 0 for all."
        )


def check_pixels(name: str, pixel_values: torch.Tensor, ndim: int, expected: tuple[int, ...], hint: str):
    """
    Raises:
        ValueError: pixels are not floating point, have not `ndim` dimensions, or end in another shape than `expected`
            (crops, channels, height, width).
    """
    if (
        not isinstance(pixel_values, torch.Tensor)
        or not pixel_values.is_floating_point()
        or pixel_values.ndim != ndim
        or tuple(pixel_values.shape[-4:]) != expected
    ):
        leading = "images" if ndim == 5 else "videos, frames"
        raise ValueError(
            f"`{name}` {describe(pixel_values)}, but has to be floating point of shape ({leading}, crops, channels, "
            f"height, width) ending in {expected}: {hint}"
        )


def describe(value) -> str:
    """What came, for a message."""
    if isinstance(value, torch.Tensor):
        return f"has shape {tuple(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    return f"is of type {type(value).__name__}"


def _is_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
