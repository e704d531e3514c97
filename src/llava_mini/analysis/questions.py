# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about pictures as a model gets them, and of which kind each of their tokens is."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin


# What tokens are, in the paper's order; a token's kind is its index.
KINDS = ("instruction", "vision", "response")
INSTRUCTION, VISION, RESPONSE = range(len(KINDS))


class Question(NamedTuple):
    """
    A question about one picture.

    Args:
        picture (`PIL.Image.Image` or `str`): or its path or URL.
        text (`str`).
        answer (`str`, *optional*): the right one; without it, attention is measured over the model's own.
    """

    picture: Image.Image | str
    text: str
    answer: str | None = None

    def to_chat(self) -> list[dict]:
        """The question as chat templates take it."""
        content = [{"type": "image", "image": self.picture}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


def read_questions(questions: Sequence[Question | tuple]) -> list[Question]:
    """
    Raises:
        ValueError: there are none, or something is no picture with a question.
    """
    questions = list(questions)
    if not questions:
        raise ValueError("There are no questions to measure with.")
    for i, question in enumerate(questions):
        if not isinstance(question, tuple) or not 2 <= len(question) <= 3 or not isinstance(question[1], str):
            raise ValueError(
                f"Question {i} is {type(question).__name__}, but has to be a tuple of a picture, the question's text "
                "and the answer's."
            )
    return [Question(*question) for question in questions]


def encode_prompts(processor: ProcessorMixin, chats: list[list[dict]], model: PreTrainedModel) -> BatchFeature:
    """Chats, left-padded, as `generate` takes them, on the model's device and in its type."""
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return inputs.to(model.device, dtype=model.dtype)


def find_vision_ids(processor: ProcessorMixin, model: PreTrainedModel) -> list[int]:
    """
    The placeholders' ids, of images and of videos, where there are such.

    Raises:
        ValueError: the processor has none, or others than the model.
    """
    found = {}
    for name in ("image_token_id", "video_token_id"):
        own, expected = getattr(processor, name, None), getattr(model.config, name, None)
        if own is not None and expected is not None and own != expected:
            raise ValueError(
                f"The processor's `{name}` is {own}, the model's {expected}: use the processor saved with the model."
            )
        if own is not None or expected is not None:
            found[name] = own if own is not None else expected
    if not found:
        raise ValueError(
            f"Neither {type(processor).__name__} nor {type(model.config).__name__} has an `image_token_id` or "
            "`video_token_id`, by which vision tokens are found."
        )
    return list(found.values())


def find_kinds(input_ids: torch.Tensor, vision_ids: Sequence[int], prompt_length: int) -> torch.Tensor:
    """
    The kind of each token: vision where a placeholder stands, response behind the prompt, else instruction (system
    message and headers of turns included).

    Args:
        input_ids (`torch.Tensor` of shape `(S,)`): a prompt with expanded placeholders, and the response.
        vision_ids (`Sequence[int]`): ids of placeholders.
        prompt_length (`int`): tokens before the response.

    Returns:
        `torch.Tensor` of shape `(S,)`, indices into `KINDS`.

    Raises:
        ValueError: not one row of ids; a prompt longer than the row or without placeholders; placeholders in the
            response.
    """
    if input_ids.ndim != 1 or input_ids.is_floating_point():
        raise ValueError(f"`input_ids` are {input_ids.dtype} {tuple(input_ids.shape)}, but have to be one row of ids.")
    if not 0 < prompt_length <= len(input_ids):
        raise ValueError(f"`prompt_length` is {prompt_length}, but the row has {len(input_ids)} tokens.")
    is_vision = torch.isin(input_ids, input_ids.new_tensor(list(vision_ids)))
    asked, answered = (int(part.sum()) for part in (is_vision[:prompt_length], is_vision[prompt_length:]))
    if not asked or answered:
        raise ValueError(
            f"Of the placeholders {list(vision_ids)} {asked} stand in the prompt and {answered} in the response, but "
            "all have to stand in the prompt, one at least."
        )
    kinds = torch.full_like(input_ids, INSTRUCTION)
    kinds[prompt_length:] = RESPONSE
    return kinds.masked_fill(is_vision, VISION)
