# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-Mini configuration: every number of the model."""

import math
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from .patch_budget_llava_mini import check_budget


# The authors' `model_type`.
ORIGINAL_MODEL_TYPE = "llava_mini_llama"
# What says where on the Hub a file is.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
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
# The installed package's class, told from a file beside the configuration by its name.
# Larger than any size, length or vocabulary.
MAX_PART_NUMBER = 10**8
DEFAULT_AUTO_MAP = {"AutoModelForImageTextToText": "llava_mini.LlavaMiniForConditionalGeneration"}
# The tower runs only up to the selected layer, so its output has to be that layer's raw output: CLIPVisionModel's is.
SUPPORTED_VISION_MODEL_TYPES = ("clip_vision_model",)
# Text models whose decoder layer computes exactly what Llama's does (names, residuals, rotary embedding).
SUPPORTED_TEXT_MODEL_TYPES = ("llama", "mistral", "qwen2")
# Far beyond any model (the deepest have some hundred layers, the widest some ten thousand features): what is above
# would be built for hours or not fit into an index.
MAX_LAYERS = 1000
MAX_SIZE = 2**24
MAX_GRID = 256  # C and N: their squares are tokens and crops an image
MAX_TOKEN_ID = 2**31 - 1
MAX_POSITIONS = 2**31 - 1
# Smallest and largest values; None where there is no such number.
OWN_LIMITS = {
    "compressor_size": (1, MAX_GRID),
    "compressor_num_attention_heads": (1, MAX_SIZE),
    "resolution_ratio": (1, MAX_GRID),
    "num_prefusion_layers": (0, MAX_LAYERS),
    "num_projector_layers": (0, MAX_LAYERS),
    "image_token_id": (0, MAX_TOKEN_ID),
    "video_token_id": (0, MAX_TOKEN_ID),
}
PART_LIMITS = {
    "hidden_size": (1, MAX_SIZE),
    "intermediate_size": (1, MAX_SIZE),
    "num_hidden_layers": (1, MAX_LAYERS),
    "num_attention_heads": (1, MAX_SIZE),
}
TEXT_LIMITS = PART_LIMITS | {
    "num_key_value_heads": (1, MAX_SIZE),
    "head_dim": (2, MAX_SIZE),
    "vocab_size": (1, MAX_SIZE),
    "max_position_embeddings": (1, MAX_POSITIONS),
}
VISION_LIMITS = PART_LIMITS | {"image_size": (1, MAX_SIZE), "patch_size": (1, MAX_SIZE), "num_channels": (3, 3)}


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
        assistant_headers, user_headers (`list[list[int]]`, *optional*, default to `[]`):
            Token ids that open what the assistant and what the user says, in every form that they take in a chat (see
            `LlavaMiniProcessor.find_turn_headers`). Text after the last assistant header, if no user header follows,
            is an answer and takes no part in pre-fusion, in `forward` as in `generate`. Without them only `labels` and
            `text_fusion_mask` tell an answer from a prompt.
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
        prefusion_patches (`float`, *optional*):
            Share of the patches, above 0 and at most 1, that pre-fusion reads of an image or frame: those that the
            compressor looked at most, which keep their positions. All by default, as in the paper. A call may ask for
            another share.
        prefusion_mass (`float`, *optional*):
            Instead: as many patches as hold this share of the compressor's attention, above 0 and below 1.
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
    # What an evaluation does not gather: the cache under both its names, and what only some batches have.
    keys_to_ignore_at_inference = [
        "cache",
        "past_key_values",
        "image_outputs",
        "video_outputs",
        "compressor_attentions",
    ]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    video_token_id: int = 32001
    compressor_size: int = 1
    compressor_num_attention_heads: int = 8
    compressor_layer_norm_eps: float = 1e-5
    num_prefusion_layers: int = 4
    prefusion_ignored_token_ids: list[int] | None = None
    assistant_headers: list[list[int]] | None = None
    user_headers: list[list[int]] | None = None
    resolution_ratio: int = 1
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    num_projector_layers: int = 2
    projector_hidden_act: str = "gelu"
    prefusion_patches: float | int | None = None
    prefusion_mass: float | int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.vision_config = _to_config(self.vision_config, DEFAULT_VISION_CONFIG)
        self.text_config = _to_config(self.text_config, {"model_type": "llama"})
        self.prefusion_ignored_token_ids = list(self.prefusion_ignored_token_ids or [])
        self.assistant_headers = [list(header) for header in self.assistant_headers or []]
        self.user_headers = [list(header) for header in self.user_headers or []]
        # Tying is decided by the top configuration; text configurations carry the value of the original model.
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)
        # Whoever finds no class of that name in transformers asks this next (TRL does), and the Auto class knows ours.
        if getattr(self, "auto_map", None) is None:
            self.auto_map = dict(DEFAULT_AUTO_MAP)

    def to_dict(self) -> dict:
        """As in the base class. Where the code lies is written only when it lies beside the configuration."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name != "auto_map" or value != DEFAULT_AUTO_MAP}

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """
        As in the base class.

        Raises:
            ValueError: the values can't be meant.
        """
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"The configuration describes no model. {_innermost(error)}") from error

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
        _check_limits(self, "", OWN_LIMITS)
        _check_fraction(self, "", "compressor_layer_norm_eps")
        _check_activation("projector_hidden_act", self.projector_hidden_act)
        self._validate_vision()
        self._validate_text()
        check_budget(self, self.prefusion_patches, self.prefusion_mass)
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
        _check_part(vision, "vision_config", VISION_LIMITS, "layer_norm_eps")
        if vision.patch_size > vision.image_size:
            raise ValueError(
                f"`vision_config.patch_size` is {vision.patch_size}, more than the image's {vision.image_size} pixels."
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
        _check_part(text, "text_config", TEXT_LIMITS, "rms_norm_eps")
        if text.num_attention_heads % text.num_key_value_heads:
            raise ValueError(
                f"`text_config` has {text.num_attention_heads} attention heads, which {text.num_key_value_heads} "
                "key-value heads can't share evenly."
            )
        if text.pad_token_id is not None and not -text.vocab_size <= text.pad_token_id < text.vocab_size:
            raise ValueError(f"`text_config.pad_token_id` is {text.pad_token_id}, beyond its {text.vocab_size} tokens.")
        _check_rotation(text)
        if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or []) or (
            text.model_type == "mistral" and text.sliding_window is not None
        ):
            raise ValueError(
                "`text_config` uses sliding-window attention, with which text far from the image could not read it. "
                "Set `sliding_window=None` (and `layer_types` to 'full_attention')."
            )


def _check_part(part: PreTrainedConfig, name: str, limits: dict[str, tuple[int, int]], epsilon: str) -> None:
    _check_limits(part, f"{name}.", limits)
    _check_fraction(part, f"{name}.", epsilon)
    _check_fraction(part, f"{name}.", "initializer_range")
    _check_activation(f"{name}.hidden_act", part.hidden_act)
    if not isinstance(part.output_hidden_states, bool) or not isinstance(part.output_attentions, bool):
        raise ValueError(f"`{name}.output_hidden_states` and `output_attentions` have to be true or false.")


def _check_limits(part: PreTrainedConfig, prefix: str, limits: dict[str, tuple[int, int]]) -> None:
    # A string while transformers saves it.
    dtype = getattr(torch, part.dtype, None) if isinstance(part.dtype, str) else part.dtype
    if part.dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"`{prefix}dtype` is {part.dtype!r}, but models compute in float32, float16 or bfloat16.")
    for name, (least, most) in limits.items():
        value = getattr(part, name, None)
        if value is None and name == "head_dim":  # text models that derive it
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"`{prefix}{name}` is {value!r}, but has to be a whole number.")
        if value < least:
            raise ValueError(f"`{prefix}{name}` is {value}, but has to be at least {least}.")
        if value > most:
            raise ValueError(f"`{prefix}{name}` is {value}, but can be at most {most}.")


def _check_fraction(part: PreTrainedConfig, prefix: str, name: str) -> None:
    value = getattr(part, name)
    if not (isinstance(value, int | float) and 0 <= value < math.inf):
        raise ValueError(f"`{prefix}{name}` is {value!r}, but has to be a number that is not negative.")


def _check_activation(name: str, value: object) -> None:
    if value not in ACT2FN:
        raise ValueError(f"`{name}` is {value!r}, which is no activation that transformers has.")


def _check_rotation(text: PreTrainedConfig) -> None:
    """The rotary embedding is made as the model makes it: its parameters have many forms, and no types."""
    # Not at the top: a configuration alone needs no model code.
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    try:
        with torch.device("cpu"):  # whoever builds a model without numbers, on the meta device, is told as well
            frequencies = LlamaRotaryEmbedding(text).inv_freq
    except Exception as error:  # whatever arithmetic makes of values of any type
        raise ValueError(
            f"`text_config.rope_parameters` are {text.rope_parameters}, from which no rotary embedding can be made "
            f"({type(error).__name__}: {error})."
        ) from error
    if not frequencies.isfinite().all() or frequencies.is_complex():
        raise ValueError(f"`text_config.rope_parameters` are {text.rope_parameters}, which make no finite frequencies.")


def _innermost(error: BaseException) -> BaseException:
    """What a strict dataclass' error was raised from: our own sentence, or which field has another type."""
    while isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _to_config(config: dict | PreTrainedConfig | None, defaults: dict) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(defaults if config is None else config)
    for name, value in values.items():
        # Before upstream makes lists as long as a number says.
        if isinstance(value, int) and abs(value) > MAX_PART_NUMBER:
            raise ValueError(f"`{name}` is {value}, but no part of a model has a number beyond {MAX_PART_NUMBER}.")
    return AutoConfig.for_model(values.pop("model_type", defaults["model_type"]), **values)


__all__ = ["LlavaMiniConfig"]
