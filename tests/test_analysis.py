"""analysis/: attention by kind against values by hand and a plain loop over tokens, left-out vision against a sequence
that doesn't hold its keys, and the model as before afterwards."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tiny import IMAGE_ID, IMAGE_SIZE, VOCAB_SIZE, collate, make_row, make_uneven, tiny_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava_mini.analysis import (
    AttentionByLayer,
    Question,
    Score,
    accuracy,
    analyse_row,
    attention,
    find_kinds,
    find_layers,
    layers,
    leave_out_vision,
    measure_accuracy,
    measure_attention,
    plot_accuracy,
    plot_attention,
    plot_entropy,
)
from llava_mini.analysis.attention import sum_by_kind
from llava_mini.analysis.questions import INSTRUCTION, RESPONSE, VISION


TINY = Path(__file__).parents[1] / "examples" / "tiny"
I, V, R = INSTRUCTION, VISION, RESPONSE  # noqa: E741
# Float32 through some layers, in another order of sums: the project's bar, see PARITY.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
NUM_PATCHES = 16
SEQUENCE = [2, "image", 5]  # two words, a picture, five words
NUM_RESPONSE = 2  # of them, the last


def llava(text_type: str = "llama", is_next: bool = False, seed: int = 0):
    """LLaVA of transformers, tiny, with uneven weights."""
    text = {
        "model_type": text_type,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 1,
        "eos_token_id": None,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 7,
    }
    values = {"text_config": text, "vision_config": vision, "image_token_index": IMAGE_ID, "vision_feature_layer": -1}
    if is_next:
        model = LlavaNextForConditionalGeneration(
            LlavaNextConfig(**values, image_grid_pinpoints=[[IMAGE_SIZE, 2 * IMAGE_SIZE]])
        )
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**values, image_seq_length=NUM_PATCHES))
    make_uneven(model, seed)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 1
    return model.eval()


def llava_inputs(num_tokens: int = NUM_PATCHES, num_text: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(6, VOCAB_SIZE, (2 + num_text,), generator=generator)
    ids = torch.cat([words[:2], torch.full((num_tokens,), IMAGE_ID), words[2:]])[None]
    pixels = torch.randn((1, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def kinds_of(inputs: dict) -> torch.Tensor:
    ids = inputs["input_ids"][0]
    return find_kinds(ids, [IMAGE_ID], len(ids) - NUM_RESPONSE)


# A plain reference: one token after the other, with the keys that it may read and no others.


def run_plainly(stack, rotary, hidden: torch.Tensor, is_vision: torch.Tensor, is_left_out: list[bool]):
    """
    Decoder layers over one row `(S, D)`; where left out, text tokens have no keys of vision tokens at all. Returns
    hidden states, and weights `(heads, S, S)` a layer.
    """
    seen = []
    cos, sin = rotary(hidden[None], torch.arange(len(hidden))[None])
    for layer, leaves_out in zip(stack, is_left_out):
        own, split = layer.self_attn, lambda x, own=layer.self_attn: x.unflatten(-1, (-1, own.head_dim)).transpose(0, 1)
        normed = layer.input_layernorm(hidden)
        query, key, value = (split(part(normed)) for part in (own.q_proj, own.k_proj, own.v_proj))
        query, key = (x[0] for x in apply_rotary_pos_emb(query[None], key[None], cos, sin))
        key, value = (x.repeat_interleave(len(query) // len(x), dim=0) for x in (key, value))
        weights, mixed = torch.zeros(len(query), len(hidden), len(hidden)), []
        for i in range(len(hidden)):
            kept = [j for j in range(i + 1) if not (leaves_out and is_vision[j] and not is_vision[i])]
            scores = torch.stack([(query[:, i] * key[:, j]).sum(-1) for j in kept], -1) * own.head_dim**-0.5
            weights[:, i, kept] = scores.softmax(-1)
            mixed.append((weights[:, i, kept, None] * value[:, kept]).sum(1).flatten())
        hidden = hidden + own.o_proj(torch.stack(mixed))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        seen.append(weights)
    return hidden, seen


def run_llava_plainly(model, inputs: dict, left_out=()):
    """Logits `(S, vocabulary)` and weights a layer of transformers' LLaVA."""
    is_vision = inputs["input_ids"][0] == IMAGE_ID
    embeds = model.get_input_embeddings()(inputs["input_ids"][0])
    features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    embeds[is_vision] = torch.cat(list(features))
    decoder = model.get_decoder()
    flags = [f"layer {i + 1}" in left_out for i in range(len(decoder.layers))]
    hidden, seen = run_plainly(decoder.layers, decoder.rotary_emb, embeds, is_vision, flags)
    return model.lm_head(decoder.norm(hidden)), dict(zip((f"layer {i + 1}" for i in range(len(flags))), seen))


def run_mini_plainly(model, inputs: dict, num_fused: int, left_out=()):
    """The same of LLaVA-Mini with one picture whose text takes part but for what follows the first `num_fused` tokens;
    also the sequence that pre-fusion reads."""
    core, ids = model.model, inputs["input_ids"][0]
    is_vision = ids == IMAGE_ID
    features = core.extract_features(inputs["pixel_values"])
    patches = features.flatten(0, 2)
    compressed = core.compressor(features.flatten(1, 2), False)[0][0]
    raw = model.get_input_embeddings()(ids)
    is_fused = ~is_vision & (torch.arange(len(ids)) < num_fused)
    vision = core.multi_modal_projector(torch.cat([patches, compressed]))
    joined = torch.cat([vision, raw[is_fused]])
    is_patch = torch.arange(len(joined)) < len(vision)
    flags = [f"pre-fusion {i + 1}" in left_out for i in range(len(core.prefusion.layers))]
    fused, seen = run_plainly(core.prefusion.layers, core.prefusion.rotary_emb, joined, is_patch, flags)
    raw[is_vision], raw[is_fused] = fused[len(patches) : len(vision)], fused[len(vision) :]
    weights = {f"pre-fusion {i + 1}": own for i, own in enumerate(seen)}
    decoder = model.get_decoder()
    flags = [f"layer {i + 1}" in left_out for i in range(len(decoder.layers))]
    hidden, seen = run_plainly(decoder.layers, decoder.rotary_emb, raw, is_vision, flags)
    weights |= {f"layer {i + 1}": own for i, own in enumerate(seen)}
    return model.lm_head(decoder.norm(hidden)), weights, is_patch.long() * V + (~is_patch).long() * I


def average_plainly(weights: torch.Tensor, kinds: list[int], queries: range) -> tuple[dict, dict]:
    """Attention and entropy `{(target, source): value}` of weights `(heads, S, S)`, pair by pair."""
    mean, attention_of, entropy_of = weights.mean(0).double(), {}, {}
    for target in (I, V, R):
        for source in (I, V, R):
            masses, entropies = [], []
            for i in queries:
                shares = [float(mean[i, j]) for j in range(len(kinds)) if kinds[j] == source]
                if kinds[i] == target and sum(shares) > 0:
                    masses.append(sum(shares))
                    entropies.append(-sum(p / sum(shares) * math.log(p / sum(shares)) for p in shares if p))
            if masses:
                attention_of[target, source] = sum(masses) / len(masses)
                entropy_of[target, source] = sum(entropies) / len(entropies)
    return attention_of, entropy_of


def check_layer(result: AttentionByLayer, name: str, weights: torch.Tensor, kinds, queries: range | None = None):
    expected = average_plainly(weights, list(kinds), queries or range(len(kinds)))
    found = (values[result.layers.index(name)] for values in (result.attention, result.entropy))
    for values, wanted in zip(found, expected):
        for target in (I, V, R):
            for source in (I, V, R):
                value = float(values[target, source])
                if (target, source) in wanted:
                    assert value == pytest.approx(wanted[target, source], abs=1e-5), (name, target, source)
                else:
                    assert math.isnan(value), (name, target, source)


# By hand


def test_values_by_hand():
    """Two heads over an instruction, two vision tokens and a response."""
    weights = torch.tensor(
        [
            [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.6, 0.1]],
            [[1, 0, 0, 0], [0.3, 0.7, 0, 0], [0.4, 0.1, 0.5, 0], [0.3, 0.2, 0.2, 0.3]],
        ]
    )
    kinds = torch.tensor([I, V, V, R])
    mass, entropy, attending = sum_by_kind(weights, kinds, kinds)
    # Rows of the heads' mean: (1), (.4, .6), (.3, .2, .5), (.2, .2, .4, .2).
    expected_mass = torch.tensor([[1, 0, 0], [0.7, 1.3, 0], [0.2, 0.6, 0.2]]).double()
    torch.testing.assert_close(mass, expected_mass, atol=1e-6, rtol=0)
    assert attending.tolist() == [[1, 0, 0], [2, 2, 0], [1, 1, 1]]
    # Vision to vision: 0 and the entropy of (2/7, 5/7); response to vision: of (1/3, 2/3), that is ln 3 - 2/3 ln 2.
    assert entropy[V, V] == pytest.approx(0.5982696, abs=1e-6)
    assert entropy[R, V] == pytest.approx(0.6365142, abs=1e-6)
    assert entropy[I].tolist() == [0, 0, 0] and entropy[R, R] == pytest.approx(0, abs=1e-6)


def test_tokens_that_see_none_do_not_count():
    """The first word can't see the picture behind it: the others' attention is not divided by three."""
    weights = torch.tensor([[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.6, 0.2, 0], [0.3, 0.4, 0.2, 0.1]]])
    kinds = torch.tensor([I, V, I, I])
    mass, _, attending = sum_by_kind(weights, kinds, kinds)
    assert float(mass[I, V] / attending[I, V]) == pytest.approx(0.5, abs=1e-6)
    assert float(mass[I, I] / attending[I, I]) == pytest.approx((1 + 0.4 + 0.6) / 3, abs=1e-6)


@pytest.mark.parametrize("make", ["llava", "mini"])
def test_even_attention(make):
    """Keys of zero: every token attends evenly to all before it and itself, so entropies are logarithms of counts."""
    model = llava() if make == "llava" else tiny_model()
    inputs = llava_inputs() if make == "llava" else collate([make_row(model.config, SEQUENCE)])
    for layer in find_layers(model):
        torch.nn.init.zeros_(layer.attention.k_proj.weight)
    kinds = kinds_of(inputs)
    result = analyse_row(model, inputs, kinds)
    vision, words = int((kinds == V).sum()), 7
    last = len(result.layers) - 1
    share = sum(vision / (3 + i + vision) for i in range(3)) / 3  # of the three instruction words behind the picture
    assert float(result.attention[last, I, V]) == pytest.approx(share, abs=1e-6)
    share = sum(vision / (i + vision) for i in (words - 1, words)) / 2
    assert float(result.attention[last, R, V]) == pytest.approx(share, abs=1e-6)
    assert float(result.entropy[last, R, V]) == pytest.approx(math.log(vision), abs=1e-6)
    assert float(result.entropy[last, R, R]) == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert result.num_sources[last].tolist() == [5, vision, 2]
    if make == "mini":
        assert result.layers == ("pre-fusion 1", "pre-fusion 2", "layer 1", "layer 2")
        seen = NUM_PATCHES + vision
        # Of five words that take part, "!" (id 0) of the fixture's ids left out where it stands.
        fused = 5 - int((inputs["input_ids"][0][kinds == I] == 0).sum())
        assert float(result.entropy[0, I, V]) == pytest.approx(math.log(seen), abs=1e-6)
        share = sum(seen / (seen + i) for i in range(1, fused + 1)) / fused
        assert float(result.attention[0, I, V]) == pytest.approx(share, abs=1e-6)
        assert result.num_sources[0].tolist() == [fused, seen, 0]


# Against the plain reference


@pytest.mark.parametrize("text_type", ["llama", "qwen2", "mistral"])
def test_attention_of_transformers_llava(text_type):
    model, inputs = llava(text_type), llava_inputs()
    kinds = kinds_of(inputs)
    with torch.no_grad():
        _, weights = run_llava_plainly(model, inputs)
        result = analyse_row(model, inputs, kinds)
    assert result.layers == ("layer 1", "layer 2", "layer 3")
    for name, own in weights.items():
        check_layer(result, name, own, kinds.tolist())


def test_attention_is_what_transformers_returns():
    """Of LLaVA-NeXT, whose picture is several crops and line ends: `output_attentions` of the eager model."""
    model = llava(is_next=True)
    sizes, pixels = torch.tensor([[IMAGE_SIZE, 2 * IMAGE_SIZE]]), torch.randn(1, 3, 3, IMAGE_SIZE, IMAGE_SIZE)
    inputs = llava_inputs(num_tokens=3 * NUM_PATCHES + 4) | {"pixel_values": pixels, "image_sizes": sizes}
    kinds = kinds_of(inputs)
    result = analyse_row(model, inputs, kinds)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions
    for name, own in zip(result.layers, weights):
        check_layer(result, name, own[0], kinds.tolist())


@pytest.mark.parametrize("size", [1, 2])
def test_attention_of_llava_mini(size):
    model = tiny_model(compressor_size=size, prefusion_ignored_token_ids=[])
    inputs = collate([make_row(model.config, SEQUENCE)])
    kinds = kinds_of(inputs)
    with torch.no_grad():
        _, weights, fused_kinds = run_mini_plainly(model, inputs, len(kinds) - NUM_RESPONSE)
        result = analyse_row(model, inputs, kinds)
    check_layer(result, "pre-fusion 1", weights["pre-fusion 1"], fused_kinds.tolist())
    # Of the last layer nobody computes the patches' queries.
    check_layer(result, "pre-fusion 2", weights["pre-fusion 2"], fused_kinds.tolist(), range(16, len(fused_kinds)))
    for name in ("layer 1", "layer 2"):
        check_layer(result, name, weights[name], kinds.tolist())


def test_several_pictures_count_together():
    """The mean over two pictures' pre-fusion, which are two sequences."""
    model = tiny_model(prefusion_ignored_token_ids=[])
    row = make_row(model.config, [2, "image", "image", 5])
    both = collate([row])
    kinds = kinds_of(both)
    result = analyse_row(model, both, kinds)
    apart = []
    for image in row.images:
        alone = make_row(model.config, [2, "image", 5])
        alone.input_ids, alone.images = torch.cat([row.input_ids[:3], row.input_ids[4:]]), [image]
        inputs = collate([alone])
        apart.append(analyse_row(model, inputs, kinds_of(inputs)))
    for field in ("attention", "entropy"):
        first, second = (getattr(one, field)[0, I] for one in apart)
        torch.testing.assert_close(getattr(result, field)[0, I, :2], (first + second)[:2] / 2, **TOLERANCE)
    assert result.num_sources[0].tolist() == [5, 17, 0]
    in_turn = analyse_row(model, both | {"vision_memory_budget": 1}, kinds)  # one picture at a time
    torch.testing.assert_close(in_turn.attention, result.attention, equal_nan=True, **TOLERANCE)
    half = analyse_row(model, both | {"prefusion_patches": 0.5}, kinds)
    assert half.num_sources[0].tolist() == [5, 9, 0]


LLAVA_LAYERS = [["layer 1"], ["layer 2", "layer 3"], ["layer 1", "layer 2", "layer 3"], []]


@pytest.mark.parametrize("left_out", LLAVA_LAYERS, ids=str)
@pytest.mark.parametrize("text_type", ["llama", "qwen2", "mistral"])
def test_left_out_vision_is_not_there(text_type, left_out):
    model, inputs = llava(text_type), llava_inputs()
    with torch.no_grad():
        expected, _ = run_llava_plainly(model, inputs, left_out)
        whole = model(**inputs).logits[0]
        with leave_out_vision(model, left_out, inputs["input_ids"] == IMAGE_ID):
            logits = model(**inputs).logits[0]
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    assert torch.allclose(logits, whole, **TOLERANCE) == (not left_out)


def test_left_out_everywhere_is_text_alone():
    """Then the text's logits are those of the text without its picture, at the places it had."""
    model, inputs = llava(), llava_inputs()
    is_text = inputs["input_ids"][0] != IMAGE_ID
    with torch.no_grad():
        with leave_out_vision(model, [layer.name for layer in find_layers(model)], ~is_text[None]):
            logits = model(**inputs).logits[0, is_text]
        alone = model(input_ids=inputs["input_ids"][:, is_text], position_ids=is_text.nonzero().T).logits[0]
    torch.testing.assert_close(logits, alone, **TOLERANCE)


MINI_LAYERS = [["pre-fusion 1"], ["pre-fusion 2", "layer 1"], ["layer 2"], ["pre-fusion 1", "pre-fusion 2"]]


@pytest.mark.parametrize("left_out", MINI_LAYERS, ids=str)
@pytest.mark.parametrize("size", [1, 2])
def test_left_out_vision_is_not_there_in_llava_mini(size, left_out):
    model = tiny_model(compressor_size=size, prefusion_ignored_token_ids=[])
    inputs = collate([make_row(model.config, SEQUENCE)])
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        expected, _, _ = run_mini_plainly(model, inputs, length, left_out)
        with leave_out_vision(model, left_out, inputs["input_ids"] == IMAGE_ID):
            logits = model(**inputs).logits[0]
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("make", ["llava", "mini"])
def test_generation_leaves_out_too(make):
    """Greedy ids of a padded batch with a cache are those of each row alone, run anew for every token."""
    if make == "llava":
        model, rows = llava(), [llava_inputs(num_text=n, seed=n) for n in (5, 8)]
        left_out = ["layer 1", "layer 2"]
    else:
        model = tiny_model(prefusion_ignored_token_ids=[])
        rows = [collate([make_row(model.config, [2, "image", n], seed=n)]) for n in (5, 8)]
        left_out = ["pre-fusion 1", "layer 2"]
    missing = rows[1]["input_ids"].shape[1] - rows[0]["input_ids"].shape[1]
    padded = {name: torch.nn.functional.pad(rows[0][name], (missing, 0)) for name in ("input_ids", "attention_mask")}
    batch = {name: torch.cat([padded.get(name, rows[0][name]), rows[1][name]]) for name in rows[0]}
    with torch.no_grad():
        with leave_out_vision(model, left_out, batch["input_ids"] == IMAGE_ID):
            made = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:]
        plain = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:]
        for row, ids in zip(rows, made):
            length = row["input_ids"].shape[1]
            for token in ids:
                if make == "llava":
                    logits = run_llava_plainly(model, row, left_out)[0]
                else:
                    logits = run_mini_plainly(model, row, length, left_out)[0]
                assert int(logits[-1].argmax()) == int(token)
                row["input_ids"] = torch.cat([row["input_ids"], token[None, None]], dim=1)
    assert not torch.equal(made, plain), "nothing was left out"


# The model afterwards, and what is refused


def implementations(model) -> list[str]:
    return [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("make", ["llava", "mini"])
def test_the_models_own_attention_comes_back(make, own):
    model = llava() if make == "llava" else tiny_model()
    inputs = llava_inputs() if make == "llava" else collate([make_row(model.config, SEQUENCE)])
    model.set_attn_implementation(own)
    before, is_vision = implementations(model), inputs["input_ids"] == IMAGE_ID
    assert set(before) == {own}
    with torch.no_grad():
        logits = model(**inputs).logits
        analyse_row(model, inputs, kinds_of(inputs))
        assert implementations(model) == before
        with pytest.raises(RuntimeError, match="on purpose"), leave_out_vision(model, ["layer 1"], is_vision):
            assert implementations(model) != before
            with pytest.raises(ValueError, match="watched already"):
                analyse_row(model, inputs, kinds_of(inputs))
            raise RuntimeError("on purpose")
        assert implementations(model) == before
        assert torch.equal(model(**inputs).logits, logits)
    assert not layers._watches


def test_kinds():
    ids = torch.tensor([4, 10, 2, 2, 11, 12, 13])
    assert find_kinds(ids, [2, 3], 5).tolist() == [I, I, V, V, I, R, R]
    assert find_kinds(ids, [2], 7).tolist() == [I, I, V, V, I, I, I]


@pytest.mark.parametrize(
    ("ids", "vision_ids", "length", "message"),
    [
        ([4, 2, 5], [9], 2, "0 stand in the prompt"),
        ([4, 2, 5, 2], [2], 3, "1 in the response"),
        ([4, 2, 5], [2], 4, "row has 3 tokens"),
        ([4, 2, 5], [2], 0, "row has 3 tokens"),
        ([[4, 2, 5]], [2], 2, "one row of ids"),
        ([4.0, 2.0], [2], 2, "one row of ids"),
    ],
)
def test_kinds_that_nobody_can_know(ids, vision_ids, length, message):
    with pytest.raises(ValueError, match=message):
        find_kinds(torch.tensor(ids), vision_ids, length)


def test_rows_that_are_refused():
    model, inputs = llava(), llava_inputs()
    kinds = kinds_of(inputs)
    with pytest.raises(ValueError, match="kinds belong to `input_ids`"):
        analyse_row(model, {"inputs_embeds": torch.zeros(1, 3, 32)}, kinds)
    with pytest.raises(ValueError, match="`kinds` have shape"):
        analyse_row(model, inputs, kinds[1:])
    with pytest.raises(ValueError, match="one row without padding"):
        analyse_row(model, {name: torch.cat([value, value]) for name, value in inputs.items()}, kinds)
    with pytest.raises(ValueError, match="one row without padding"):
        analyse_row(model, inputs | {"attention_mask": inputs["attention_mask"] * 0}, kinds)
    with pytest.raises(ValueError, match=r"call `model.eval\(\)`"):
        analyse_row(model.train(), inputs, kinds)
    with pytest.raises(ValueError, match=r"have to be \(heads"):
        sum_by_kind(torch.ones(1, 2, 3), torch.tensor([I, V]), torch.tensor([I, V]))


def test_layers_and_prompts_that_are_refused():
    model, inputs = llava("mistral"), llava_inputs()
    is_vision = inputs["input_ids"] == IMAGE_ID
    for names in (["layer 9"], "layer 1"):
        with pytest.raises(ValueError, match="have to be of"), leave_out_vision(model, names, is_vision):
            pass
    for wrong in (torch.cat([is_vision, is_vision]), torch.nn.functional.pad(is_vision, (0, 9))):
        with leave_out_vision(model, ["layer 1"], wrong), pytest.raises(ValueError, match="run these"):
            model(**inputs)
    for layer in find_layers(model):
        layer.attention.sliding_window = 8
    with leave_out_vision(model, ["layer 1"], is_vision), pytest.raises(ValueError, match="sliding window: 8"):
        model(**inputs)
    mini = tiny_model()
    with pytest.raises(ValueError, match="at most 2048"), leave_out_vision(mini, [], torch.zeros(1, 2049)):
        pass


# On chats


@pytest.fixture(scope="module", params=["checkpoint", "twin"])
def trained(request):
    folder = TINY / request.param
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def draw(colour: str) -> Image.Image:
    picture = Image.new("RGB", (84, 84), (248, 248, 248))
    ImageDraw.Draw(picture).ellipse((20, 24, 50, 54), fill=colour)
    return picture


COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40)}
QUESTIONS = [Question(draw(rgb), "What colour is the shape?", name) for name, rgb in COLOURS.items()]


def test_answers_given_and_made_are_the_same(trained):
    """Right answers: the same ids whether the template writes them or the model; and means over samples."""
    model, processor = trained
    given = measure_attention(model, processor, QUESTIONS)
    made = measure_attention(model, processor, [tuple(question[:2]) for question in QUESTIONS])
    assert given.num_samples == 4 and given.num_sources[-1, R] == 2  # the colour and the end of the text
    rows = [measure_attention(model, processor, [question]) for question in QUESTIONS]
    for field in ("attention", "entropy"):
        torch.testing.assert_close(getattr(made, field), getattr(given, field), equal_nan=True)
        mean = torch.stack([getattr(row, field) for row in rows]).mean(0)
        torch.testing.assert_close(getattr(given, field), mean, equal_nan=True)
    saved = given.to_dict()
    assert saved["layers"] == list(given.layers) and saved["attention"][0][V][R] is None
    assert saved["attention"][-1][R][V] == round(float(given.attention[-1, R, V]), 6)


def test_accuracy_without_vision(trained):
    """Without the pictures all questions are one, so one answer of four is right, at most."""
    model, processor = trained
    everywhere = [layer.name for layer in find_layers(model)]
    scores = measure_accuracy(model, processor, QUESTIONS, {"all": everywhere, "none": []}, batch_size=3)
    assert scores["nothing"] == scores["none"] == Score(4, 4)
    assert scores["all"].n == 4 and scores["all"].right <= 1
    lenient = measure_accuracy(model, processor, QUESTIONS, {}, is_right=lambda given, answer: False)
    assert lenient == {"nothing": Score(0, 4)} and lenient["nothing"].accuracy == 0


def test_questions_that_are_refused(trained):
    model, processor = trained
    with pytest.raises(ValueError, match="no questions"):
        measure_attention(model, processor, [])
    with pytest.raises(ValueError, match="Question 0 is str"):
        measure_attention(model, processor, ["What colour is the shape?"])
    with pytest.raises(ValueError, match="right answer of every question"):
        measure_accuracy(model, processor, [QUESTIONS[0][:2]], {})
    with pytest.raises(ValueError, match="'nothing' is the model as it is"):
        measure_accuracy(model, processor, QUESTIONS, {"nothing": []})
    with pytest.raises(ValueError, match="use the processor saved with the model"):
        measure_attention(llava(), processor, QUESTIONS)


# Figures


def test_figures_draw_the_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    model, inputs = tiny_model(), collate([make_row(tiny_model().config, SEQUENCE)])
    result = analyse_row(model, inputs, kinds_of(inputs))
    for plot, field in ((plot_attention, "attention"), (plot_entropy, "entropy")):
        chart = plot({"first": result, "second": result}, title="both")
        figure = chart.figure()
        assert [axis.get_title() for axis in figure.axes[3:]] == [
            f"second: {k} tokens attend" for k in ("instruction", "vision", "response")
        ]
        line = next(line for line in figure.axes[3].lines if line.get_label() == "to vision")
        assert line.get_ydata().tolist() == getattr(result, field)[:, I, V].tolist()
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["P1", "P2", "1", "2"]
        chart.save(tmp_path / "plot.png")
        assert chart._repr_png_()[:4] == (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
        assert repr(chart).startswith("Chart(") and "first, second" in repr(chart)
    scores = {"alone": [Score(1, 4), Score(3, 4)]}
    figure = plot_accuracy(scores, ["layer 1", "layer 2"], Score(4, 4), guessing=0.25).figure()
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.25, 0.75]
    assert {line.get_ydata()[0] for line in figure.axes[0].lines[1:]} == {1.0, 0.25}
    with pytest.raises(ValueError, match="2 labels"):
        plot_accuracy({"alone": [Score(1, 4)]}, ["layer 1", "layer 2"], Score(4, 4))
    with pytest.raises(ValueError, match="no results"):
        plot_attention({})


# Faults made on purpose; each has to be caught by the check beside it.


def heads_not_averaged(patch):
    plain = attention.sum_by_kind
    patch.setattr(attention, "sum_by_kind", lambda weights, *kinds: plain(weights[:1], *kinds))


def all_targets_counted(patch):
    def count_all(weights, targets, sources):
        sums = attention_sum(weights, targets, sources)
        sums[2] = attention.count_kinds(targets)[:, None]
        return sums

    attention_sum = attention.sum_by_kind
    patch.setattr(attention, "sum_by_kind", count_all)


def entropy_not_renormalised(patch):
    def not_renormalised(weights, targets, sources):
        sums = attention_sum(weights, targets, sources)
        sums[1] = sums[1] * sums[0]
        return sums

    attention_sum = attention.sum_by_kind
    patch.setattr(attention, "sum_by_kind", not_renormalised)


def vision_call_taken_for_text(patch):
    init = attention._Sums.__init__
    patch.setattr(attention._Sums, "__init__", lambda self, own, kinds, reads: init(self, own, kinds, lambda: True))


def nothing_hidden(patch):
    patch.setattr(accuracy, "_hide_vision", lambda layer, is_vision, mask: mask)


def hidden_from_vision_too(patch):
    def hide(layer, is_vision, mask):
        hidden = torch.nn.functional.pad(is_vision, (0, mask.shape[-1] - is_vision.shape[1]))
        return mask.masked_fill(hidden[:, None, None], torch.finfo(mask.dtype).min)

    patch.setattr(accuracy, "_hide_vision", hide)


def patches_not_hidden(patch):
    patch.setattr(accuracy, "_hide_patches", lambda reads_text, mask: mask)


def every_layer_hides(patch):
    plain = accuracy.find_layers
    patch.setattr(accuracy, "find_layers", lambda model: [_Every(layer) for layer in plain(model)])


class _Every:
    """A layer whose name is in every collection."""

    def __init__(self, layer):
        self.attention, self.is_prefusion, self.name = layer.attention, layer.is_prefusion, "layer 1"


FAULTS = [
    (heads_not_averaged, partial(test_attention_of_transformers_llava, "llama")),
    (all_targets_counted, partial(test_attention_of_transformers_llava, "llama")),
    (entropy_not_renormalised, partial(test_attention_of_transformers_llava, "llama")),
    (vision_call_taken_for_text, partial(test_attention_of_llava_mini, 1)),
    (nothing_hidden, partial(test_left_out_vision_is_not_there, "llama", ["layer 1"])),
    (hidden_from_vision_too, partial(test_left_out_vision_is_not_there, "llama", ["layer 1"])),
    (patches_not_hidden, partial(test_left_out_vision_is_not_there_in_llava_mini, 1, ["pre-fusion 1"])),
    (every_layer_hides, partial(test_left_out_vision_is_not_there, "llama", ["layer 1"])),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_faults_are_caught(fault, check, monkeypatch):
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()
