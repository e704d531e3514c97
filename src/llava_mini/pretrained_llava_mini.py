# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading, saving, quantisation and initialisation of LLaVA-Mini models."""

import copy
import os
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from .compressor_llava_mini import LlavaMiniCompressor, sine_cosine_table
from .configuration_llava_mini import HUB_OPTIONS, ORIGINAL_MODEL_TYPE, LlavaMiniConfig
from .original_llava_mini import load_original
from .versions_llava_mini import CACHE_NAMES


# What a checkpoint may lack when the caller says so.
PARTS = ("vision_tower", "compressor", "multi_modal_projector", "prefusion", "language_model", "lm_head")


class WeightsMismatchError(ValueError, RuntimeError):
    """Weights of other shapes than the configuration describes; a RuntimeError too, since upstream's is one."""


class LlavaMiniPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and the capabilities that transformers asks for."""

    config: LlavaMiniConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlavaMiniCompressor", "LlavaMiniPreFusionLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    # What quantisation leaves alone unless it is told otherwise: the vision part, small and read by everything else.
    _modules_to_not_quantize: tuple[str, ...] = ()
    # The classes that the authors' weights load as, and that they then are of; set where the models are defined.
    _original_classes: tuple[type[PreTrainedModel], type[PreTrainedModel]]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        quantization_config: QuantizationConfigMixin | dict | None = None,
        new_parts: Iterable[str] = (),
        output_loading_info: bool = False,
        **kwargs,
    ):
        """
        As in the base class, and: the authors' checkpoints load as they are. A `quantization_config` that names no
        modules to skip leaves the vision tower, the compressor, the projector and the head as they are.

        Args:
            new_parts: parts (see `PARTS`) that the checkpoint may lack, and that start at random then. Without it they
                are an error, unless `output_loading_info` asks for what is missing, or there are no files at all.

        Raises:
            ValueError: weights are missing or have other shapes than the configuration describes; the authors'
                checkpoint is incomplete, or its vision tower can't be found.
        """
        if unknown := set(new_parts) - set(PARTS):
            raise ValueError(f"`new_parts` names {sorted(unknown)}, but a model has {', '.join(PARTS)}.")
        if quantization_config is not None:
            kwargs["quantization_config"] = cls._skip_modules(quantization_config)
        if pretrained_model_name_or_path is not None:
            hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            values, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_options)
            if values.get("model_type") == ORIGINAL_MODEL_TYPE:
                model, info = cls._load_original(pretrained_model_name_or_path, values, *args, **kwargs)
                return (model, info) if output_loading_info else model
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise WeightsMismatchError(
                f"{pretrained_model_name_or_path} holds weights of other shapes than its configuration describes; they "
                "are listed above. Use the configuration that belongs to them, or pass `ignore_mismatched_sizes=True` "
                "for new ones in their place."
            ) from error
        if output_loading_info:
            return model, info
        absent = sorted(name for name in info["missing_keys"] if not set(name.split(".")) & set(new_parts))
        if absent and pretrained_model_name_or_path is not None:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(absent)} of the weights that its configuration describes, "
                f"such as {absent[0]!r}: download it again, or pass `new_parts=(...)` with those of "
                f"{', '.join(PARTS)} that are to start at random."
            )
        return model

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """
        vLLM asks before it runs a model of transformers as its own, which of this one would leave out pre-fusion.

        Raises:
            ImportError: always; with our plugin vLLM does not ask.
        """
        raise ImportError(
            "vLLM would run LLaVA-Mini's language model without pre-fusion, and answer wrongly. Install the plugin "
            "(`pip install 'llava-mini-hf[vllm]'`), let vLLM load it (`VLLM_PLUGINS` unset, or with 'llava_mini'), and "
            "leave `--model-impl` out."
        )

    @classmethod
    def _load_original(cls, name_or_path: str | os.PathLike, original: dict, *args, **kwargs):
        """A model from the authors' layout; from here on it is ours, and saves under our names."""
        import_class, own_class = cls._original_classes
        # The base class's, since the model's own would come back here.
        load = super(LlavaMiniPreTrainedModel, import_class).from_pretrained
        model, info = load_original(load, name_or_path, original, *args, **kwargs)
        model.__class__ = own_class
        model._weight_conversions = []
        return (model if issubclass(own_class, cls) else model.model), info

    @classmethod
    def _skip_modules(cls, quantization_config: QuantizationConfigMixin | dict) -> QuantizationConfigMixin:
        if isinstance(quantization_config, dict):
            quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
        quantization_config = copy.deepcopy(quantization_config)
        for name in ("llm_int8_skip_modules", "modules_to_not_convert"):  # bitsandbytes', everybody else's
            if hasattr(quantization_config, name) and getattr(quantization_config, name) is None:
                setattr(quantization_config, name, list(cls._modules_to_not_quantize))
        return quantization_config

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LlavaMiniCompressor):
            init.normal_(module.query, mean=0.0, std=self.config.text_config.initializer_range)
            init.copy_(module.pos_embed, sine_cosine_table(module.size, module.pos_embed.shape[-1]))
