# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What differs between the versions of transformers that this package runs on; no other file asks for a version.

transformers 5.24 calls the cache of keys and values `cache` in every signature and output, where it was
`past_key_values`, and returns what the vision side made as `image_outputs` and `video_outputs`. Here both names are
understood and answered on every version. All but the bounds can go once 5.24 is the oldest version supported (vLLM
0.33 pins 5.20), and the old name once transformers drops it (announced for 5.40).
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import transformers
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    ModelOutput,
)
from transformers.utils import logging


# Of the distribution `llava-mini-hf`; pyproject.toml reads it here, since code on the Hub has no metadata.
PACKAGE_VERSION = "0.2.0"
# The oldest version that CI runs, and the first minor that it has not run yet; pyproject.toml has the same bounds.
OLDEST_TRANSFORMERS = (5, 18)
FIRST_UNTESTED_TRANSFORMERS = (5, 25)

# One name whatever the module is called: code on the Hub is imported several times under several names.
logger = logging.get_logger("transformers.llava_mini")


def is_tested(version: str) -> bool:
    """Whether `version` of transformers lies in the range that CI runs."""
    return OLDEST_TRANSFORMERS <= tuple(int(part) for part in version.split(".")[:2]) < FIRST_UNTESTED_TRANSFORMERS


def describe_versions() -> str:
    """The versions that a bug report needs, a line each."""
    oldest, untested = (".".join(map(str, v)) for v in (OLDEST_TRANSFORMERS, FIRST_UNTESTED_TRANSFORMERS))
    verdict = "inside" if is_tested(transformers.__version__) else "OUTSIDE"
    return (
        f"llava-mini-hf {PACKAGE_VERSION}\n"
        f"transformers {transformers.__version__} ({verdict} the tested range, >={oldest},<{untested})\n"
        f"torch {torch.__version__}"
    )


if not is_tested(transformers.__version__):
    logger.warning_once(
        "LLaVA-Mini's code here was not tested on this transformers. These are the versions:\n"
        f"{describe_versions()}\nInstall one of the tested range, or a newer llava-mini-hf, should anything go wrong."
    )


CACHE_NAMES = ("cache", "past_key_values")
# What this transformers calls the cache.
CACHE_NAME = CACHE_NAMES[0 if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else 1]

# What it calls the training argument that computes activations again in the backward pass; renamed in 5.24 as well.
CHECKPOINTING_ARGUMENT = "activation_checkpointing" if CACHE_NAME == "cache" else "gradient_checkpointing"


def rename_cache(arguments: dict, name: str) -> dict:
    """
    `arguments` of a call with the cache under `name`, whichever of its two names the caller used. Where transformers
    has dropped the old one, it is answered with the same warning as there.

    Raises:
        ValueError: two different caches.
    """
    if arguments.get("past_key_values") is not None and CACHE_NAME == "cache" and not torch.compiler.is_compiling():
        warnings.warn("`past_key_values` is deprecated: use `cache` instead.", FutureWarning, stacklevel=3)
    given = [arguments[key] for key in CACHE_NAMES if arguments.get(key) is not None]
    if any(cache is not given[0] for cache in given):
        raise ValueError("Got two caches, as `cache` and as `past_key_values`: these are two names of one, pass one.")
    rest = {key: value for key, value in arguments.items() if key not in CACHE_NAMES}
    return rest | {name: given[0]} if given else rest


def accept_both_cache_names(method: Callable) -> Callable:
    """Lets callers of a method with the parameter `cache` say `past_key_values` too."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        return method(*args, **rename_cache(kwargs, "cache"))

    return call


class BothCacheNames:
    """
    For outputs of transformers before 5.24: `cache` also answers as attribute and key. Later ones answer to the old
    name by themselves.
    """

    @property
    def cache(self):
        return self.past_key_values

    def __getitem__(self, key):
        return super().__getitem__(_old_name(key))

    def __contains__(self, key) -> bool:
        return super().__contains__(_old_name(key))

    def get(self, key, default=None):
        return super().get(_old_name(key), default)


def _old_name(key):
    return "past_key_values" if isinstance(key, str) and key == "cache" else key


@functools.cache
def _with_both_cache_names(output_class: type[ModelOutput]) -> type[ModelOutput]:
    return dataclass(type(output_class.__name__, (BothCacheNames, output_class), {}))


def answer_to_both_cache_names(output: ModelOutput | torch.Tensor) -> ModelOutput | torch.Tensor:
    """What `generate` returned, so that its cache has both names."""
    if CACHE_NAME == "cache" or not isinstance(output, ModelOutput):
        return output
    return _with_both_cache_names(type(output))(**output)


try:
    from transformers.modeling_outputs import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast
except ImportError:  # before 5.24

    class _EncoderOutputs(BothCacheNames):
        def to_tuple(self) -> tuple:
            """As upstream's: what an encoder returned is a tuple in the tuple."""
            names = ("image_outputs", "video_outputs")
            return tuple(self[key].to_tuple() if key in names else self[key] for key in self.keys())

    @dataclass
    class MultimodalBaseModelOutputWithPast(_EncoderOutputs, BaseModelOutputWithPast):
        """Upstream's since 5.24: `BaseModelOutputWithPast`, and what the encoders returned."""

        image_outputs: BaseModelOutputWithPooling | None = None
        video_outputs: BaseModelOutputWithPooling | None = None

    @dataclass
    class MultimodalCausalLMOutputWithPast(_EncoderOutputs, CausalLMOutputWithPast):
        """Upstream's since 5.24: `CausalLMOutputWithPast`, and what the encoders returned."""

        image_outputs: BaseModelOutputWithPooling | None = None
        video_outputs: BaseModelOutputWithPooling | None = None
