"""The small model before training: tokenizer, processor, configuration, random weights around a pre-trained tower."""

from pathlib import Path

import questions
import scenes
import torch
from pretrain_tower import tower_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionModel, GenerationConfig, PreTrainedTokenizerFast

from llava_mini import (
    LlavaMiniConfig,
    LlavaMiniForConditionalGeneration,
    LlavaMiniImageProcessor,
    LlavaMiniProcessor,
    LlavaMiniVideoProcessor,
)


SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<image>", "<video>"]
MAX_VOCABULARY = 512


def build_tokenizer(texts: list[str] | None = None, size: int = MAX_VOCABULARY) -> PreTrainedTokenizerFast:
    """
    Byte-level BPE over the words of the questions: any text can be written, digits are single tokens. By default of the
    questions about drawn pictures.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # As in prompts: questions start a line, answers follow a space.
    texts = questions.vocabulary() if texts is None else texts
    texts = [f"{role}:\n {text}\n{text}" for text in texts for role in ("system", "user", "assistant")]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        model_max_length=512,
    )


def build_processor(compressor_size: int = 1, tokenizer: PreTrainedTokenizerFast | None = None) -> LlavaMiniProcessor:
    """The processor for pictures of 84x84 pixels."""
    square = {"height": scenes.IMAGE_SIZE, "width": scenes.IMAGE_SIZE}
    size = {"size": {"shortest_edge": scenes.IMAGE_SIZE}, "crop_size": square}
    return LlavaMiniProcessor(
        # Longer pictures are squeezed, as frames are: bars of padding are nothing that the model ever saw.
        image_processor=LlavaMiniImageProcessor(size=square, crop_size=square, do_pad=False),
        tokenizer=tokenizer or build_tokenizer(),
        video_processor=LlavaMiniVideoProcessor(**size),
        chat_template=(Path(__file__).parent / "chat_template.jinja").read_text(),
        compressor_size=compressor_size,
    )


def build_model(
    processor: LlavaMiniProcessor, tower: Path | None, num_prefusion_layers: int = 3, num_llm_layers: int = 2
) -> LlavaMiniForConditionalGeneration:
    """A model with random weights and, if given, the pre-trained tower."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionModel.from_pretrained(tower) if tower else None
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlavaMiniConfig(
        vision_config=vision.config if vision else tower_config(),
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": num_llm_layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "initializer_range": 0.05,
            **special,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        compressor_size=processor.compressor_size,
        # The number in the authors' code, so that the model can be written in their layout.
        compressor_num_attention_heads=8,
        num_prefusion_layers=num_prefusion_layers,
        vision_feature_layer=-1,
        **processor.find_turn_headers(),
    )
    model = LlavaMiniForConditionalGeneration(config)
    if vision is not None:
        model.model.vision_tower.load_state_dict(vision.state_dict())
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **special)
    return model.to(torch.float32)
