"""Pre-fusion over some of the patches: the numbers of one plain sequence of those that are kept, and exact when off."""

import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from test_generation_llava_mini import GREEDY, MIXED
from test_vision_context import split
from tiny import IMAGE_ID, ROWS, VIDEO_ID, collate, make_row, make_rows, tiny_config, tiny_model

from llava_mini import LlavaMiniConfig, LlavaMiniVisionContext, compressor_llava_mini, front_llava_mini


# Float32 sums in another order (batched matrix products, kept patches gathered first): the project's bar, see PARITY.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BUDGETS = [{"prefusion_patches": 0.25}, {"prefusion_patches": 0.5}, {"prefusion_mass": 0.3}, {"prefusion_mass": 0.9}]


@pytest.fixture(scope="module", params=[(1, 1), (2, 1), (1, 2), (2, 2)], ids=lambda p: f"C{p[0]}N{p[1]}")
def model(request):
    return tiny_model(compressor_size=request.param[0], resolution_ratio=request.param[1])


def attention_of(compressor, raster):
    """The compressor's weights `(G * G,)` over one image's raster `(G * G, Dv)`, mean over queries and heads."""
    features = compressor.key_norm(raster)
    query = compressor.q_proj(compressor.query_norm(compressor.query) + compressor.pos_embed)
    key = compressor.k_proj(features + compressor.resize_position_table(len(raster)))
    heads, total = compressor.num_heads, 0
    for own_query, own_key in zip(query.chunk(heads, -1), key.chunk(heads, -1)):
        total = total + (own_query @ own_key.T / own_key.shape[-1] ** 0.5).softmax(-1).mean(0)
    return total / heads


def keep_best(weights, prefusion_patches=None, prefusion_mass=None):
    """Which places of a list of weights are kept, in order."""
    best = sorted(range(len(weights)), key=lambda i: -weights[i].item())
    if prefusion_patches is not None:
        return sorted(best[: round(prefusion_patches * len(weights))])
    kept, held = [], 0.0
    while held < prefusion_mass * weights.sum().item():
        kept.append(best[len(kept)])
        held += weights[kept[-1]].item()
    return sorted(kept)


def encode_by_hand(model, crops, budget):
    """A unit's projected vision sequence `(n + CC, D)` with the places that these would have among all patches."""
    base, config = model.model, model.config
    features = base.vision_tower(crops).last_hidden_state[:, 1:]
    grid, ratio = config.vision_grid_size, config.resolution_ratio
    if ratio == 1:
        raster, patches = features[0], features[0]
    else:
        places = itertools.product(range(ratio), range(grid), range(ratio))
        raster = torch.cat([features[i * ratio + j, y * grid : (y + 1) * grid] for i, y, j in places])
        patches = torch.cat([raster, features[-1]])
    weights = attention_of(base.compressor, raster)
    kept = keep_best(weights, **budget)
    if ratio > 1:
        blocks = weights.reshape(grid, ratio, grid, ratio).sum((1, 3)).flatten()
        kept += [len(raster) + place for place in keep_best(blocks, **budget)]
    compressed = base.compressor(raster[None])[0][0]
    vision = base.multi_modal_projector(torch.cat([patches[kept], compressed]))
    return vision, [*kept, *range(len(patches), len(patches) + len(compressed))]


def reference_inputs_embeds(model, row, budget):
    """One causal sequence [kept patches | compressed | text] a unit, by the text model's own layers, then the mean."""
    base, config = model.model, model.config
    count = config.num_image_tokens
    embeds = base.embed_prompt(row.input_ids)
    keep = ~torch.isin(row.input_ids, torch.tensor([IMAGE_ID, VIDEO_ID, *config.prefusion_ignored_token_ids]))
    tokens, texts = {IMAGE_ID: [], VIDEO_ID: []}, []
    units = [(IMAGE_ID, image) for image in row.images] + [(VIDEO_ID, frame) for v in row.videos for frame in v]
    for token_id, crops in units:
        vision, places = encode_by_hand(model, crops, budget)
        hidden = torch.cat([vision, embeds[keep]])[None]
        places = [*places, *range(places[-1] + 1, places[-1] + 1 + int(keep.sum()))]
        cos_sin = base.prefusion.rotary_emb(hidden, torch.tensor(places)[None])
        mask = torch.full((hidden.shape[1], hidden.shape[1]), float("-inf")).triu(1)[None, None]
        for layer in base.prefusion.layers:
            decoder = type(base.language_model.layers[0])(config.text_config, layer_idx=0).eval()
            weights = dict(layer.named_parameters())  # gradients flow to these
            options = {"attention_mask": mask, "position_embeddings": cos_sin}
            hidden = torch.func.functional_call(decoder, weights, hidden, options, strict=True)
        tokens[token_id].append(hidden[0, len(vision) - count : len(vision)])
        texts.append(hidden[0, len(vision) :])
    if texts:
        embeds[keep] = torch.stack(texts).mean(0)
    for token_id, own in tokens.items():
        if own:
            embeds[row.input_ids == token_id] = torch.cat(own)
    return embeds


def reference_logits(model, row, budget):
    return model.lm_head(model.model.language_model(inputs_embeds=reference_inputs_embeds(model, row, budget)[None])[0])


def reference_ids(model, row, budget, count):
    """Greedy: the prompt is fused, what follows is raw."""
    embeds, made = reference_inputs_embeds(model, row, budget), []
    for _ in range(count):
        hidden = model.model.language_model(inputs_embeds=embeds[None])[0]
        logits = model.lm_head(hidden)[0, -1]
        logits[GREEDY["suppress_tokens"]] = -float("inf")
        made.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.model.embed_prompt(torch.tensor(made[-1:]))])
    return made


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_the_plain_reference(model, budget, side):
    rows = make_rows(model.config)
    with torch.no_grad():
        outputs = model(**collate(rows, side), **budget)
        for logits, row in zip(outputs.logits, rows):
            length = len(row.input_ids)
            own = logits[-length:] if side == "left" else logits[:length]
            torch.testing.assert_close(own, reference_logits(model, row, budget)[0], **TOLERANCE)
    if budget == {"prefusion_mass": 0.3}:  # else nothing of different numbers has been seen
        assert len(set(outputs.image_outputs.prefusion_dropped.tolist())) > 1


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("text", [{"model_type": "qwen2"}, {"model_type": "mistral", "sliding_window": None}])
def test_other_text_models(implementation, text):
    model = tiny_model(text=text, attn_implementation=implementation)
    rows, budget = make_rows(model.config, ["two images", "one video"]), {"prefusion_mass": 0.5}
    with torch.no_grad():
        logits = model(**collate(rows), **budget).logits
        for own, row in zip(logits, rows):
            expected = reference_logits(model, row, budget)[0]
            torch.testing.assert_close(own[-len(row.input_ids) :], expected, **TOLERANCE)


@pytest.mark.parametrize("num_layers", [0, 1])
def test_number_of_prefusion_layers(num_layers):
    model = tiny_model(num_prefusion_layers=num_layers)
    row, budget = make_row(model.config, ROWS["two images"]), {"prefusion_mass": 0.5}
    with torch.no_grad():
        logits = model(**collate([row]), **budget).logits
        torch.testing.assert_close(logits, reference_logits(model, row, budget), **TOLERANCE)


@pytest.mark.parametrize("budget", BUDGETS[::2], ids=str)
def test_generation_contexts_and_chunks(model, budget, tmp_path):
    """Pixels at once and chunk by chunk, both contexts, saved, moved and by row: the reference's ids."""
    rows = make_rows(model.config, MIXED)
    text, pixels = split(collate(rows))
    length = text["input_ids"].shape[1]
    made = model.generate(**text, **pixels, **GREEDY, **budget)[:, length:]
    with torch.no_grad():
        for own, row in zip(made, rows):
            assert own.tolist() == reference_ids(model, row, budget, made.shape[1])
    assert torch.equal(model.generate(**text, **pixels, **GREEDY, **budget, vision_memory_budget=1)[:, length:], made)
    model.model.config.update({**budget})
    try:
        assert torch.equal(model.generate(**text, **pixels, **GREEDY)[:, length:], made)
    finally:
        model.model.config.update(dict.fromkeys(budget))
    for keep in ("key_values", "features"):
        context = model.encode_visuals(**text, **pixels, **budget, keep=keep)
        context.save(tmp_path / keep)
        context = LlavaMiniVisionContext.load(tmp_path / keep).to("cpu")
        for _ in range(2):
            assert torch.equal(model.generate(**text, **GREEDY, vision_context=context)[:, length:], made)
        for chosen in ([0], [3, 0], [2, 1, 4]):
            own, _ = split(collate([rows[i] for i in chosen]))
            ids = model.generate(**own, **GREEDY, vision_context=context[chosen])[:, own["input_ids"].shape[1] :]
            assert torch.equal(ids, made[chosen])


@pytest.mark.parametrize("budget", BUDGETS[::2], ids=str)
def test_features_encoded_apart(model, budget):
    row = make_row(model.config, ROWS["two images"])
    inputs = collate([row])
    with torch.no_grad():
        features = model.get_image_features(inputs.pop("pixel_values"), **budget)
        logits = model(**inputs, mm_encoder_outputs={"image": features}).logits
        torch.testing.assert_close(logits, reference_logits(model, row, budget), **TOLERANCE)
        video = make_row(model.config, ROWS["one video"])
        inputs = collate([video])
        pixels = (inputs.pop("pixel_values_videos"), inputs.pop("video_num_frames"))
        features = model.get_video_features(*pixels, **budget)
        logits = model(**inputs, mm_encoder_outputs={"video": features}).logits
        torch.testing.assert_close(logits, reference_logits(model, video, budget), **TOLERANCE)


@pytest.mark.parametrize("keep", ["key_values", "features"])
@pytest.mark.parametrize("budget", BUDGETS[::2], ids=str)
def test_turns_of_a_conversation(model, budget, keep):
    """Three turns, the last of which changes the middle of the second: as run afresh."""
    row = make_row(model.config, ROWS["image and video"])
    context = model.encode_visuals(**split(collate([row]))[1], **budget, keep=keep, keep_text=True)
    ids = row.input_ids
    for more in ([], [9, 0, 10, 11, 12], [13, 14]):
        ids = torch.cat([ids[:-2] if more == [13, 14] else ids, torch.tensor(more, dtype=torch.long)])
        row.input_ids = ids
        made = model.generate(input_ids=ids[None], **GREEDY, vision_context=context)[0, len(ids) :].tolist()
        with torch.no_grad():
            assert made == reference_ids(model, row, budget, len(made))


@pytest.mark.parametrize(("size", "ratio"), [(1, 1), (2, 2)])
def test_context_shrinks_in_the_same_measure(size, ratio):
    model = tiny_model(compressor_size=size, resolution_ratio=ratio, vision={"patch_size": 2})
    pixels = torch.randn(2, model.config.num_crops, 3, 28, 28)
    whole = model.encode_visuals(pixels).nbytes
    assert model.encode_visuals(pixels, prefusion_patches=0.25).nbytes <= 0.27 * whole
    assert model.encode_visuals(pixels, prefusion_patches=0.5).nbytes <= 0.52 * whole
    assert model.encode_visuals(pixels, prefusion_mass=0.05).nbytes < 0.25 * whole


class CountOperations(torch.utils._python_dispatch.TorchDispatchMode):
    """What reaches torch's kernels."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_off_costs_nothing(model, monkeypatch):
    """Without a budget and with 1.0 the same operations in the same order and equal bits, none of them eager."""
    inputs = collate(make_rows(model.config))
    seen = {}
    monkeypatch.setattr(compressor_llava_mini, "eager_attention_forward", None)
    monkeypatch.setattr(front_llava_mini, "choose_patches", None)
    for name, options in {
        "default": {},
        "None": {"prefusion_patches": None},
        "1.0": {"prefusion_patches": 1.0},
    }.items():
        with torch.no_grad(), CountOperations() as counter:
            seen[name] = model(**inputs, **options).logits, counter.names
    logits, names = seen["default"]
    assert "aten._softmax.default" not in names
    # One order of the text that is kept, and once its embeddings; the patches are in order as they are.
    assert sum("sort" in name for name in names) == 1
    assert sum("gather" in name for name in names) == 1
    for own_logits, own_names in seen.values():
        assert torch.equal(own_logits, logits)
        assert own_names == names


@pytest.mark.parametrize("budget", BUDGETS[1::2], ids=str)
def test_gradients_are_those_of_the_reference(model, budget):
    """Of a loss over all logits of a batch in which units keep different numbers; all at once and in chunks."""
    rows = make_rows(model.config, ["one video", "two images", "text only"])
    model.zero_grad()
    sum(reference_logits(model, row, budget).square().mean() for row in rows).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for part in ("vision_tower", "compressor", "multi_modal_projector", "prefusion"):
        assert any(part in name and gradient.abs().max() > 0 for name, gradient in expected.items())
    for options in ({}, {"vision_memory_budget": 1}):
        model.zero_grad()
        logits = model(**collate(rows), **budget, **options).logits
        sum(own[-len(row.input_ids) :].square().mean() for own, row in zip(logits, rows)).backward()
        got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert got.keys() == {name for name, gradient in expected.items() if gradient.any()}
        for name, gradient in got.items():
            # Sums over all tokens in another order: relative to the tensor's largest.
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(gradient, expected[name], atol=1e-5 * max(scale, 1), rtol=1e-4, msg=name)
    model.zero_grad()


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5, float("nan"), True, "0.5", 0.01])
def test_budgets_that_are_none(wrong):
    model = tiny_model()
    inputs = collate([make_row(model.config, ROWS["one image"])])
    pixels = inputs["pixel_values"]
    for call in (
        lambda: model(**inputs, prefusion_patches=wrong),
        lambda: model.generate(**inputs, **GREEDY, prefusion_patches=wrong),
        lambda: model.encode_visuals(pixels, prefusion_patches=wrong),
        lambda: model.get_image_features(pixels, prefusion_patches=wrong),
        lambda: model.get_video_features(pixels[None], prefusion_patches=wrong),
    ):
        with pytest.raises(ValueError, match="`prefusion_patches` is .*(has to be a share|less than one of the 16)"):
            call()
    with pytest.raises((ValueError, StrictDataclassError), match="prefusion_patches"):
        tiny_config(prefusion_patches=wrong)


@pytest.mark.parametrize("wrong", [0, 1, 1.0, -1, float("nan"), False, "0.5"])
def test_masses_that_are_none(wrong):
    model = tiny_model()
    inputs = collate([make_row(model.config, ROWS["one image"])])
    for call in (model, lambda **given: model.generate(**given, **GREEDY)):
        with pytest.raises(ValueError, match="`prefusion_mass` is .*has to be a share of the compressor's attention"):
            call(**inputs, prefusion_mass=wrong)
    with pytest.raises((ValueError, StrictDataclassError), match="prefusion_mass"):
        tiny_config(prefusion_mass=wrong)


def test_budgets_that_contradict_each_other():
    model = tiny_model()
    text, pixels = split(collate([make_row(model.config, ROWS["one image"])]))
    both = {"prefusion_patches": 0.5, "prefusion_mass": 0.5}
    with pytest.raises(ValueError, match="only one of them"):
        model(**text, **pixels, **both)
    for call in (lambda: tiny_config(**both), lambda: LlavaMiniConfig.from_dict(both)):
        with pytest.raises((ValueError, StrictDataclassError), match="only one of them"):
            call()
    context = model.encode_visuals(**pixels, prefusion_patches=0.5)
    for other in ({"prefusion_patches": 0.25}, {"prefusion_patches": 1.0}, {"prefusion_mass": 0.5}):
        with pytest.raises(ValueError, match="holds what pre-fusion made of .*but the call asks for"):
            model.generate(**text, **GREEDY, vision_context=context, **other)
    same = model.generate(**text, **GREEDY, vision_context=context, prefusion_patches=0.5)
    assert torch.equal(same, model.generate(**text, **pixels, **GREEDY, prefusion_patches=0.5))
    features = model.encode_visuals(**pixels, prefusion_patches=0.5, keep="features")
    other = model.generate(**text, **GREEDY, vision_context=features, prefusion_patches=1.0)
    assert torch.equal(other, model.generate(**text, **pixels, **GREEDY))
    turns = model.encode_visuals(**pixels, keep="features", keep_text=True)
    with pytest.raises(ValueError, match="all patches, but the call asks for"):
        model.generate(input_ids=text["input_ids"], **GREEDY, vision_context=turns, prefusion_patches=0.5)
    output = {"image": model.get_image_features(**pixels)}
    with pytest.raises(ValueError, match="encoded already"):
        model(**text, mm_encoder_outputs=output, prefusion_patches=0.5)


def test_a_call_overrides_the_configuration():
    row_text = make_row(tiny_config(), ROWS["one image"])
    inputs = collate([row_text])
    exact, saving = tiny_model(), tiny_model(prefusion_patches=0.25)
    assert saving.config.to_dict()["prefusion_patches"] == 0.25
    with torch.no_grad():
        whole = exact(**inputs).logits
        assert torch.equal(saving(**inputs, prefusion_patches=1).logits, whole)
        assert torch.equal(saving(**inputs).logits, exact(**inputs, prefusion_patches=0.25).logits)
        assert torch.equal(saving(**inputs, prefusion_mass=0.4).logits, exact(**inputs, prefusion_mass=0.4).logits)
        assert not torch.allclose(saving(**inputs).logits, whole)
