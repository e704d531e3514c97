"""Videos a chunk at a time: the same numbers as all frames at once, bounded memory, errors with the time."""

import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mini.video_streaming import VideoStream, prepare_streamed_inputs


SIZE = (96, 64)


def write_video(path: Path, num_frames: int, fps: int = 2, codec: str = "libx264", size=SIZE, still: int = 1) -> Path:
    """A square that moves over a changing background, every `still` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in (frame // still for frame in range(num_frames)):
            pixels = np.full((size[1], size[0], 3), (i * 7 % 256, 80, 255 - i * 5 % 256), np.uint8)
            left = i * 3 % (size[0] - 16)
            pixels[8:24, left : left + 16] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "video.mp4", 50)


@pytest.fixture(scope="module", params=["standard", "high_resolution"])
def parts(request, converted):
    directory = converted(request.param)
    return AutoModelForImageTextToText.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)


@pytest.mark.parametrize("frames_per_chunk", [1, 7, 100])
@pytest.mark.parametrize("sampling", [{}, {"fps": 2}, {"num_frames": 9}], ids=str)
def test_stream_equals_the_whole_video(parts, video, frames_per_chunk, sampling):
    _, processor = parts
    expected = processor.video_processor(str(video), **sampling)["pixel_values_videos"][0]
    stream = VideoStream(video, processor.video_processor, **sampling, frames_per_chunk=frames_per_chunk)
    assert stream.num_frames == len(expected)
    assert stream.duration == 25
    for _ in range(2):  # reading starts anew
        chunks = list(stream)
        assert max(map(len, chunks)) <= frames_per_chunk
        torch.testing.assert_close(torch.cat(chunks), expected, atol=0, rtol=0)


def test_generate_from_a_stream(parts, video):
    model, processor = parts
    content = [{"type": "video", "path": str(video)}, {"type": "text", "text": "What moves?"}]
    messages = [{"role": "user", "content": content}]
    whole = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    streamed = prepare_streamed_inputs(processor, messages, frames_per_chunk=4).to(model.device)
    assert torch.equal(streamed["input_ids"], whole["input_ids"])
    options = {"do_sample": False, "max_new_tokens": 8}
    assert torch.equal(model.generate(**streamed, **options), model.generate(**whole, **options))
    # And kept for later questions.
    context = model.encode_visuals(pixel_values_videos=streamed["pixel_values_videos"], keep="features")
    made = model.generate(input_ids=whole["input_ids"], vision_context=context, **options)
    assert torch.equal(made, model.generate(**whole, **options))


def test_images_beside_a_stream(parts, video):
    model, processor = parts
    image = {"type": "image", "image": "tests/golden/preprocess/image0.png"}
    image["image"] = str(Path(__file__).parent / "golden/preprocess/image0.png")
    content = [image, {"type": "text", "text": "Is it in"}, {"type": "video", "path": str(video)}]
    messages = [{"role": "user", "content": content}]
    whole = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    streamed = prepare_streamed_inputs(processor, messages)
    assert torch.equal(streamed["input_ids"], whole["input_ids"])
    with torch.no_grad():
        # Frames in other chunks: float32 sums in another order.
        torch.testing.assert_close(model(**streamed).logits, model(**whole).logits, atol=1e-5, rtol=1e-5)


def test_leaving_early_ends_the_worker(parts, video):
    _, processor = parts
    before = threading.active_count()
    for _ in VideoStream(video, processor.video_processor, frames_per_chunk=1):
        break
    assert threading.active_count() == before


@pytest.mark.parametrize("sampling", [{}, {"num_frames": 3}], ids=str)
def test_frames_are_streamed_as_the_processor_takes_them(parts, sampling, tmp_path):
    _, processor = parts
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8)
    images = [PIL.Image.fromarray(frame) for frame in frames]
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for image, path in zip(images, paths):
        image.save(path)
    expected = processor.video_processor(images, **sampling)["pixel_values_videos"][0]
    tensor = torch.from_numpy(frames)
    for video in (images, frames, list(frames), tensor, tensor.permute(0, 3, 1, 2), frames.astype(np.float32), paths):
        stream = VideoStream(video, processor.video_processor, **sampling, frames_per_chunk=2)
        assert torch.equal(torch.cat(list(stream)), expected)
    with pytest.raises(ValueError, match="different sizes"):
        list(VideoStream([images[0], images[1].resize((9, 9))], processor.video_processor, frames_per_chunk=1))


def test_what_the_chat_template_takes_is_streamed(parts, video):
    _, processor = parts
    image = str(Path(__file__).parent / "golden/preprocess/image0.png")
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    for part in (
        {"type": "video", "video": frames},
        {"type": "video", "video": list(frames)},
        {"type": "video", "video": [image, image]},
        {"type": "video", "url": str(video)},
        {"type": "image", "image": PIL.Image.open(image)},
        {"type": "image", "url": image},
        {"type": "image_url", "image_url": image},
        {"type": "image_url", "image_url": {"url": image}},
    ):
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        whole = processor.apply_chat_template(messages, **options)
        streamed = prepare_streamed_inputs(processor, messages)
        assert torch.equal(streamed["input_ids"], whole["input_ids"])
        if "pixel_values" in whole:
            assert torch.equal(streamed["pixel_values"], whole["pixel_values"])
        else:
            assert torch.equal(torch.cat(list(streamed["pixel_values_videos"][0])), whole["pixel_values_videos"][0])


def test_refusals(parts, video, tmp_path):
    _, processor = parts
    with pytest.raises(ValueError, match="`frames_per_chunk` is 0"):
        VideoStream(video, processor.video_processor, frames_per_chunk=0)
    with pytest.raises(ValueError, match="no file here"):
        VideoStream(tmp_path / "missing.mp4", processor.video_processor)
    with pytest.raises(ValueError, match="exclude each other"):
        VideoStream(video, processor.video_processor, fps=1, num_frames=2)
    for empty in ([], np.zeros((0, 8, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="no frames|0 videos"):
            VideoStream(empty, processor.video_processor)
    messages = [{"role": "user", "content": [{"type": "video"}]}]
    with pytest.raises(ValueError, match="has no source"):
        prepare_streamed_inputs(processor, messages)


MEASURE = """
import resource, sys, torch
import llava_mini
from llava_mini.video_streaming import prepare_streamed_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
directory, video, skip_still = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(directory).eval()
model.config.text_config.max_position_embeddings = 20000
processor = AutoProcessor.from_pretrained(directory)
content = [{"type": "video", "path": video}, {"type": "text", "text": "What?"}]
skip_still = float(skip_still) if skip_still else None
inputs = prepare_streamed_inputs(processor, [{"role": "user", "content": content}], skip_still=skip_still)
model.generate(**inputs, do_sample=False, max_new_tokens=2)
frames = inputs["pixel_values_videos"][0].num_frames
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("still", "skip_still"), [(1, ""), (60, "6")], ids=["every frame", "what happens"])
def test_three_hours_take_little_more_memory_than_one(converted, tmp_path, still, skip_still):
    """Peak memory of whole processes: 10,800 frames against 3,600, one a second; or those that differ."""
    peaks = []
    for hours in (1, 3):
        # One picture a second, so that the file is small and every frame of it is wanted.
        video = write_video(tmp_path / f"{hours}.mp4", hours * 3600, fps=1, codec="mpeg4", size=(64, 48), still=still)
        command = [sys.executable, "-c", MEASURE, str(converted("standard")), str(video), skip_still]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        frames, peak = map(int, output.split())
        assert frames == hours * 3600 // still
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 150, f"{peaks} MiB"


def write_scenes(path: Path, levels: list[int], fps: int = 2) -> Path:
    """Each level a second of a grey picture, with little noise, as cameras have it."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for level in np.repeat(levels, fps):
            pixels = level + noise.integers(-3, 4, (SIZE[1], SIZE[0], 1))
            frame = np.repeat(pixels, 3, axis=2).clip(0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_still_frames_are_left_out_before_the_tower(parts, tmp_path):
    """The frames that come are those of the whole video in which something happens; placeholders follow."""
    model, processor = parts
    video = write_scenes(tmp_path / "lecture.mp4", [60] * 5 + [160] * 4 + [161] * 3 + [60])
    whole = VideoStream(video, processor.video_processor)
    stream = VideoStream(video, processor.video_processor, skip_still=8)
    assert whole.num_frames == 13 and stream.num_frames == 3
    places = [whole.indices.index(index) for index in stream.indices]
    assert places == [0, 5, 12]
    assert stream.times == [whole.times[place] for place in places]
    for _ in range(2):
        assert torch.equal(torch.cat(list(stream)), torch.cat(list(whole))[places])
    content = [{"type": "video", "path": str(video)}, {"type": "text", "text": "What happens?"}]
    seen = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    inputs = prepare_streamed_inputs(processor, [{"role": "user", "content": content}], skip_still=8)
    model.generate(**inputs, max_new_tokens=1)
    hook.remove()
    assert sum(seen) == 3 * model.config.num_crops
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 3 * processor.num_image_tokens


def test_small_changes_and_slow_ones_are_seen(parts):
    """Something in a corner counts, and so does what changes little by little; frames in memory are compared too."""
    _, processor = parts
    frames = np.full((6, 64, 96, 3), 100, np.uint8)
    frames[3, :6, :6] = 255
    stream = VideoStream(frames, processor.video_processor, num_frames=6, skip_still=20)
    assert stream.indices == [0, 3, 4]
    assert stream.times is None
    slow = np.repeat(np.arange(0, 120, 10, dtype=np.uint8), 64 * 96 * 3).reshape(12, 64, 96, 3)
    assert VideoStream(slow, processor.video_processor, num_frames=12, skip_still=25).indices == [0, 3, 6, 9]
    same = VideoStream(frames[[0, 0, 1]], processor.video_processor, num_frames=3, skip_still=0)
    assert same.num_frames == 1


@pytest.mark.parametrize("wrong", [-1, 255, float("nan"), "2", True])
def test_still_frames_by_no_number(parts, video, wrong):
    _, processor = parts
    with pytest.raises(ValueError, match="`skip_still` is .* has to be a change in grey levels"):
        VideoStream(video, processor.video_processor, skip_still=wrong)


def test_images_are_never_still(parts):
    _, processor = parts
    content = [{"type": "image", "image": PIL.Image.new("RGB", (40, 40))}, {"type": "text", "text": "What?"}]
    with pytest.raises(ValueError, match="`skip_still` is 3, but the conversation has no video"):
        prepare_streamed_inputs(processor, [{"role": "user", "content": content}], skip_still=3)
