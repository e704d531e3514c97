"""generate(): every decoding strategy and cache gives what a plain loop over the forward pass gives."""

import pytest
import torch
from tiny import IMAGE_ID, ROWS, VIDEO_ID, collate, make_row, make_rows, tiny_config, tiny_model
from transformers import DynamicCache, LlamaForCausalLM, StaticCache


NEW_TOKENS = 8
# Random weights would make placeholders as well, which the loop by hand could not pass again as text.
GREEDY = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "suppress_tokens": [IMAGE_ID, VIDEO_ID]}
MIXED = ["one image", "text only", "two images", "one video", "image and video"]


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=lambda p: f"C{p[0]}N{p[1]}")
def model(request):
    return tiny_model(compressor_size=request.param[0], resolution_ratio=request.param[1])


def new_tokens(model, rows, **kwargs):
    inputs = collate(rows if isinstance(rows, list) else [rows])
    return model.generate(**inputs, **(GREEDY | kwargs))[:, inputs["input_ids"].shape[1] :]


def greedy_by_hand(model, row):
    """The definition: fuse the prompt, then append raw embeddings one by one, without a cache."""
    inputs = collate([row])
    inputs.pop("attention_mask")
    ids, prompt_length = inputs.pop("input_ids"), len(row.input_ids)
    made = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[:, prompt_length:] = False
            logits = model(input_ids=ids, text_fusion_mask=mask, **inputs).logits[:, -1]
            logits[:, GREEDY["suppress_tokens"]] = -float("inf")
            made.append(logits.argmax(-1, keepdim=True))
            ids = torch.cat([ids, made[-1]], dim=1)
    return torch.cat(made, dim=1)


@pytest.mark.parametrize("name", ROWS)
def test_greedy_equals_a_plain_loop(model, name):
    row = make_row(model.config, ROWS[name], seed=5)
    assert torch.equal(new_tokens(model, row), greedy_by_hand(model, row))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        pytest.param(
            {"cache_implementation": "offloaded"},
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="the offloaded cache needs a CUDA stream"),
        ),
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda kwargs: str(list(kwargs.values())) or "default",
)
def test_batch_equals_singles(model, kwargs):
    # Prompt lookup is for one row at a time.
    batches = [[row] for row in make_rows(model.config, MIXED)]
    if "prompt_lookup_num_tokens" not in kwargs:
        batches = [make_rows(model.config, MIXED)]
    expected = torch.cat([greedy_by_hand(model, row) for row in make_rows(model.config, MIXED)])
    made = torch.cat([new_tokens(model, batch, disable_compile=True, **kwargs) for batch in batches])
    assert torch.equal(made, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams(model, use_cache):
    rows = make_rows(model.config, MIXED)
    kwargs = {"num_beams": 3, "num_return_sequences": 2, "use_cache": use_cache}
    batch = new_tokens(model, rows, **kwargs)
    singles = torch.cat([new_tokens(model, row, **kwargs) for row in rows])
    assert batch.shape == (2 * len(rows), NEW_TOKENS)
    assert torch.equal(batch, singles)
    # The first of the returned beams scores at least as well as greedy decoding, by the model's own numbers.
    greedy = new_tokens(model, rows)
    for i, row in enumerate(rows):
        scores = [score(model, row, made) for made in (batch[2 * i], greedy[i])]
        assert scores[0] >= scores[1] - 1e-4


def score(model, row, made):
    inputs = collate([row])
    length = len(row.input_ids)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], made[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    mask = torch.arange(inputs["input_ids"].shape[1])[None] < length
    with torch.no_grad():
        logits = model(**inputs, text_fusion_mask=mask).logits[0, length - 1 : -1]
        logits[:, GREEDY["suppress_tokens"]] = -float("inf")
        logits = logits.log_softmax(-1)
    return logits.gather(1, made[:, None]).sum().item()


def test_sampling_is_reproducible_and_follows_the_images(model):
    rows = make_rows(model.config, MIXED)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(new_tokens(model, rows, do_sample=True, temperature=1.5, num_return_sequences=2))
    assert torch.equal(*runs)
    assert runs[0].shape == (2 * len(rows), NEW_TOKENS) and len(runs[0].unique(dim=0)) > len(rows)
    # A single likely token (top_k=1) is greedy decoding.
    assert torch.equal(new_tokens(model, rows, do_sample=True, top_k=1), new_tokens(model, rows))


def test_the_answer_depends_on_every_image_and_frame(model):
    """What mixins don't see: "text never fused" or "only the first frame used" would pass them."""
    for name in ("two images", "one video"):
        row = make_row(model.config, ROWS[name], seed=1)
        logits = model(**collate([row])).logits[0, -1]
        units = row.images or list(row.videos[0])
        for i in range(len(units)):
            units[i].add_(3.0)
            changed = model(**collate([row])).logits[0, -1]
            assert (changed - logits).abs().max() > 1e-3, f"unit {i} of {name} has no effect"
            units[i].sub_(3.0)


def test_self_assisted_and_text_only_assistant():
    model, assistant = tiny_model(), tiny_model(seed=0)
    assistant.lm_head.weight.data.add_(0.02)  # agrees often, not always
    row = make_row(model.config, ROWS["one image"])
    expected = greedy_by_hand(model, row)
    assert torch.equal(new_tokens(model, row, assistant_model=assistant), expected)
    text_config = tiny_config().text_config
    torch.manual_seed(0)
    text_only = LlamaForCausalLM(text_config).eval()
    text_only.generation_config.eos_token_id = None
    assert torch.equal(new_tokens(model, row, assistant_model=text_only), expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_inputs_embeds(model, num_beams):
    """Text alone by embeddings; and with images, which are found by their placeholder's embedding."""
    for name in ("text only", "one image"):
        row = make_row(model.config, ROWS[name])
        inputs = collate([row])
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        made = model.generate(inputs_embeds=embeds, **inputs, **GREEDY, num_beams=num_beams)
        assert torch.equal(made, new_tokens(model, row, num_beams=num_beams))


def test_encoded_images_can_be_reused(model):
    rows = make_rows(model.config, ["one image", "image and video"])
    expected = new_tokens(model, rows)
    inputs = collate(rows)
    visuals = {
        "image": model.get_image_features(inputs.pop("pixel_values")),
        "video": model.get_video_features(inputs.pop("pixel_values_videos"), inputs.pop("video_num_frames")),
    }
    for _ in range(2):
        made = model.generate(**inputs, **GREEDY, mm_encoder_outputs=dict(visuals))
        assert torch.equal(made[:, inputs["input_ids"].shape[1] :], expected)


def grow(row, made, config, more):
    """The next turn: the prompt, the answer and a new question."""
    question = make_row(config, [more], seed=9).input_ids
    return type(row)(torch.cat([row.input_ids, made, question]), row.images, row.videos), question


def test_second_turn_afresh(model):
    row = make_row(model.config, ROWS["one image"])
    second, _ = grow(row, new_tokens(model, row)[0], model.config, 5)
    assert torch.equal(new_tokens(model, second), greedy_by_hand(model, second))


@pytest.mark.parametrize("whole", [True, False])
def test_continuing_from_a_cache_runs_only_what_is_new(model, whole):
    row = make_row(model.config, ROWS["one image"])
    inputs = collate([row])
    first = model.generate(**inputs, **GREEDY, cache=DynamicCache(), return_dict_in_generate=True)
    cache = first.cache
    second, question = grow(row, first.sequences[0, len(row.input_ids) :], model.config, 5)
    ids = second.input_ids[None]
    new_ids = ids if whole else ids[:, cache.get_seq_length() :]
    lengths = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    made = model.generate(input_ids=new_ids, attention_mask=torch.ones_like(ids), cache=cache, **GREEDY)
    hook.remove()
    # The last answer token was never run, so it comes with the question.
    assert lengths == [len(question) + 1] + [1] * (NEW_TOKENS - 1)
    # The same by hand: prompt fused, everything after it raw.
    mask = torch.arange(ids.shape[1])[None] < len(row.input_ids)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=torch.stack(row.images), text_fusion_mask=mask).logits[0, -1]
    logits[GREEDY["suppress_tokens"]] = -float("inf")
    assert made[0, new_ids.shape[1]] == logits.argmax()


@pytest.mark.parametrize("whole", [True, False])
def test_new_images_after_a_cache_are_refused(model, whole):
    row = make_row(model.config, ROWS["one image"])
    first = model.generate(**collate([row]), **GREEDY, cache=DynamicCache(), return_dict_in_generate=True)
    more = make_row(model.config, [30, "image", 3], seed=4).input_ids
    ids = torch.cat([first.sequences[0], more])[None]
    new_ids = ids if whole else ids[:, first.cache.get_seq_length() :]
    with pytest.raises(ValueError, match="New image placeholders after a cache"):
        model.generate(input_ids=new_ids, attention_mask=torch.ones_like(ids), cache=first.cache, **GREEDY)


def test_static_cache_given_by_the_caller(model):
    row = make_row(model.config, ROWS["two images"])
    cache = StaticCache(config=model.config.text_config, max_cache_len=len(row.input_ids) + NEW_TOKENS)
    assert torch.equal(new_tokens(model, row, cache=cache, disable_compile=True), greedy_by_hand(model, row))


def test_a_generated_placeholder_is_an_ordinary_token(model):
    """Sampling may produce <image>; it must neither crash nor be taken for an image."""
    row = make_row(model.config, ROWS["one image"])
    text = make_row(model.config, ROWS["text only"])
    force = {"suppress_tokens": [i for i in range(model.config.text_config.vocab_size) if i != IMAGE_ID]}
    for use_cache in (True, False):
        made = new_tokens(model, [row, text], use_cache=use_cache, **force)
        assert (made == IMAGE_ID).all()


@pytest.mark.parametrize("where", ["argument", "generation_config"])
def test_chunked_prefill_with_images_is_refused(model, where):
    inputs = collate([make_row(model.config, ROWS["one image"])])
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        if where == "argument":
            model.generate(**inputs, **GREEDY, prefill_chunk_size=4)
        else:
            config = model.generation_config.__class__(**GREEDY, prefill_chunk_size=4)
            model.generate(**inputs, generation_config=config)


def test_chunked_prefill_of_text_works(model):
    row = make_row(model.config, ROWS["text only"])
    assert torch.equal(new_tokens(model, row, prefill_chunk_size=3), greedy_by_hand(model, row))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "no `pixel_values` were passed"),
        ({"pixel_values": "twice"}, "features don't match"),
        ({"mm_encoder_outputs": {"image": object()}}, "pass only one"),
    ],
)
def test_bad_input_is_refused_before_the_first_token(model, change, message):
    inputs = collate([make_row(model.config, ROWS["one image"])])
    if change.get("pixel_values") == "twice":
        change = {"pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        model.generate(**(inputs | change), **GREEDY)
