"""Calls that no model can mean: each is refused in words, by `forward` and `generate` alike."""

import pytest
import torch
from tiny import IMAGE_ID, ROWS, VOCAB_SIZE, collate, make_row, make_rows, tiny_model


GREEDY = {"do_sample": False, "max_new_tokens": 2}


@pytest.fixture(scope="module")
def model():
    return tiny_model(compressor_size=2)


@pytest.fixture(scope="module")
def inputs(model):
    return collate(make_rows(model.config, ["one image", "one image"]))


@pytest.mark.parametrize("name", ["attention_mask", "text_fusion_mask"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mask: mask.to(torch.complex64), "booleans or real numbers"),
        (lambda mask: mask[:1], r"have shape \(2, \d+\)"),
        (lambda mask: mask[:, :-1], r"have shape \(2, \d+\)"),
        (lambda mask: mask[0], r"have shape \(2, \d+\)"),
        (lambda mask: torch.cat([mask, mask]), r"have shape \(2, \d+\)"),
        (lambda mask: torch.cat([mask, mask], dim=1), r"have shape \(2, \d+\)"),
        (lambda mask: mask.tolist(), "is of type list"),
    ],
)
def test_masks_that_are_none(model, inputs, name, change, said):
    wrong = inputs | {name: change(inputs["attention_mask"])}
    for call in (model, model.model, lambda **kwargs: model.generate(**kwargs, **GREEDY)):
        with pytest.raises(ValueError, match=f"`{name}`.*{said}"):
            call(**wrong)


@pytest.mark.parametrize("yes", [1, 2, 255, 1.0, 0.75, float("inf")])
@pytest.mark.parametrize("no", [0, -1, 0.5, -float("inf"), float("nan")])
def test_numbers_above_a_half_mean_yes(model, inputs, yes, no):
    """The rule that is written down, for every kind of mask."""
    said = torch.arange(inputs["input_ids"].shape[1]) % 3 > 0
    said = said | (inputs["input_ids"] == IMAGE_ID)
    given = torch.where(said, torch.tensor(yes), torch.tensor(no))
    with torch.no_grad():
        for name in ("text_fusion_mask", "attention_mask"):
            expected = model(**inputs | {name: said}).logits
            torch.testing.assert_close(model(**inputs | {name: given}).logits, expected, equal_nan=True)


@pytest.mark.parametrize("wrong", [0.0, -1e4, 0.5, -1.0, float("nan")])
def test_attention_masks_that_leave_nothing(model, inputs, wrong):
    """Such as additive ones, of which none is above a half."""
    mask = torch.full(inputs["input_ids"].shape, wrong)
    for call in (model, model.model, lambda **kwargs: model.generate(**kwargs, **GREEDY)):
        with pytest.raises(ValueError, match="leaves no token of row 0.*additive"):
            call(**inputs | {"attention_mask": mask})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_ids": lambda ids: ids.float()}, "`input_ids`.*integers"),
        ({"input_ids": lambda ids: ids[0]}, "`input_ids`.*integers"),
        ({"input_ids": lambda ids: ids.masked_fill(ids > 5, VOCAB_SIZE)}, "not below `vocab_size`"),
        ({"input_ids": lambda ids: ids.masked_fill(ids > 5, -1)}, "negative"),
        ({"pixel_values": lambda pixels: pixels.to(torch.uint8)}, "`pixel_values`.*uint8.*floating point"),
        ({"pixel_values": lambda pixels: pixels.to(torch.complex64)}, "`pixel_values`.*complex64.*floating point"),
        ({"pixel_values": lambda pixels: pixels[:, :, :1]}, "`pixel_values` has shape"),
        ({"pixel_values": lambda pixels: pixels.flatten(0, 1)}, "`pixel_values` has shape"),
        ({"pixel_values": lambda pixels: list(pixels)}, "`pixel_values` is of type list"),
    ],
)
def test_tensors_of_another_kind(model, inputs, change, said):
    wrong = inputs | {name: make(inputs[name]) for name, make in change.items()}
    for call in (model, lambda **kwargs: model.generate(**kwargs, **GREEDY)):
        with pytest.raises(ValueError, match=said):
            call(**wrong)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"position_ids": torch.zeros(2, 3, dtype=torch.long)}, "`position_ids` has shape"),
        ({"position_ids": torch.zeros(1, 1)}, "`position_ids`.*integers"),
        ({"position_ids": torch.zeros(2, 1, 1, dtype=torch.long)}, "`position_ids`.*integers"),
        ({"labels": torch.zeros(2, 3)}, "`labels`.*integers"),
        ({"labels": torch.zeros(2, 3, dtype=torch.long)}, "`labels` has shape"),
        ({"logits_to_keep": -1}, "`logits_to_keep` is -1"),
        ({"logits_to_keep": 1.5}, "`logits_to_keep` is 1.5"),
        ({"logits_to_keep": torch.zeros(1)}, "`logits_to_keep`.*positions"),
    ],
)
def test_what_only_forward_takes(model, inputs, more, said):
    with pytest.raises(ValueError, match=said):
        model(**inputs, **more)


def test_embeddings_of_another_kind(model, inputs):
    text = collate([make_row(model.config, ROWS["text only"])])
    embeds = model.model.embed_prompt(text["input_ids"])
    for wrong in (embeds[..., :-1], embeds[0], embeds.long()):
        with pytest.raises(ValueError, match="`inputs_embeds`.*floating point of shape"):
            model(inputs_embeds=wrong)


def test_frame_counts_are_integers(model):
    inputs = collate([make_row(model.config, ROWS["one video"])])
    with pytest.raises(ValueError, match="`video_num_frames`.*integers"):
        model(**inputs | {"video_num_frames": torch.tensor([2.5])})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("vision_memory_buget", "vision_memory_budget"),
        ("output_compressor_attention", "output_compressor_attentions"),
        ("text_fusion_masks", "text_fusion_mask"),
        ("pixel_value", "pixel_values"),
        ("video_num_frame", "video_num_frames"),
    ],
)
def test_misspelt_arguments(model, inputs, wrong, meant):
    for call in (model, model.model):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}': did you mean `{meant}`"):
            call(**inputs, **{wrong: None})
    with pytest.raises(ValueError, match=wrong):
        model.generate(**inputs, **GREEDY, **{wrong: 1})


def test_misspelt_arguments_of_features(model, inputs):
    for part in (model, model.model):
        with pytest.raises(TypeError, match="did you mean `vision_memory_budget`"):
            part.get_image_features(inputs["pixel_values"], vision_memory_buget=1)
        with pytest.raises(TypeError, match="did you mean `output_compressor_attentions`"):
            part.get_video_features(inputs["pixel_values"][None], output_compressor_attention=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        model(**inputs, colour="red")


def test_generate_returns_no_compressor_attentions(model, inputs):
    with pytest.raises(ValueError, match="get_image_features"):
        model.generate(**inputs, **GREEDY, output_compressor_attentions=True)


HEADERS = {"assistant_headers": [[50, 51], [52, 51]], "user_headers": [[60, 61]]}


@pytest.mark.parametrize(
    ("text", "num_raw"),
    [
        ([7, 8, 50, 51], 0),  # a prompt
        ([7, 8, 50, 51, 9, 10], 2),  # and its answer
        ([7, 8, 52, 51, 9, 10, 11], 3),  # the other form of the header
        ([7, 50, 51, 9, 60, 61, 8], 0),  # a question after an answer, without a header for the next
        ([7, 50, 51, 9, 60, 61, 8, 50, 51, 9, 10], 2),  # only the last answer is one
        ([7, 50, 9, 51, 10], 0),  # no header
        ([50], 0),
    ],
)
def test_what_follows_the_last_header_is_an_answer(text, num_raw):
    """Scored without labels, an answer has the logits that it has with them, and that generation gives it."""
    model = tiny_model(compressor_size=2, **HEADERS)
    row = make_row(model.config, ["image"])
    row.input_ids = torch.cat([row.input_ids, torch.tensor(text)])
    longer = make_row(model.config, ["image", 20], seed=1)
    inputs = collate([row, longer])
    labels = torch.full_like(inputs["input_ids"], -100)
    if num_raw:
        labels[0, -num_raw:] = inputs["input_ids"][0, -num_raw:]
    with torch.no_grad():
        scored = model(**inputs).logits
        torch.testing.assert_close(scored, model(**inputs, labels=labels).logits, atol=1e-5, rtol=1e-5)
        without = tiny_model(compressor_size=2)(**inputs).logits
    fused = len(text) - num_raw + 4
    if num_raw:
        assert (scored[0, -num_raw:] - without[0, -num_raw:]).abs().max() > 1e-3
        prompt = {"input_ids": row.input_ids[None, :fused], "pixel_values": row.images[0][None]}
        made = model.generate(
            **prompt,
            do_sample=False,
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        length = inputs["input_ids"].shape[1]
        torch.testing.assert_close(made.logits[0][0], scored[0, length - num_raw - 1], atol=1e-5, rtol=1e-5)
        # The same answer begun by the caller goes on as it would have been made.
        begun = prompt | {"input_ids": row.input_ids[None]}
        made = model.generate(
            **begun, do_sample=False, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
        torch.testing.assert_close(made.logits[0][0], scored[0, -1], atol=1e-5, rtol=1e-5)


def test_generate_reads_the_text_fusion_mask():
    model = tiny_model(compressor_size=2)
    row = make_row(model.config, ["image", 9])
    inputs = collate([row])
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, -4:] = 0
    options = {"do_sample": False, "max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    masked = model.generate(**inputs, text_fusion_mask=mask, **options).logits[0]
    with torch.no_grad():
        torch.testing.assert_close(masked, model(**inputs, text_fusion_mask=mask).logits[:, -1], atol=1e-5, rtol=1e-5)
    assert (masked - model.generate(**inputs, **options).logits[0]).abs().max() > 1e-3


def test_ids_may_be_a_placeholder_at_the_end():
    """Assisted decoding crops the assistant's cache into such a prompt."""
    model = tiny_model(compressor_size=2)
    for name in ("image last", "adjacent images"):
        parts = ROWS[name] if name == "image last" else ["image", 4, "image"]
        row = make_row(model.config, parts)
        assert row.input_ids[-1] == IMAGE_ID
        inputs = collate([row])
        options = {"do_sample": False, "max_new_tokens": 8}
        expected = model.generate(**inputs, **options)
        for seed in range(3):
            assistant = tiny_model(seed=seed, compressor_size=2)
            assistant.generation_config.num_assistant_tokens = 4
            assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant), expected)
