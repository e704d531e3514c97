"""
Trains a small LLaVA-1.5 beside the small LLaVA-Mini: the same tower, the same questions about still pictures, as many
layers of the same width, but all 36 patches go through all of them. What `analyse.py` compares with.

    python examples/tiny/train_twin.py --start runs/tiny/phases/"sizes and counts" --output runs/twin
"""

import argparse
import json
from pathlib import Path

import torch
from export import export
from torch import nn
from train_tiny import TinyTrainer, run_phase
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.versions_llava_mini import CACHE_NAME


HERE = Path(__file__).parent
# Those that `generate` needs.
SPECIAL_TOKENS = ("bos", "eos", "pad")


def build_processor(checkpoint: Path) -> LlavaProcessor:
    """transformers' own processor for LLaVA, with the tokenizer and chat template of `checkpoint`, a LLaVA-Mini."""
    mini = LlavaMiniProcessor.from_pretrained(checkpoint)
    part = mini.image_processor
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size=dict(part.size), crop_size=dict(part.crop_size)),
        # Padded as `generate` needs it, which LLaVA-Mini's processor does by itself.
        tokenizer=AutoTokenizer.from_pretrained(checkpoint, padding_side="left"),
        patch_size=LlavaMiniForConditionalGeneration.config_class.from_pretrained(checkpoint).vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" takes off again
        chat_template=mini.chat_template,
    )


def build_twin(processor: LlavaProcessor, checkpoint: Path) -> LlavaForConditionalGeneration:
    """Random weights around the tower of `checkpoint`; its pre-fusion layers go into the language model."""
    mini = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    text = mini.config.text_config.to_dict()
    text["num_hidden_layers"] += mini.config.num_prefusion_layers
    twin = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=mini.config.vision_config.to_dict(),
            text_config=text,
            image_token_index=processor.image_token_id,
            image_seq_length=mini.config.vision_grid_size**2,
            projector_hidden_act=mini.config.projector_hidden_act,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
    )
    twin.model.vision_tower.load_state_dict(mini.model.vision_tower.state_dict())
    special = {f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in SPECIAL_TOKENS}
    twin.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **special)
    return twin.to(torch.float32)


class TwinTrainer(TinyTrainer):
    """All questions about a picture read one run over the prompt up to the picture, which causality makes exact."""

    def read(self, model: nn.Module, inputs: dict, num_rows: int) -> torch.Tensor:
        """Hidden states from the first token after the picture on."""
        input_ids, pixels = inputs["input_ids"], inputs["pixel_values"][:, 0]
        is_picture = (input_ids == model.config.image_token_id).any(0)
        start = int(is_picture.nonzero().max()) + 1
        if not (input_ids[:, :start] == input_ids[0, :start]).all():
            raise ValueError("What comes before the pictures differs, so that questions can't share it.")
        embedding, language_model = model.get_input_embeddings(), model.model.language_model
        features = torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
        shared = embedding(input_ids[: len(pixels), :start]).masked_scatter(is_picture[:start, None], features)
        cache = language_model(inputs_embeds=shared, use_cache=True)[CACHE_NAME]
        cache.batch_repeat_interleave(num_rows // len(pixels))
        # Padding is at the end, where causality hides it.
        text = embedding(input_ids[:, start:])
        return language_model(inputs_embeds=text, **{CACHE_NAME: cache}).last_hidden_state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="whose tower and tokenizer it takes")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=HERE / "twin_recipe.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    processor = build_processor(arguments.start)
    twin = build_twin(processor, arguments.start)
    for phase in json.loads(arguments.recipe.read_text()):
        output = arguments.output / phase["name"]
        if (output / "config.json").exists():
            twin = LlavaForConditionalGeneration.from_pretrained(output, dtype=torch.float32)
            continue
        run_phase(
            twin,
            processor,
            phase,
            output,
            arguments.seed,
            trainer_class=TwinTrainer,
            num_image_tokens=twin.config.image_seq_length,
        )
    export(twin, processor, arguments.output / "final")


if __name__ == "__main__":
    main()
