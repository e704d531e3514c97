"""Pictures and videos of our own in place of those that transformers' mixins take from the Hub."""

import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image


# The tiny video of the mixins has 11 frames at about 30 a second.
NUM_FRAMES, FRAMES_PER_SECOND = 11, 30
WIDTH, HEIGHT = 320, 240
_directory = tempfile.TemporaryDirectory(prefix="llava-mini-hf-")


@cache
def url_to_local_path(url: str) -> str:
    """A file of the URL's kind, always the same for the same URL."""
    path = Path(_directory.name) / Path(url).name
    generator = np.random.default_rng(len(url))
    if path.suffix in (".png", ".jpg"):
        _picture(generator).save(path)
    elif path.suffix == ".mp4":
        _write_video(path, generator)
    else:
        return url
    return str(path)


def _picture(generator: np.random.Generator) -> Image.Image:
    """Broad patches of colour: on noise no two ways of resizing agree."""
    coarse = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _write_video(path: Path, generator: np.random.Generator):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(FRAMES_PER_SECOND))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(_picture(generator))))
        container.mux(stream.encode())
