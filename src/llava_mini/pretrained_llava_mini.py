# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading, saving, quantisation and initialisation of LLaVA-Mini models."""

import copy
import os

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from .compressor_llava_mini import LlavaMiniCompressor, sine_cosine_table
from .configuration_llava_mini import LlavaMiniConfig
from .versions_llava_mini import CACHE_NAMES


# The authors' `model_type`.
ORIGINAL_MODEL_TYPE = "llava_mini_llama"
# What says where on the Hub a file is.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


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

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        quantization_config: QuantizationConfigMixin | dict | None = None,
        **kwargs,
    ):
        """
        As in the base class, and: the authors' checkpoints load as they are. A `quantization_config` that names no
        modules to skip leaves the vision tower, the compressor, the projector and the head as they are.

        Raises:
            ValueError: the authors' checkpoint is incomplete, or its vision tower can't be found.
        """
        if quantization_config is not None:
            kwargs["quantization_config"] = cls._skip_modules(quantization_config)
        if pretrained_model_name_or_path is not None:
            hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            values, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_options)
            if values.get("model_type") == ORIGINAL_MODEL_TYPE:
                # Not at the top: it needs the model classes.
                from .original_llava_mini import load_original

                return load_original(cls, pretrained_model_name_or_path, values, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

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
