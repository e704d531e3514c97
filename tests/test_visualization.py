"""visualization.py: the picture that the model saw, and where its tokens looked."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, tiny_model

from llava_mini import LlavaMiniImageProcessorPil
from llava_mini.visualization import plot_compression, seen_picture


def process(resolution_ratio: int, picture: Image.Image):
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaMiniImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=size, resolution_ratio=resolution_ratio
    )
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    return pixels, (processor.image_mean, processor.image_std)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_the_picture_comes_back(ratio):
    side = IMAGE_SIZE * ratio
    array = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels, moments = process(ratio, Image.fromarray(array))
    assert np.array_equal(seen_picture(pixels[0], *moments), array)


@pytest.mark.parametrize(("size", "ratio", "panels"), [(1, 1, 2), (2, 2, 6)])
def test_plot(size, ratio, panels, tmp_path):
    pytest.importorskip("matplotlib")
    model = tiny_model(compressor_size=size, resolution_ratio=ratio)
    pixels, moments = process(ratio, Image.new("RGB", (60, 40), "red"))
    features = model.get_image_features(pixels, output_compressor_attentions=True)
    figure = plot_compression(pixels[0], features.compressor_attentions[0], *moments, title="red")
    assert len(figure.axes) == panels
    # Each map lies over the whole picture.
    end = ratio * IMAGE_SIZE - 0.5
    assert tuple(figure.axes[1].images[1].get_extent()) == (-0.5, end, end, -0.5)
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="1 or N"):
        seen_picture(torch.zeros(3, 3, 8, 8), [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="patches a square"):
        plot_compression(torch.zeros(1, 3, 8, 8), torch.zeros(1, 15), [0.5] * 3, [0.5] * 3)
