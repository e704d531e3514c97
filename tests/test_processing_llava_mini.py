# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Processor and chat templates: the authors' prompts and ids, placeholders, masks, batches, bad input."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_video_processing_llava_mini import grey_frames, write_video
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, PreTrainedTokenizerFast, pipeline

from llava_mini import (
    LlavaMiniConfig,
    LlavaMiniForConditionalGeneration,
    LlavaMiniImageProcessor,
    LlavaMiniImageProcessorPil,
    LlavaMiniProcessor,
    LlavaMiniVideoProcessor,
)


TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
TEMPLATES = TESTS.parent / "conversion" / "chat_templates"
CASE = json.loads((GOLDEN / "standard" / "case.json").read_text())
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
IMAGE = {"type": "image", "image": PIL.Image.new("RGB", (30, 20), (200, 30, 40))}
VIDEO = {"type": "video", "video": grey_frames(3)}
BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": list(content)}


def answer(words):
    return {"role": "assistant", "content": words}


def make_tokenizer(**kwargs):
    tokens = {"image_token": "<image>", "video_token": "<video>"}
    return PreTrainedTokenizerFast.from_pretrained(
        GOLDEN / "standard" / "original", extra_special_tokens=tokens, **kwargs
    )


def make_processor(template="llama3", ratio=1, image_processor_class=LlavaMiniImageProcessor, **kwargs):
    small = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "resolution_ratio": ratio}
    return LlavaMiniProcessor(
        image_processor_class(**small),
        kwargs.pop("tokenizer", None) or make_tokenizer(),
        LlavaMiniVideoProcessor(**small),
        chat_template=(TEMPLATES / f"{template}.jinja").read_text(),
        **kwargs,
    )


def make_model(compressor_size=1, ratio=1):
    torch.manual_seed(0)
    text_config = {
        "model_type": "llama",
        "vocab_size": 408,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": 398,
        "bos_token_id": 396,
        "eos_token_id": 397,
    }
    vision_config = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = LlavaMiniConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=402,
        video_token_id=403,
        compressor_size=compressor_size,
        resolution_ratio=ratio,
        num_prefusion_layers=1,
    )
    return LlavaMiniForConditionalGeneration(config).eval()


CHAT = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


def test_golden_image_prompt_and_ids():
    for name, compressor_size, ratio in (("standard", 1, 1), ("high_resolution", 2, 2)):
        case = json.loads((GOLDEN / name / "case.json").read_text())
        golden = load_file(GOLDEN / name / "tensors.safetensors")
        processor = make_processor(compressor_size=compressor_size, ratio=ratio)
        messages = [user(IMAGE, text("What is the text on the cake? Describe it!"))]
        assert processor.apply_chat_template(messages, add_generation_prompt=True) == case["prompt"]
        inputs = processor.apply_chat_template(messages, add_generation_prompt=True, **CHAT)
        expected = []
        for token_id in golden["image.input_ids"][0].tolist():
            expected += [processor.image_token_id] * compressor_size**2 if token_id == -200 else [token_id]
        assert inputs.input_ids[0].tolist() == expected
        assert inputs.pixel_values.shape == (1, case["parts"], 3, 56, 56)
        assert "text_fusion_mask" not in inputs


def test_golden_video_prompt_and_ids():
    golden = load_file(GOLDEN / "standard" / "tensors.safetensors")
    processor = make_processor(compressor_size=2)
    messages = [user(VIDEO, text("What happened in this video?"))]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt.replace("<video>", "<image>") == CASE["video_prompt"] and prompt.count("<video>") == 1
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, **CHAT)
    expected = []
    for token_id in golden["video.input_ids"][0].tolist():
        expected += [processor.video_token_id] * (3 * 4) if token_id == -200 else [token_id]
    assert inputs.input_ids[0].tolist() == expected
    assert inputs.pixel_values_videos.shape == (1, 3, 1, 3, 56, 56) and inputs.video_num_frames.tolist() == [3]


def test_golden_training_mask():
    golden = load_file(GOLDEN / "standard" / "tensors.safetensors")
    ids, labels = golden["train.input_ids"][0], golden["train.labels"][0]
    processor = make_processor()
    question, reply = "What is the text on the cake? Describe it!", "It is a cake with text on it!"
    inputs = processor.apply_chat_template(
        [user(IMAGE, text(question)), answer(reply)], return_assistant_tokens_mask=True, **CHAT
    )
    expected = torch.where(ids == -200, processor.image_token_id, ids)
    assert torch.equal(inputs.input_ids[0], expected)
    assert torch.equal(inputs.assistant_masks[0] == 1, labels != -100)
    assert torch.equal(inputs.text_fusion_mask[0] == 1, labels == -100)


@pytest.mark.parametrize("template", ["llama3", "vicuna_v1"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Hello", "Hello"),
        ("  Hello\n", "Hello"),
        ([text("Hello"), text(" you")], "Hello you"),
        ([IMAGE, text("What?")], "<image>\nWhat?"),
        ([text("What?"), IMAGE], "What?\n<image>"),
        ([text("Here:\n"), IMAGE, text("What?")], "Here:\n<image>\nWhat?"),
        ([IMAGE, IMAGE, text("What?")], "<image>\n<image>\nWhat?"),
        ([IMAGE, text("or"), VIDEO, text("?")], "<image>\nor\n<video>\n?"),
        ([{"type": "image_url", "image_url": {"url": "a.png"}}, text("What?")], "<image>\nWhat?"),
        ([IMAGE], "<image>"),
    ],
)
def test_content_parts_keep_their_order(template, content, expected):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    if template == "llama3":
        wanted = f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe brief.{EOS}"
        wanted += f"<|start_header_id|>user<|end_header_id|>\n\n{expected}{EOS}"
    else:
        wanted = f"{BOS}Be brief. USER: {expected} "
    assert make_processor(template).apply_chat_template(messages) == wanted


def test_llama3_conversations():
    def turn(role, words):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{words}{EOS}"

    processor = make_processor()
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    messages = [user(IMAGE, text("What?")), answer(" A cake. "), user(text("Sure?"))]
    rest = turn("user", "<image>\nWhat?") + turn("assistant", "A cake.") + turn("user", "Sure?")
    assert processor.apply_chat_template(messages) == BOS + turn("system", SYSTEM) + rest
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        BOS + turn("system", SYSTEM) + rest + header
    )
    for content in ("Be brief.", [text("Be "), text("brief.")]):
        system = {"role": "system", "content": content}
        assert processor.apply_chat_template([system, *messages]) == BOS + turn("system", "Be brief.") + rest
    assert processor.apply_chat_template([user(text("Hi")), answer("Yes, I")], continue_final_message=True) == (
        BOS + turn("system", SYSTEM) + turn("user", "Hi") + header + "Yes, I"
    )


def test_vicuna_conversations():
    processor = make_processor("vicuna_v1")
    messages = [user(IMAGE, text("What?")), answer("A cake."), user(text("Sure?"))]
    rest = f"USER: <image>\nWhat? ASSISTANT: A cake.{EOS}USER: Sure? "
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == f"{BOS}{SYSTEM} {rest}ASSISTANT:"
    system = {"role": "system", "content": "Be brief."}
    assert processor.apply_chat_template([system, *messages]) == f"{BOS}Be brief. {rest}"
    with pytest.raises(Exception, match="role 'tool'"):
        processor.apply_chat_template([{"role": "tool", "content": "4"}])


@pytest.mark.parametrize("template", ["llama3", "vicuna_v1"])
def test_unknown_content_is_refused(template):
    with pytest.raises(Exception, match="of type 'audio'"):
        make_processor(template).apply_chat_template([user({"type": "audio", "path": "a.wav"})])


@pytest.mark.parametrize("template", ["llama3", "vicuna_v1"])
def test_one_bos(template):
    tokenizer = make_tokenizer()
    # As released tokenizers do, and the golden one doesn't.
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 396)])
    processor = make_processor(template, tokenizer=tokenizer)
    assert processor(text="Hello").input_ids[0].count(396) == 1
    inputs = processor.apply_chat_template([user(IMAGE, text("What?"))], **CHAT)
    assert (inputs.input_ids == 396).sum() == 1 and inputs.input_ids[0, 0] == 396
    inputs = processor.tokenizer.apply_chat_template(
        [user(text("What?"))], chat_template=processor.chat_template, return_dict=True
    )
    assert inputs["input_ids"].count(396) == 1


@pytest.mark.parametrize("template", ["llama3", "vicuna_v1"])
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_assistant_masks(template, return_tensors):
    processor = make_processor(template, compressor_size=2)
    first = [user(IMAGE, text("What?")), answer("A cake."), user(VIDEO, text("And?")), answer("It fell down.")]
    second = [user(IMAGE, text("What?")), answer("Nothing.")]
    options = {**CHAT, "return_tensors": return_tensors, "processor_kwargs": {"padding": True}}
    inputs = processor.apply_chat_template([first, second], return_assistant_tokens_mask=True, **options)
    assert options["processor_kwargs"] == {"padding": True}
    for row, spoken in zip(range(2), (f"A cake.{EOS}It fell down.{EOS}", f"Nothing.{EOS}")):
        masked = [i for i, kept in zip(inputs["input_ids"][row], inputs["assistant_masks"][row]) if kept]
        assert processor.decode(masked).replace("  ", " ").replace(f"{EOS} ", EOS).strip() == spoken
    fusion, masks = np.asarray(inputs["text_fusion_mask"]), np.asarray(inputs["assistant_masks"])
    assert (fusion == 1 - masks).all() and masks.any()
    assert type(inputs["text_fusion_mask"]) is type(inputs["assistant_masks"])


def test_text_fusion_mask_comes_with_answers():
    """Whoever trains or scores gets it without asking; a prompt, and text alone, have nothing to leave out."""
    processor = make_processor()
    asked, answered = [user(IMAGE, text("What?"))], [user(IMAGE, text("What?")), answer("A cake")]
    for messages in ([user(text("Hi")), answer("Hello")], asked):
        inputs = processor.apply_chat_template(messages, return_assistant_tokens_mask=True, **CHAT)
        assert "assistant_masks" in inputs and "text_fusion_mask" not in inputs
    inputs = processor.apply_chat_template(answered, **CHAT)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "text_fusion_mask"}
    marked = processor.apply_chat_template(answered, return_assistant_tokens_mask=True, **CHAT)
    assert (np.asarray(inputs["text_fusion_mask"]) == np.asarray(marked["text_fusion_mask"])).all()
    kept = [i for i, mask in zip(inputs["input_ids"][0], inputs["text_fusion_mask"][0]) if not mask]
    assert processor.decode(kept).strip() == f"A cake{EOS}"
    for options in ({"add_generation_prompt": True}, {"continue_final_message": True}):
        grown = answered + ([user(text("And?"))] if "add_generation_prompt" in options else [])
        assert "text_fusion_mask" not in processor.apply_chat_template(grown, **CHAT, **options)
    mixed = processor.apply_chat_template([answered, asked], **CHAT, processor_kwargs={"padding": True})
    assert "text_fusion_mask" not in mixed
    no_marks = make_processor(template="vicuna_v1")
    no_marks.chat_template = no_marks.chat_template.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    assert "text_fusion_mask" not in no_marks.apply_chat_template(answered, **CHAT)


@pytest.mark.parametrize("typed", ["<image>", "<video>", "a <image><video> b", "<image>\n<image>"])
def test_typed_placeholders_are_text(typed):
    processor = make_processor()
    for messages in ([user(IMAGE, text(f"What does {typed} mean?"))], [{"role": "user", "content": typed}]):
        images = int(isinstance(messages[0]["content"], list))
        inputs = processor.apply_chat_template(messages, **CHAT, add_generation_prompt=True)
        ids = list(inputs["input_ids"][0])
        assert ids.count(processor.image_token_id) == images and processor.video_token_id not in ids
        shown = typed.replace("<image>", "< image>").replace("<video>", "< video>")
        assert shown in processor.apply_chat_template(messages, tokenize=False)
    assert messages == [{"role": "user", "content": typed}], "the caller's messages stay as they are"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user({"text": "What?"})], "'type'"),
        ([user({"type": None, "text": "What?"})], "'type'"),
        ([user("What?")], "'type'"),
        ([user({"type": "text"})], "string as 'text'"),
        ([user({"type": "text", "text": None})], "string as 'text'"),
        ([{"content": "What?"}], "'role'"),
        (["What?"], "'role'"),
        ([[{"content": "What?"}]], "'role'"),
    ],
)
def test_messages_that_are_none_are_refused(messages, said):
    with pytest.raises(ValueError, match=said):
        make_processor().apply_chat_template(messages, **CHAT)


def test_turn_headers():
    """What opens a turn, as ids: an answer begins right behind it, and the next question's is found."""
    for template in ("llama3", "vicuna_v1"):
        processor = make_processor(template)
        headers = processor.find_turn_headers()
        chat = [user(text("One")), answer("Two"), user(text("Three"))]
        prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert any(ids[-len(header) :] == header for header in headers["assistant_headers"])
        for header in headers["assistant_headers"]:
            assert "assistant" in processor.decode(header).replace(" ", "").lower()
        assert all("user" in processor.decode(header).replace(" ", "").lower() for header in headers["user_headers"])
        assert headers["user_headers"]
    processor.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert processor.find_turn_headers() == {"assistant_headers": [], "user_headers": []}


def test_batches_are_padded_on_the_left():
    processor = make_processor(tokenizer=make_tokenizer())
    chats = [[user(IMAGE, text("What?"))], [user(IMAGE, IMAGE, text("Which of these two is the nicer one?"))]]
    inputs = processor.apply_chat_template(chats, processor_kwargs={"padding": True}, **CHAT)
    assert inputs.attention_mask[0, 0] == 0 and inputs.attention_mask[:, -1].all() and inputs.attention_mask[1].all()
    assert inputs.pixel_values.shape == (3, 1, 3, 56, 56)
    inputs = processor.apply_chat_template(chats, processor_kwargs={"padding": True, "padding_side": "right"}, **CHAT)
    assert inputs.attention_mask[0, 0] == 1 and inputs.attention_mask[0, -1] == 0
    assert make_processor(tokenizer=make_tokenizer(padding_side="right")).tokenizer.padding_side == "right"


def test_plain_call():
    processor = make_processor(compressor_size=3)
    image, frames = IMAGE["image"], VIDEO["video"]
    inputs = processor(
        text=["<image>\na <video> b", "c"],
        images=[[image], []],
        videos=[[frames], []],
        padding=True,
        return_tensors="pt",
    )
    assert (inputs.input_ids == processor.image_token_id).sum(1).tolist() == [9, 0]
    assert (inputs.input_ids == processor.video_token_id).sum(1).tolist() == [27, 0]
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "video_num_frames"}
    assert set(processor.model_input_names) >= set(inputs)
    for empty in ([], [[]]):
        assert "pixel_values" not in processor(text="a", images=empty)
        assert "pixel_values_videos" not in processor(text="a", videos=empty)
    assert set(processor(images=image)) == {"pixel_values"}
    assert set(processor(videos=frames)) == {"pixel_values_videos", "video_num_frames"}
    metadata = processor(text="<video>", videos=frames, return_metadata=True)["video_metadata"]
    assert metadata[0].total_num_frames == 3


def test_videos_by_path_and_what_serving_asks_for(tmp_path):
    processor = make_processor()
    path = str(write_video(tmp_path / "video.mp4", grey_frames(40)))
    messages = [user({"type": "video", "path": path}, text("What happened in this video?"))]
    assert processor.apply_chat_template(messages, **CHAT).video_num_frames.tolist() == [4]
    for video in (path, Path(path), Path(path).read_bytes(), VIDEO["video"], list(VIDEO["video"])):
        inputs = processor.apply_chat_template([user({"type": "video", "video": video}, text("What?"))], **CHAT)
        assert (inputs.input_ids == processor.video_token_id).sum() == inputs.video_num_frames[0]
    # What `transformers serve` passes with every video: a number of frames, and a wish for sound.
    inputs = processor.apply_chat_template(messages, num_frames=32, load_audio_from_video=True, **CHAT)
    assert inputs.video_num_frames.tolist() == [32]
    inputs = processor.apply_chat_template(messages, processor_kwargs={"fps": 2}, **CHAT)
    assert inputs.video_num_frames.tolist() == [8]


def test_images_by_path_url_and_base64(tmp_path):
    processor = make_processor()
    IMAGE["image"].save(tmp_path / "image.png")
    encoded = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    expected = processor.apply_chat_template([user(IMAGE, text("What?"))], **CHAT)
    for part in (
        {"type": "image", "path": str(tmp_path / "image.png")},
        {"type": "image", "url": str(tmp_path / "image.png")},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ):
        inputs = processor.apply_chat_template([user(part, text("What?"))], **CHAT)
        assert torch.equal(inputs.pixel_values, expected.pixel_values)
        assert torch.equal(inputs.input_ids, expected.input_ids)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": "<image> <image>", "images": [IMAGE["image"]]}, "1 images and 2 '<image>'"),
        ({"text": "a", "images": IMAGE["image"]}, "1 images and 0 '<image>'"),
        ({"text": "<image>"}, "0 images and 1 '<image>'"),
        ({"text": ["<image>", "a"], "images": [[], [IMAGE["image"]]]}, r"0 \+ 1 images and 1 \+ 0 '<image>'"),
        ({"text": "a <video>"}, "0 videos and 1 '<video>'"),
        ({"text": "<video>", "videos": [VIDEO["video"]] * 2}, "2 videos and 1 '<video>'"),
        ({"text": ["<video>", "a"], "videos": [[], [VIDEO["video"]]]}, r"0 \+ 1 videos and 1 \+ 0 '<video>'"),
        ({"text": [["a", "b"]]}, "string or a list of strings"),
        ({}, "Got no input"),
    ],
)
def test_bad_calls_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_processor()(**inputs)


def test_truncation_never_cuts_placeholders():
    processor = make_processor(compressor_size=4)
    options = {"images": IMAGE["image"], "truncation": True}
    assert processor(text="<image> a b c d e f g h", max_length=18, **options).input_ids[0].count(402) == 16
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor(text="<image> a b c d e f g h", max_length=10, **options)
    with pytest.raises(ValueError, match="Mismatch in `video` token count"):
        processor(text="<video> a b", videos=VIDEO["video"], truncation=True, max_length=20)


def test_parts_that_do_not_fit_are_refused():
    small = {"size": {"shortest_edge": 56}, "crop_size": 56}
    with pytest.raises(ValueError, match="`resolution_ratio` is 2 in the image processor and 1 in the video"):
        LlavaMiniProcessor(
            LlavaMiniImageProcessor(**small, resolution_ratio=2), make_tokenizer(), LlavaMiniVideoProcessor()
        )
    with pytest.raises(ValueError, match="`compressor_size` is 0"):
        make_processor(compressor_size=0)
    bare = PreTrainedTokenizerFast.from_pretrained(GOLDEN / "standard" / "original")
    with pytest.raises(ValueError, match="no token '<image>'"):
        make_processor(tokenizer=bare)
    with pytest.raises(TypeError, match="video_processor"):
        LlavaMiniProcessor(LlavaMiniImageProcessor(), make_tokenizer())


def test_token_counts_and_types():
    processor = make_processor(compressor_size=2)
    data = processor._get_num_multimodal_tokens(image_sizes=[(10, 20), (300, 4)], video_sizes=[(7, 10, 20)])
    assert (data.num_image_tokens, data.num_image_patches, data.num_video_tokens) == ([4, 4], [1, 1], [28])
    inputs = processor(
        text="<image> a <video>", images=IMAGE["image"], videos=VIDEO["video"], return_mm_token_type_ids=True
    )
    types = np.asarray(inputs["mm_token_type_ids"][0])
    ids = np.asarray(inputs["input_ids"][0])
    assert ((types == 1) == (ids == 402)).all() and ((types == 2) == (ids == 403)).all() and (types == 2).sum() == 12


def test_decoding():
    processor = make_processor()
    ids = processor(text=["A cake.", "Two cakes."]).input_ids
    assert processor.batch_decode(ids) == ["A cake.", "Two cakes."]
    assert processor.post_process_image_text_to_text([[*ids[0], 397]]) == ["A cake."]


@pytest.mark.parametrize("backend", ["pil", "torchvision", None])
def test_save_and_load(tmp_path, backend):
    LlavaMiniConfig().save_pretrained(tmp_path)
    processor = make_processor(compressor_size=3, ratio=2)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["compressor_size"] == 3
    loaded = AutoProcessor.from_pretrained(tmp_path, **({"backend": backend} if backend else {}))
    assert type(loaded) is LlavaMiniProcessor
    assert type(loaded.image_processor) is (LlavaMiniImageProcessorPil if backend == "pil" else LlavaMiniImageProcessor)
    assert (loaded.compressor_size, loaded.image_token_id, loaded.tokenizer.padding_side) == (3, 402, "left")
    assert loaded.image_processor.resolution_ratio == loaded.video_processor.resolution_ratio == 2
    messages = [user(IMAGE, VIDEO, text("What?"))]
    expected, inputs = (p.apply_chat_template(messages, **CHAT) for p in (processor, loaded))
    assert expected.keys() == inputs.keys()
    for name in expected:
        # One flat colour, for which the backends differ by float32 rounding alone.
        torch.testing.assert_close(inputs[name], expected[name], atol=1e-6, rtol=0)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    compressor_size=st.integers(1, 8),
    ratio=st.integers(1, 3),
    counts=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    frames=st.lists(st.integers(1, 3), max_size=2),
)
def test_placeholders_are_as_many_as_features(compressor_size, ratio, counts, frames):
    processor, model = make_processor(compressor_size=compressor_size, ratio=ratio), make_model(compressor_size, ratio)
    videos = [grey_frames(count) for count in frames]
    prompts = ["<image>" * count for count in counts]
    prompts[-1] += "<video>" * len(frames)
    inputs = processor(
        text=[prompt + "What?" for prompt in prompts],
        images=[[IMAGE["image"]] * count for count in counts],
        videos=[[] for _ in counts[1:]] + [videos],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        if "pixel_values" in inputs:
            features = model.get_image_features(inputs.pixel_values).pooler_output
            assert sum(map(len, features)) == (inputs.input_ids == processor.image_token_id).sum()
        if "pixel_values_videos" in inputs:
            features = model.get_video_features(inputs.pixel_values_videos, inputs.video_num_frames).pooler_output
            assert [len(f) for f in features] == [count * compressor_size**2 for count in frames]
            assert sum(map(len, features)) == (inputs.input_ids == processor.video_token_id).sum()
        assert model(**inputs).logits.shape[:2] == inputs.input_ids.shape


def test_model_refuses_a_processor_of_another_compressor_size():
    inputs = make_processor(compressor_size=2)(text="<image>", images=IMAGE["image"], return_tensors="pt")
    with pytest.raises(ValueError, match="(?s)4.*1|1.*4"):
        make_model()(**inputs)


def test_pipeline_batches_equal_single_chats(tmp_path):
    processor, model = make_processor(), make_model()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    path = str(write_video(tmp_path / "video.mp4", grey_frames(30)))
    chats = [
        [user(IMAGE, text("What?"))],
        [user(IMAGE, text("Would you tell me what is to be seen here?"))],
        [user({"type": "video", "path": path}, text("What happened in this video?"))],
    ]
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    single = [pipe(text=chat, **options)[0]["generated_text"] for chat in chats]
    assert all(single)
    batch = pipe(text=chats[:2], batch_size=2, **options)
    assert [output[0]["generated_text"] for output in batch] == single[:2]


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None
import PIL.Image
from transformers import AutoImageProcessor, AutoProcessor
import llava_mini
assert not hasattr(llava_mini, "LlavaMiniVideoProcessor")
processor = AutoProcessor.from_pretrained(sys.argv[1])
assert type(processor.image_processor) is llava_mini.LlavaMiniImageProcessorPil
assert processor(text="<image> a", images=PIL.Image.new("RGB", (9, 9)))["pixel_values"].shape == (1, 1, 3, 56, 56)
try:
    processor(text="<video> a", videos="a.mp4")
except ImportError as error:
    assert "pip install torchvision" in str(error)
else:
    raise AssertionError("no error")
"""


def test_images_work_without_torchvision(tmp_path):
    LlavaMiniConfig().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION, str(tmp_path)], check=True)
