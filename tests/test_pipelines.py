"""pipeline("image-text-to-text") and "any-to-any" on a converted checkpoint, against generate() on the same input."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_video_streaming import write_video
from transformers import TextStreamer, pipeline


IMAGES = [str(Path(__file__).parent / f"golden/preprocess/image{i}.png") for i in range(3)]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module", params=["standard", "high_resolution"])
def pipe(request, converted):
    return pipeline("image-text-to-text", model=str(converted(request.param)), device="cpu")


def ask(*parts, text="What is this?"):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def image(path):
    return {"type": "image", "image": path}


def by_hand(pipe, messages):
    inputs = pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = pipe.model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    return pipe.processor.batch_decode(ids, skip_special_tokens=True)[0]


def answer(output):
    return output[0]["generated_text"][-1]["content"]


def test_chat_with_one_image_and_several(pipe):
    for messages in (ask(image(IMAGES[0])), ask(image(IMAGES[0]), image(IMAGES[1]), text="Compare."), ask()):
        assert answer(pipe(text=messages, generate_kwargs=GREEDY)) == by_hand(pipe, messages)


def test_image_kinds_agree(pipe):
    expected = answer(pipe(text=ask(image(IMAGES[0])), generate_kwargs=GREEDY))
    kinds = [image(Image.open(IMAGES[0])), {"type": "image", "url": IMAGES[0]}, {"type": "image", "path": IMAGES[0]}]
    for kind in kinds:
        assert answer(pipe(text=ask(kind), generate_kwargs=GREEDY)) == expected


def test_batches_equal_singles(pipe):
    chats = [ask(image(path), text=f"What is {'it, ' * i} this?") for i, path in enumerate(IMAGES)]
    for batch_size in (1, 3):
        outputs = pipe(text=chats, generate_kwargs=GREEDY, batch_size=batch_size)
        assert [answer(output) for output in outputs] == [by_hand(pipe, chat) for chat in chats]


def test_several_turns(pipe):
    messages = ask(image(IMAGES[0]))
    first = pipe(text=messages, generate_kwargs=GREEDY)[0]["generated_text"]
    assert [message["role"] for message in first] == ["user", "assistant"]
    second = first + ask(text="And now?")
    assert answer(pipe(text=second, generate_kwargs=GREEDY)) == by_hand(pipe, second)


def test_raw_text_and_return_full_text(pipe):
    prompt = "<image>\nWhat is this?"
    full = pipe(images=IMAGES[0], text=prompt, generate_kwargs=GREEDY)[0]["generated_text"]
    new = pipe(images=IMAGES[0], text=prompt, return_full_text=False, generate_kwargs=GREEDY)[0]["generated_text"]
    assert full.endswith(new) and len(full) > len(new) and "What is this?" in full


def test_streaming(pipe, capsys):
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    expected = answer(pipe(text=ask(image(IMAGES[0])), generate_kwargs=GREEDY))
    capsys.readouterr()
    pipe(text=ask(image(IMAGES[0])), generate_kwargs=GREEDY | {"streamer": streamer})
    assert capsys.readouterr().out.strip() == expected.strip()


def test_video_by_path_in_a_chat(pipe, tmp_path):
    video = str(write_video(tmp_path / "video.mp4", 12, fps=4))
    messages = ask({"type": "video", "path": video}, text="What moves?")
    expected = by_hand(pipe, messages)
    assert answer(pipe(text=messages, generate_kwargs=GREEDY)) == expected
    seven = answer(pipe(text=messages, generate_kwargs=GREEDY, processor_kwargs={"num_frames": 7}))
    inputs = pipe.processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"num_frames": 7},
    )
    assert inputs["video_num_frames"].tolist() == [7]
    ids = pipe.model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert seven == pipe.processor.batch_decode(ids, skip_special_tokens=True)[0]


def test_batches_of_videos_of_different_lengths(pipe, tmp_path):
    """Upstream pads the shorter videos in front, which the model has to know."""
    chats = []
    for seconds in (1, 4, 2):
        video = str(write_video(tmp_path / f"{seconds}.mp4", 4 * seconds, fps=4))
        chats.append(ask({"type": "video", "path": video}, text="What moves?"))
    outputs = pipe(text=chats, generate_kwargs=GREEDY, batch_size=3)
    assert [answer(output) for output in outputs] == [by_hand(pipe, chat) for chat in chats]


def test_any_to_any_with_a_video(converted, tmp_path):
    pipe = pipeline("any-to-any", model=str(converted("standard")), device="cpu")
    video = str(write_video(tmp_path / "video.mp4", 12, fps=4))
    messages = ask({"type": "video", "path": video}, text="What moves?")
    assert answer(pipe(text=messages, generate_kwargs=GREEDY)) == by_hand(pipe, messages)


def test_half_precision(converted):
    pipe = pipeline("image-text-to-text", model=str(converted("standard")), device="cpu", dtype=torch.float16)
    assert answer(pipe(text=ask(image(IMAGES[0])), generate_kwargs=GREEDY)) == by_hand(pipe, ask(image(IMAGES[0])))
