# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
How much each kind of token attends to each kind, and how evenly (the paper's figures 2 and 3, equations 4 and 5).

For a model without pre-fusion the kinds are those of the language model's input, where every patch is a vision token.
LLaVA-Mini has two places where text meets a picture. In its pre-fusion layers "vision" is the picture's patches and,
behind them, its compressed tokens, "instruction" is the text that takes part, and there is no response, which takes no
part. In its language model "vision" is the C * C tokens a picture that are left. In the last pre-fusion layer the
vision tokens that attend are the compressed ones alone, since nobody computes the others. Several pictures or frames
count together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from .layers import Layer, Watch, check_prompt_length, find_layers, find_prefusion, telling_text_calls, watching
from .questions import (
    INSTRUCTION,
    KINDS,
    RESPONSE,
    VISION,
    Question,
    encode_prompts,
    find_kinds,
    find_vision_ids,
    read_questions,
)


# Of an answer that the model gives itself; the paper's own are not known.
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class AttentionByLayer:
    """
    Attention by layer, kind of the tokens that attend (target) and kind of those that are attended to (source).

    Args:
        layers (`tuple[str, ...]`): L names, in the order in which they run.
        attention (`torch.Tensor` of shape `(L, 3, 3)`): what of its attention, 1 in all, a target token gives to all
            sources of the kind together; a mean over the heads, the target tokens that give any, and the samples.
        entropy (`torch.Tensor` of shape `(L, 3, 3)`): in nats, of what it gives to the sources of the kind made to sum
            to 1; a mean over the same. `log(n)` when it is even over n.
        num_sources (`torch.Tensor` of shape `(L, 3)`): how many tokens of the kind there are, in pre-fusion beside one
            picture or frame; a mean over the samples.
        num_samples (`int`).

    Not-a-number where no target token attends to such sources. Kinds in the order of `KINDS`.
    """

    layers: tuple[str, ...]
    attention: torch.Tensor
    entropy: torch.Tensor
    num_sources: torch.Tensor
    num_samples: int

    def to_dict(self) -> dict:
        """For JSON; `None` for not-a-number."""

        def to_list(values: torch.Tensor | list) -> list:
            values = values.tolist() if isinstance(values, torch.Tensor) else values
            if isinstance(values, list):
                return [to_list(value) for value in values]
            return None if values != values else round(values, 6)

        arrays = {name: to_list(getattr(self, name)) for name in ("attention", "entropy", "num_sources")}
        return {"kinds": list(KINDS), "layers": list(self.layers), "num_samples": self.num_samples, **arrays}


def sum_by_kind(weights: torch.Tensor, target_kinds: torch.Tensor, source_kinds: torch.Tensor) -> torch.Tensor:
    """
    What a layer's attention over one row comes to, to be added to that over others.

    Args:
        weights (`torch.Tensor` of shape `(heads, queries, keys)`): each query's over the keys, summing to 1.
        target_kinds (`torch.Tensor` of shape `(queries,)`), source_kinds (`(keys,)`): indices into `KINDS`.

    Returns:
        `torch.Tensor` of shape `(3, 3, 3)`: attention, entropy, number of target tokens that attend at all; each by
        target and source.

    Raises:
        ValueError: the shapes don't belong together.
    """
    if weights.ndim != 3 or weights.shape[1:] != (len(target_kinds), len(source_kinds)):
        raise ValueError(
            f"`weights` have shape {tuple(weights.shape)}, but have to be (heads, {len(target_kinds)} queries, "
            f"{len(source_kinds)} keys), as the kinds are."
        )
    # In double precision, since the entropy is a difference of larger numbers; not every accelerator has it.
    weights = weights.detach().float().mean(0).cpu().double()
    targets, sources = (
        nn.functional.one_hot(kinds.cpu(), len(KINDS)).double() for kinds in (target_kinds, source_kinds)
    )
    given = weights @ sources  # (queries, 3)
    attends = (given > 0).double()
    # -sum (w/g) log (w/g) = log g - sum w log w / g
    spread = torch.xlogy(weights, weights) @ sources
    entropy = torch.where(given > 0, given.log() - spread / given, 0.0).clamp(min=0)
    return torch.stack([targets.T @ given, targets.T @ entropy, targets.T @ attends])


def count_kinds(kinds: torch.Tensor) -> torch.Tensor:
    """How many tokens of each kind, `(3,)`."""
    return torch.bincount(kinds.cpu(), minlength=len(KINDS)).double()


class _Sums:
    """One row's attention in every layer, added up while the model runs."""

    def __init__(self, layers: Sequence[Layer], kinds: torch.Tensor, reads_text: Callable[[], bool]):
        self.kinds, self.reads_text = kinds, reads_text
        self.sums = {layer.name: torch.zeros(3, len(KINDS), len(KINDS), dtype=torch.double) for layer in layers}
        self.sources = {layer.name: count_kinds(kinds) for layer in layers}

    def see(self, layer: Layer, weights: torch.Tensor):
        """Adds what a layer's attention `(B, heads, queries, keys)` was: one row, or in pre-fusion the row's units."""
        num_queries, num_keys = weights.shape[-2:]
        if layer.is_prefusion:
            source_kinds = torch.full((num_keys,), VISION)
            if self.reads_text():
                source_kinds[num_keys - num_queries :] = INSTRUCTION
            self.sources[layer.name] = count_kinds(source_kinds)
        else:
            source_kinds = self.kinds
        for unit in weights:
            self.sums[layer.name] += sum_by_kind(unit, source_kinds[num_keys - num_queries :], source_kinds)


def analyse_row(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], kinds: torch.Tensor) -> AttentionByLayer:
    """
    Attention over one row that is ready for the model.

    Args:
        model: any model that `find_layers` knows, in evaluation mode. It runs with eager attention meanwhile, and with
            its own again afterwards.
        inputs: what `model(**inputs)` takes, of one row without padding. For LLaVA-Mini without a `text_fusion_mask`,
            the response takes no part in pre-fusion.
        kinds (`torch.Tensor` of shape `(S,)`): of its tokens, from `find_kinds`.

    Raises:
        ValueError: several rows or padding, kinds that are not the row's, a model that can't be looked into.
    """
    input_ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if input_ids is None:
        raise ValueError(f"The inputs are {sorted(inputs)}, but kinds belong to `input_ids`: pass them.")
    if input_ids.ndim != 2 or len(input_ids) != 1 or (mask is not None and not mask.all()):
        raise ValueError(f"`input_ids` have shape {tuple(input_ids.shape)}: pass one row without padding.")
    if kinds.shape != input_ids.shape[1:]:
        raise ValueError(f"`kinds` have shape {tuple(kinds.shape)}, but the row has {input_ids.shape[1]} tokens.")
    check_prompt_length(model, input_ids.shape[1])
    layers = find_layers(model)
    inputs = dict(inputs)
    if find_prefusion(model) is not None and "text_fusion_mask" not in inputs:
        inputs["text_fusion_mask"] = (kinds != RESPONSE)[None].to(input_ids.device)
    with telling_text_calls(model) as reads_text:
        sums = _Sums(layers, kinds, reads_text)
        watches = {layer.attention: Watch(see=partial(sums.see, layer)) for layer in layers}
        with watching(model, watches), torch.no_grad():
            model(**inputs)
    if not all(sums.sums[layer.name].any() for layer in layers):
        raise ValueError(f"{type(model).__name__} ran without showing the attention of every layer.")
    totals = torch.stack([sums.sums[layer.name] for layer in layers])  # (L, 3, 3, 3)
    attention, entropy, attending = totals.unbind(1)
    num_sources = torch.stack([sums.sources[layer.name] for layer in layers])
    names = tuple(layer.name for layer in layers)
    return AttentionByLayer(names, attention / attending, entropy / attending, num_sources, 1)


def measure_attention(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question | tuple],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> AttentionByLayer:
    """
    Attention over questions about pictures and their answers, one after the other.

    Args:
        model: any model that `find_layers` knows, in evaluation mode.
        processor: its own, with a chat template.
        questions: `Question`s or tuples of picture, text and answer. The response is the answer as the chat template
            writes it or, where it is `None`, what the model answers greedily (as the paper does).
        max_new_tokens (`int`): at most so long is the model's own answer.

    Raises:
        ValueError: as `analyse_row`, and where template and placeholders don't tell the kinds.
    """
    questions = read_questions(questions)
    vision_ids = find_vision_ids(processor, model)
    rows = []
    for question in questions:
        inputs = encode_prompts(processor, [question.to_chat()], model)
        length = inputs["input_ids"].shape[1]
        if question.answer is None:
            with torch.no_grad():
                ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        else:
            ids = encode_answered(processor, question, inputs["input_ids"])
        rows.append(analyse_row(model, extend(inputs, ids), find_kinds(ids[0], vision_ids, length)))
    stacked = {name: torch.stack([getattr(row, name) for row in rows]) for name in ("attention", "entropy")}
    means = {name: values.nanmean(0) for name, values in stacked.items()}
    sources = torch.stack([row.num_sources for row in rows]).mean(0)
    return AttentionByLayer(rows[0].layers, means["attention"], means["entropy"], sources, len(rows))


def encode_answered(processor: ProcessorMixin, question: Question, prompt: torch.Tensor) -> torch.Tensor:
    """
    The ids `(1, S)` of the whole chat, which have to begin with those of the prompt `(1, length)`.

    Raises:
        ValueError: they don't, so that the answer can't be told from the prompt.
    """
    answered = [{"role": "assistant", "content": [{"type": "text", "text": question.answer}]}]
    whole = processor.apply_chat_template(
        [question.to_chat() + answered], tokenize=True, return_dict=True, return_tensors="pt"
    )["input_ids"].to(prompt.device)
    length = prompt.shape[1]
    if whole.shape[1] <= length or not torch.equal(whole[:, :length], prompt):
        raise ValueError(
            "With the answer, the chat template does not begin with what it writes without it, so that the answer's "
            "tokens are not known. Leave the answer out, or use `analyse_row` with kinds of your own."
        )
    return whole


def extend(inputs: Mapping[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """A prompt's inputs for the longer `ids` `(1, S)`: attended to, and in all else of its shape like no picture."""
    shape = inputs["input_ids"].shape
    extended = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == shape and name != "input_ids":
            filling = value.new_full((1, ids.shape[1] - shape[1]), name == "attention_mask")
            value = torch.cat([value, filling], dim=1)
        extended[name] = value
    return extended | {"input_ids": ids}
