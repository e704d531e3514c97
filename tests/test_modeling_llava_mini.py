"""The model on its own: rows in batches, padding, outputs, gradients, saving, refusals."""

import copy
import itertools
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny import (
    IMAGE_ID,
    IMAGE_SIZE,
    PAD_ID,
    ROWS,
    VIDEO_ID,
    VOCAB_SIZE,
    collate,
    make_row,
    make_rows,
    make_uneven,
    tiny_config,
    tiny_model,
)
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniModel, front_llava_mini
from llava_mini.prefusion_llava_mini import LlavaMiniPreFusion


# Float32 sums in another order (batched matrix products, padded masks): 1e-5 is the project's bar, see PARITY.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def run(model, row_or_rows, side="left", **kwargs):
    rows = row_or_rows if isinstance(row_or_rows, list) else [row_or_rows]
    with torch.no_grad():
        return model(**collate(rows, side), **kwargs)


def real(logits, row, side):
    """The logits of a padded row's own tokens."""
    length = len(row.input_ids)
    return logits[-length:] if side == "left" else logits[:length]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_single_rows(model, side):
    rows = make_rows(model.config)
    batch = run(model, rows, side)
    for i, row in enumerate(rows):
        torch.testing.assert_close(real(batch.logits[i], row, side), run(model, row).logits[0], **TOLERANCE)


@pytest.mark.parametrize("text", [{"model_type": "mistral", "sliding_window": None}, {"model_type": "qwen2"}])
def test_other_text_models(text):
    model = tiny_model(text=text)
    rows = make_rows(model.config)
    batch = run(model, rows)
    for i, row in enumerate(rows):
        torch.testing.assert_close(real(batch.logits[i], row, "left"), run(model, row).logits[0], **TOLERANCE)


def reference_inputs_embeds(model, row):
    """
    PARITY.md read word for word for one row: one plain causal sequence [patches | compressed | kept text] a unit,
    run by the text model's own layers, then the average.
    """
    base, config = model.model, model.config
    count = config.num_image_tokens
    embeds = base.embed_prompt(row.input_ids)
    keep = ~torch.isin(row.input_ids, torch.tensor([IMAGE_ID, VIDEO_ID, *config.prefusion_ignored_token_ids]))
    tokens, texts = {"image": [], "video": []}, []
    units = [("image", image) for image in row.images] + [("video", frame) for v in row.videos for frame in v]
    for modality, crops in units:
        features = base.vision_tower(crops).last_hidden_state[:, 1:]
        grid, ratio = config.vision_grid_size, config.resolution_ratio
        if ratio == 1:
            raster, rest = features[0], []
        else:  # row by row, as one would read the picture
            places = itertools.product(range(ratio), range(grid), range(ratio))
            lines = [features[i * ratio + j, y * grid : (y + 1) * grid] for i, y, j in places]
            raster, rest = torch.cat(lines), [features[-1]]
        compressed = base.compressor(raster[None])[0][0]
        vision = base.multi_modal_projector(torch.cat([raster, *rest, compressed]))
        hidden = torch.cat([vision, embeds[keep]])[None]
        positions = torch.arange(hidden.shape[1])[None]
        cos_sin = base.prefusion.rotary_emb(hidden, positions)
        mask = torch.full((hidden.shape[1], hidden.shape[1]), float("-inf")).triu(1)[None, None]
        for layer in base.prefusion.layers:
            decoder = type(base.language_model.layers[0])(config.text_config, layer_idx=0)
            decoder.load_state_dict(layer.state_dict())
            hidden = decoder.eval()(hidden, attention_mask=mask, position_embeddings=cos_sin)
        tokens[modality].append(hidden[0, len(vision) - count : len(vision)])
        texts.append(hidden[0, len(vision) :])
    if texts:
        embeds[keep] = torch.stack(texts).mean(0)
    for modality, token_id in (("image", IMAGE_ID), ("video", VIDEO_ID)):
        if tokens[modality]:
            embeds[row.input_ids == token_id] = torch.cat(tokens[modality])
    return embeds


@pytest.mark.parametrize("name", ROWS)
def test_two_step_prefusion_equals_one_plain_sequence(model, name):
    row = make_row(model.config, ROWS[name], seed=3)
    with torch.no_grad():
        inputs = collate([row])
        visuals = model.model.open_visuals(
            inputs.get("pixel_values"), inputs.get("pixel_values_videos"), inputs.get("video_num_frames")
        )
        embeds = model.model.embed_prompt(inputs["input_ids"])
        fused = model.model.fuse_modalities(inputs["input_ids"], embeds, None, visuals)[0] if visuals else embeds
        torch.testing.assert_close(fused[0], reference_inputs_embeds(model, row), **TOLERANCE)


@pytest.mark.parametrize("keep", [False, True])
def test_text_is_read_in_pieces(model, keep, monkeypatch):
    """Any number of text tokens at a time gives the same, and masks are no larger than that number of rows."""
    batch = collate(make_rows(model.config))
    visuals = {name: batch[name] for name in ("pixel_values", "pixel_values_videos", "video_num_frames")}

    def fuse():
        embeds = model.model.embed_prompt(batch["input_ids"])
        opened = model.model.open_visuals(**visuals)
        with torch.no_grad():
            fused, encoded = model.model.fuse_modalities(
                batch["input_ids"], embeds, batch["attention_mask"], opened, keep_key_values=keep
            )
        return [fused] + [t for chunk in encoded.values() for t in chunk.tensors().values()]

    whole = fuse()
    create_mask, rows = LlavaMiniPreFusion.create_mask, []

    def watch(self, hidden_states, num_queries, num_keys):
        if num_keys != num_queries:
            rows.append(num_queries)
        return create_mask(self, hidden_states, num_queries, num_keys)

    monkeypatch.setattr(LlavaMiniPreFusion, "create_mask", watch)
    monkeypatch.setattr(front_llava_mini, "MAX_TEXT_QUERIES", 3)
    pieces = fuse()
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(other, one, **TOLERANCE)
    # Vision tokens are the last of the patches' own sequence.
    assert max(rows) <= max(3, model.config.num_image_tokens)
    assert 3 in rows


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_number_of_prefusion_layers(num_layers):
    model = tiny_model(num_prefusion_layers=num_layers)
    row = make_row(model.config, ROWS["one image"])
    visuals = model.model.open_visuals(collate([row])["pixel_values"])
    embeds = model.model.embed_prompt(row.input_ids[None])
    fused, _ = model.model.fuse_modalities(row.input_ids[None], embeds, None, visuals)
    torch.testing.assert_close(fused[0], reference_inputs_embeds(model, row), **TOLERANCE)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_number_of_projector_layers(num_layers):
    model = tiny_model(num_projector_layers=num_layers, vision={"hidden_size": 32})
    assert len(list(model.model.multi_modal_projector.parameters())) == 2 * num_layers
    row = make_row(model.config, ROWS["one image"])
    assert run(model, row).logits.isfinite().all()


def test_text_reads_patches_and_placeholders_do_not_leak(model):
    row = make_row(model.config, ROWS["one image"])
    before = run(model, row, output_hidden_states=True).hidden_states[0][0]
    row.images[0] = row.images[0] + 1
    after = run(model, row, output_hidden_states=True).hidden_states[0][0]
    changed = (before - after).abs().amax(-1) > 1e-4
    # Every vision token and every text token but the ignored id 0 depends on the picture, raw ones don't.
    assert torch.equal(changed, row.input_ids != 0)


def test_ignored_ids_can_be_empty():
    model = tiny_model(prefusion_ignored_token_ids=[])
    row = make_row(model.config, ROWS["one image"])
    plain = run(model, row, output_hidden_states=True).hidden_states[0][0]
    torch.testing.assert_close(plain, reference_inputs_embeds(model, row), **TOLERANCE)
    assert (row.input_ids == 0).any()


def test_videos_padded_in_front(model):
    """As transformers' pipelines make batches: zeros before the shorter video."""
    rows = make_rows(model.config, ["one video", "short video"])
    inputs = collate(rows)
    expected = run(model, rows).logits
    videos = torch.zeros_like(inputs["pixel_values_videos"])
    for i, row in enumerate(rows):
        videos[i, len(videos[i]) - len(row.videos[0]) :] = row.videos[0]
    with torch.no_grad():
        logits = model(**(inputs | {"pixel_values_videos": videos})).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_text_fusion_mask_leaves_tokens_raw(model):
    row = make_row(model.config, ROWS["two images"])
    mask = torch.ones(1, len(row.input_ids), dtype=torch.bool)
    mask[0, -2:] = False
    fused = run(model, row, text_fusion_mask=mask, output_hidden_states=True).hidden_states[0][0]
    raw = model.model.embed_prompt(row.input_ids)
    assert torch.equal(fused[-2:], raw[-2:])
    # What comes before can't see what comes after: leaving the end out changes nothing else.
    full = run(model, row, output_hidden_states=True).hidden_states[0][0]
    torch.testing.assert_close(fused[:-2], full[:-2], **TOLERANCE)


def test_outputs(model):
    rows = make_rows(model.config, ["one image", "image and video", "text only"])
    count, grid = model.config.num_image_tokens, model.config.vision_grid_size * model.config.resolution_ratio
    inputs = collate(rows)
    eager = tiny_model(
        attn_implementation="eager",
        compressor_size=model.config.compressor_size,
        resolution_ratio=model.config.resolution_ratio,
    )
    outputs = eager(
        **inputs, output_hidden_states=True, output_attentions=True, output_compressor_attentions=True, use_cache=True
    )
    length = inputs["input_ids"].shape[1]
    assert outputs.logits.shape == (3, length, VOCAB_SIZE)
    assert [h.shape for h in outputs.hidden_states] == [(3, length, 32)] * 3
    assert [a.shape for a in outputs.attentions] == [(3, 4, length, length)] * 2
    assert outputs.cache.get_seq_length() == length
    assert outputs.image_hidden_states.shape == (2 * count, 32)
    assert outputs.video_hidden_states.shape == (2 * count, 32)
    assert outputs.compressor_attentions.shape == (4, count, grid**2)
    torch.testing.assert_close(outputs.compressor_attentions.sum(-1), torch.ones(4, count))
    plain = model(**inputs)
    assert plain.compressor_attentions is None and plain.attentions is None and plain.hidden_states is None
    real_tokens = inputs["attention_mask"].bool()
    torch.testing.assert_close(plain.logits[real_tokens], outputs.logits[real_tokens], **TOLERANCE)
    as_tuple = model(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], plain.logits)


def test_logits_to_keep(model):
    rows = make_rows(model.config, ["one image", "text only"])
    full = run(model, rows).logits
    torch.testing.assert_close(run(model, rows, logits_to_keep=2).logits, full[:, -2:], **TOLERANCE)
    kept = torch.tensor([0, 3])
    torch.testing.assert_close(run(model, rows, logits_to_keep=kept).logits, full[:, kept], **TOLERANCE)


def test_features_alone_equal_pixels(model):
    rows = make_rows(model.config, ["image and video", "one image"])
    inputs = collate(rows)
    expected = model(**inputs).logits
    features = {
        "image": model.get_image_features(inputs.pop("pixel_values")),
        "video": model.get_video_features(inputs.pop("pixel_values_videos"), inputs.pop("video_num_frames")),
    }
    assert [len(tokens) for tokens in features["video"].pooler_output] == [2 * model.config.num_image_tokens]
    given = dict(features)
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs=features).logits, expected, **TOLERANCE)
    assert features == given  # the caller's dictionary is left alone


def test_inputs_embeds_equal_ids(model):
    rows = make_rows(model.config, ["one image", "two images"])
    inputs = collate(rows)
    expected = model(**inputs).logits
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)


def test_placeholders_outside_the_vocabulary():
    model = tiny_model()
    row = make_row(model.config, ROWS["image and video"])
    inputs = collate([row])
    expected = model(**inputs).logits
    model.config.image_token_id, model.config.video_token_id = VOCAB_SIZE, VOCAB_SIZE + 1
    inputs["input_ids"] = inputs["input_ids"].where(row.input_ids != IMAGE_ID, VOCAB_SIZE)
    inputs["input_ids"] = inputs["input_ids"].where(row.input_ids != VIDEO_ID, VOCAB_SIZE + 1)
    assert torch.equal(model(**inputs).logits, expected)


def test_attention_implementations_agree():
    model = tiny_model(compressor_size=2)
    rows = make_rows(model.config)
    inputs = collate(rows, "right")
    real_tokens = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**inputs).logits[real_tokens]
    modules = (model.model, model.model.vision_tower, model.model.prefusion, model.model.language_model)
    assert {module.config._attn_implementation for module in modules} == {"sdpa"}
    model.set_attn_implementation("eager")
    assert {module.config._attn_implementation for module in modules} == {"eager"}
    with torch.no_grad():
        actual = model(**inputs).logits[real_tokens]
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def make_labels(rows, side):
    labels = collate(rows, side)["input_ids"].clone()
    labels[:, : labels.shape[1] // 2 + 2] = -100
    for token_id in (PAD_ID, IMAGE_ID, VIDEO_ID):
        labels[labels == token_id] = -100
    return labels


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_ignores_answers_in_prefusion(model, side):
    rows = make_rows(model.config, ["one image", "two images", "text only", "one video"])
    labels = make_labels(rows, side)
    inputs = collate(rows, side)
    with_labels = model(**inputs, labels=labels, output_hidden_states=True)
    by_mask = model(**inputs, text_fusion_mask=labels == -100)
    torch.testing.assert_close(with_labels.logits, by_mask.logits)
    answers = (labels != -100) & (labels != PAD_ID)
    raw = model.model.embed_prompt(inputs["input_ids"])
    assert torch.equal(with_labels.hidden_states[0][answers], raw[answers])
    shifted = torch.nn.functional.cross_entropy(
        with_labels.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(with_labels.loss, shifted)


def gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_everything_trainable_gets_a_gradient():
    model = tiny_model(compressor_size=2, resolution_ratio=2)
    rows = make_rows(model.config, ["one image", "one video"])
    _, grads = gradients(model, collate(rows) | {"labels": make_labels(rows, "left")})
    missing = {name for name, _ in model.named_parameters()} - set(grads)
    # CLIP's pooled output is not used; the position table is a buffer.
    assert missing == {
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
    }
    assert all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_equals_plain(use_reentrant):
    model = tiny_model(compressor_size=2).train()
    rows = make_rows(model.config)
    inputs = collate(rows) | {"labels": make_labels(rows, "left")}
    loss, plain = gradients(model, inputs)
    calls = []
    # Renamed in transformers 5.23.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    layers = [*model.model.prefusion.layers, *model.model.language_model.layers]
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed_loss, checkpointed = gradients(model, inputs)
    torch.testing.assert_close(checkpointed_loss, loss)
    # The tower's inputs need no gradient, so the reentrant kind, which hangs on inputs, leaves the tower without.
    expected = {name: g for name, g in plain.items() if not use_reentrant or "vision_tower" not in name}
    assert {name for name in checkpointed if not use_reentrant or "vision_tower" not in name} == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(checkpointed[name], grad, atol=1e-6, rtol=1e-4)
    # Every layer ran again in the backward pass: pre-fusion layers twice a modality (vision, text), the LLM's once.
    assert len(calls) == 2 * (2 * 2 * 2 + 2)


def test_frozen_embeddings_give_the_authors_recipe():
    model = tiny_model()
    model.get_input_embeddings().requires_grad_(False)
    rows = make_rows(model.config, ["one image"])
    _, grads = gradients(model, collate(rows) | {"labels": make_labels(rows, "left")})
    assert "model.language_model.embed_tokens.weight" not in grads and "lm_head.weight" in grads


def numbers(config):
    """A configuration without what saving adds: where it came from, the weights' type."""
    values = config.to_dict()
    for part in (values, values["text_config"], values["vision_config"]):
        for name in ("_name_or_path", "dtype", "architectures", "transformers_version"):
            part.pop(name, None)
    return values


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_save_and_load_is_bit_exact(model, tmp_path, max_shard_size):
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(loaded, LlavaMiniForConditionalGeneration)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for (name, expected), (other, actual) in zip(model.state_dict().items(), loaded.state_dict().items()):
            assert name == other and torch.equal(actual, expected)
    assert numbers(AutoConfig.from_pretrained(tmp_path)) == numbers(model.config)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, LlavaMiniModel)
    assert torch.equal(base.compressor.query, model.model.compressor.query)
    rows = make_rows(model.config, ["one image", "one video"])
    # The same weights at another address may take another kernel: equal to rounding, not to the bit.
    torch.testing.assert_close(run(loaded.eval(), rows).logits, run(model, rows).logits, **TOLERANCE)


def test_tied_embeddings_survive(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, dtype):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {tensor.dtype for tensor in half.state_dict().values()} == {dtype}
    rows = make_rows(model.config, ["one image", "one video", "text only"])
    logits = run(half, rows).logits
    assert logits.dtype == dtype
    # Some ten roundings in a row, relative to the largest logit.
    expected = run(model, rows).logits
    assert (logits.float() - expected).abs().max() < 10 * torch.finfo(dtype).eps * expected.abs().max()


def test_unneeded_tower_layers_do_not_exist(tmp_path):
    """Layers past the selected one: not built, ignored in checkpoints that have them, and without effect."""
    model = tiny_model()  # hidden state -2 of 3 layers
    assert len(model.model.vision_tower.encoder.layers) == 2
    assert model.config.vision_config.num_hidden_layers == 3
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = "model.vision_tower.encoder.layers."
    tensors |= {k.replace(f"{layer}1.", f"{layer}2."): v + 1 for k, v in tensors.items() if f"{layer}1." in k}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    row = make_row(model.config, ROWS["one image"])
    torch.testing.assert_close(run(loaded.eval(), row).logits, run(model, row).logits, **TOLERANCE)


@pytest.mark.parametrize("layer", [-1, 0, 2])
def test_selected_tower_layer(layer):
    config = tiny_config(vision_feature_layer=layer)
    model = LlavaMiniForConditionalGeneration(config).eval()
    make_uneven(model)
    full = AutoModel.from_config(config.vision_config).eval()
    make_uneven(full, seed=1)
    missing, _ = model.model.vision_tower.load_state_dict(full.state_dict(), strict=False)  # layers that are left out
    assert not missing
    pixels = torch.randn(2, 1, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = full(pixels[:, 0], output_hidden_states=True).hidden_states[layer][:, 1:]
    torch.testing.assert_close(model.get_image_features(pixels).last_hidden_state, expected)


def test_new_models_are_initialised():
    torch.manual_seed(0)
    model = LlavaMiniForConditionalGeneration(tiny_config(compressor_size=2))
    table = model.model.compressor.pos_embed
    # Column in the first half, row in the second; position 0 is sin 0 = 0, cos 0 = 1.
    torch.testing.assert_close(table[0], torch.tensor([0.0] * 4 + [1.0] * 4).repeat(2))
    torch.testing.assert_close(table[1, 8:], table[0, 8:])
    torch.testing.assert_close(table[2, :8], table[0, :8])
    assert 0.01 < model.model.compressor.query.std() < 0.03
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_layers_are_never_split():
    model = tiny_model()
    assert {"LlavaMiniCompressor", "LlavaMiniPreFusionLayer", "LlamaDecoderLayer", "CLIPEncoderLayer"} <= set(
        model._no_split_modules
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compressor_size": 0}, "`compressor_size` is 0"),
        ({"resolution_ratio": 0}, "`resolution_ratio` is 0"),
        ({"num_prefusion_layers": -1}, "`num_prefusion_layers` is -1"),
        ({"compressor_num_attention_heads": 5}, "divisible by `compressor_num_attention_heads`"),
        ({"vision_feature_layer": -5}, "the tower has 3 layers"),
        ({"vision_feature_layer": 4}, "the tower has 3 layers"),
        ({"vision_feature_select_strategy": "full"}, "grid is not square"),
        ({"num_projector_layers": 0}, "needs equal widths"),
        ({"image_token_id": VIDEO_ID}, "are both 3"),
        ({"text": {"model_type": "gpt2"}}, "type 'gpt2'"),
        ({"text": {"model_type": "mistral", "sliding_window": 8}}, "sliding-window"),
        ({"vision": {"model_type": "siglip_vision_model"}}, "type 'siglip_vision_model'"),
    ],
)
def test_impossible_configurations(change, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**change)


def test_configuration_round_trip(tmp_path):
    config = tiny_config(compressor_size=3, resolution_ratio=2, vision_feature_layer=-1)
    assert (config.num_image_tokens, config.num_crops, config.vision_grid_size, config.num_vision_layers) == (
        9,
        5,
        4,
        3,
    )
    config.save_pretrained(tmp_path)
    assert numbers(AutoConfig.from_pretrained(tmp_path)) == numbers(config)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "llava_mini" and not any(key.startswith("mm_") for key in saved)


def bad_inputs(config):
    inputs = collate([make_row(config, ROWS["two images"])])
    video = collate([make_row(config, ROWS["one video"])])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    count = config.num_image_tokens
    crops = config.num_crops
    yield "fewer images", {**inputs, "pixel_values": pixels[:1]}, rf"{2 * count} in all.*1 image\(s\).*\({count} in"
    yield "more images", {**inputs, "pixel_values": pixels.repeat(2, 1, 1, 1, 1)}, rf"{2 * count} in all.*4 image\(s\)"
    yield "no pixels", {"input_ids": ids}, rf"{2 * count} image placeholder token\(s\), but no `pixel_values`"
    yield "no placeholders", {"input_ids": ids[:, :2], "pixel_values": pixels}, r"\(0 in all\)"
    yield "no video", {"input_ids": video["input_ids"]}, "no `pixel_values_videos`"
    yield "image for a video", {"pixel_values": pixels, "input_ids": video["input_ids"]}, "no `pixel_values_videos`"
    yield "crops", {**inputs, "pixel_values": pixels[:, :1].repeat(1, crops + 1, 1, 1, 1)}, "`resolution_ratio`"
    yield "no crop axis", {**inputs, "pixel_values": pixels[:, 0]}, r"\(images, crops, channels, height, width\)"
    yield "channels", {**inputs, "pixel_values": pixels[:, :, :1]}, "channels"
    yield "size", {**inputs, "pixel_values": pixels[..., :-1]}, "ending in"
    yield "video axes", {**video, "pixel_values_videos": video["pixel_values_videos"][0]}, "videos, frames, crops"
    for counts in ([4], [0], [1, 1]):
        yield f"frames {counts}", {**video, "video_num_frames": torch.tensor(counts)}, "`video_num_frames` is"
    yield "frame count", {**video, "video_num_frames": torch.tensor([2])}, rf"need \[{2 * count}\]"
    yield "labels", {**inputs, "labels": ids[:, 1:]}, "`labels` has shape"
    yield "mask", {**inputs, "text_fusion_mask": ids[:, 1:]}, "`text_fusion_mask` has shape"
    yield "4-D mask", {**inputs, "attention_mask": torch.ones(1, 1, 3, 3)}, "`attention_mask` has shape"
    yield "twice", {**inputs, "mm_encoder_outputs": {"image": object()}}, "pass only one"
    yield "neither", {}, "exactly one of input_ids or inputs_embeds"


@pytest.mark.parametrize("index", range(20))
def test_bad_inputs_are_refused(model, index):
    cases = list(bad_inputs(model.config))
    assert len(cases) == 20
    _, inputs, message = cases[index]
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_missing_and_mismatched_keys_are_reported(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    broken = copy.deepcopy(tensors)
    broken["model.compressor.query"] = torch.zeros(4, 16)
    save_file(broken, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    del tensors["model.prefusion.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert list(info["missing_keys"]) == ["model.prefusion.layers.0.mlp.up_proj.weight"]
