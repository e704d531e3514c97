# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What answers are worth when text can't read vision tokens in some layers (the paper's figure 5).

The paper removes vision tokens from layers and does not say how. Here, in the chosen layers no text token attends to a
vision token, as if their keys were not there: the rest of the attention sums to 1 without them. Positions stay, and
vision tokens go on among themselves, so that a later layer finds them as ever. Left out from a layer to the last one,
this is for the text exactly a prompt that loses its vision tokens there. In LLaVA-Mini's pre-fusion layers "vision" is
patches and compressed tokens; the vision tokens that the language model gets stay the same.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from .layers import Layer, Watch, check_prompt_length, find_layers, telling_text_calls, watching
from .questions import Question, encode_prompts, find_vision_ids, read_questions


# The key of the score of the model as it is.
NOTHING_LEFT_OUT = "nothing"


@dataclass(frozen=True)
class Score:
    """Answers that were right, of `n`."""

    right: int
    n: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.n


@contextmanager
def leave_out_vision(model: PreTrainedModel, layers: Collection[str], is_vision: torch.Tensor) -> Iterator[None]:
    """
    Hides vision tokens from text tokens in some layers, with eager attention, while the block runs: for `forward` and
    for greedy `generate` with or without its usual cache.

    Args:
        layers (`Collection[str]`): names, as `find_layers` gives them.
        is_vision (`torch.Tensor` of shape `(B, S)`): where vision tokens stand in the prompts that are run.

    Raises:
        ValueError: unknown layers; rows that are not those of `is_vision`; a cache that holds other keys than the
            prompt's and those of new tokens (sliding windows that are full, static caches).
    """
    found = find_layers(model)
    unknown = sorted(set(layers) - {layer.name for layer in found})
    if unknown or isinstance(layers, str):
        raise ValueError(f"`layers` are {layers!r}, but have to be of {[layer.name for layer in found]}.")
    if is_vision.ndim != 2:
        raise ValueError(f"`is_vision` has shape {tuple(is_vision.shape)}, but has to be (rows, tokens).")
    check_prompt_length(model, is_vision.shape[1])
    with telling_text_calls(model) as reads_text:
        edits = {
            layer.attention: Watch(edit_mask=partial(_hide_patches, reads_text))
            if layer.is_prefusion
            else Watch(edit_mask=partial(_hide_vision, layer, is_vision.bool()))
            for layer in found
            if layer.name in layers
        }
        with watching(model, edits):
            yield


def _hide_patches(reads_text: Callable[[], bool], mask: torch.Tensor) -> torch.Tensor:
    """What text may read in pre-fusion, `(1, 1, queries, keys)`, without what stands before the text."""
    if not reads_text():
        return mask
    num_queries, num_keys = mask.shape[-2:]
    is_vision = torch.arange(num_keys, device=mask.device) < num_keys - num_queries
    return mask.masked_fill(is_vision, torch.finfo(mask.dtype).min)


def _hide_vision(layer: Layer, is_vision: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What text may read in the language model, `(B, 1, queries, keys)`, without vision tokens."""
    num_queries, num_keys = mask.shape[-2:]
    window = getattr(layer.attention, "sliding_window", None)
    missing = num_keys - is_vision.shape[1]
    if missing < 0 or len(mask) != len(is_vision) or (window is not None and num_keys >= window):
        raise ValueError(
            f"Attention runs over {len(mask)} row(s) of {num_keys} keys (sliding window: {window}), but `is_vision` is "
            f"of prompts {tuple(is_vision.shape)}: run these, with room for all their tokens."
        )
    hidden = nn.functional.pad(is_vision, (0, missing)).to(mask.device)
    hides = hidden[:, None, None] & ~hidden[:, None, num_keys - num_queries :, None]  # (B, 1, queries, keys)
    return mask.masked_fill(hides, torch.finfo(mask.dtype).min)


def is_exact_match(given: str, answer: str) -> bool:
    """Equal but for space around them."""
    return given.strip() == answer.strip()


def measure_accuracy(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question | tuple],
    left_out: Mapping[str, Collection[str]],
    batch_size: int = 16,
    max_new_tokens: int = 16,
    is_right: Callable[[str, str], bool] = is_exact_match,
) -> dict[str, Score]:
    """
    Right answers with vision tokens left out of some layers, and as the model is.

    Args:
        model: any model that `find_layers` knows, in evaluation mode.
        processor: its own, with a chat template.
        questions: `Question`s or tuples of picture, text and answer.
        left_out: by a name of your own, the names of layers; e.g. `{"1-4": ["layer 1", "layer 2", "layer 3",
            "layer 4"]}`.
        batch_size (`int`): questions answered at a time.
        max_new_tokens (`int`): at most so long is an answer.
        is_right: what the model answered and the right answer to whether it counts.

    Returns:
        `{"nothing": Score, name: Score, ...}`.

    Raises:
        ValueError: questions without answers; as `leave_out_vision`.
    """
    questions = read_questions(questions)
    if any(question.answer is None for question in questions):
        raise ValueError("Accuracy needs the right answer of every question.")
    if NOTHING_LEFT_OUT in left_out or batch_size < 1:
        raise ValueError(f"{NOTHING_LEFT_OUT!r} is the model as it is, and `batch_size` has to be 1 or more.")
    vision_ids = find_vision_ids(processor, model)
    right = dict.fromkeys([NOTHING_LEFT_OUT, *left_out], 0)
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        inputs = encode_prompts(processor, [question.to_chat() for question in batch], model)
        ids = inputs["input_ids"]
        is_vision = torch.isin(ids, ids.new_tensor(vision_ids))
        for name in right:
            with leave_out_vision(model, left_out.get(name, ()), is_vision), torch.no_grad():
                made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            given = processor.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
            right[name] += sum(is_right(text, question.answer) for text, question in zip(given, batch))
    return {name: Score(count, len(questions)) for name, count in right.items()}
