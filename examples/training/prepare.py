"""
Puts an untrained LLaVA-Mini together from a language model and a CLIP tower, and saves it with its processor.

    python examples/training/prepare.py --language_model lmsys/vicuna-7b-v1.5 \\
        --chat_template conversion/chat_templates/vicuna_v1.jinja --prefusion random --output runs/untrained
"""

import argparse
from pathlib import Path

import torch
from model_setup import PREFUSION_INITIALISATIONS, build_llava_mini, initialise_prefusion
from transformers import AutoTokenizer, CLIPImageProcessor, PreTrainedTokenizerBase

from llava_mini import LlavaMiniImageProcessor, LlavaMiniProcessor, LlavaMiniVideoProcessor


# Tokens that some vocabularies reserve for padding, tried in this order where the tokenizer names none.
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<unk>")


def load_tokenizer(language_model: str | Path) -> PreTrainedTokenizerBase:
    """
    The language model's tokenizer with both placeholders and a padding token.

    Raises:
        ValueError: it has no token to pad with.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        language_model, extra_special_tokens={"image_token": "<image>", "video_token": "<video>"}
    )
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        known = [token for token in PAD_TOKENS if token in vocabulary]
        if not known:
            raise ValueError(
                f"The tokenizer of {language_model} has no padding token and none of {', '.join(PAD_TOKENS)}: "
                "set `pad_token` in its tokenizer_config.json."
            )
        tokenizer.pad_token = known[0]
    return tokenizer


def build_processor(
    tokenizer: PreTrainedTokenizerBase,
    vision_tower: str | Path,
    chat_template: str,
    image_size: int,
    compressor_size: int,
    resolution_ratio: int,
) -> LlavaMiniProcessor:
    """The processor for a tower that reads `image_size` pixels, normalised as its own image processor does."""
    clip = CLIPImageProcessor.from_pretrained(vision_tower)
    options = {
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
        "image_mean": clip.image_mean,
        "image_std": clip.image_std,
        "resolution_ratio": resolution_ratio,
    }
    return LlavaMiniProcessor(
        image_processor=LlavaMiniImageProcessor(**options),
        tokenizer=tokenizer,
        video_processor=LlavaMiniVideoProcessor(**options),
        chat_template=chat_template,
        compressor_size=compressor_size,
    )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language_model", required=True, help="path or Hub id")
    parser.add_argument("--vision_tower", default="openai/clip-vit-large-patch14-336")
    parser.add_argument("--chat_template", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--compressor_size", type=int, default=1, help="C: an image becomes C*C tokens")
    parser.add_argument("--resolution_ratio", type=int, default=1, help="N: N*N sub-images beside the whole image")
    parser.add_argument("--num_prefusion_layers", type=int, default=4)
    parser.add_argument("--compressor_num_attention_heads", type=int, default=8)
    parser.add_argument("--prefusion", choices=PREFUSION_INITIALISATIONS, default="random")
    parser.add_argument("--prefusion_file", type=Path, help="for --prefusion file")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.manual_seed(arguments.seed)

    tokenizer = load_tokenizer(arguments.language_model)
    model = build_llava_mini(
        arguments.language_model,
        arguments.vision_tower,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        dtype=getattr(torch, arguments.dtype),
        compressor_size=arguments.compressor_size,
        resolution_ratio=arguments.resolution_ratio,
        num_prefusion_layers=arguments.num_prefusion_layers,
        compressor_num_attention_heads=arguments.compressor_num_attention_heads,
    )
    initialise_prefusion(model, arguments.prefusion, arguments.prefusion_file)
    processor = build_processor(
        tokenizer,
        arguments.vision_tower,
        arguments.chat_template.read_text(),
        model.config.vision_config.image_size,
        arguments.compressor_size,
        arguments.resolution_ratio,
    )
    model.config.update(processor.find_turn_headers())
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
