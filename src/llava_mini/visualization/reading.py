# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The attention itself: of vision tokens over patches, and of text over all that it reads in pre-fusion. Computed eagerly
in a pass of its own, by the model's own layers; the model's normal path neither knows nor pays. Shapes: see
`modeling_llava_mini.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.llama.modeling_llama import eager_attention_forward

from ..patch_budget_llava_mini import PatchBudget, choose_patches, read_budget
from ..prefusion_llava_mini import KeptText, KeyValues


@dataclass(frozen=True)
class UnitAttention:
    """
    What is read of one image or frame, in float32 on the CPU, averaged over heads.

    Args:
        tokens (`torch.Tensor` of shape `(CC, G * G)`): of each vision token over the patches, in the compressor.
        is_read (`torch.Tensor` of shape `(V,)`): which patches pre-fusion reads, as booleans.
        text (`torch.Tensor` of shape `(layers, T, V + CC + T)`, *optional*): of each text token that takes part over
            [patches | compressed tokens | text], in every pre-fusion layer. Each row sums to 1; patches that are not
            read, and text that comes later, have 0.
    """

    tokens: torch.Tensor
    is_read: torch.Tensor
    text: torch.Tensor | None


@torch.no_grad()
def read_units(
    model: PreTrainedModel,
    inputs: dict,
    prefusion_patches: float | None = None,
    prefusion_mass: float | None = None,
) -> Iterator[UnitAttention]:
    """
    The attention over every image, then every frame of a video, one at a time.

    Args:
        model (`LlavaMiniForConditionalGeneration` or `LlavaMiniModel`): wrapped by PEFT or not.
        inputs (`dict`): pixels as a processor makes them and, for the text, `input_ids` of one row.
        prefusion_patches, prefusion_mass (`float`, *optional*): which patches pre-fusion reads, see
            `LlavaMiniConfig`.

    Raises:
        ValueError: no LLaVA-Mini model, more than one row, or inputs that don't match the model.
    """
    front = find_front(model)
    text = read_text(front, inputs.get("input_ids"))
    pixels = {name: inputs.get(name) for name in ("pixel_values", "pixel_values_videos", "video_num_frames")}
    options = {"prefusion_patches": prefusion_patches, "prefusion_mass": prefusion_mass}
    visuals = front.open_visuals(**pixels, **options, output_compressor_attentions=True)
    budget = read_budget(front.config, prefusion_patches, prefusion_mass)
    for chunk in (chunk for visual in visuals.values() for chunk in visual.chunks):
        is_read = find_read_patches(front, chunk.attentions, budget)
        key_values = {}
        for units, part in chunk.groups():
            places = torch.arange(len(chunk.tokens))[units].tolist()
            for i, unit in enumerate(places):
                key_values[unit] = tuple((keys[i : i + 1], values[i : i + 1]) for keys, values in part.key_values)
        for unit, weights in enumerate(chunk.attentions.float().cpu()):
            read = None if text is None else attend(front, text, key_values[unit], is_read[unit])
            yield UnitAttention(weights, is_read[unit], read)


def prefusion_attentions(
    model: PreTrainedModel,
    inputs: dict,
    prefusion_patches: float | None = None,
    prefusion_mass: float | None = None,
) -> torch.Tensor:
    """
    What each text token reads in pre-fusion, `(layers, U, T, V + CC + T)`: the T tokens of one row that take part, over
    [patches | compressed tokens | text], averaged over heads; every row sums to 1. Arguments and errors: see
    `read_units`; `inputs` needs `input_ids`.

    Raises:
        ValueError: as `read_units`; or there is no text, no picture or no pre-fusion.
    """
    read = [unit.text for unit in read_units(model, inputs, prefusion_patches, prefusion_mass)]
    if not read or read[0] is None:
        raise ValueError(
            "Nothing reads anything here: `inputs` needs `input_ids` with text and pixels, as `apply_chat_template` "
            "makes them, and the model at least one pre-fusion layer (`num_prefusion_layers`)."
        )
    return torch.stack(read, dim=1)


def find_front(model: PreTrainedModel) -> PreTrainedModel:
    """
    The `LlavaMiniModel` in a model.

    Raises:
        ValueError: it is none of LLaVA-Mini's.
    """
    front = model
    while hasattr(front, "model"):
        front = front.model
    if not hasattr(front, "prefusion"):
        raise ValueError(
            f"Got a model of type {type(model).__name__}, but these pictures are of what LLaVA-Mini's compressor and "
            "pre-fusion read: pass a LLaVA-Mini model."
        )
    if "attention_function" not in signature(front.prefusion.forward).parameters:
        raise ValueError(
            f"The code of this {type(front).__name__} came with its checkpoint and is older than this package: load "
            "the model without `trust_remote_code`."
        )
    return front


def read_text(front: PreTrainedModel, input_ids: torch.Tensor | None) -> KeptText | None:
    """The text of `input_ids` `(1, S)` that takes part in pre-fusion; `None` where nothing does."""
    if input_ids is None or not len(front.prefusion.layers):
        return None
    if len(input_ids) != 1:
        raise ValueError(f"`input_ids` has {len(input_ids)} rows, but attention is read of one prompt at a time.")
    embeds = front.embed_prompt(input_ids)
    mask = front.get_text_fusion_mask(input_ids, embeds)
    return KeptText(embeds, mask, int(mask.sum())) if mask.any() else None


def find_read_patches(front: PreTrainedModel, attentions: torch.Tensor, budget: PatchBudget | None) -> torch.Tensor:
    """Which patches pre-fusion reads of each unit, `(U, V)`, by the compressor's `attentions` `(U, CC, G * G)`."""
    config = front.config
    num_patches = config.num_crops * config.vision_grid_size**2
    if budget is None:
        return torch.ones(len(attentions), num_patches, dtype=torch.bool)
    positions, counts = choose_patches(config, budget, attentions)
    is_first = torch.arange(num_patches) < torch.tensor(counts)[:, None]
    return torch.zeros_like(is_first).scatter(1, positions.cpu(), is_first)


def attend(front: PreTrainedModel, text: KeptText, key_values: KeyValues, is_read: torch.Tensor) -> torch.Tensor:
    """
    The text's attention over one unit, `(layers, T, V + CC + T)`.

    Args:
        key_values: of the patches that are read and the compressed tokens, `(1, key_value_heads, read + CC, head_dim)`.
        is_read (`torch.Tensor` of shape `(V,)`).
    """
    first = len(is_read) + front.config.num_image_tokens
    positions = torch.arange(first, first + text.length, device=text.embeds.device)[None]
    kept: list[torch.Tensor] = []
    front.prefusion(text.embeds, key_values, position_ids=positions, attention_function=keeping_attention(kept))
    weights = torch.stack(kept)
    is_there = torch.cat([is_read, torch.ones(weights.shape[-1] - int(is_read.sum()), dtype=torch.bool)])
    full = weights.new_zeros(*weights.shape[:-1], len(is_there))
    full[..., is_there] = weights
    return full


def keeping_attention(kept: list[torch.Tensor]) -> Callable:
    """
    Eager causal attention that also adds its weights, averaged over heads `(queries, keys)`, to `kept`. It takes the
    place of the configured implementation in one call alone, so that other threads' are not touched.
    """

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # What mask came, if any, is in the configured implementation's form.
        length, past = query.shape[2], key.shape[2] - query.shape[2]
        lowest = query.new_full((length, key.shape[2]), torch.finfo(query.dtype).min)
        attended, weights = eager_attention_forward(
            module, query, key, value, lowest.triu(past + 1)[None, None], scaling=scaling
        )
        kept.append(weights[0].float().mean(0).cpu())
        return attended, weights

    return attention


@dataclass(frozen=True)
class Prompt:
    """
    A question about one picture or video as the model reads it.

    Args:
        inputs (`dict`): `input_ids` and `attention_mask` `(1, S)`.
        words (`list[str]`): the question's tokens that take part in pre-fusion, as the tokenizer cuts them.
        text (`str`): the question as the prompt holds it.
        spans (`list[tuple[int, int]]`): of each word, where it stands in `text`.
        places (`list[int]`): of each, the how manieth text token it is that takes part, of T.
    """

    inputs: dict[str, torch.Tensor]
    words: list[str]
    text: str
    spans: list[tuple[int, int]]
    places: list[int]


def write_prompt(
    model: PreTrainedModel, processor: ProcessorMixin, modality: str, num_units: int, question: str
) -> Prompt:
    """
    What `apply_chat_template` makes of one user message: a picture or a video of `num_units` frames, and a question.
    Where the chat template changes the question so that it can't be found, `words` are all text that takes part, and
    `text` is the whole prompt.

    Raises:
        ValueError: the question is no text.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"`question` is {question!r}, but has to be text.")
    question = processor.break_placeholders(question.strip())
    message = {"role": "user", "content": [{"type": modality}, {"type": "text", "text": question}]}
    prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    token = getattr(processor, f"{modality}_token")
    prompt = prompt.replace(token, token * (num_units * processor.num_image_tokens))
    # The template writes the first token itself.
    tokenizer = processor.tokenizer
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", return_offsets_mapping=tokenizer.is_fast)
    front = find_front(model)
    inputs = inputs.to(front.get_input_embeddings().weight.device)
    ids = inputs["input_ids"]
    start = max(prompt.find(question, prompt.rfind(token) + len(token)), prompt.find(question))
    text = question if start >= 0 and tokenizer.is_fast else prompt
    start = max(start, 0)
    words, spans, places = [], [], []
    takes_part = front.get_text_fusion_mask(ids, front.embed_prompt(ids))[0]
    for place, position in enumerate(takes_part.nonzero()[:, 0].tolist()):
        # Slow tokenizers don't tell where a token stands: it may be anywhere.
        first, last = (
            inputs["offset_mapping"][0, position].tolist() if tokenizer.is_fast else (start, start + len(text))
        )
        if first < start + len(text) and last > start:
            shown = prompt[first:last] if tokenizer.is_fast else tokenizer.decode(ids[0, position])
            words.append(shown.strip() or repr(shown))
            spans.append((first - start, last - start))
            places.append(place)
    return Prompt({name: inputs[name] for name in ("input_ids", "attention_mask")}, words, text, spans, places)


__all__ = ["UnitAttention", "prefusion_attentions", "read_units"]
