# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What vLLM is set to for LLaVA-Mini, and what is refused because answers would be wrong."""

from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig


# What stands for "as the checkpoint's processor samples" where vLLM wants a number of frames.
FRAMES_OF_THE_CHECKPOINT = -1
# Options of vLLM's `--mm-processor-kwargs` that reach our processor.
PROCESSOR_OPTIONS = ("backend",)
ONE_ITEM = "the prompt's text is fused with its pictures as a whole"


class LlavaMiniSettings(VerifyAndUpdateConfig):
    """vLLM's hook for a model's settings."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """
        Raises:
            ValueError: a setting under which answers would be wrong.
        """
        if model_config.tokenizer_mode not in ("auto", "hf", "slow", "llava_mini"):
            refuse("--tokenizer-mode", model_config.tokenizer_mode, "prompts are written as LLaVA-Mini was trained")
        model_config.tokenizer_mode = "llava_mini"
        if model_config.enable_prompt_embeds:
            refuse("--enable-prompt-embeds", True, f"{ONE_ITEM}, and given embeddings would stay as they are")
        multimodal = model_config.multimodal_config
        if multimodal is None:  # text only
            return
        if multimodal.enable_mm_embeds:
            refuse("--enable-mm-embeds", True, f"{ONE_ITEM}, which embeddings of pictures alone can't be")
        if multimodal.mm_encoder_only:
            refuse("--mm-encoder-only", True, "the front reads the language model's embeddings")
        if multimodal.video_pruning_rate:
            refuse("--video-pruning-rate", multimodal.video_pruning_rate, "a frame has C*C tokens, all of them needed")
        if unknown := set(multimodal.mm_processor_kwargs or {}) - set(PROCESSOR_OPTIONS):
            hint = f"what pixels are is the checkpoint's; only {', '.join(PROCESSOR_OPTIONS)} can be chosen"
            refuse("--mm-processor-kwargs", sorted(unknown), hint)
        video = {"video_backend": "llava_mini", "num_frames": FRAMES_OF_THE_CHECKPOINT}
        given = dict(multimodal.media_io_kwargs.get("video", {}))
        if "fps" in given:
            del video["num_frames"]
        multimodal.media_io_kwargs = {**multimodal.media_io_kwargs, "video": video | given}
        # It keeps single pictures, and an item here is a whole prompt.
        multimodal.mm_processor_cache_gb = 0

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """
        Raises:
            ValueError: likewise.
        """
        if vllm_config.ec_transfer_config is not None:
            refuse("--ec-transfer-config", "given", "the front reads the language model's embeddings")


def refuse(option: str, value: object, reason: str) -> None:
    """
    Raises:
        ValueError: always.
    """
    raise ValueError(f"LLaVA-Mini can't run with `{option}` ({value}): {reason}. Leave it out.")
