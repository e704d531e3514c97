"""Units in chunks, and contexts that later questions reuse: the same numbers for less work."""

import random

import pytest
import torch
from safetensors.torch import save_file
from test_generation_llava_mini import GREEDY, MIXED, NEW_TOKENS, greedy_by_hand, grow, new_tokens
from test_modeling_llava_mini import gradients, make_labels
from tiny import ROWS, collate, make_row, make_rows, tiny_config, tiny_model
from transformers import DynamicCache

from llava_mini import LlavaMiniVisionContext
from llava_mini.vision_context_llava_mini import fingerprint
from llava_mini.visuals_llava_mini import units_per_chunk


# Float32 products over other batch sizes.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
VISUAL = ("pixel_values", "pixel_values_videos", "video_num_frames")


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=lambda p: f"C{p[0]}N{p[1]}")
def model(request):
    return tiny_model(compressor_size=request.param[0], resolution_ratio=request.param[1])


def split(inputs):
    """A batch as (text, pixels)."""
    return {k: v for k, v in inputs.items() if k not in VISUAL}, {k: v for k, v in inputs.items() if k in VISUAL}


@pytest.mark.parametrize("units", [1, 2, 3, 100])
def test_results_do_not_depend_on_the_chunk_size(model, units):
    inputs = collate(make_rows(model.config))
    budget = units * (2**31 // units_per_chunk(model.config, model.model.compressor.query, 2**31)) + 1
    assert units_per_chunk(model.config, model.model.compressor.query, budget) == units
    sizes = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad():
        chunked = model(**inputs, vision_memory_budget=budget).logits
        whole = model(**inputs, vision_memory_budget=2**40).logits
    hook.remove()
    torch.testing.assert_close(chunked, whole, **TOLERANCE)
    assert max(sizes[:-2]) <= units * model.config.num_crops
    # At the end images and frames, each at one go.
    assert sum(sizes[:-2]) == sum(sizes[-2:])
    made = model.generate(**inputs, **GREEDY, vision_memory_budget=budget)
    assert torch.equal(made, model.generate(**inputs, **GREEDY))


def test_gradients_do_not_depend_on_the_chunk_size():
    model = tiny_model(compressor_size=2)
    rows = make_rows(model.config, ["one video", "two images"])
    inputs = collate(rows) | {"labels": make_labels(rows, "left")}
    loss, expected = gradients(model, inputs)
    chunked_loss, chunked = gradients(model, inputs | {"vision_memory_budget": 1})
    torch.testing.assert_close(chunked_loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-6, rtol=1e-4)


def test_automatic_chunk_size():
    """At the release's size, half precision: some units on an accelerator, one on a CPU in float32."""
    text = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = tiny_config(text=text)
    config.vision_config = type(config)().vision_config
    half = torch.empty(0, dtype=torch.bfloat16, device="meta")
    assert 4 <= units_per_chunk(config, half) <= 64
    assert units_per_chunk(config, torch.empty(0)) == 1
    assert units_per_chunk(config, half, "4GB") == units_per_chunk(config, half, 4 * 10**9)
    assert units_per_chunk(config, half, "512MiB") == units_per_chunk(config, half, 512 * 2**20)
    for wrong in (0, -1, "0GB", "-4GB", "4", "much", "GB", "4 apples", [4]):
        with pytest.raises(ValueError, match="`vision_memory_budget` is .*positive number of bytes, or a size"):
            units_per_chunk(config, half, wrong)


@pytest.mark.parametrize("keep", ["key_values", "features"])
def test_context_gives_the_same_answers_without_pixels(model, keep):
    rows = make_rows(model.config, MIXED)
    text, pixels = split(collate(rows))
    context = model.encode_visuals(**pixels, keep=keep)
    expected = new_tokens(model, rows)
    calls = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        made = model.generate(**text, **GREEDY, vision_context=context)
        assert torch.equal(made[:, text["input_ids"].shape[1] :], expected)
    with torch.no_grad():
        logits = model(**text, vision_context=context).logits
    hook.remove()
    assert not calls
    torch.testing.assert_close(logits, model(**text, **pixels).logits, **TOLERANCE)


def test_another_question_about_the_same_image(model):
    row = make_row(model.config, ROWS["one image"], seed=0)
    other = make_row(model.config, ROWS["image and video"], seed=0)
    other.input_ids, other.videos = torch.cat([row.input_ids[:5], row.input_ids[-4:], row.input_ids[:2]]), []
    other.input_ids = torch.cat([row.input_ids, row.input_ids[-3:]])
    other.images = row.images
    context = model.encode_visuals(**split(collate([row]))[1])
    text, _ = split(collate([other]))
    made = model.generate(**text, **GREEDY, vision_context=context)
    assert torch.equal(made[:, len(other.input_ids) :], greedy_by_hand(model, other))


def test_context_by_row(model):
    rows = make_rows(model.config, MIXED)
    inputs = collate(rows)
    context = model.encode_visuals(**inputs)
    for chosen in ([0], [3, 0], [2, 1, 4], 4):
        picked = [rows[i] for i in ([chosen] if isinstance(chosen, int) else chosen)]
        text, _ = split(collate(picked))
        made = model.generate(**text, **GREEDY, vision_context=context[chosen])
        assert torch.equal(made[:, text["input_ids"].shape[1] :], new_tokens(model, picked))
    with pytest.raises(ValueError, match="knows no rows"):
        model.encode_visuals(**split(inputs)[1])[0]
    last = model.generate(**split(collate(rows[-1:]))[0], **GREEDY, vision_context=context[-1])
    assert torch.equal(last[:, len(rows[-1].input_ids) :], new_tokens(model, rows[-1:]))
    for absent in (len(rows), -len(rows) - 1, [0, 99]):
        with pytest.raises(IndexError, match=f"has {len(rows)} row"):
            context[absent]
    assert len(list(context)) == len(rows)
    with pytest.raises(IndexError, match="has 2 row"):
        context[[0, 1]][2]


@pytest.mark.parametrize("keep", ["key_values", "features"])
def test_context_can_be_saved_and_moved(model, keep, tmp_path):
    rows = make_rows(model.config, MIXED)
    inputs = collate(rows)
    context = model.encode_visuals(**inputs, keep=keep)
    context.save(tmp_path / "context.safetensors")
    loaded = LlavaMiniVisionContext.load(tmp_path / "context.safetensors").to("cpu")
    for name in ("sizes", "rows", "num_rows", "keep_text", "made_by", "nbytes"):
        assert getattr(loaded, name) == getattr(context, name)
    made = model.generate(**split(inputs)[0], **GREEDY, vision_context=loaded)
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], new_tokens(model, rows))
    torch.save({}, tmp_path / "other")
    save_file({"tensor": torch.zeros(1)}, tmp_path / "plain")
    for name in ("other", "plain"):
        with pytest.raises(ValueError, match=f"{name} .*no vision context"):
            LlavaMiniVisionContext.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        LlavaMiniVisionContext.load(tmp_path / "absent")


def test_damaged_contexts_are_refused(tmp_path):
    """Whatever byte is wrong, and wherever the file ends."""
    model = tiny_model()
    path = tmp_path / "context.safetensors"
    model.encode_visuals(**collate(make_rows(model.config, ["one image"]))).save(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    places = [rng.randrange(len(whole)) for _ in range(60)] + list(range(0, 400, 7))
    for place in places:
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="context.safetensors"):
                LlavaMiniVisionContext.load(path)


def test_a_context_belongs_to_its_model(tmp_path):
    first, second = (tiny_model(seed=seed, compressor_size=2) for seed in (0, 1))
    row = make_row(first.config, ROWS["one image"])
    text, pixels = split(collate([row]))
    for options in ({}, {"keep": "features"}, {"keep_text": True}):
        context = first.encode_visuals(**pixels, **options)
        context.save(tmp_path / "context")
        for made in (context, LlavaMiniVisionContext.load(tmp_path / "context")):
            with pytest.raises(ValueError, match="made by another model"):
                second.generate(**text, **GREEDY, vision_context=made)
            expected = first.generate(**text, **pixels, **GREEDY)
            assert torch.equal(first.generate(**text, **GREEDY, vision_context=made), expected)
    with pytest.raises(ValueError, match="made by another model"):
        second(**text, vision_context=first.encode_visuals(**pixels))
    # The same numbers in another precision are the same model; one more step of training makes another.
    context = first.encode_visuals(**pixels)
    assert fingerprint(first.bfloat16().model.vision_parts) == context.made_by
    with torch.no_grad():
        first.float().model.prefusion.layers[0].mlp.up_proj.weight.mul_(1.1)
    with pytest.raises(ValueError, match="before it was trained further"):
        first.generate(**text, **GREEDY, vision_context=context)


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_videos", "mm_encoder_outputs", "position_ids", "cache"])
def test_kept_text_takes_nothing_new(turn, name):
    """A picture, a place or a cache that the kept text knows nothing of, in whichever turn."""
    model = tiny_model(compressor_size=2)
    row = make_row(model.config, ROWS["one image"])
    text, pixels = split(collate([row]))
    context = model.encode_visuals(**pixels, keep_text=True)
    for _ in range(turn - 1):
        made = model.generate(input_ids=row.input_ids[None], **GREEDY, vision_context=context)
        row, _ = grow(row, made[0, len(row.input_ids) :], model.config, 3)
    new = {
        "pixel_values": pixels["pixel_values"] + 1,
        "pixel_values_videos": pixels["pixel_values"][None],
        "mm_encoder_outputs": {"image": model.get_image_features(pixels["pixel_values"])},
        "position_ids": torch.arange(len(row.input_ids))[None],
        "cache": DynamicCache(),
    }
    with pytest.raises(ValueError, match="`vision_context` that keeps text"):
        model.generate(input_ids=row.input_ids[None], **GREEDY, vision_context=context, **{name: new[name]})
    # Refused before anything was touched: the conversation goes on.
    made = model.generate(input_ids=row.input_ids[None], **GREEDY, vision_context=context)
    assert torch.equal(made[:, len(row.input_ids) :], greedy_by_hand(model, row))


def test_a_new_placeholder_in_a_later_turn_is_refused():
    model = tiny_model(compressor_size=2)
    row = make_row(model.config, ROWS["one image"])
    context = model.encode_visuals(**split(collate([row]))[1], keep_text=True)
    made = model.generate(input_ids=row.input_ids[None], **GREEDY, vision_context=context)
    more = make_row(model.config, [3, "image", 2], seed=4).input_ids
    with pytest.raises(ValueError, match="features don't match"):
        model.generate(input_ids=torch.cat([made[0], more])[None], **GREEDY, vision_context=context)


def test_masks_of_kept_text_may_change():
    """What was run under another mask is run again: always the ids of a full re-run."""
    model = tiny_model(compressor_size=2)
    row = make_row(model.config, ["image", 10])
    context = model.encode_visuals(**split(collate([row]))[1], keep_text=True)
    generator = torch.Generator().manual_seed(0)
    differ = 0
    for _ in range(8):
        mask = torch.rand(1, len(row.input_ids), generator=generator) < 0.6
        kept = model.generate(input_ids=row.input_ids[None], **GREEDY, vision_context=context, text_fusion_mask=mask)
        whole = model.generate(**collate([row]), **GREEDY, text_fusion_mask=mask)
        assert torch.equal(kept, whole)
        differ += not torch.equal(whole, model.generate(**collate([row]), **GREEDY))
    assert differ > 3, "the masks have to matter"


def test_bytes_are_what_is_kept(model):
    config = model.config
    row = make_row(config, ROWS["one video"])
    pixels = split(collate([row]))[1]
    patches = config.num_crops * config.vision_grid_size**2
    tokens = 3 * config.num_image_tokens * 32 * 4
    by_layer = 2 * 3 * 2 * (patches + config.num_image_tokens) * 8 * 4  # k and v, frames, heads, positions, width
    assert model.encode_visuals(**pixels).nbytes == tokens + 2 * by_layer
    assert model.encode_visuals(**pixels, keep="features").nbytes == tokens + 3 * patches * 16 * 4


@pytest.mark.parametrize("name", ["one image", "one video", "image and video", "text only"])
def test_conversation_runs_only_what_is_new(model, name):
    """Three turns with kept text give the ids of a full re-run, in which the earlier answers are fused too."""
    row = make_row(model.config, ROWS[name])
    text, pixels = split(collate([row]))
    context = model.encode_visuals(**pixels, keep_text=True)
    lengths = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    previous = 0
    for turn in range(3):
        ids = row.input_ids[None]
        lengths.clear()
        made = model.generate(input_ids=ids, **GREEDY, vision_context=context)[:, ids.shape[1] :]
        assert lengths == [ids.shape[1] - previous] + [1] * (NEW_TOKENS - 1)
        assert torch.equal(made, greedy_by_hand(model, row))
        previous = ids.shape[1]
        row, _ = grow(row, made[0], model.config, 3 + turn)
    hook.remove()
    assert context.nbytes > context.to("cpu").nbytes or name == "text only"


def test_edited_conversation_is_run_from_where_it_differs(model):
    row = make_row(model.config, ROWS["one image"])
    context = model.encode_visuals(**split(collate([row]))[1], keep_text=True)
    model.generate(input_ids=row.input_ids[None], **GREEDY, vision_context=context)
    for cut in (2, len(row.input_ids) - 2):  # before the image, and after it
        edited = type(row)(row.input_ids.clone(), row.images)
        edited.input_ids[cut if cut > 2 else 0] = 50
        made = model.generate(input_ids=edited.input_ids[None], **GREEDY, vision_context=context)
        assert torch.equal(made[:, len(row.input_ids) :], greedy_by_hand(model, edited))
    # The same question again.
    made = model.generate(input_ids=edited.input_ids[None], **GREEDY, vision_context=context)
    assert torch.equal(made[:, len(row.input_ids) :], greedy_by_hand(model, edited))


def test_context_refusals(model):
    rows = make_rows(model.config, ["one image", "one image"])
    text, pixels = split(collate(rows))
    with pytest.raises(ValueError, match="one row without padding"):
        model.generate(**text, **GREEDY, vision_context=model.encode_visuals(**pixels, keep_text=True))
    text, pixels = split(collate(rows[:1]))
    context = model.encode_visuals(**pixels, keep_text=True)
    with pytest.raises(ValueError, match="one beam"):
        model.generate(**text, **GREEDY, vision_context=context, num_beams=2)
    with pytest.raises(ValueError, match="has its own cache"):
        model.generate(**text, **GREEDY, vision_context=context, cache=object())
    with pytest.raises(ValueError, match="pass only one of pixels"):
        model.generate(**text, **pixels, **GREEDY, vision_context=model.encode_visuals(**pixels))
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**text, **GREEDY, vision_context=context, prefill_chunk_size=4)
    with pytest.raises(ValueError, match="`keep` is 'nothing'.*'key_values', 'features'"):
        model.encode_visuals(**pixels, keep="nothing")
    with pytest.raises(ValueError, match="features don't match"):
        model.encode_visuals(**pixels, input_ids=text["input_ids"][:, :2])
    # After a failure the conversation goes on as if nothing had been kept.
    made = model.generate(**text, **GREEDY, vision_context=context)
    assert torch.equal(made[:, text["input_ids"].shape[1] :], new_tokens(model, rows[0]))


class Stream:
    """A video whose frames come in pieces."""

    def __init__(self, frames, piece):
        self.num_frames, self.pieces = len(frames), frames.split(piece)

    def __iter__(self):
        return iter(self.pieces)


def test_streamed_videos_equal_tensors(model):
    rows = make_rows(model.config, ["one video", "short video", "image and video"])
    inputs = collate(rows)
    text, pixels = split(inputs)
    pixels["pixel_values_videos"] = [Stream(video, 2) for row in rows for video in row.videos]
    del pixels["video_num_frames"]
    with torch.no_grad():
        torch.testing.assert_close(model(**text, **pixels).logits, model(**inputs).logits, **TOLERANCE)
    made = model.generate(**text, **pixels, **GREEDY)
    assert torch.equal(made[:, text["input_ids"].shape[1] :], new_tokens(model, rows))


def test_a_context_says_what_it_is_in_one_line(model, tmp_path):
    rows = make_rows(model.config, ["one image", "two images", "image and video"])
    inputs = collate(rows)
    context = model.encode_visuals(**inputs)
    expected = f"LlavaMiniVisionContext(3 rows, 4 images, 1 video of 2 frames, keeps key_values, {kib(context)}, "
    assert repr(context) == expected + "float32 on cpu)"
    context.save(tmp_path / "context")
    assert repr(LlavaMiniVisionContext.load(tmp_path / "context")) == repr(context)
    assert repr(context[2]).startswith("LlavaMiniVisionContext(1 row, 1 image, 1 video of 2 frames, keeps key_values, ")
    kept = model.encode_visuals(**inputs, keep="features").to(torch.device("meta"))
    assert "keeps features" in repr(kept) and "float32 on meta" in repr(kept)
    budget = model.encode_visuals(inputs["pixel_values"], prefusion_patches=0.5)
    assert repr(budget).startswith("LlavaMiniVisionContext(4 images,") and "share=0.5" in repr(budget)
    for chunk in context.visuals.values():
        assert repr(chunk).startswith("LlavaMiniVisualChunk(tokens=(") and len(repr(chunk)) < 500
    text_only = model.encode_visuals(**collate(make_rows(model.config, ["text only"])))
    assert repr(text_only) == "LlavaMiniVisionContext(1 row, keeps nothing, 0.0 KiB)"


def kib(context) -> str:
    return f"{context.nbytes / 1024:.1f} KiB"


def test_a_context_with_text_says_so():
    model = tiny_model()
    inputs = collate(make_rows(model.config, ["one image"]))
    context = model.encode_visuals(**inputs, keep_text=True)
    without = context.nbytes
    model.generate(input_ids=inputs["input_ids"], vision_context=context, **GREEDY)
    assert f"text of {context.turn.input_ids.shape[1]} tokens" in repr(context)
    assert repr(context.turn).startswith(f"LlavaMiniTurn({context.turn.input_ids.shape[1]} tokens, ")
    assert context.nbytes == without + context.turn.nbytes > without
    context.turn.cache = DynamicCache()  # nothing in it
    assert "text of" in repr(context)
    context.turn.cache = None
    context.visuals["image"].tokens = None
    assert repr(context).startswith("LlavaMiniVisionContext(1 row, 1 image")
