# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-Mini configuration: every number of the model."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


# CLIP ViT-L/14 at 336 pixels, the tower of every released checkpoint.
DEFAULT_VISION_CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
# The tower runs only up to the selected layer, so its output has to be that layer's raw output: CLIPVisionModel's is.
SUPPORTED_VISION_MODEL_TYPES = ("clip_vision_model",)
# Text models whose decoder layer computes exactly what Llama's does (names, residuals, rotary embedding).
SUPPORTED_TEXT_MODEL_TYPES = ("llama", "mistral", "qwen2")


@strict
class LlavaMiniConfig(PreTrainedConfig):
    r"""
    Configuration of a LLaVA-Mini model (paper: arXiv 2501.03895). The defaults are those of the Vicuna-7B model
    with CLIP ViT-L/336.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            The vision tower, a `CLIPVisionConfig`.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The language model; its decoder layers are also the pre-fusion layers. Types: llama, mistral, qwen2.
        image_token_id (`int`, defaults to 32000):
            Id of the placeholder that stands for one of an image's `compressor_size**2` vision tokens.
        video_token_id (`int`, defaults to 32001):
            Id of the placeholder that stands for one of a video's `frames * compressor_size**2` vision tokens.
        compressor_size (`int`, defaults to 1):
            C: an image becomes C*C vision tokens (section 4.2).
        compressor_num_attention_heads (`int`, defaults to 8):
            Heads of the compressor's cross-attention.
        compressor_layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the compressor's two layer norms.
        num_prefusion_layers (`int`, defaults to 4):
            Decoder layers in which the text reads all patches before the language model (section 4.2).
        prefusion_ignored_token_ids (`list[int]`, *optional*, defaults to `[]`):
            Token ids that take no part in pre-fusion and keep their raw embedding. Checkpoints converted from the
            authors' have `[0]`: their code takes every id <= 0 for padding, which in the Llama 3 vocabulary is "!".
        resolution_ratio (`int`, defaults to 1):
            N: an image is cut into N*N sub-images and the whole image follows them (N > 1); the image alone (N = 1).
        vision_feature_layer (`int`, defaults to -2):
            Hidden state of the tower that is read: 0 is the embeddings, -1 the last layer. Later layers do not exist
            in the model.
        vision_feature_select_strategy (`str`, defaults to `"default"`):
            `"default"` drops the class token. `"full"` (the authors' "cls_patch") keeps it, which no compressor can
            use, since what is left is no square grid: refused.
        num_projector_layers (`int`, defaults to 2):
            Linear layers of the projector: 0 is the identity, 1 linear, K the authors' `mlpKx_gelu`.
        projector_hidden_act (`str`, defaults to `"gelu"`):
            Activation between the projector's layers.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the head shares the embedding matrix. Taken from `text_config` when set there.

    Raises:
        ValueError: the parts do not fit together; the message says which and what to change.

    Example:

    ```python
    >>> from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration

    >>> config = LlavaMiniConfig(compressor_size=2, resolution_ratio=2)
    >>> config.num_image_tokens, config.num_crops
    (4, 5)
    ```
    """

    model_type = "llava_mini"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    video_token_id: int = 32001
    compressor_size: int = 1
    compressor_num_attention_heads: int = 8
    compressor_layer_norm_eps: float = 1e-5
    num_prefusion_layers: int = 4
    prefusion_ignored_token_ids: list[int] | None = None
    resolution_ratio: int = 1
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    num_projector_layers: int = 2
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.vision_config = _to_config(self.vision_config, DEFAULT_VISION_CONFIG)
        self.text_config = _to_config(self.text_config, {"model_type": "llama"})
        self.prefusion_ignored_token_ids = list(self.prefusion_ignored_token_ids or [])
        # Tying is decided by the top configuration; text configurations carry the value of the original model.
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """C*C, the vision tokens that stand for one image or one video frame in the language model."""
        return self.compressor_size**2

    @property
    def num_crops(self) -> int:
        """Crops an image: N*N sub-images and the whole image, or the image alone when N is 1."""
        return self.resolution_ratio**2 + 1 if self.resolution_ratio > 1 else 1

    @property
    def vision_grid_size(self) -> int:
        """Patches along a crop's side."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def num_vision_layers(self) -> int:
        """Tower layers up to the selected hidden state; the rest is neither built nor run."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision_config.num_hidden_layers + 1 + layer

    def validate_architecture(self):
        """Checks across fields; runs at construction and at `save_pretrained`."""
        super().validate_architecture()
        for name, minimum in (
            ("compressor_size", 1),
            ("compressor_num_attention_heads", 1),
            ("resolution_ratio", 1),
            ("num_prefusion_layers", 0),
            ("num_projector_layers", 0),
        ):
            if getattr(self, name) < minimum:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but has to be at least {minimum}.")
        self._validate_vision()
        self._validate_text()
        if self.image_token_id == self.video_token_id:
            raise ValueError(
                f"`image_token_id` and `video_token_id` are both {self.image_token_id}; give each an id of its own."
            )

    def _validate_vision(self):
        vision = self.vision_config
        if vision.model_type not in SUPPORTED_VISION_MODEL_TYPES:
            raise ValueError(
                f"`vision_config` is of type {vision.model_type!r}, but the vision tower has to be one of "
                f"{', '.join(SUPPORTED_VISION_MODEL_TYPES)}."
            )
        if not 0 <= self.num_vision_layers <= vision.num_hidden_layers:
            raise ValueError(
                f"`vision_feature_layer` is {self.vision_feature_layer}, but the tower has {vision.num_hidden_layers} "
                f"layers: choose from {-vision.num_hidden_layers - 1} to {vision.num_hidden_layers}."
            )
        if self.vision_feature_select_strategy == "full":
            raise ValueError(
                f"The vision grid is not square: `vision_feature_select_strategy='full'` keeps the class token and "
                f"leaves {self.vision_grid_size**2 + 1} features a crop, and the compressor reads a square grid. "
                "Use 'default'."
            )
        if vision.hidden_size % self.compressor_num_attention_heads or vision.hidden_size % 4:
            raise ValueError(
                f"The vision width {vision.hidden_size} has to be divisible by `compressor_num_attention_heads` "
                f"({self.compressor_num_attention_heads}) and by 4 (the 2-D sine-cosine position table)."
            )
        if self.num_projector_layers == 0 and vision.hidden_size != self.text_config.hidden_size:
            raise ValueError(
                f"`num_projector_layers=0` (identity) needs equal widths, but the tower has {vision.hidden_size} and "
                f"the language model {self.text_config.hidden_size}. Use at least 1 layer."
            )

    def _validate_text(self):
        text = self.text_config
        if text.model_type not in SUPPORTED_TEXT_MODEL_TYPES:
            raise ValueError(
                f"`text_config` is of type {text.model_type!r}, whose decoder layers the pre-fusion can't use. "
                f"Supported: {', '.join(SUPPORTED_TEXT_MODEL_TYPES)}."
            )
        if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or []) or (
            text.model_type == "mistral" and text.sliding_window is not None
        ):
            raise ValueError(
                "`text_config` uses sliding-window attention, with which text far from the image could not read it. "
                "Set `sliding_window=None` (and `layer_types` to 'full_attention')."
            )


def _to_config(config: dict | PreTrainedConfig | None, defaults: dict) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(defaults if config is None else config)
    return AutoConfig.for_model(values.pop("model_type", defaults["model_type"]), **values)


__all__ = ["LlavaMiniConfig"]
