# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-Mini for Hugging Face transformers. Importing the package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .configuration_llava_mini import LlavaMiniConfig
from .image_processing_pil_llava_mini import LlavaMiniImageProcessorPil
from .modeling_llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniModel, LlavaMiniPreTrainedModel
from .original_llava_mini import LlavaMiniOriginalConfig
from .processing_llava_mini import LlavaMiniProcessor
from .vision_context_llava_mini import LlavaMiniVisionContext


__all__ = [
    "LlavaMiniConfig",
    "LlavaMiniForConditionalGeneration",
    "LlavaMiniImageProcessorPil",
    "LlavaMiniModel",
    "LlavaMiniPreTrainedModel",
    "LlavaMiniProcessor",
    "LlavaMiniVisionContext",
]

AutoConfig.register(LlavaMiniConfig.model_type, LlavaMiniConfig, exist_ok=True)
AutoConfig.register(LlavaMiniOriginalConfig.model_type, LlavaMiniOriginalConfig, exist_ok=True)
AutoModel.register(LlavaMiniConfig, LlavaMiniModel, exist_ok=True)
for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(LlavaMiniConfig, LlavaMiniForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaMiniConfig, LlavaMiniProcessor, exist_ok=True)
# Where Trainer looks up, with `label_smoothing_factor`, whether labels have to be shifted; of other vision-language
# models it compares each token with itself.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[LlavaMiniConfig.model_type] = LlavaMiniForConditionalGeneration.__name__

image_processors = {"pil": LlavaMiniImageProcessorPil}
if is_torchvision_available():
    from .image_processing_llava_mini import LlavaMiniImageProcessor
    from .video_processing_llava_mini import LlavaMiniVideoProcessor

    __all__ += ["LlavaMiniImageProcessor", "LlavaMiniVideoProcessor"]
    image_processors["torchvision"] = LlavaMiniImageProcessor
    AutoVideoProcessor.register(LlavaMiniConfig, LlavaMiniVideoProcessor, exist_ok=True)
AutoImageProcessor.register(LlavaMiniConfig, image_processor_classes=image_processors, exist_ok=True)
