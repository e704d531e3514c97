"""Models to train: put together from a language model and a vision tower, frozen, adapted."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration


PREFUSION_INITIALISATIONS = ("random", "llm", "file")


def build_llava_mini(
    language_model: str | Path,
    vision_tower: str | Path,
    image_token_id: int,
    video_token_id: int,
    dtype: torch.dtype = torch.float32,
    **config,
) -> LlavaMiniForConditionalGeneration:
    """
    LLaVA-Mini around a pre-trained language model and CLIP tower; everything else starts random.

    Args:
        language_model, vision_tower: paths or Hub ids.
        image_token_id, video_token_id (`int`): the placeholders; the embeddings grow to hold them.
        **config: further fields of `LlavaMiniConfig`, e.g. `compressor_size=8, resolution_ratio=2`.
    """
    llm = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    llm.resize_token_embeddings(max(llm.config.vocab_size, image_token_id + 1, video_token_id + 1))
    tower = CLIPVisionModel.from_pretrained(vision_tower, dtype=dtype)
    model = LlavaMiniForConditionalGeneration(
        LlavaMiniConfig(
            vision_config=tower.config,
            text_config=llm.config,
            image_token_id=image_token_id,
            video_token_id=video_token_id,
            **config,
        )
    ).to(dtype)
    load_whole(model.model.language_model, llm.base_model.state_dict())
    load_whole(model.lm_head, llm.get_output_embeddings().state_dict())
    # Layers past the selected one do not exist in LLaVA-Mini, and its reading stops before the last norm.
    wanted = model.model.vision_tower.state_dict().keys()
    weights = {name: value for name, value in tower.state_dict().items() if name in wanted}
    load_whole(model.model.vision_tower, weights)
    model.generation_config = llm.generation_config
    return model


def build_llava(model: LlavaMiniForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Stage 1's plain LLaVA, sharing tower, projector and language model with `model`: training one trains both."""
    config = model.config
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=model.model.vision_tower.config,
            text_config=config.text_config,
            image_token_id=config.image_token_id,
            image_seq_length=config.vision_grid_size**2,
            projector_hidden_act=config.projector_hidden_act,
            vision_feature_select_strategy="default",
            # The tower in the model ends with the selected layer.
            vision_feature_layer=config.num_vision_layers,
        )
    )
    llava.model.vision_tower = model.model.vision_tower
    llava.model.language_model = model.model.language_model
    for part in ("linear_1", "linear_2"):
        setattr(llava.model.multi_modal_projector, part, getattr(model.model.multi_modal_projector, part))
    llava.lm_head = model.lm_head
    return llava


def load_whole(module: torch.nn.Module, weights: dict[str, torch.Tensor]):
    """`load_state_dict`, naming the module in the error when something is missing or left over."""
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"Weights for {type(module).__name__} don't fit: {error}") from error


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, or of a folder's safetensors files."""
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .safetensors file.")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def load_part(model: LlavaMiniForConditionalGeneration, part: str, path: str | Path):
    """
    Takes one part (`multi_modal_projector`, `prefusion`, `compressor`) from a checkpoint that may hold more.

    Raises:
        ValueError: the part is not in there, or doesn't fit.
    """
    marker = f"{part}."
    weights = {name.partition(marker)[2]: tensor for name, tensor in read_weights(path).items() if marker in f".{name}"}
    load_whole(model.model.get_submodule(part), weights)


def initialise_prefusion(model: LlavaMiniForConditionalGeneration, how: str, path: str | Path | None = None):
    """
    The start of the pre-fusion layers. The authors' is not published; their code can load a file.

    Args:
        how (`str`): "random" leaves them as they are, "llm" copies the language model's first layers, "file" reads
            `path` (a checkpoint with `prefusion.layers...` in its names).

    Raises:
        ValueError: another `how`, or no such weights.
    """
    if how not in PREFUSION_INITIALISATIONS:
        raise ValueError(f"Pre-fusion can start from {', '.join(PREFUSION_INITIALISATIONS)}, not from {how!r}.")
    if how == "file":
        if path is None:
            raise ValueError("Starting pre-fusion from a file needs the file's path (`--prefusion_file`).")
        load_part(model, "prefusion", path)
    elif how == "llm":
        for target, source in zip(model.model.prefusion.layers, model.model.language_model.layers):
            load_whole(target, source.state_dict())


def freeze(model: PreTrainedModel, train_embeddings: bool = False, projector_only: bool = False):
    """
    What the paper leaves alone: the vision tower always, in stage 1 all but the projector. The embedding table gets no
    gradient in the authors' code either; `train_embeddings` trains it (for new tokens, or from scratch).
    """
    for name, parameter in model.named_parameters():
        trains = "multi_modal_projector" in name or not projector_only
        if "vision_tower" in name or ("embed_tokens" in name and not train_embeddings):
            trains = False
        # Quantized weights can't train.
        parameter.requires_grad_(trains and parameter.is_floating_point())


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit weights of the language model's layers for QLoRA; what is new and trains whole stays as it is."""
    # Full names: transformers ignores abbreviated ones.
    parts = ("vision_tower", "compressor", "multi_modal_projector", "prefusion")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", *(f"model.{part}" for part in parts)],
    )


def add_lora(model: LlavaMiniForConditionalGeneration, rank: int, alpha: int, dropout: float = 0.05):
    """
    LoRA on the language model's linear layers; compressor, projector and pre-fusion, which are new, train whole and are
    saved beside the adapter.

    Raises:
        ImportError: PEFT is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA needs PEFT: `pip install llava-mini-hf[train]`.") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
        modules_to_save=["compressor", "multi_modal_projector", "prefusion"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
