"""
Random input: what is valid gives the numbers that each row gives alone, what is not raises a ValueError, and nothing
crashes or returns NaN.
"""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import IMAGE_ID, IMAGE_SIZE, PAD_ID, VIDEO_ID, Row, collate, make_row, tiny_model
from transformers import PreTrainedTokenizerFast

from llava_mini import LlavaMiniImageProcessor, LlavaMiniProcessor, LlavaMiniVideoProcessor


# The project's bar in float32; a batch sums in another order than a row.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# The same examples every time: a run of the suite is no place to find new ones. To search, drop `derandomize`.
SEARCH = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SHAPES = [(1, 1), (2, 1), (2, 2)]
MASK_TYPES = [torch.long, torch.bool, torch.int32, torch.float32]

parts = st.lists(
    st.one_of(st.integers(1, 6), st.just("image"), st.tuples(st.just("video"), st.integers(1, 3))),
    min_size=1,
    max_size=5,
)


@cache
def model_of(shape):
    return tiny_model(compressor_size=shape[0], resolution_ratio=shape[1])


@st.composite
def batches(draw, max_rows=4):
    """A model, rows for it, and how they are put together."""
    model = model_of(draw(st.sampled_from(SHAPES)))
    rows = draw(st.lists(parts, min_size=1, max_size=max_rows))
    seed = draw(st.integers(0, 1000))
    return model, [make_row(model.config, row, seed + i) for i, row in enumerate(rows)]


def random_mask(row: Row, seed: int) -> torch.Tensor:
    return torch.rand(len(row.input_ids), generator=torch.Generator().manual_seed(seed)) < 0.6


def pad_like(batch: dict, rows_of_values: list[torch.Tensor], fill) -> torch.Tensor:
    """Values a row, put where the batch has its tokens."""
    padded = torch.full(batch["attention_mask"].shape, fill, dtype=rows_of_values[0].dtype)
    padded[batch["attention_mask"].bool()] = torch.cat(rows_of_values)
    return padded


def run(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs)


@settings(SEARCH, max_examples=60)
@given(
    batches(),
    st.sampled_from(["left", "right"]),
    st.sampled_from(MASK_TYPES),
    st.sampled_from([torch.long, torch.int32]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_valid_batches_equal_their_rows(batch, side, mask_type, id_type, pixel_type, use_fusion_mask, budget):
    model, rows = batch
    inputs = collate(rows, side)
    real = inputs["attention_mask"].bool()
    if use_fusion_mask:
        inputs["text_fusion_mask"] = pad_like(inputs, [random_mask(row, i) for i, row in enumerate(rows)], True)
    inputs["attention_mask"] = inputs["attention_mask"].to(mask_type)
    inputs["input_ids"] = inputs["input_ids"].to(id_type)
    pixels = {name: value.to(pixel_type) for name, value in inputs.items() if name.startswith("pixel_values")}
    logits = run(model, inputs | pixels, vision_memory_budget=budget).logits
    assert logits[real].isfinite().all()
    for i, row in enumerate(rows):
        alone = collate([row])
        alone |= {name: value.to(pixel_type) for name, value in alone.items() if name.startswith("pixel_values")}
        if use_fusion_mask:
            alone["text_fusion_mask"] = random_mask(row, i)[None]
        torch.testing.assert_close(logits[i, real[i]], run(model, alone).logits[0], **TOLERANCE)


@settings(SEARCH, max_examples=25)
@given(batches(), st.sampled_from(["left", "right"]))
def test_valid_labels(batch, side):
    model, rows = batch
    inputs = collate(rows, side)
    labels = [row.input_ids.masked_fill(random_mask(row, i), -100) for i, row in enumerate(rows)]
    labels = [row.masked_fill((row == IMAGE_ID) | (row == VIDEO_ID), -100) for row in labels]
    learned = sum(int((row[1:] != -100).sum()) for row in labels)
    assume(learned)
    padded = pad_like(inputs, labels, -100)
    padded[:, 0] = -100  # nothing comes before it, and in a left-padded row only padding does
    starts = inputs["attention_mask"].long().argmax(1)
    padded[torch.arange(len(rows)), starts] = -100
    together = run(model, inputs, labels=padded).loss
    total = 0.0
    for row, own in zip(rows, labels):
        own = own.index_fill(0, torch.tensor(0), -100)
        if count := int((own != -100).sum()):
            total += run(model, collate([row]), labels=own[None]).loss * count
    torch.testing.assert_close(together, total / learned, **TOLERANCE)


@cache
def half_model_of(shape, dtype):
    return copy.deepcopy(model_of(shape)).to(dtype)


@settings(SEARCH, max_examples=15)
@given(batches(max_rows=2), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_stays_finite(batch, dtype):
    model, rows = batch
    half = half_model_of((model.config.compressor_size, model.config.resolution_ratio), dtype)
    inputs = collate(rows)
    real = inputs["attention_mask"].bool()
    logits = run(half, inputs).logits[real]
    assert logits.dtype == dtype and logits.isfinite().all()
    expected = run(model, inputs).logits[real]
    # 8 or 11 bits through some twenty matrix products: the same direction.
    assert torch.nn.functional.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99


@settings(SEARCH, max_examples=12)
@given(batches(max_rows=3))
def test_valid_batches_generate_what_their_rows_do(batch):
    model, rows = batch
    options = {"do_sample": False, "max_new_tokens": 3, "suppress_tokens": [IMAGE_ID, VIDEO_ID]}
    inputs = collate(rows)
    made = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for i, row in enumerate(rows):
        assert torch.equal(model.generate(**collate([row]), **options)[0, len(row.input_ids) :], made[i])


def drop_visual(inputs, name):
    inputs[name] = inputs[name][1:] if len(inputs[name]) > 1 else None


def repeat_visual(inputs, name):
    inputs[name] = torch.cat([inputs[name], inputs[name][:1]])


def cut_size(inputs, name):
    inputs[name] = inputs[name][..., :-1]


def cut_channels(inputs, name):
    inputs[name] = inputs[name][..., :2, :, :]


def add_crop(inputs, name):
    inputs[name] = torch.cat([inputs[name], inputs[name][..., :1, :, :, :]], dim=-4)


def lose_axis(inputs, name):
    inputs[name] = inputs[name][0]


def one_placeholder_more(inputs, name):
    ids = inputs["input_ids"]
    text = ((ids > VIDEO_ID) & inputs["attention_mask"].bool()).nonzero()
    assume(len(text))
    ids[tuple(text[0])] = IMAGE_ID if name == "pixel_values" else VIDEO_ID


def one_placeholder_less(inputs, name):
    ids = inputs["input_ids"]
    places = (ids == (IMAGE_ID if name == "pixel_values" else VIDEO_ID)).nonzero()
    ids[tuple(places[0])] = 10


def shorter(key):
    def shorten(inputs, _name):
        inputs[key] = torch.ones_like(inputs["input_ids"])[:, 1:]

    return shorten


def wrong_frame_counts(inputs, name):
    assume(name == "pixel_values_videos")
    inputs["video_num_frames"] = inputs["video_num_frames"] + inputs["pixel_values_videos"].shape[1]


def negative_frame_counts(inputs, name):
    assume(name == "pixel_values_videos")
    inputs["video_num_frames"] = -inputs["video_num_frames"]


def ids_and_embeddings(inputs, _name):
    inputs["inputs_embeds"] = torch.zeros(*inputs["input_ids"].shape, 32)


def four_dimensional_mask(inputs, _name):
    inputs["attention_mask"] = inputs["attention_mask"][:, None, None]


CORRUPTIONS = [
    drop_visual,
    repeat_visual,
    cut_size,
    cut_channels,
    add_crop,
    lose_axis,
    one_placeholder_more,
    one_placeholder_less,
    shorter("labels"),
    shorter("attention_mask"),
    shorter("text_fusion_mask"),
    wrong_frame_counts,
    negative_frame_counts,
    ids_and_embeddings,
    four_dimensional_mask,
]


@settings(SEARCH, max_examples=120)
@given(batches(), st.sampled_from(CORRUPTIONS), st.data())
def test_invalid_input_is_refused(batch, corrupt, data):
    model, rows = batch
    inputs = collate(rows)
    visual = sorted({"pixel_values", "pixel_values_videos"} & inputs.keys())
    assume(visual)
    corrupt(inputs, data.draw(st.sampled_from(visual)))
    with pytest.raises(ValueError):
        run(model, inputs)


@cache
def processor():
    pixels = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        Path(__file__).parent / "golden" / "standard" / "original",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    return LlavaMiniProcessor(
        LlavaMiniImageProcessor(**pixels), tokenizer, LlavaMiniVideoProcessor(**pixels), compressor_size=2
    )


@st.composite
def prompts(draw):
    """A text and the images and videos it speaks of."""
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    sides = st.integers(1, 60)
    text, images, videos = [], [], []
    for kind in draw(st.lists(st.sampled_from(["words", "image", "video"]), min_size=1, max_size=5)):
        height, width = draw(sides), draw(sides)
        if kind == "image":
            mode = draw(st.sampled_from(["RGB", "L", "RGBA", "P", "array", "tensor"]))
            images.append(make_image(generator, mode, height, width))
            text.append("<image>")
        elif kind == "video":
            videos.append(generator.integers(0, 255, (draw(st.integers(1, 3)), height, width, 3), dtype=np.uint8))
            text.append("<video>")
        else:
            text.append(draw(st.text("abc é,!\n", min_size=1, max_size=8)))
    return " ".join(text), images, videos


def make_image(generator, mode, height, width):
    pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    if mode == "array":
        return pixels
    if mode == "tensor":
        return torch.from_numpy(pixels).permute(2, 0, 1)
    return Image.fromarray(pixels).convert(mode)


def process(rows):
    text, images, videos = zip(*rows)
    images = list(images) if any(images) else None
    videos = list(videos) if any(videos) else None
    return processor()(
        text=list(text), images=images, videos=videos, padding=True, do_sample_frames=False, return_tensors="pt"
    )


@settings(SEARCH, max_examples=40)
@given(st.lists(prompts(), min_size=1, max_size=3))
def test_processor_batches_equal_their_rows(rows):
    batch = process(rows)
    images = videos = 0
    for i, row in enumerate(rows):
        alone = process([row])
        own = batch["input_ids"][i, batch["attention_mask"][i].bool()]
        assert torch.equal(own, alone["input_ids"][0])
        count = processor().num_image_tokens
        assert (own == processor().image_token_id).sum() == len(row[1]) * count
        assert (own == processor().video_token_id).sum() == sum(map(len, row[2])) * count
        if row[1]:
            assert torch.equal(batch["pixel_values"][images : images + len(row[1])], alone["pixel_values"])
            assert alone["pixel_values"].isfinite().all()
        for j, video in enumerate(row[2]):
            pixels = batch["pixel_values_videos"][videos + j, : len(video)]
            assert torch.equal(pixels, alone["pixel_values_videos"][j, : len(video)]) and pixels.isfinite().all()
        images, videos = images + len(row[1]), videos + len(row[2])


def add_image(text, images, videos):
    return text, [*images, np.zeros((9, 9, 3), np.uint8)], videos


def add_placeholder(text, images, videos):
    return text + " <video>", images, videos


def empty_image(text, images, videos):
    return text + " <image>", [*images, np.zeros((0, 9, 3), np.uint8)], videos


def empty_video(text, images, videos):
    return text + " <video>", images, [*videos, np.zeros((0, 9, 9, 3), np.uint8)]


def five_channels(text, images, videos):
    return text + " <image>", [*images, np.zeros((5, 9, 9), np.uint8)], videos


def out_of_range(text, images, videos):
    return text + " <image>", [*images, np.full((9, 9, 3), -1.0)], videos


def nothing_there(text, images, videos):
    return text + " <image>", [*images, "no such file.png"], videos


@settings(SEARCH, max_examples=40)
@given(
    prompts(),
    st.sampled_from([add_image, add_placeholder, empty_image, empty_video, five_channels, out_of_range, nothing_there]),
)
def test_processor_refuses_what_is_invalid(row, corrupt):
    with pytest.raises(ValueError):
        process([corrupt(*row)])


@settings(SEARCH, max_examples=10)
@given(st.lists(prompts(), min_size=1, max_size=3))
def test_processor_and_model_fit_together(rows):
    """What the processor makes is what the model takes, whatever the mix."""
    model = model_for_processor()
    batch = process(rows)
    logits = run(model, batch).logits
    assert logits[batch["attention_mask"].bool()].isfinite().all()


@cache
def model_for_processor():
    ids = {"image_token_id": processor().image_token_id, "video_token_id": processor().video_token_id}
    text = {"vocab_size": len(processor().tokenizer), "pad_token_id": PAD_ID}
    return tiny_model(compressor_size=2, text=text, **ids)
