"""Processor and model agree on how many tokens an image and a video are, or the error names both numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import IMAGE_SIZE, tiny_model
from transformers import PreTrainedTokenizerFast

from llava_mini import LlavaMiniImageProcessor, LlavaMiniProcessor, LlavaMiniVideoProcessor


PARTS = st.sampled_from(["image", "video", "words"])
TOKENIZER = Path(__file__).parent / "golden/standard/original"


def make_processor(compressor_size: int, resolution_ratio: int) -> LlavaMiniProcessor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        TOKENIZER, extra_special_tokens={"image_token": "<image>", "video_token": "<video>"}, padding_side="left"
    )
    options = {
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resolution_ratio": resolution_ratio,
    }
    return LlavaMiniProcessor(
        LlavaMiniImageProcessor(**options),
        tokenizer,
        LlavaMiniVideoProcessor(**options),
        compressor_size=compressor_size,
    )


def make_model(processor: LlavaMiniProcessor, compressor_size: int, resolution_ratio: int):
    return tiny_model(
        compressor_size=compressor_size,
        resolution_ratio=resolution_ratio,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        text={"vocab_size": len(processor.tokenizer)},
    )


@given(
    compressor_size=st.integers(1, 8),
    resolution_ratio=st.integers(1, 3),
    rows=st.lists(
        st.lists(st.sampled_from(["image", "video", "words"]), min_size=1, max_size=4), min_size=1, max_size=3
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_placeholders_equal_features(compressor_size, resolution_ratio, rows, seed):
    generator = np.random.default_rng(seed)
    processor = make_processor(compressor_size, resolution_ratio)
    model = make_model(processor, compressor_size, resolution_ratio)
    images, videos, texts = [], [], []
    for row in rows:
        texts.append(" ".join({"image": "<image>", "video": "<video>", "words": "some words"}[part] for part in row))
        for part in row:
            height, width = generator.integers(8, 60, 2)
            if part == "image":
                images.append(generator.integers(0, 256, (height, width, 3), np.uint8))
            elif part == "video":
                videos.append(generator.integers(0, 256, (generator.integers(1, 4), height, width, 3), np.uint8))
    inputs = processor(
        images=images or None,
        text=texts,
        videos=videos or None,
        padding=True,
        return_tensors="pt",
        videos_kwargs={"do_sample_frames": False},
    )
    with torch.no_grad():
        output = model(**inputs)
    frames = sum(len(video) for video in videos)
    for states, token_id, units in (
        (output.image_hidden_states, processor.image_token_id, len(images)),
        (output.video_hidden_states, processor.video_token_id, frames),
    ):
        placeholders = int((inputs["input_ids"] == token_id).sum())
        assert placeholders == units * compressor_size**2 == (0 if states is None else len(states))
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(("processor_size", "model_size"), [(1, 2), (3, 2)])
def test_other_compressor_sizes_name_both_numbers(processor_size, model_size):
    processor = make_processor(processor_size, 1)
    model = make_model(processor, model_size, 1)
    image = np.zeros((30, 30, 3), np.uint8)
    inputs = processor(images=[image], text=["<image> what?"], return_tensors="pt")
    with pytest.raises(ValueError, match=rf"\({processor_size**2} in all\).*\({model_size**2} in all\)"):
        model(**inputs)


def test_other_resolution_ratios_name_both_numbers():
    processor = make_processor(1, 2)
    model = make_model(processor, 1, 3)
    image = np.zeros((30, 30, 3), np.uint8)
    inputs = processor(images=[image], text=["<image> what?"], return_tensors="pt")
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 28, 28\).*\(10, 3, 28, 28\)"):
        model(**inputs)
