"""visualization/: the maps lie on the picture that was passed, and hold what was read."""

import contextlib
import sys
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_video_processing_llava_mini import write_video
from tiny import IMAGE_SIZE, PAD_ID, ROWS, collate, make_row, make_rows, tiny_model
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.image_utils import SizeDict

from llava_mini import (
    LlavaMiniImageProcessor,
    LlavaMiniImageProcessorPil,
    LlavaMiniVideoProcessor,
)
from llava_mini.patch_budget_llava_mini import PatchBudget, choose_patches
from llava_mini.visualization import (
    PatchLayout,
    compare_patch_budget,
    geometry,
    picture_attention,
    prefusion_attentions,
    read_units,
    video_attention,
)
from llava_mini.visualization.geometry import locate_crops
from llava_mini.visuals_llava_mini import arrange_crops


CHECKPOINT = Path(__file__).parents[1] / "examples/tiny/checkpoint"
PATCH, GRID = 7, IMAGE_SIZE // 7
BACKENDS = {"torchvision": LlavaMiniImageProcessor, "pil": LlavaMiniImageProcessorPil}
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
SHORT_EDGE = {"shortest_edge": IMAGE_SIZE}
WAYS = {
    "pad": {"do_pad": True, "size": SHORT_EDGE, "crop_size": SQUARE},
    "crop": {"do_pad": False, "size": SHORT_EDGE, "crop_size": SQUARE},
    "resize": {"do_pad": False, "size": SQUARE, "do_center_crop": False, "crop_size": SQUARE},
}
SIZES = {"portrait": (61, 97), "landscape": (122, 75), "square": (90, 90)}
# Float32 sums over 61 x 97 pixels and more.
SUM_TOLERANCE = 1e-4
# Float32 products in another order: [vision | text] at once and not one after the other.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def trained():
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT), AutoProcessor.from_pretrained(CHECKPOINT)


def shapes(width=120, height=60):
    """A red circle at the left edge."""
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).ellipse((2, 10, 42, 50), fill=(220, 40, 40))
    return picture


@contextlib.contextmanager
def looks_at_the_brightest(model):
    """The compressor puts all of its weight on that patch of the sub-images' raster which is the brightest."""
    front = model.model
    brightest = []

    def remember(pixels):
        crops = pixels.mean(2).unflatten(-1, (GRID, PATCH)).unflatten(-3, (GRID, PATCH)).mean((-3, -1))
        raster, _ = arrange_crops(front.config, crops.flatten(2)[..., None])
        brightest.append(raster[..., 0].argmax(1))
        return extract(pixels)

    def one_patch(module, args, output):
        weights = torch.nn.functional.one_hot(brightest[-1], output[1].shape[-1]).float()
        return output[0], weights[:, None].expand_as(output[1])

    extract = front.extract_features
    front.extract_features = remember
    hook = front.compressor.register_forward_hook(one_patch)
    try:
        yield
    finally:
        hook.remove()
        del front.extract_features


def peak_holds(heat: np.ndarray, x: int, y: int) -> bool:
    """Whether the map is the largest at this pixel, and elsewhere only within a patch or so."""
    return bool(heat[y, x] >= 0.99 * heat.max() > 0)


# In pixels of the upright picture, at least a pixel from every patch's edge: where every way shows them, and where a
# centre crop does not.
DOTS = {
    "portrait": [(10, 28), (49, 68), (19, 76)],
    "landscape": [(26, 13), (86, 51), (36, 60)],
    "square": [(17, 39), (61, 73), (39, 17)],
}
DOTS_AT_THE_EDGE = {"portrait": (10, 5), "landscape": (7, 13), "square": (5, 5)}


def find_dot(model, processor, picture, x, y):
    """A map's peak lies on a dot that was drawn at `(x, y)` in the upright picture's pixels."""
    with looks_at_the_brightest(model):
        look = picture_attention(model, SimpleNamespace(image_processor=processor), picture)
    heat = look.token_map()
    assert heat.shape == look.picture.size[::-1]
    assert heat.sum() <= 1 + SUM_TOLERANCE
    return peak_holds(heat, x, y)


def draw_dot(size, x, y):
    """White on the colour that a picture is padded with."""
    picture = Image.new("RGB", size, (122, 116, 104))
    ImageDraw.Draw(picture).ellipse((x - 3, y - 3, x + 3, y + 3), fill="white")
    return picture


@pytest.fixture(scope="module", params=[1, 2], ids=["N1", "N2"])
def looker(request):
    return tiny_model(resolution_ratio=request.param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_a_peak_is_found_where_it_was_drawn(looker, way, shape, backend):
    processor = BACKENDS[backend](**WAYS[way], resolution_ratio=looker.config.resolution_ratio)
    for x, y in DOTS[shape] + ([] if way == "crop" else [DOTS_AT_THE_EDGE[shape]]):
        assert find_dot(looker, processor, draw_dot(SIZES[shape], x, y), x, y), (x, y)


# EXIF orientation -> where a stored pixel (x, y) of a 122 x 75 file stands in the upright picture (Exif 2.32, 4.6.4).
UPRIGHT = {
    2: lambda x, y: (121 - x, y),
    3: lambda x, y: (121 - x, 74 - y),
    6: lambda x, y: (74 - y, x),
    8: lambda x, y: (y, 121 - x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_peak_is_found_in_a_turned_photo(looker, orientation):
    stored, file = draw_dot((122, 75), 86, 51), BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(file, "PNG", exif=exif)
    processor = LlavaMiniImageProcessor(**WAYS["pad"], resolution_ratio=looker.config.resolution_ratio)
    assert find_dot(looker, processor, file.getvalue(), *UPRIGHT[orientation](86, 51))


LOCATE_VIEW = geometry._locate_view
FAULTS = {
    "padding": ("pad", "landscape", "square_padding", lambda height, width: (0, 0, 0, 0)),
    "crop": ("crop", "portrait", "_first_kept", lambda *args: 0),
    "resize": ("crop", "landscape", "resize_passes", lambda image, size: [SizeDict(*image.shape[1:])]),
    "rows for columns": ("pad", "portrait", "_locate_view", lambda part, *sides: LOCATE_VIEW(part, *sides[::-1])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_step_that_is_undone_counts(looker, monkeypatch, fault):
    """With one step left out, dots that were found are not."""
    way, shape, name, wrong = FAULTS[fault]
    processor = LlavaMiniImageProcessor(**WAYS[way], resolution_ratio=looker.config.resolution_ratio)
    # The last stands at the edge of what is cut out of each sub-image.
    dots = [*DOTS[shape], DOTS_AT_THE_EDGE[shape], (14, 13)]
    found = [dot for dot in dots if find_dot(looker, processor, draw_dot(SIZES[shape], *dot), *dot)]
    assert len(found) >= len(DOTS[shape])
    monkeypatch.setattr(geometry, name, wrong)
    assert not all(find_dot(looker, processor, draw_dot(SIZES[shape], *dot), *dot) for dot in found)


# By hand. 60 x 40 pixels, patches 4 x 4 a crop.
# pad: a square of 60, 10 rows above, patches of 15. crop: 20 rows of pixels... the middle 40 x 40, patches of 10.
# resize: patches of 15 x 10. N = 2: sub-images of 30 x 20, padded to 30 with 5 rows above, patches of 7.5; cut to the
# middle 20 x 20, patches of 5; or patches of 7.5 x 5.
BY_HAND = [
    ("pad", 1, (1, 3), (45, 5, 60, 20)),
    ("pad", 1, (0, 0), (0, -10, 15, 5)),
    ("crop", 1, (0, 0), (10, 0, 20, 10)),
    ("crop", 1, (3, 3), (40, 30, 50, 40)),
    ("resize", 1, (2, 1), (15, 20, 30, 30)),
    ("pad", 2, (1, 1), (7.5, 2.5, 15, 10)),
    ("pad", 2, (6, 4), (30, 30, 37.5, 37.5)),
    ("crop", 2, (4, 7), (50, 20, 55, 25)),
    ("resize", 2, (5, 2), (15, 25, 22.5, 30)),
]


@pytest.mark.parametrize(("way", "ratio", "patch", "box"), BY_HAND)
def test_boxes_by_hand(way, ratio, patch, box):
    processor = LlavaMiniImageProcessorPil(**WAYS[way], resolution_ratio=ratio)
    layout = PatchLayout(60, 40, locate_crops(processor, 60, 40), GRID)
    side = ratio * GRID
    weights = np.zeros(side**2)
    weights[patch[0] * side + patch[1]] = 1
    heat = layout.spread(weights)
    left, top, right, bottom = box
    across = [max(0.0, min(right, x + 1) - max(left, x)) for x in range(60)]
    down = [max(0.0, min(bottom, y + 1) - max(top, y)) for y in range(40)]
    expected = np.outer(down, across) / ((right - left) * (bottom - top))
    np.testing.assert_allclose(heat, expected, atol=1e-6)
    assert np.array_equal(layout.cover(weights), np.outer(down, across) >= 0.5)
    # Shown in half the size the sum stays.
    assert layout.spread(weights, (30, 20)).sum() == pytest.approx(expected.sum(), abs=SUM_TOLERANCE)


def test_the_whole_image_lies_over_its_parts():
    """60 x 40 padded, N = 2: of [8 x 8 raster | 4 x 4 whole], the whole image's patch (2, 1)."""
    processor = LlavaMiniImageProcessorPil(**WAYS["pad"], resolution_ratio=2)
    weights = np.zeros(64 + 16)
    weights[64 + 9] = 0.5
    heat = PatchLayout(60, 40, locate_crops(processor, 60, 40), GRID).spread(weights)
    assert np.count_nonzero(heat) == 15 * 15
    np.testing.assert_allclose(heat[20:35, 15:30], 0.5 / 225, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_centre_crop_larger_than_the_picture(backend):
    """Each backend rounds the padding of an odd number of pixels its own way; zeros in the crop tell which."""
    crop = {"height": 12, "width": 12}
    processor = BACKENDS[backend](do_pad=False, do_resize=False, crop_size=crop, do_rescale=False, do_normalize=False)
    pixels = processor(np.full((3, 12, 7), 200, np.uint8), return_tensors="pt")["pixel_values"][0, 0, 0]
    [box] = locate_crops(processor, 7, 12)
    assert box.left == -int(pixels[0].nonzero()[0])


def test_frames_are_squeezed_before_anything_else():
    """80 x 40 frames become squares: a patch is 20 x 10 pixels of them."""
    processor = LlavaMiniVideoProcessor(size=SHORT_EDGE, crop_size=SQUARE)
    [box] = locate_crops(processor, 80, 40)
    assert (box.left, box.top, box.right, box.bottom) == (0, 0, 80, 40)
    processor.keep_aspect_ratio = True
    [box] = locate_crops(processor, 80, 40)
    assert (box.left, box.top, box.right, box.bottom) == (20, 0, 60, 40)


def plain_reference(model, row, keep=None):
    """
    Attention over [patches | compressed | text] by the text model's own decoder layers, eagerly and at one go:
    `(layers, T, V + CC + T)`. `keep` `(V,)`: the patches that are there, in their places.
    """
    front, config = model.model, model.config
    features = front.extract_features(torch.stack(row.images))
    raster, whole = arrange_crops(config, features)
    compressed, _ = front.compressor(raster)
    patches = raster if whole is None else torch.cat([raster, whole], dim=1)
    is_there = torch.ones(patches.shape[1], dtype=torch.bool) if keep is None else keep
    ignored = [config.image_token_id, PAD_ID, *config.prefusion_ignored_token_ids]
    text = front.get_input_embeddings()(torch.tensor([i for i in row.input_ids.tolist() if i not in ignored]))[None]
    vision = front.multi_modal_projector(torch.cat([patches[:, is_there], compressed], dim=1))
    hidden = torch.cat([vision, text], dim=1)
    length = patches.shape[1] + compressed.shape[1] + text.shape[1]
    there = torch.cat([is_there, torch.ones(length - len(is_there), dtype=torch.bool)])
    places = there.nonzero().T
    stock = AutoModel.from_config(deepcopy(config.text_config), attn_implementation="eager")
    rope = stock.rotary_emb(hidden, places)
    mask = torch.full((places.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    rows = []
    for layer, own in zip(stock.layers, front.prefusion.layers, strict=True):
        layer.load_state_dict(own.state_dict())
        layer.eval()
        normed = layer.input_layernorm(hidden)
        _, weights = layer.self_attn(normed, position_embeddings=rope, attention_mask=mask)
        full = torch.zeros(text.shape[1], length)
        full[:, there] = weights[0].mean(0)[-text.shape[1] :]
        rows.append(full)
        hidden = layer(hidden, attention_mask=mask, position_ids=places, position_embeddings=rope)
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("size", "ratio"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("text", ["llama", "qwen2", "mistral"])
@torch.no_grad()
def test_words_read_what_eager_attention_computes(text, size, ratio, attention):
    options = {"compressor_size": size, "resolution_ratio": ratio}
    model = tiny_model(text={"model_type": text, "sliding_window": None}, attn_implementation=attention, **options)
    row = make_row(model.config, ROWS["one image"])
    inputs = collate([row])
    before = model(**inputs).logits
    [found] = prefusion_attentions(model, inputs).unbind(1)
    torch.testing.assert_close(found, plain_reference(model, row), **TOLERANCE)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    # A causal triangle at the end.
    count = found.shape[1]
    assert not found[..., -count:].triu(1).any() and (found[..., -count:].diagonal(dim1=-2, dim2=-1) > 0).all()
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize(("size", "ratio"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("budget", [{"prefusion_patches": 0.5}, {"prefusion_mass": 0.4}])
@torch.no_grad()
def test_dropped_patches_are_told_from_those_that_are_read(budget, size, ratio):
    model = tiny_model(compressor_size=size, resolution_ratio=ratio)
    row = make_row(model.config, ROWS["one image"])
    [unit] = read_units(model, collate([row]), **budget)
    assert 0 < unit.is_read.sum() < len(unit.is_read)
    chosen = PatchBudget(budget.get("prefusion_patches"), budget.get("prefusion_mass"))
    positions, [count] = choose_patches(model.config, chosen, unit.tokens[None])
    assert sorted(positions[0, :count].tolist()) == unit.is_read.nonzero()[:, 0].tolist()
    torch.testing.assert_close(unit.text, plain_reference(model, row, unit.is_read), **TOLERANCE)
    assert not unit.text[..., : len(unit.is_read)][..., ~unit.is_read].any()


def test_units_with_budgets_of_different_sizes_keep_their_order():
    """A mass drops another number of patches of each frame, which are then encoded in groups."""
    model = tiny_model()
    row = make_row(model.config, [("video", 4), 6])
    together = list(read_units(model, collate([row]), prefusion_mass=0.5))
    assert len({int(unit.is_read.sum()) for unit in together}) > 1
    for i, unit in enumerate(together):
        alone = make_row(model.config, ["image", 6])
        alone.input_ids[1:], alone.images = row.input_ids[-6:], [row.videos[0][i]]
        [expected] = read_units(model, collate([alone]), prefusion_mass=0.5)
        torch.testing.assert_close(unit.text, expected.text, **TOLERANCE)


def test_nothing_is_computed_unless_asked(monkeypatch):
    """`forward` hands pre-fusion no attention of its own, and nothing global is left behind."""
    model, seen = tiny_model(), []
    for layer in model.model.prefusion.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["attention_function"]), with_kwargs=True
        )
    inputs = collate(make_rows(model.config, ["one image"]))
    model(**inputs)
    assert seen and not any(seen)
    seen.clear()
    prefusion_attentions(model, inputs)
    assert sum(function is not None for function in seen) == len(model.model.prefusion.layers)
    assert model.config.text_config._attn_implementation == model.model.prefusion.config._attn_implementation == "sdpa"


def test_words_and_maps_of_a_question(trained):
    model, processor = trained
    question = " What colour is the circle? "
    look = picture_attention(model, processor, shapes(), question, max_new_tokens=8)
    assert look.words == ["What", "colour", "is", "the", "circle", "?"]
    content = [{"type": "image", "image": shapes()}, {"type": "text", "text": question.strip()}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert look.answer == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    everything = prefusion_attentions(model, inputs)[:, 0]
    start = find_word(model, processor, inputs, "What")
    np.testing.assert_allclose(look.word_weights, everything[:, start : start + 6, :36], atol=1e-5)
    assert look.word_map("circle") == pytest.approx(look.word_map(4))
    assert look.word_map("the Circle") == pytest.approx((look.word_map(3) + look.word_map(4)) / 2)
    assert look.word_map() == pytest.approx(np.mean([look.word_map(i) for i in range(6)], axis=0), abs=1e-7)
    layers = [look.word_map(4, layer) for layer in range(model.config.num_prefusion_layers)]
    assert look.word_map(4) == pytest.approx(np.mean(layers, axis=0), abs=1e-7)
    assert look.word_map(4).sum() == pytest.approx(look.word_weights.mean(0)[4].sum())
    assert look.word_map(4).sum() < 1  # the rest is on text
    features = model.get_image_features(inputs["pixel_values"], output_compressor_attentions=True)
    np.testing.assert_allclose(look.token_weights, features.compressor_attentions[0].detach(), atol=1e-6)


def test_what_is_on_padding_is_on_no_map(trained):
    model, processor = trained[0], deepcopy(trained[1])
    processor.image_processor.do_pad = True
    look = picture_attention(model, processor, shapes(), "What colour is the circle?")
    assert shapes().size[0] != shapes().size[1]
    assert look.word_map(4).sum() < look.word_weights.mean(0)[4].sum() < 1


def find_word(model, processor, inputs, word: str) -> int:
    """The how manieth it is of the text that takes part in pre-fusion."""
    ids = inputs["input_ids"]
    takes_part = model.model.get_text_fusion_mask(ids, model.model.embed_prompt(ids))
    return [processor.decode(i).strip() for i in ids[takes_part]].index(word)


def test_overlays_without_matplotlib(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("llava_mini.visualization.drawing.find_spec", lambda name: None)
    model, processor = trained
    look = picture_attention(model, processor, shapes(), "What colour is the circle?", prefusion_patches=0.25)
    assert look.token_overlay().size == look.word_overlay("circle", 0).size == (120, 60)
    assert look.token_overlay(0, max_side=60).size == (60, 30)
    with pytest.raises(ImportError, match=r"llava-mini-hf\[visualization\]"):
        look.save("look.png")
    assert look._repr_png_() is None
    assert "9 of 36 patches read" in repr(look) and "llava-mini-hf[visualization]" in repr(look)


def test_what_is_not_read_is_washed_out(trained):
    """60 x 60, patches of 10: of those that are kept the picture is tinted, elsewhere it is paler than it was."""
    model, processor = trained
    look = picture_attention(model, processor, Image.new("RGB", (60, 60), "grey"), "Hi", prefusion_patches=0.25)
    shown = np.asarray(look.word_overlay(), float)[5::10, 5::10]  # the middle of each patch
    pale = 255 - 0.2 * (255 - 128)
    assert np.array_equal(np.abs(shown - pale).max(-1) < 1, ~look.is_read.reshape(6, 6))
    assert (np.abs(np.asarray(look.token_overlay(), float) - pale).max(-1) > 1).all()  # the compressor reads all


def pictures_in(figure) -> int:
    return sum(len(axis.images) for axis in figure.axes)


def test_figures_show_themselves(trained, tmp_path):
    pytest.importorskip("matplotlib")
    model, processor = trained
    picture, question = shapes(), "What costs $5 or $6?"
    look = picture_attention(model, processor, picture, question, max_new_tokens=2)
    assert pictures_in(look.figure()) == 3 + len(look.words)  # picture, token, mean of the words
    assert Image.open(BytesIO(look._repr_png_())).size[0] > 1000
    look.save(tmp_path / "look.png")
    assert Image.open(tmp_path / "look.png").size == Image.open(BytesIO(look._repr_png_())).size
    assert pictures_in(picture_attention(model, processor, picture).figure()) == 2
    several = tiny_model(compressor_size=3)
    part = LlavaMiniImageProcessorPil(**WAYS["pad"])
    look = picture_attention(several, SimpleNamespace(image_processor=part), picture)
    assert look.num_tokens == 9 and pictures_in(look.figure()) == 2 + 8


def test_before_and_after_a_budget(trained, tmp_path):
    pytest.importorskip("matplotlib")
    model, processor = trained
    pair = compare_patch_budget(model, processor, shapes(), "What colour is the circle?", prefusion_patches=0.25)
    assert (pair.before.is_read.sum(), pair.after.is_read.sum()) == (36, 9)
    assert pair.before.answer and pair.after.answer
    assert pictures_in(pair.figure()) == 3
    pair.save(tmp_path / "pair.svg")
    words = (tmp_path / "pair.svg").read_text()
    assert "9 of 36 patches" in words
    with pytest.raises(ValueError, match="no patch budget"):
        compare_patch_budget(model, processor, shapes(), "What colour is the circle?")


def test_contact_sheet(trained, tmp_path):
    """Ten frames a second, one of which is taken a second; a white square wanders over 120 x 60 pixels."""
    pytest.importorskip("matplotlib")
    model, processor = trained
    frames = []
    for i in range(40):
        frame = Image.new("RGB", (120, 60), "black")
        ImageDraw.Draw(frame).rectangle((3 * i - 5, 20, 3 * i + 5, 40), fill="white")
        frames.append(np.asarray(frame))
    write_video(tmp_path / "clip.mp4", np.stack(frames))
    sheet = video_attention(model, processor, tmp_path / "clip.mp4", "What shape is it?", max_new_tokens=4)
    content = [{"type": "video", "path": str(tmp_path / "clip.mp4")}, {"type": "text", "text": "What shape is it?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert sheet.answer == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert len(sheet.frames) == int(inputs["video_num_frames"][0]) == len(sheet.times)
    # The places of `sample_frames`, 0.1 s each, and what is drawn there.
    indices = processor.video_processor.sample_frames(SimpleNamespace(total_num_frames=40, fps=10))
    assert sheet.times == pytest.approx((indices / 10).tolist())
    for index, look in zip(indices, sheet.frames):
        bright = np.asarray(look.picture.convert("L"), float)[30] > 128
        assert abs(bright.nonzero()[0].mean() - 3 * index) < 2
    start = find_word(model, processor, inputs, "What")
    read = prefusion_attentions(model, inputs)[:, :, start : start + len(sheet.words), :36]
    for look, expected in zip(sheet.frames, read.unbind(1), strict=True):
        np.testing.assert_allclose(look.word_weights, expected, atol=1e-5)
    assert pictures_in(sheet.figure()) == 3 * len(sheet.frames)
    assert f"4 frames, {sheet.times[0]:.1f} s to {sheet.times[-1]:.1f} s" in repr(sheet)


def test_frames_without_times(trained):
    model, processor = trained
    sheet = video_attention(model, processor, [shapes(), shapes(), shapes()], num_frames=2)
    assert len(sheet.frames) == 2 and sheet.times is None and sheet.words == []
    with pytest.raises(ValueError, match="at most 64"):
        video_attention(model, processor, np.zeros((65, 3, 8, 8), np.uint8))


def test_wrong_requests_are_refused(trained):
    model, processor = trained
    look = picture_attention(model, processor, shapes(), "What colour is the circle?")
    for call, error, message in [
        (lambda: look.token_map(1), IndexError, "0 to 0"),
        (lambda: look.word_map(6), IndexError, "0 to 5"),
        (lambda: look.word_map(0, 3), IndexError, "0 to 2"),
        (lambda: look.word_map("dog"), ValueError, "no piece of the question"),
        (lambda: look.word_overlay(max_side=0), ValueError, "max_side"),
        (lambda: picture_attention(model, processor, [shapes()]), ValueError, "a list of 1"),
        (lambda: picture_attention(model, processor, shapes(), "  "), ValueError, "has to be text"),
        (lambda: picture_attention(model, processor, shapes(), max_new_tokens=4), ValueError, "needs a `question`"),
        (lambda: picture_attention(torch.nn.Linear(1, 1), processor, shapes()), ValueError, "LLaVA-Mini model"),
        (lambda: picture_attention(model, processor, shapes()).word_map(), ValueError, "pass a `question`"),
        (lambda: prefusion_attentions(model, {"input_ids": torch.ones(2, 3).long()}), ValueError, "2 rows"),
        (lambda: prefusion_attentions(model, {"input_ids": torch.ones(1, 3).long()}), ValueError, "Nothing reads"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_a_model_without_prefusion_has_no_words(trained):
    _, processor = trained
    model = AutoModelForImageTextToText.from_config(
        AutoModelForImageTextToText.from_pretrained(CHECKPOINT).config.__class__.from_pretrained(
            CHECKPOINT, num_prefusion_layers=0
        )
    )
    look = picture_attention(model, processor, shapes(), "What colour is the circle?", max_new_tokens=1)
    assert look.words == [] and look.word_weights is None
    with pytest.raises(ValueError, match="num_prefusion_layers"):
        look.word_overlay()


def test_a_long_video_shows_some_frames(trained, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("llava_mini.visualization.sheets.MAX_SHOWN_FRAMES", 4)
    model, processor = trained
    sheet = video_attention(model, processor, [shapes()] * 9)
    figure = sheet.figure()
    assert pictures_in(figure) == 2 * 4
    assert [axis.get_title() for axis in figure.axes[:4]] == ["frame 1", "frame 3", "frame 5", "frame 7"]
    assert figure.get_supxlabel().startswith("4 of 9 frames.")


def test_typed_placeholders_and_templates_that_change_the_question(trained, monkeypatch):
    model, processor = trained
    look = picture_attention(model, processor, shapes(), "Is <image> a circle?")
    assert look.words[0] == "Is" and look.words[-1] == "?"
    assert look.text == "Is < image> a circle?"
    assert look.word_map("circle") == pytest.approx(look.word_map(look.words.index("circle")))
    template = processor.chat_template.replace('rendered.text + part["text"]', 'rendered.text + part["text"] | upper')
    monkeypatch.setattr(processor, "chat_template", template)
    look = picture_attention(model, processor, shapes(), "what?")
    assert {"user", "assistant"} <= set(look.words)
    assert look.word_map("user") == pytest.approx(look.word_map(look.words.index("user")))


def test_code_of_an_older_checkpoint_is_refused(trained, monkeypatch):
    model, processor = trained
    monkeypatch.setattr(model.model.prefusion, "forward", lambda hidden_states, key_values=(): None)
    with pytest.raises(ValueError, match="trust_remote_code"):
        picture_attention(model, processor, shapes(), "What?")


def test_a_tokenizer_that_does_not_tell_where_tokens_stand(trained, monkeypatch):
    model, processor = trained
    question = "What colour is the circle?"
    expected = picture_attention(model, processor, shapes(), question)
    monkeypatch.setattr(type(processor.tokenizer), "is_fast", property(lambda tokenizer: False))
    look = picture_attention(model, processor, shapes(), question)
    start = look.words.index("What")
    assert look.words[start : start + 6] == expected.words and len(look.words) > 6
    np.testing.assert_allclose(look.word_map("Circle"), expected.word_map("circle"), atol=1e-7)
