# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Video processor: the authors' pixels and frame indices, and every kind of file, each written here with PyAV."""

import base64
import io
import json
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from llava_mini import LlavaMiniConfig, LlavaMiniImageProcessor, LlavaMiniVideoProcessor, video_reading_llava_mini
from llava_mini.video_survey_llava_mini import PacketSurvey


GOLDEN = Path(__file__).parent / "golden" / "preprocess"
SMALL = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
RAW = {**SMALL, "do_rescale": False, "do_normalize": False}
CASES = json.loads((GOLDEN / "case.json").read_text())["frame_indices"]


def grey_frames(count, height=48, width=64, step=4):
    """Frame i is grey of value step * i, so that a decoded frame tells its index."""
    return np.repeat(np.arange(count, dtype=np.uint8) * step, height * width * 3).reshape(count, height, width, 3)


def write_video(path, frames, fps=10, times=None, codec="libx264", options=None):
    """Writes `frames` `(frames, height, width, 3)`; `times` are their time stamps in units of 1/fps."""
    height, width = frames.shape[1:3]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i, frame in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            frame.pts, frame.time_base = int(i if times is None else times[i]), 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path, has_cover=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        if has_cover:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic.value
            container.mux(cover.encode(av.VideoFrame.from_ndarray(grey_frames(1)[0], format="rgb24")))
            container.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_indices(videos, step=4, **kwargs):
    """Which of `grey_frames` the processor took."""
    inputs = LlavaMiniVideoProcessor(**RAW)(videos, **kwargs)
    pixels = inputs.pixel_values_videos[0, : inputs.video_num_frames[0]]
    # The codec moves a flat grey by a value or two.
    return (pixels.float().mean(dim=(1, 2, 3, 4)) / step).round().int().tolist()


@pytest.fixture
def video(tmp_path):
    """5.5 seconds, 10 frames a second."""
    return write_video(tmp_path / "video.mp4", grey_frames(55))


def test_golden_pixels():
    golden = load_file(GOLDEN / "tensors.safetensors")
    inputs = LlavaMiniVideoProcessor(**SMALL)(golden["video.frames"], return_tensors="pt")
    # For one crop a frame the only resize is nearest neighbour, which is exact; the rest is float32 rounding.
    torch.testing.assert_close(inputs.pixel_values_videos[0, :, 0], golden["video.pixel_values"], atol=1e-6, rtol=0)
    assert inputs.video_num_frames.tolist() == [4] and inputs.video_num_frames.dtype == torch.long


@pytest.mark.parametrize("case", CASES)
def test_golden_frame_indices(case):
    total, wanted = map(int, case.split(","))
    processor = LlavaMiniVideoProcessor()
    assert processor.sample_frames(VideoMetadata(total), num_frames=wanted).tolist() == CASES[case]
    # A rate at which one frame a second gives as many.
    fps = total / (wanted + 0.5) if wanted < total else 1
    assert processor.sample_frames(VideoMetadata(total, fps=fps)).tolist() == CASES[case]


def test_files_are_sampled_at_one_frame_a_second(video):
    assert frame_indices(video) == [5, 16, 27, 37, 48]
    assert frame_indices(video, fps=2) == LlavaMiniVideoProcessor().sample_frames(VideoMetadata(55), 11).tolist()
    assert frame_indices(video, num_frames=2) == [13, 40]
    assert frame_indices(video, num_frames=1) == [27]
    # More than there are: every frame once. (The authors' rule for as many as there are starts with 0, 1, 2 but
    # rounds one away at the end.)
    assert len(frame_indices(video, num_frames=200)) == 55
    assert frame_indices(video, do_sample_frames=False) == list(range(55))


def test_a_default_number_of_frames_gives_way_to_fps(video):
    processor = LlavaMiniVideoProcessor(**RAW, num_frames=3)
    assert processor(video).video_num_frames.tolist() == [3]
    assert processor(video, fps=2).video_num_frames.tolist() == [11]


def test_less_than_a_second_gives_one_frame(tmp_path):
    assert frame_indices(write_video(tmp_path / "short.mp4", grey_frames(7))) == [3]
    assert frame_indices(write_video(tmp_path / "one.mp4", grey_frames(1))) == [0]
    # Where there is one frame only, its rate plays no part.
    assert LlavaMiniVideoProcessor().sample_frames(VideoMetadata(1), fps=2).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 1, "num_frames": 4}, "exclude each other"),
        ({"fps": 0}, "`fps` is 0"),
        ({"fps": -1.0}, "`fps` is -1.0"),
        ({"num_frames": 0}, "`num_frames` is 0"),
        ({"video_metadata": [{"total_num_frames": 55}] * 2}, "1 videos and `video_metadata` of 2|2 `video_metadata`"),
    ],
)
def test_bad_sampling_is_refused(video, options, message):
    with pytest.raises(ValueError, match=message):
        frame_indices(video, **options)


def test_metadata_on_request(video):
    processor = LlavaMiniVideoProcessor(**SMALL)
    assert "video_metadata" not in processor(video)
    (metadata,) = processor(video, return_metadata=True)["video_metadata"]
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (55, 10, 5.5)
    assert (metadata.height, metadata.width, metadata.video_backend) == (48, 64, "pyav")
    assert list(metadata.frames_indices) == [5, 16, 27, 37, 48]
    assert metadata.timestamps[1] == 1.6


def test_only_wanted_frames_are_kept(video, monkeypatch):
    converted = []
    original = video_reading_llava_mini.upright_pixels
    monkeypatch.setattr(
        video_reading_llava_mini, "upright_pixels", lambda frame: converted.append(frame) or original(frame)
    )
    frames, _ = LlavaMiniVideoProcessor(**SMALL).fetch_videos(str(video), lambda metadata: np.array([3, 3, 50]))
    assert len(converted) == 2 and frames.shape == (3, 3, 48, 64)
    assert torch.equal(frames[0], frames[1])


def test_every_kind_of_source(video, tmp_path):
    content = video.read_bytes()
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        sources = {
            "path": str(video),
            "Path": video,
            "bytes": content,
            "data URL": "data:video/mp4;base64," + base64.b64encode(content).decode(),
            "URL": f"http://127.0.0.1:{server.server_port}/video.mp4",
        }
        for name, source in sources.items():
            assert frame_indices(source) == [5, 16, 27, 37, 48], name
        server.shutdown()


def test_every_kind_of_decoded_video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    images = [PIL.Image.fromarray(frame) for frame in frames]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    tensor = torch.from_numpy(frames)
    kinds = {
        "Pillow": images,
        "array": frames,
        "array, channels first": frames.transpose(0, 3, 1, 2),
        "tensor": tensor.permute(0, 3, 1, 2),
        "list of arrays": list(frames),
        "list of tensors": list(tensor),
        "floating point": frames.astype(np.float32),
        "five dimensions": frames[None],
        "nested": [[images]],
        "paths of frames": [[[str(tmp_path / f"{i}.png") for i in range(3)]]],
    }
    processor = LlavaMiniVideoProcessor(**SMALL)
    expected = processor(images).pixel_values_videos
    assert expected.shape == (1, 3, 1, 3, 56, 56)
    for name, video in kinds.items():
        torch.testing.assert_close(processor(video).pixel_values_videos, expected, atol=0, rtol=0, msg=name)
    assert processor(images[0]).video_num_frames.tolist() == [1]
    scaled = processor(tensor / 255, do_rescale=False).pixel_values_videos
    # The same values, divided by 255 in another order.
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)


def test_dark_frames_of_a_floating_point_video_are_not_taken_for_rescaled():
    frames = np.stack([np.ones((8, 8, 3)), np.full((8, 8, 3), 200)])
    assert LlavaMiniVideoProcessor(**RAW, do_convert_rgb=True)(frames, do_rescale=True).video_num_frames.tolist() == [2]
    with pytest.raises(ValueError, match="do_rescale=False"):
        LlavaMiniVideoProcessor(**SMALL)(frames[:1])


def test_sampling_of_decoded_frames():
    frames = grey_frames(30)
    assert frame_indices(frames) == list(range(30))
    assert frame_indices(frames, num_frames=3) == [5, 14, 24]
    metadata = {"total_num_frames": 30, "fps": 10}
    assert frame_indices(frames, video_metadata=metadata) == [5, 14, 24]
    assert frame_indices(list(frames), video_metadata=[metadata]) == [5, 14, 24]
    # Sampled by the caller: the metadata speaks of the whole video and stays as it is.
    sampled = {"total_num_frames": 300, "fps": 10, "frames_indices": [5, 14, 24]}
    options = {"video_metadata": [sampled], "return_metadata": True}
    inputs = LlavaMiniVideoProcessor(**SMALL)(frames[:3], do_sample_frames=False, **options)
    assert list(inputs["video_metadata"][0].frames_indices) == [5, 14, 24]
    with pytest.raises(ValueError, match="300 frames, but the video has 3"):
        LlavaMiniVideoProcessor(**SMALL)(frames[:3], **options)
    with pytest.raises(ValueError, match="frame rate is not known"):
        frame_indices(frames, fps=2)


def test_videos_of_different_lengths_are_padded(video):
    processor = LlavaMiniVideoProcessor(**SMALL, resolution_ratio=2)
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    inputs = processor([str(video), frames, [PIL.Image.fromarray(frames[0])]], return_tensors="pt")
    assert inputs.pixel_values_videos.shape == (3, 5, 5, 3, 56, 56)
    assert inputs.video_num_frames.tolist() == [5, 2, 1]
    assert torch.equal(inputs.pixel_values_videos[0], processor(video).pixel_values_videos[0])
    assert torch.equal(inputs.pixel_values_videos[1, :2], processor(frames).pixel_values_videos[0])
    assert not inputs.pixel_values_videos[1, 2:].any() and not inputs.pixel_values_videos[2, 1:].any()


def test_crops_are_cut_from_the_squeezed_frame():
    frames = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), np.uint8)
    squeezed = torch.nn.functional.interpolate(torch.from_numpy(frames).permute(0, 3, 1, 2).float(), (56, 56))
    for ratio in (1, 2, 3):
        expected = LlavaMiniImageProcessor(**SMALL, resolution_ratio=ratio, do_pad=False)(
            list(squeezed.to(torch.uint8)), return_tensors="pt"
        )
        inputs = LlavaMiniVideoProcessor(**SMALL, resolution_ratio=ratio)(frames)
        torch.testing.assert_close(inputs.pixel_values_videos[0], expected.pixel_values, atol=0, rtol=0)


@pytest.mark.parametrize("do_pad", [True, False])
def test_keeping_the_aspect_ratio_processes_frames_like_images(video, do_pad):
    processor = LlavaMiniVideoProcessor(**SMALL, keep_aspect_ratio=True, do_pad=do_pad, resolution_ratio=2)
    frames, _ = processor.fetch_videos(video)
    expected = LlavaMiniImageProcessor(**SMALL, do_pad=do_pad, resolution_ratio=2)(
        list(frames[:2]), return_tensors="pt"
    )
    for source, options in ((frames[:2], {}), (video, {"fps": 10})):
        pixels = processor(source, **options).pixel_values_videos[0, :2]
        torch.testing.assert_close(pixels, expected.pixel_values, atol=0, rtol=0)
    with pytest.raises(ValueError, match="different sizes"):
        processor([frames[:1], frames[:1, :, :20]], do_center_crop=False, do_pad=False)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_containers_without_a_frame_count(tmp_path, name, codec):
    assert frame_indices(write_video(tmp_path / name, grey_frames(30), codec=codec)) == [5, 14, 24]


def test_variable_frame_rate(tmp_path):
    # Ten frames in the first second, then one every second: 15 frames in 6 s, of which every third is taken.
    times = [*range(10), *range(10, 60, 10)]
    path = write_video(tmp_path / "variable.mp4", grey_frames(15, step=16), times=times, codec="mpeg4")
    (metadata,) = LlavaMiniVideoProcessor(**SMALL)(path, return_metadata=True)["video_metadata"]
    assert metadata.total_num_frames == 15 and 2 < metadata.fps < 3.2
    wanted = int(15 // metadata.fps)
    assert frame_indices(path, step=16) == LlavaMiniVideoProcessor().sample_frames(VideoMetadata(15), wanted).tolist()


def test_rotation_metadata_turns_frames_upright(tmp_path):
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 250
    path = write_video(tmp_path / "turned.mp4", frames)
    content = bytearray(path.read_bytes())
    # The matrix of the track header (ISO 14496-12, 8.3.2), 40 bytes into the box's content: right is shown as down,
    # down as left, that is a quarter turn clockwise, as a telephone held upright writes it.
    start = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[start : start + 36] = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (pixels,), metadata = LlavaMiniVideoProcessor().fetch_videos(bytes(content), lambda metadata: np.array([0]))
    assert pixels.shape == (3, 64, 48) and (metadata.height, metadata.width) == (64, 48)
    bright = pixels.float().mean(0) > 125
    assert bright[:32, 24:].float().mean() > 0.95 and bright.float().mean() < 0.3


def test_field_coded_or_hidden_frames_are_counted_by_decoding(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", grey_frames(30))
    # A file whose packets tell nothing, as one with a packet for each field.
    monkeypatch.setattr(PacketSurvey, "is_reliable", lambda survey: False)
    (metadata,) = LlavaMiniVideoProcessor(**SMALL)(path, return_metadata=True)["video_metadata"]
    assert metadata.total_num_frames == 30 and list(metadata.frames_indices) == [5, 14, 24]
    assert frame_indices(path) == [5, 14, 24]


def test_files_that_break_off(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    content = write_video(tmp_path / "v.mp4", noise, options={"movflags": "faststart"}).read_bytes()
    processor = LlavaMiniVideoProcessor(**SMALL)
    whole = processor(content, fps=10, return_metadata=True)["video_metadata"][0]
    assert whole.total_num_frames == 30 and not caplog.records
    (metadata,) = processor(content[: len(content) // 2], return_metadata=True)["video_metadata"]
    with av.open(io.BytesIO(content[: len(content) // 2])) as container:
        whole_packets = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux())
    assert 8 <= metadata.total_num_frames == whole_packets and max(metadata.frames_indices) < whole_packets
    assert "cut off" in caplog.text
    caplog.clear()
    # The index of an MP4 file is at its end unless asked otherwise; without it nothing can be found.
    content = write_video(tmp_path / "v.mp4", noise).read_bytes()
    with pytest.raises(ValueError, match="Could not read the video"):
        processor(content[: len(content) // 2])
    content = write_video(tmp_path / "v.mkv", noise).read_bytes()
    (metadata,) = processor(content[: len(content) // 2], return_metadata=True)["video_metadata"]
    assert 8 <= metadata.total_num_frames <= 16 and "cut off" in caplog.text
    with pytest.raises(ValueError, match="no frames|empty or damaged|Could not read"):
        processor(content[:1200])


def test_damaged_packets_are_left_out(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    content = bytearray(write_video(tmp_path / "v.mkv", noise).read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    inputs = LlavaMiniVideoProcessor(**SMALL)(bytes(content), fps=10, return_metadata=True)
    assert 1 <= inputs.video_num_frames[0] <= 30
    assert inputs["video_metadata"][0].total_num_frames == inputs.video_num_frames[0]


def test_no_video_at_all(tmp_path):
    processor = LlavaMiniVideoProcessor(**SMALL)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("This is no video. " * 100)
    with av.open(str(tmp_path / "header.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    cases = {
        write_sound(tmp_path / "sound.mp4"): "no pictures",
        write_sound(tmp_path / "cover.mp4", has_cover=True): "no pictures",
        tmp_path / "empty.mp4": "Could not read",
        tmp_path / "text.mp4": "Could not read",
        tmp_path / "header.avi": "no frames",
        tmp_path / "missing.mp4": "check the path",
        tmp_path: "check the path",
        b"no video": "given as bytes",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message):
            processor(source)


def test_bad_decoded_videos_are_refused():
    processor = LlavaMiniVideoProcessor(**SMALL)
    frame = np.zeros((8, 9, 3), np.uint8)
    for videos, message in (
        (np.zeros((0, 8, 9, 3), np.uint8), "no frames"),
        ([frame, frame[:4]], "different sizes"),
        (np.zeros((2, 0, 9, 3), np.uint8), "9x0 pixels"),
        (np.zeros((8, 9), np.uint8), "expected a path"),
        (3, "type int"),
        ([frame, "a.png"], "shape None|check the path|type"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(videos)
    with pytest.raises(ValueError, match="9x2 pixels can't be cut into 3x3"):
        processor(frame[None, :2], resolution_ratio=3, keep_aspect_ratio=True)


def test_no_videos():
    inputs = LlavaMiniVideoProcessor(**SMALL, resolution_ratio=2)([], return_tensors="pt")
    assert inputs.pixel_values_videos.shape == (0, 0, 5, 3, 56, 56) and inputs.video_num_frames.shape == (0,)


def test_save_and_load(tmp_path):
    LlavaMiniConfig().save_pretrained(tmp_path)
    LlavaMiniVideoProcessor(**SMALL, resolution_ratio=2, keep_aspect_ratio=True, fps=0.5).save_pretrained(tmp_path)
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LlavaMiniVideoProcessor
    assert (loaded.resolution_ratio, loaded.keep_aspect_ratio, loaded.fps, loaded.num_frames) == (2, True, 0.5, None)
    assert loaded.do_sample_frames and loaded.crop_size.height == 56
