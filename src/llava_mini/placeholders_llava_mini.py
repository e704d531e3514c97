# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Where in a prompt vision tokens belong, whose they are, and which text is read with them. Shapes: see
`modeling_llava_mini.py`.
"""

from collections.abc import Iterable

import torch
from torch import nn

from .configuration_llava_mini import LlavaMiniConfig
from .input_checks_llava_mini import check_mask


def find_token(
    token_id: int, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, embedding: nn.Embedding
) -> torch.Tensor:
    """
    Where `token_id` stands, `(B, S)`: by id, or by its embedding when there are no ids.

    Raises:
        ValueError: there are no ids, and the token has no embedding.
    """
    if input_ids is not None:
        found = input_ids == token_id
        # With a device_map, embeddings are where the embedding matrix is and ids where the model begins.
        return found if inputs_embeds is None else found.to(inputs_embeds.device)
    if token_id >= embedding.num_embeddings:
        raise ValueError(
            f"Token id {token_id} has no embedding, so it can't be found in `inputs_embeds`: pass `input_ids`, or "
            "resize the embeddings and set the placeholder's id inside the vocabulary."
        )
    token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
    return (inputs_embeds == embedding(token)).all(-1)


def find_fusible_text(
    config: LlavaMiniConfig,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    embedding: nn.Embedding,
    attention_mask: torch.Tensor | None,
    text_fusion_mask: torch.Tensor | None,
) -> torch.Tensor:
    """
    Which text takes part in pre-fusion, `(B, S)`: what `text_fusion_mask` allows (by default all but an answer at the
    end), without padding, placeholders and the configuration's ignored ids, which never do.
    """
    shape = inputs_embeds.shape[:2]
    if text_fusion_mask is None and input_ids is not None:
        text_fusion_mask = find_prompt(config, input_ids)
    mask = torch.ones(shape, dtype=torch.bool, device=inputs_embeds.device)
    for name, given in (("attention_mask", attention_mask), ("text_fusion_mask", text_fusion_mask)):
        given = check_mask(name, given, shape)
        mask = mask if given is None else mask & given.to(mask)
    for token_id in (config.image_token_id, config.video_token_id, *config.prefusion_ignored_token_ids):
        mask = mask & ~find_token(token_id, input_ids, inputs_embeds, embedding)
    return mask


def find_prompt(config: LlavaMiniConfig, input_ids: torch.Tensor) -> torch.Tensor:
    """
    Where `input_ids` `(B, S)` hold no answer, `(B, S)`: an answer is what follows the last assistant header when no
    user header comes after it. `generate` leaves the tokens it makes out of pre-fusion, so text that is scored or
    continued is treated alike.
    """
    opened, asked = (find_last(headers, input_ids) for headers in (config.assistant_headers, config.user_headers))
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (opened < asked) | (positions <= opened) | (opened < 0)


def find_last(sequences: list[list[int]], input_ids: torch.Tensor) -> torch.Tensor:
    """The place of the last token of the last of `sequences` in each row of `input_ids` `(B, S)`, `(B, 1)`; or -1."""
    last = input_ids.new_full((len(input_ids), 1), -1)
    for sequence in sequences:
        if 0 < len(sequence) <= input_ids.shape[1]:
            windows = input_ids.unfold(1, len(sequence), 1)  # (B, S - n + 1, n)
            found = (windows == input_ids.new_tensor(sequence)).all(-1)
            ends = torch.arange(len(sequence) - 1, input_ids.shape[1], device=input_ids.device)
            last = torch.maximum(last, torch.where(found, ends, -1).amax(1, keepdim=True))
    return last


def read_counts(masks: Iterable[torch.Tensor]) -> list[list[int]]:
    """
    How many tokens of each row are set in each mask `(B, S)`. A prefill waits for the device here and nowhere else,
    so that wrong prompts raise errors; decoding doesn't wait at all.
    """
    return torch.stack([mask.sum(1) for mask in masks]).tolist()


def check_no_placeholders(placeholders: dict[str, torch.Tensor]):
    """Raises a ValueError when a prompt without images and videos holds placeholders."""
    for modality, held in zip(placeholders, read_counts(placeholders.values())):
        check_nothing_held(modality, held)


def check_nothing_held(modality: str, held: list[int]):
    """Raises a ValueError when rows hold placeholders that nothing was passed for."""
    if count := sum(held):
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[modality]
        raise ValueError(
            f"The prompt holds {count} {modality} placeholder token(s), but no `{pixels}` were passed: pass them, or "
            "take the placeholders out of the text."
        )


def find_rows(config: LlavaMiniConfig, mask: torch.Tensor, num_units: int) -> torch.Tensor:
    """The row of each of `num_units` units `(U,)`, by the placeholders `mask` `(B, S)`, which have to match."""
    rows = torch.arange(len(mask), device=mask.device)
    return rows.repeat_interleave(mask.sum(1) // config.num_image_tokens, output_size=num_units)


def assign_units(config: LlavaMiniConfig, modality: str, held: list[int], sizes: list[int]) -> list[int]:
    """
    The row of each image or video: rows take them in order until their placeholders are filled.

    Args:
        held (`list[int]`): placeholders of each row.
        sizes (`list[int]`): visual units of each image or video.

    Raises:
        ValueError: placeholders and vision tokens don't match; the message names both counts.
    """
    needed = [size * config.num_image_tokens for size in sizes]
    rows: list[int] = []
    for row, missing in enumerate(held):
        while missing > 0 and len(rows) < len(needed):
            missing -= needed[len(rows)]
            rows.append(row)
        if missing:
            break
    else:
        if len(rows) == len(needed):
            return rows
    raise ValueError(
        f"{modality.capitalize()} tokens and features don't match: the rows hold {held} {modality} placeholder "
        f"tokens ({sum(held)} in all), but the {len(needed)} {modality}(s) passed need {needed} "
        f"({sum(needed)} in all). Write one placeholder an {modality} and let the processor expand it; its "
        f"`compressor_size` has to be the model's, {config.compressor_size}."
    )


def check_units(
    config: LlavaMiniConfig, held: dict[str, list[int]], sizes: dict[str, list[int]]
) -> dict[str, list[int]]:
    """
    The row of each image and of each video, by how many placeholders each row holds.

    Args:
        held (`dict[str, list[int]]`): by modality, placeholders of each row.
        sizes (`dict[str, list[int]]`): by modality, visual units of each image (1) or video (its frames).

    Raises:
        ValueError: placeholders and what was passed don't match.
    """
    for modality, counts in held.items():
        if modality not in sizes:
            check_nothing_held(modality, counts)
    return {modality: assign_units(config, modality, held[modality], own) for modality, own in sizes.items()}
