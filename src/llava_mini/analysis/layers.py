# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""A model's decoder layers, and a look into their attention while they run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from ..front_llava_mini import MAX_TEXT_QUERIES


# The name under which transformers finds `attend`; models have it only while they are watched.
WATCHED = "llava_mini_watched"


@dataclass(frozen=True)
class Layer:
    """
    A decoder layer that text and vision tokens meet in.

    Args:
        name (`str`): "pre-fusion 1", ..., "layer 1", ..., in the order in which they run.
        attention (`torch.nn.Module`): its self-attention.
        is_prefusion (`bool`): whether it lies before the language model, where text meets the patches.
    """

    name: str
    attention: nn.Module
    is_prefusion: bool = False


@dataclass(frozen=True)
class Watch:
    """
    What happens in an attention module while it is watched.

    Args:
        edit_mask: makes another mask of the additive one `(B, 1, queries, keys)`.
        see: gets the weights `(B, heads, queries, keys)`.
    """

    edit_mask: Callable[[torch.Tensor], torch.Tensor] | None = None
    see: Callable[[torch.Tensor], None] | None = None


_watches: WeakKeyDictionary[nn.Module, Watch] = WeakKeyDictionary()


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's own eager attention, watched."""
    watch = _watches.get(module, Watch())
    if watch.edit_mask is not None:
        if attention_mask is None:  # hides nothing
            attention_mask = query.new_zeros(len(query), 1, query.shape[2], key.shape[2])
        attention_mask = watch.edit_mask(attention_mask)
    output, weights = eager_of(module)(module, query, key, value, attention_mask, **kwargs)
    if watch.see is not None:
        watch.see(weights)
    return output, weights


AttentionInterface.register(WATCHED, attend)
AttentionMaskInterface.register(WATCHED, eager_mask)


def eager_of(module: nn.Module) -> Callable:
    """
    Raises:
        ValueError: the file that defines the module has no eager attention under transformers' usual name.
    """
    source = sys.modules[type(module).__module__]
    if not hasattr(source, "eager_attention_forward"):
        raise ValueError(
            f"{type(module).__name__} has no `eager_attention_forward` beside it, so its attention can't be looked "
            "into; Llama, Qwen2, Mistral and most others of transformers have one."
        )
    return source.eager_attention_forward


def find_layers(model: PreTrainedModel) -> list[Layer]:
    """
    The layers in which text reads vision tokens, in the order in which they run: LLaVA-Mini's pre-fusion, then the
    language model's.

    Raises:
        ValueError: the model has no decoder layers of the usual form.
    """
    layers = []
    if (prefusion := find_prefusion(model)) is not None:
        layers += [Layer(f"pre-fusion {i}", layer.self_attn, True) for i, layer in enumerate(prefusion.layers, 1)]
    decoder = model.get_decoder()
    for i, layer in enumerate(getattr(decoder, "layers", ()), 1):
        if not hasattr(layer, "self_attn"):
            raise ValueError(f"{type(layer).__name__} has no `self_attn`, so that its attention can't be looked into.")
        layers.append(Layer(f"layer {i}", layer.self_attn))
    if not layers:
        raise ValueError(f"{type(decoder).__name__}, the text model of {type(model).__name__}, has no `layers`.")
    for layer in layers:
        eager_of(layer.attention)
    return layers


def find_prefusion(model: PreTrainedModel) -> PreTrainedModel | None:
    """LLaVA-Mini's layers before the language model; by name, since code on the Hub has classes of its own."""
    named = model.named_modules()
    return next((module for name, module in named if name.rpartition(".")[2] == "prefusion"), None)


@contextmanager
def watching(model: PreTrainedModel, watches: dict[nn.Module, Watch]) -> Iterator[None]:
    """
    Lets the text side run with eager attention and attention modules be watched; the model's own attention comes back
    in the end, whatever happens. Meanwhile the model is nobody else's: another thread would run it so too.

    Raises:
        ValueError: the model is in training mode, or is watched already.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout is part of attention: call `model.eval()`.")
    owners = [model.get_decoder(), find_prefusion(model), *(layer.attention for layer in find_layers(model))]
    configs = {id(owner.config): owner.config for owner in owners if owner is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    if WATCHED in before.values():
        raise ValueError("The model is watched already: leave the other `with` block first.")
    try:
        for config in configs.values():
            config._attn_implementation = WATCHED
        _watches.update(watches)
        yield
    finally:
        for module in watches:
            _watches.pop(module, None)
        for key, config in configs.items():
            config._attn_implementation = before[key]


@contextmanager
def telling_text_calls(model: PreTrainedModel) -> Iterator[Callable[[], bool]]:
    """
    Gives a function that says whether pre-fusion, where it runs just now, lets text read what came before (its second
    call), or runs over patches and vision tokens alone (its first).
    """
    reads = False

    def remember(module: nn.Module, args: tuple, kwargs: dict):
        nonlocal reads
        reads = bool(kwargs.get("key_values", args[1] if len(args) > 1 else ()))

    prefusion = find_prefusion(model)
    hook = None if prefusion is None else prefusion.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield lambda: reads
    finally:
        if hook is not None:
            hook.remove()


def check_prompt_length(model: PreTrainedModel, length: int):
    """
    Raises:
        ValueError: pre-fusion would read the prompt in several pieces.
    """
    if find_prefusion(model) is not None and length > MAX_TEXT_QUERIES:
        raise ValueError(
            f"The prompt has {length} tokens, but the analysis of pre-fusion takes at most {MAX_TEXT_QUERIES}."
        )
