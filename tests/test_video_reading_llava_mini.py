# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Video files: the frames that decoding gives, by the file's own clock, upright; damage, bombs and names."""

import io
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from test_video_processing_llava_mini import RAW, grey_frames, write_video

from llava_mini import LlavaMiniVideoProcessor
from llava_mini.video_reading_llava_mini import open_video, resize_nearest, upright_pixels
from llava_mini.video_streaming import VideoStream
from llava_mini.video_survey_llava_mini import PacketSurvey


CASES = Path(__file__).parent / "cases"
VIDEOS = ["trim_copy.mp4", "vp8_altref.webm", "asym_hflip.mp4", "drop.avi", "reschange.ts"]
ONE = 1 << 16


@pytest.fixture
def processor():
    return LlavaMiniVideoProcessor(**RAW)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files that PyAV writes and that are then cut, joined and trimmed."""
    folder = tmp_path_factory.mktemp("made")
    frames = grey_frames(48)
    stream = {"g": "12", "bf": "2"}
    write_coded(folder / "whole.ts", frames, "libx264", stream)
    write_coded(folder / "whole.mp4", frames, "libx264", stream)
    write_coded(folder / "reordered.avi", frames, "libx264", stream)
    write_coded(folder / "whole.mpg", frames, "mpeg2video", stream)
    for suffix in ("ts", "mpg"):
        content = (folder / f"whole.{suffix}").read_bytes()
        # Whole packets of a transport stream have 188 bytes.
        middle = len(content) // 3 // 188 * 188
        (folder / f"inside.{suffix}").write_bytes(content[middle:])
        (folder / f"joined.{suffix}").write_bytes(content + content)
        (folder / f"joined_inside.{suffix}").write_bytes(content[: 2 * middle] + content[middle:])
    for seconds in (0.35, 1.9, 2.4):
        trim(folder / "whole.mp4", folder / f"trimmed_{seconds}.mp4", seconds)
    return folder


def write_coded(path, frames, codec, options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10 if codec != "mpeg2video" else 25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def trim(source, target, seconds):
    """`ffmpeg -ss SECONDS -c copy`: packets from the key frame before, times from `seconds` on, so an edit list."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = read.streams.video[0]
        start = int(seconds / stream.time_base)
        read.seek(start, stream=stream)
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                write.mux(packet)


def decoded(source, size=None):
    """What `container.decode` gives."""
    with av.open(source if isinstance(source, io.BytesIO) else str(source)) as container:
        frames = map(upright_pixels, container.decode(video=0))
        return [frame if size is None else resize_nearest(frame, size) for frame in frames]


def read_all(source, size=None):
    with open_video(source) as video:
        table = video.survey()
        return list(video.read(table, range(len(table.stamps)), size)), table


def check_all_frames(path, processor, kept=slice(None)):
    expected = decoded(path, processor.crop_size)[kept]
    frames, table = read_all(path, processor.crop_size)
    assert len(frames) == len(expected) == table.metadata.total_num_frames
    assert all(map(torch.equal, frames, expected))
    for sampling in ({}, {"fps": 3}, {"num_frames": 7}):
        indices = processor.sample_frames(table.metadata, **sampling)
        pixels = processor(path, **sampling).pixel_values_videos[0]
        assert torch.equal(pixels[:, 0], torch.stack([expected[i] for i in indices]))
        stream = VideoStream(path, processor, **sampling, frames_per_chunk=3)
        assert stream.num_frames == len(pixels) and torch.equal(torch.cat(list(stream)), pixels)
    return table


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_decoding(name, processor):
    check_all_frames(CASES / name, processor)


@pytest.mark.parametrize(
    "name",
    [
        *("whole.ts", "whole.mp4", "whole.mpg", "reordered.avi", "inside.ts", "inside.mpg", "joined.ts", "joined.mpg"),
        *("joined_inside.ts", "joined_inside.mpg", "trimmed_0.35.mp4", "trimmed_1.9.mp4", "trimmed_2.4.mp4"),
    ],
)
def test_frames_of_made_files_are_those_of_decoding(name, made, processor):
    table = check_all_frames(made / name, processor)
    # Whole files are not decoded to be counted.
    if name.startswith(("whole", "trimmed")):
        assert not table.is_by_number


def packet(pts, dts, key=False, corrupt=False, discard=False):
    names = {"is_keyframe": key, "is_corrupt": corrupt, "is_discard": discard}
    return SimpleNamespace(pts=pts, dts=dts, size=9, duration=1, **names)


# Behind the first frames, which are decoded on trial: what only the packets themselves can tell.
REGULAR = [packet(i, i, key=i % 8 == 0) for i in range(24)]
LATER = {
    "regular": ([packet(24, 24, key=True), packet(26, 25), packet(25, 26)], True),
    "hidden frame": ([packet(24, 24, key=True), packet(24, 25)], False),
    "no stamp": ([packet(None, 24)], False),
    "clock starts anew": ([packet(24, 3, key=True)], False),
    "groups overlap": ([packet(27, 24), packet(25, 25, key=True), packet(28, 26)], False),
    "leading pictures overlap": ([packet(27, 24), packet(30, 25, key=True), packet(26, 26)], False),
    "damaged": ([packet(24, 24, corrupt=True)], False),
}


@pytest.mark.parametrize(("later", "is_reliable"), LATER.values(), ids=LATER)
def test_which_packets_are_taken_for_frames(later, is_reliable):
    shown = []
    context = SimpleNamespace(decode=lambda packet: shown if packet is None else shown.append(packet) or [])
    container = SimpleNamespace(format=SimpleNamespace(flags=0))
    for packets, expected in (
        (REGULAR + later, is_reliable),
        ([packet(0, 0), *REGULAR[1:]], False),
        ([packet(3, 0, key=True), *REGULAR[1:3], *REGULAR[4:]], False),
    ):
        shown.clear()
        survey = PacketSurvey(av, container, SimpleNamespace(codec_context=context))
        for each in packets:
            survey.add(each)
        survey.end_trial()
        assert survey.is_reliable() == expected


def test_right_frames_of_the_cases(processor):
    def facts(name, **options):
        (metadata,) = processor(CASES / name, return_metadata=True, **options)["video_metadata"]
        return metadata.total_num_frames, metadata.duration, list(metadata.frames_indices)

    assert facts("trim_copy.mp4") == (45, 5.625, [4, 13, 22, 30, 39])
    assert facts("vp8_altref.webm") == (80, 10.0, [4, 12, 20, 28, 36, 43, 51, 59, 67, 75])
    assert facts("reschange.ts")[:2] == (32, 4.0)
    total, duration, indices = facts("drop.avi")
    assert (total, duration) == (120, pytest.approx(20)) and len(indices) == 20
    assert facts("drop.avi", trust_frame_rate=True)[1:] == (pytest.approx(20), [10, 30, 50, 69, 89, 109])


def test_stream_tells_the_same_of_a_file(processor):
    stream = VideoStream(CASES / "drop.avi", processor)
    assert stream.num_frames == 20 and stream.duration == pytest.approx(20)
    assert VideoStream(CASES / "vp8_altref.webm", processor).indices == [4, 12, 20, 28, 36, 43, 51, 59, 67, 75]


def test_nominal_rates_are_sampled_by_time(tmp_path, processor):
    # A recorder that writes 1000 frames a second: 10 frames in the first second, then 1 each second.
    times = [*range(0, 1000, 100), *range(1000, 10000, 1000)]
    frames = grey_frames(len(times), step=12)
    path = write_video(tmp_path / "recorded.avi", frames, fps=1000, times=times, codec="mpeg4")
    (metadata,) = processor(path, return_metadata=True)["video_metadata"]
    assert metadata.nominal_fps == 1000 and metadata.duration == pytest.approx(10, abs=1.01)
    seconds = np.array(metadata.timestamps)
    assert len(seconds) == int(metadata.duration)
    # Of each second the frame that is shown in its middle: never later, and before the next one starts.
    middles = np.arange(len(seconds)) + 0.5
    assert (seconds <= middles).all() and (np.array([*seconds[1:], 99]) > middles).all()
    assert list(metadata.frames_indices) == [5, *range(10, 10 + len(seconds) - 1)]
    assert processor(path, num_frames=3).video_num_frames.tolist() == [3]
    assert processor(path, trust_frame_rate=True).video_num_frames.tolist() == [1]
    # More than there are: each once.
    assert processor(path, fps=500).video_num_frames.tolist() == [len(times)]


def turned_video(path, matrix):
    """Its four quarters are 250, 160, 80 and 0; `matrix` goes into the track header (ISO 14496-12, 8.3.2)."""
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    frames[:, :24, :32], frames[:, :24, 32:], frames[:, 24:, :32] = 250, 160, 80
    content = bytearray(write_video(path, frames).read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (ONE * value for value in matrix)
    content[start : start + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    return bytes(content)


# What ffmpeg 5.1 shows (`ffmpeg -i turned.mp4 -frames:v 1 x.png`), quarters in reading order; its pixels were equal.
SHOWN = {
    (1, 0, 0, 1): [250, 160, 80, 0],
    (-1, 0, 0, 1): [160, 250, 0, 80],
    (1, 0, 0, -1): [80, 0, 250, 160],
    (-1, 0, 0, -1): [0, 80, 160, 250],
    (0, 1, 1, 0): [250, 80, 160, 0],
    (0, 1, -1, 0): [80, 250, 0, 160],
    (0, -1, 1, 0): [160, 0, 250, 80],
    (0, -1, -1, 0): [0, 160, 80, 250],
}


@pytest.mark.parametrize("matrix", SHOWN, ids=str)
def test_all_display_matrices(matrix, tmp_path):
    (first, _), _ = read_all(turned_video(tmp_path / "turned.mp4", matrix))
    assert first.shape == ((3, 48, 64) if matrix[0] else (3, 64, 48))
    grey = first.float().mean(0)
    quarters = [part.mean().item() for half in grey.chunk(2, 0) for part in half.chunk(2, 1)]
    # The codec moves a flat grey by a value or two.
    assert quarters == pytest.approx(SHOWN[matrix], abs=2)


def test_mirrored_case():
    (first, *_), _ = read_all(CASES / "asym_hflip.mp4")
    with av.open(str(CASES / "asym_hflip.mp4")) as container:
        coded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(first.permute(1, 2, 0).numpy(), coded[:, ::-1])


def test_size_that_changes(processor):
    path = CASES / "reschange.ts"
    assert processor(path).pixel_values_videos.shape[1:] == (4, 1, 3, 56, 56)
    keeping = LlavaMiniVideoProcessor(**RAW, keep_aspect_ratio=True)
    for read in (keeping, lambda source: list(VideoStream(source, keeping, frames_per_chunk=1))):
        with pytest.raises(ValueError, match=r"reschange.ts change from 128x96 to 192x144 .*`keep_aspect_ratio`"):
            read(path)


def test_frames_beyond_the_pixel_limit(tmp_path, processor):
    path = write_video(tmp_path / "large.mp4", grey_frames(2))
    for limit, name in ((64 * 48 - 1, path), (128 * 96, CASES / "reschange.ts")):
        small = LlavaMiniVideoProcessor(**RAW, max_pixels=limit)
        for read in (small, lambda source: VideoStream(source, small), lambda s: processor(s, max_pixels=limit)):  # noqa: B023
            with pytest.raises(ValueError, match=rf"{name.name} has .*more than {limit} .*`max_pixels`"):
                read(name)
    assert LlavaMiniVideoProcessor(**RAW, max_pixels=64 * 48)(path).video_num_frames.tolist() == [1]
    assert LlavaMiniVideoProcessor(**RAW, max_pixels=None)(path).video_num_frames.tolist() == [1]


def damaged_video(path, seconds, lost):
    """An MP4 file with `lost`, a range of seconds, overwritten in the middle of each of its packets."""
    # A key frame a second, so that what follows the hole is right again.
    write_coded(path, grey_frames(10 * seconds, step=1), "libx264", {"g": "10", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, float(p.pts * p.time_base)) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for position, size, time in packets:
        if lost[0] <= time < lost[1]:
            content[position : position + size] = bytes(size)
    path.write_bytes(content)
    return path


def test_damage_in_the_middle_is_read_over(tmp_path, processor, caplog):
    path = damaged_video(tmp_path / "damaged.mp4", 20, (12, 15))
    with caplog.at_level(logging.WARNING):
        inputs = processor(path, return_metadata=True)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "damaged.mp4 is damaged" in message and "12.00-14.90 s" in message and "30 of 19" in message
    pixels = inputs.pixel_values_videos[0]
    indices = inputs["video_metadata"][0].frames_indices
    assert len(pixels) == 20 and inputs["video_metadata"][0].duration == 20
    # The last frame before stands in; what follows has its own place.
    expected = [i if i < 120 or i >= 150 else 119 for i in indices]
    # The codec moves a flat grey by a value or two.
    assert pixels.float().mean(dim=(1, 2, 3, 4)).tolist() == pytest.approx(expected, abs=2)
    caplog.clear()
    assert torch.equal(torch.cat(list(VideoStream(path, processor))), pixels)
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == 1


def test_little_that_is_left_is_refused(tmp_path):
    path = damaged_video(tmp_path / "damaged.mp4", 10, (0.5, 10))
    for processor in (LlavaMiniVideoProcessor(**RAW), LlavaMiniVideoProcessor(**RAW, min_decodable_share=0.9)):
        for read in (processor, lambda source: list(VideoStream(source, processor))):  # noqa: B023
            with pytest.raises(ValueError, match=r"damaged.mp4 is damaged: 9. of 100 .*`min_decodable_share`"):
                read(path)
    assert LlavaMiniVideoProcessor(**RAW, min_decodable_share=0.01)(path).video_num_frames.tolist() == [10]


@pytest.mark.parametrize("name", ["10:30:00.mp4", "http:x.mp4", "a b%20ü.mp4"])
def test_names_that_look_like_addresses(name, tmp_path, processor, monkeypatch):
    write_video(tmp_path / name, grey_frames(10))
    monkeypatch.chdir(tmp_path)
    assert processor(name).video_num_frames.tolist() == [1]
    assert processor((tmp_path / name).as_uri()).video_num_frames.tolist() == [1]
    assert VideoStream(name, processor).num_frames == 1


def test_content_from_elsewhere_names_no_files(tmp_path, processor):
    path = write_video(tmp_path / "secret.ts", grey_frames(10))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    for text in (playlist.format(path), playlist.format(path.as_uri()), f"ffconcat version 1.0\nfile {path}\n"):
        with pytest.raises(ValueError, match="Could not read the video given as bytes"):
            processor(text.encode())


def test_titles_that_are_no_utf_8(tmp_path, processor):
    path = write_video(tmp_path / "title.avi", grey_frames(10), codec="mpeg4")
    shutil.copy(path, tmp_path / "old.avi")
    with av.open(str(path)) as read, av.open(str(tmp_path / "new.avi"), "w") as write:
        write.metadata["title"] = "XXXX"
        copy = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = copy
                write.mux(packet)
    content = (tmp_path / "new.avi").read_bytes()
    assert b"XXXX" in content
    assert processor(content.replace(b"XXXX", b"\xe4\xf6\xfc\xff")).video_num_frames.tolist() == [1]


# With how many bytes to cut: those of the header. (AVI's is padded to kilobytes; an MPEG stream has packets alone.)
FORMATS = [
    ("a.mp4", "libx264", {"movflags": "faststart"}, 1200),
    ("b.mp4", "libx264", {}, 1200),
    ("a.mov", "mpeg4", {"movflags": "faststart"}, 900),
    ("a.mkv", "libx264", {}, 1000),
    ("a.webm", "libvpx", {}, 600),
    ("a.avi", "mpeg4", {}, 500),
    ("a.ts", "mpeg2video", {}, 200),
    ("a.mpg", "mpeg2video", {}, 100),
    ("a.flv", "flv", {}, 400),
]


@pytest.mark.parametrize(("name", "codec", "options", "num_bytes"), FORMATS, ids=[name for name, *_ in FORMATS])
def test_cut_files_are_refused_or_right(name, codec, options, num_bytes, tmp_path):
    rate = 25 if codec == "mpeg2video" else 10
    path = write_video(tmp_path / name, grey_frames(6, 32, 32, 40), rate, codec=codec, options=options)
    content = path.read_bytes()
    whole, _ = read_all(content)
    cut = tmp_path / f"cut_{name}"
    num_refused = 0
    for length in range(min(num_bytes, len(content))):
        cut.write_bytes(content[:length])
        try:
            frames, _ = read_all(cut)
        except ValueError as error:
            assert cut.name in str(error)
            num_refused += 1
        else:
            assert all(map(torch.equal, frames, whole)) and len(frames) <= len(whole), length
    assert num_refused >= 100
