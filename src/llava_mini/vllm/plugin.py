# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The plugin's entry point: what vLLM has to know before it meets a checkpoint."""

MODEL = "LlavaMiniForConditionalGeneration"
# What the tokenizer, the renderer and the video loader are called in vLLM's registries.
NAME = "llava_mini"


def register() -> None:
    """Puts model, settings, tokenizer, renderer and video loader into vLLM's registries; it may run several times."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    import llava_mini  # noqa: F401 (registers the Auto classes)
    from llava_mini.vllm.settings import LlavaMiniSettings
    from llava_mini.vllm.video import LlavaMiniVideoLoader

    ModelRegistry.register_model(MODEL, f"{NAME}.vllm.model:{MODEL}")
    MODELS_CONFIG_MAP[MODEL] = LlavaMiniSettings
    # Entries of the dictionaries, since the registries' own methods warn when a plugin is loaded twice.
    TokenizerRegistry.tokenizers[NAME] = ("llava_mini.vllm.rendering", "LlavaMiniTokenizer")
    RENDERER_REGISTRY.renderers[NAME] = ("llava_mini.vllm.rendering", "LlavaMiniRenderer")
    VIDEO_LOADER_REGISTRY.register(NAME)(LlavaMiniVideoLoader)
