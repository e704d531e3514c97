# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-Mini for Hugging Face transformers. Importing the package registers its classes with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from .configuration_llava_mini import LlavaMiniConfig
from .modeling_llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniModel, LlavaMiniPreTrainedModel


AutoConfig.register(LlavaMiniConfig.model_type, LlavaMiniConfig, exist_ok=True)
AutoModel.register(LlavaMiniConfig, LlavaMiniModel, exist_ok=True)
for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(LlavaMiniConfig, LlavaMiniForConditionalGeneration, exist_ok=True)
