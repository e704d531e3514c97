"""examples/tiny with pictures of things: drawing, questions, growth and measuring, on cut-outs made here."""

import argparse
import copy
import gzip
import json
import os
import pickle
import random
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import answers_page
import evaluate_things
import look_up
import picture_names
import picture_questions
import picture_scenes
import questions
import teach_tower
import wordings
from build import build_model, build_processor
from colours import name_colour
from grow import build_larger_tokenizer, grow_tower, grow_vocabulary, set_tower
from packing import IGNORED, Mix, PackedBatches
from picture_scenes import Library, Look, PictureScene, Thing, draw_picture
from pictures import GARMENTS, GARMENTS_PACKAGE, SIDE, SOURCES, TRAINING_STYLES, UNSEEN_STYLES
from PIL import Image
from pretrain_tower import PATCH_CENTRES, to_pixels
from train_tiny import TinyTrainer, split_recipe, take_batch
from transformers import AutoModelForImageTextToText
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


TINY = Path(__file__).parents[1] / "examples" / "tiny"
CHECKPOINT = TINY / "checkpoint"
COLOURS = {
    "dog": (130, 80, 30),
    "cat": (240, 140, 30),
    "apple": (220, 30, 30),
    "car": (30, 60, 220),
    "jeans": (30, 60, 220),
}
SLUGS = {"apple": "red-apple", "car": "automobile"}
CATEGORIES = {"dog": "animal", "cat": "animal", "apple": "fruit", "car": "vehicle", "jeans": "garment"}
MIX = Mix(
    {"things 1": 1, "things 2": 1, "things 3": 1, "garment": 0.3, "2": 1},
    {"absent shape": 1},
    pictures=6,
    questions=3,
    clips=3,
    clip_questions=2,
    blind=0.0,
    blind_video=0.0,
    thing_clips=0.5,
    varied=True,
)
SHAPES = Mix({"1": 1, "2": 1, "number": 1, "digit": 1}, pictures=4, questions=3, clips=2, clip_questions=2, video=0.5)


def make_cutout(colour: tuple[int, int, int], corner: int) -> np.ndarray:
    """A square of one colour with a black corner, so that it has an orientation."""
    cutout = np.zeros((SIDE, SIDE, 4), np.uint8)
    cutout[4:-4, 4:-4] = (*colour, 255)
    cutout[4 : 4 + corner, 4 : 4 + corner, :3] = 0
    return cutout


def make_garments(number: int = 20) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (number, 28, 28), np.uint8), np.arange(number) % len(GARMENTS)


@pytest.fixture(scope="module")
def library() -> Library:
    styles = {
        style: {name: make_cutout(colour, 8 + 6 * i) for name, colour in COLOURS.items()}
        for i, style in enumerate(("noto", "twemoji"))
    }
    names = {name: {"category": category, "slugs": [name]} for name, category in CATEGORIES.items()}
    return Library(styles, names, dict.fromkeys(("train", "test"), make_garments()))


@pytest.fixture(scope="module")
def processor() -> LlavaMiniProcessor:
    return build_processor(tokenizer=build_larger_tokenizer())


@pytest.fixture(scope="module")
def of_shapes() -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    """As the phases of drawn pictures leave a model, but with random weights."""
    torch.manual_seed(0)
    processor = build_processor()
    return build_model(processor, tower=None).eval(), processor


@pytest.fixture(scope="module")
def grown(of_shapes, processor) -> LlavaMiniForConditionalGeneration:
    """These weights in the larger vocabulary."""
    torch.manual_seed(0)
    return grow_vocabulary(*of_shapes, processor)


def two_things() -> PictureScene:
    """A brown dog on the left, a red apple on the right."""
    dog = Thing("dog", "noto", "dog", x=20.0, y=40.0, size=30.0)
    apple = Thing("apple", "twemoji", "apple", x=62.0, y=44.0, size=30.0)
    return PictureScene(things=[dog, apple])


def test_pictures_are_deterministic(library):
    for sample in (
        lambda rng: picture_scenes.sample_things(rng, library, 2),
        lambda rng: picture_scenes.sample_garment(rng, library),
    ):
        first, again, other = (np.asarray(draw_picture(sample(random.Random(seed)), library)) for seed in (1, 1, 2))
        assert first.shape == (84, 84, 3)
        assert (first == again).all() and (first != other).any()
    clips = [picture_scenes.sample_picture_clip(random.Random(seed), library) for seed in (3, 3)]
    assert clips[0] == clips[1]


def test_a_thing_is_drawn_where_it_is_said_to_be(library):
    picture = np.asarray(draw_picture(two_things(), library)).astype(int)
    assert abs(picture[42, 22] - COLOURS["dog"]).max() < 3 and abs(picture[46, 64] - COLOURS["apple"]).max() < 3
    covered = (picture < 200).any(-1)
    assert not covered[:, 38:45].any()
    # 88 of the 96 pixels are covered: 27.5 of 30 in the picture.
    assert abs(covered[42, :42].sum() - 27.5) < 2
    # The black corner is at the upper left, mirrored at the upper right.
    thing = replace(two_things().things[0], is_mirrored=True)
    mirrored = np.asarray(draw_picture(PictureScene(things=[thing]), library)).astype(int)
    assert picture[28, 8].max() < 60 and mirrored[28, 31].max() < 60 < mirrored[28, 8].max()


@pytest.mark.parametrize(("is_tall", "size"), [(False, (126, 84)), (True, (84, 126))])
def test_a_longer_picture_has_the_drawn_one_in_its_middle(library, is_tall, size):
    picture = draw_picture(two_things(), library)
    longer = evaluate_things.extend(picture, 1.5, is_tall)
    assert longer.size == size
    left, top = (size[0] - 84) // 2, (size[1] - 84) // 2
    assert (np.asarray(longer.crop((left, top, left + 84, top + 84))) == np.asarray(picture)).all()
    rows = np.asarray(longer) if is_tall else np.asarray(longer).swapaxes(0, 1)
    assert (rows[:21] == rows[21]).all() and (rows[-21:] == rows[-22]).all()


def test_longer_pictures_are_squeezed(library, processor):
    """Every pixel is seen, and no bars; a square picture is what it was."""
    picture = draw_picture(two_things(), library)
    seen = processor.image_processor(picture, return_tensors="pt")["pixel_values"].view(3, 84, 84)
    torch.testing.assert_close(seen, to_pixels(np.array(picture)))
    halves = Image.fromarray(np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), 200, axis=1))
    seen = processor.image_processor(halves.resize((200, 100)), return_tensors="pt")["pixel_values"].view(3, 84, 84)
    expected = to_pixels(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))[:, 0].T
    torch.testing.assert_close(seen[:, 2], expected[:1].T.expand(3, 84), atol=0.05, rtol=0)
    torch.testing.assert_close(seen[:, -3], expected[1:].T.expand(3, 84), atol=0.05, rtol=0)


def test_looks_change_hue_and_saturation(library):
    thing = two_things().things[1]
    assert picture_scenes.colour_of(thing, library) == "red"
    assert picture_scenes.colour_of(replace(thing, look=Look(hue=1 / 3)), library) == "green"
    assert picture_scenes.colour_of(replace(thing, look=Look(hue=2 / 3)), library) == "blue"
    assert picture_scenes.colour_of(replace(thing, look=Look(saturation=0.0)), library) == "gray"


def test_colours_have_names():
    named = {"brown": (120, 70, 20), "pink": (250, 110, 170), "white": (250, 250, 250), "black": (20, 20, 20)}
    for word, colour in named.items():
        assert name_colour(make_cutout(colour, 4)) == word
    half = make_cutout((220, 30, 30), 4)
    half[:, : SIDE // 2, :3] = (30, 60, 220)
    assert name_colour(half) is None
    assert name_colour(np.zeros((SIDE, SIDE, 4), np.uint8)) is None


def test_questions_about_two_things(library):
    """Every question that is asked about the hand-made scene has its right answer."""
    right = {
        ("thing caption", "Describe the picture."): "a dog and an apple",
        ("is there", "Is there a dog?"): "yes",
        ("is there", "Do you see a cat?"): "no",
        ("is there", "Are there jeans?"): "no",
        ("is there", "Is there a fruit?"): "yes",
        ("is there", "Is there a vehicle?"): "no",
        ("thing on a side", "What is on the left?"): "dog",
        ("thing on a side", "Name the thing on the right."): "apple",
        ("thing colour", "What colour is the dog?"): "brown",
        ("thing colour", "Which colour does the apple have?"): "red",
        ("thing position", "Is the dog on the left or on the right?"): "left",
        ("thing position", "On which side is the apple?"): "right",
        ("absent thing", "What colour is the car?"): "there is no car",
        ("absent thing", "What colour are the jeans?"): "there are no jeans",
        ("how many", "How many animals are there?"): "1",
        ("how many", "Count the vehicles."): "0",
        ("what is not", "What is not an animal?"): "apple",
        ("what is not", "Name what is not a fruit."): "dog",
    }
    asked = {}
    for seed in range(300):
        for question in picture_questions.about_picture(two_things(), library, random.Random(seed)):
            asked.setdefault((question.type, question.text), set()).add(question.answer)
    assert all(len(answers) == 1 for answers in asked.values())
    assert {key: asked.get(key) for key in right} == {key: {answer} for key, answer in right.items()}
    # Fruit is food: nobody is asked what is not food here, nor how many foods there are.
    assert not any("food" in text for _, text in asked)


def test_a_bent_thing_is_all_there():
    """Points on the border are only read from farther outside; the one in the middle takes what is around it along."""
    cutout = Image.fromarray(make_cutout((200, 0, 0), 8)).convert("RGBa")
    straight, wild = (0.0,) * 18, tuple(random.Random(0).gauss(0, 0.1) for _ in range(18))
    assert abs(np.asarray(picture_scenes.bend(cutout, straight)).astype(int) - np.asarray(cutout)).max() <= 1
    bent = np.asarray(picture_scenes.bend(cutout, wild))
    border = np.concatenate([bent[0], bent[-1], bent[:, 0], bent[:, -1]])
    assert not border[:, 3].any() and 0.5 < bent[..., 3].mean() / np.asarray(cutout)[..., 3].mean() < 1.0
    to_the_right = tuple(0.25 if i == 8 else 0.0 for i in range(18))  # x of the fifth point
    dot = np.zeros((SIDE, SIDE, 4), np.uint8)
    dot[44:52, 68:76] = 255
    moved = np.asarray(picture_scenes.bend(Image.fromarray(dot).convert("RGBa"), to_the_right))[..., 3]
    assert dot[48, 72, 3] == moved[48, 48] == 255 and dot[48, 48, 3] == moved[48, 72] == 0


def test_questions_about_a_clip(library):
    clip = picture_scenes.PictureClip(
        PictureScene(things=two_things().things[:1]), "become", 3, later=two_things().things[1]
    )
    answers = {q.text.split()[-1]: q.answer for q in picture_questions.about_picture_clip(clip, random.Random(0))}
    assert answers == {"first?": "dog", "last?": "apple"}
    first, *_, last = clip.sampled_frames()
    assert (first.things[0].name, last.things[0].name) == ("dog", "apple")
    clip = replace(clip, event="shrink")
    assert clip.at(0).things[0].size > clip.at(1).things[0].size
    assert {q.answer for q in picture_questions.about_picture_clip(clip, random.Random(0))} == {"dog", "shrink"}
    clip = replace(clip, event="move", direction="up", distance=20.0, start=(40.0, 60.0))
    assert (clip.at(1).things[0].x, clip.at(1).things[0].y) == (40.0, 40.0)


def test_questions_are_the_same_in_every_process(library):
    """Strings have other hashes in each, and sets another order."""
    code = (
        "import pickle, random, sys, picture_questions, picture_scenes; library = pickle.load(sys.stdin.buffer)\n"
        "for seed in range(40):\n"
        "    rng = random.Random(seed)\n"
        "    scene = picture_scenes.sample_things(rng, library, 3)\n"
        "    print(picture_questions.about_picture(scene, library, rng))\n"
    )
    printed = set()
    for seed in "123":
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=TINY, input=pickle.dumps(library), capture_output=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(TINY)},
        )  # fmt: skip
        printed.add(run.stdout)
    assert len(printed) == 1 and len(printed.pop()) > 1000


@pytest.mark.parametrize("kind", list(picture_questions.CHANCE))
def test_every_type_of_thing_has_questions(kind, library):
    answers = set()
    for i in range(40):
        _, question = evaluate_things.sample_about_things(kind, library, random.Random(f"{kind} {i}"))
        assert question.type == kind
        answers.add(question.answer)
    assert len(answers) > 1


def test_yes_and_no_are_equally_frequent(library):
    given = [evaluate_things.sample_about_things("is there", library, random.Random(i))[1].answer for i in range(600)]
    assert abs(given.count("yes") - 300) < 75  # three standard deviations


def test_names_are_what_the_rule_chose():
    chosen, entries = picture_names.load_names(), picture_names.candidates()
    assert len(chosen) == picture_questions.NUM_NAMES
    assert all(entries[name]["slugs"] == entry["slugs"] for name, entry in chosen.items())
    assert all(entry["agreement"] >= picture_names.AGREEMENT for entry in chosen.values())
    assert {entry["category"] for entry in chosen.values()} <= {"", *picture_questions.PLURALS}
    assert not set(TRAINING_STYLES) & set(UNSEEN_STYLES)
    artists = [{SOURCES[style].artist for style in styles} for styles in (TRAINING_STYLES, UNSEEN_STYLES)]
    assert not artists[0] & artists[1]


def test_agreement_is_between_artists(monkeypatch):
    """Things that look alike by two artists agree, also turned; what one draws as the other's other thing does not."""
    shapes = {}
    for i, name in enumerate("abcdef"):
        shapes[name] = np.zeros((SIDE, SIDE, 4), np.uint8)
        shapes[name][10 * i : 10 * i + 30, 5 : 20 + 12 * i] = (40 * i, 200 - 30 * i, 30, 255)
    theirs = dict(shapes) | {"e": shapes["f"], "f": shapes["e"], "b": np.rot90(shapes["b"]).copy()}
    monkeypatch.setattr(picture_names, "NEAREST", 1)
    monkeypatch.setattr(
        picture_names, "candidates", lambda: {name: {"category": "", "slugs": [name]} for name in shapes}
    )
    agreement = picture_names.measure_agreement({"noto": shapes, "twemoji": theirs})
    assert {name: share for name, (share, _) in agreement.items()} == dict.fromkeys("abcd", 1.0) | dict.fromkeys(
        "ef", 0.0
    )
    # Two styles by one artist say nothing about another.
    assert set(picture_names.measure_agreement({"noto": shapes, "noto-v1": shapes}).values()) == {(0.0, 1)}


def test_wordings():
    assert wordings.reword("Which colour does the red star have?") == "Tell me the colour of the red star."
    assert (
        wordings.reword("Is the blue circle at the top or at the bottom?") == "Where is the blue circle, top or bottom?"
    )
    assert wordings.reword("Is the star left of the circle?") == "Is the star left of the circle?"
    assert wordings.to_american("What colour is it?") == "What color is it?"
    made = {wordings.vary("What colour is the star?", random.Random(seed)) for seed in range(200)}
    assert {"What colour is the star?", "what color is the star", "Tell me the color of the star"} <= made


def test_a_grown_tower_sees_the_same(grown):
    tower = grown.model.vision_tower
    larger = grow_tower(tower, tower.config.num_hidden_layers + 2)
    pixels = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(larger(pixels).last_hidden_state, tower(pixels).last_hidden_state)
    # And learns: the new layers' gradients are not all zero.
    larger(pixels).last_hidden_state.square().sum().backward()
    assert dict(larger.named_parameters())[
        next(n for n, _ in larger.named_parameters() if f"layers.{tower.config.num_hidden_layers}.mlp.fc2.weight" in n)
    ].grad.any()
    with torch.no_grad():
        swapped = set_tower(grown, larger)
        assert torch.equal(
            swapped.get_image_features(pixels[:, None]).pooler_output[0],
            grown.get_image_features(pixels[:, None]).pooler_output[0],
        )


def test_a_larger_vocabulary_keeps_what_was_known(of_shapes, grown, processor):
    """Tokens of both vocabularies keep their vectors, so the smaller model's answers come from the grown one too."""
    model, own = of_shapes
    before, after = own.tokenizer.get_vocab(), processor.tokenizer.get_vocab()
    shared = sorted(before.keys() & after.keys())
    assert len(shared) > 450
    for old, new in ((model.get_input_embeddings(), grown.get_input_embeddings()), (model.lm_head, grown.lm_head)):
        old_rows, new_rows = old.weight[[before[t] for t in shared]], new.weight[[after[t] for t in shared]]
        assert torch.equal(old_rows, new_rows)


def test_names_are_single_tokens(processor):
    tokenizer = processor.tokenizer
    assert [name for name in picture_names.load_names() if len(tokenizer.tokenize(f" {name}")) > 1] == ["t-shirt"]
    assert tokenizer.tokenize("what color is the dog") == ["what", "Ġcolor", "Ġis", "Ġthe", "Ġdog"]


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_packing_changes_no_number_at_any_budget(processor, grown, library, kind, share):
    batches = PackedBatches(processor, MIX, "x", library)
    rng = random.Random(1)
    batch = batches.video_batch(rng) if kind == "video" else batches.image_batch(rng, is_caption=False)
    batch.pop("types"), batch.pop("labels")
    rows = len(batch["input_ids"])
    each = dict(batch)
    for name in ("pixel_values", "pixel_values_videos", "video_num_frames"):
        if name in each:
            each[name] = each[name].repeat_interleave(rows // len(each[name]), dim=0)
    with torch.no_grad():
        expected = grown(**each, prefusion_patches=share).logits
        packed = batch | {"prefusion_patches": share}
        encoded = TinyTrainer.encode(None, grown, packed, rows)
        logits = grown(**packed, mm_encoder_outputs=encoded).logits
        # Sums in another order: trained logits reach 20, of which this is one part in a million.
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=3e-5)
    if share < 1:
        with torch.no_grad():
            assert not torch.allclose(grown(**each).logits, expected, atol=1e-3)


def test_absent_shapes_are_asked_about_only_where_named(processor, library):
    for mix, expected in ((MIX, True), (replace(MIX, types={}), False)):
        batches = PackedBatches(processor, replace(mix, scenes={"2": 1}), "x", library)
        types = {kind for seed in range(4) for kind in batches.image_batch(random.Random(seed), False)["types"]}
        assert ("absent shape" in types) == expected


def test_captions_have_batches_of_their_own(processor, library):
    batches = PackedBatches(processor, MIX, "x", library)
    assert set(batches.image_batch(random.Random(0), is_caption=True)["types"]) <= {"caption", "thing caption"}


def test_lists_say_what_is_there(library):
    """Every name has an answer; a shown one has its patches as its target, an absent one the vision token."""
    answers, said = {}, {}
    for seed in range(120):
        asked = look_up.list_names(two_things(), library, random.Random(seed))
        names = list(asked.answers)
        assert asked.question.endswith(", ".join(names)) and set(asked.targets) == set(names) >= {"dog", "apple"}
        answers.setdefault(asked.type, {}).update(asked.answers)
        said.setdefault(asked.type, set()).add(asked.answer)
        for name, target in asked.targets.items():
            shown = PATCH_CENTRES[target[:-1]]
            if name in ("dog", "apple"):
                x, y = (20.0, 40.0) if name == "dog" else (62.0, 44.0)
                assert len(shown) >= 4 and (abs(shown - (x, y)) < 15).all() and not target[-1]
            else:
                assert not len(shown) and target[-1]
        if asked.type == "missing name":
            assert len(names) == 3
    absent = dict.fromkeys(("cat", "car", "jeans"), "no")
    seen = {"dog": "yes", "apple": "yes"} | absent
    assert answers == {
        "listed names": seen,
        "missing name": seen,
        "listed sides": {"dog": "left", "apple": "right"} | absent,
        "listed colours": {"dog": "brown", "apple": "red"} | absent,
    }
    assert said == {
        "listed names": {"dog and apple", "apple and dog"},
        "missing name": {"there is no cat", "there is no car", "there are no jeans"},
        "listed sides": {""},
        "listed colours": {""},
    }


def test_lists_of_categories_say_how_many_there_are(library):
    """A category's targets are the patches of all that belong to it; food is not asked about beside fruit."""
    scene = two_things()
    scene.things.append(Thing("cat", "noto", "cat", x=70.0, y=14.0, size=20.0))
    covered = [look_up.covered_patches(thing) for thing in scene.things]
    patches = {"animal": covered[0] | covered[2], "fruit": covered[1]}
    answers = {}
    for seed in range(60):
        asked = look_up.list_kinds(scene, library, random.Random(seed))
        assert asked.answer == "" and asked.question.endswith(", ".join(asked.answers))
        answers.setdefault(asked.type, {}).update(asked.answers)
        for word, target in asked.targets.items():
            shown = patches.get(word.removesuffix("s"), np.zeros(36, dtype=bool))
            assert (target[:-1] == shown).all() and target[-1] != shown.any()
    others = set(picture_questions.PLURALS) - {"animal", "fruit", "food"}
    assert answers == {
        "listed kinds": {"animal": "yes", "fruit": "yes"} | dict.fromkeys(others, "no"),
        "listed counts": {"animals": "2", "fruits": "1"}
        | dict.fromkeys((picture_questions.PLURALS[word] for word in others), "0"),
    }


def test_the_mix_says_which_lists_are_of_categories(library, processor):
    for share, kinds in ((1.0, look_up.KIND_QUESTIONS), (0.0, look_up.QUESTIONS)):
        batches = PackedBatches(processor, replace(MIX, kinds=share), "x", library)
        assert set(batches.list_batch(random.Random(0))["types"]) <= kinds.keys()


@pytest.mark.parametrize("kind", list(look_up.QUESTIONS))
def test_a_listed_name_is_answered_where_it_ends(library, processor, kind):
    seeds = (random.Random(seed) for seed in range(100))
    asked = next(a for a in (look_up.list_names(two_things(), library, rng) for rng in seeds) if a.type == kind)
    encoder, tokenizer = PackedBatches(processor, MIX, "x", library).encoder, processor.tokenizer
    ids, labels, listed = encoder.encode_list(asked, 1)
    # A label is about the token before it.
    answered = {tokenizer.decode(ids[i - 1]): tokenizer.decode(label) for i, (label, _) in listed.items()}
    assert answered == {f" {name}": f" {answer}" for name, answer in asked.answers.items()}
    for position, (_, target) in listed.items():
        assert (target == asked.targets[tokenizer.decode(ids[position - 1]).strip()]).all()
    said = tokenizer.decode([label for label in labels if label != IGNORED], skip_special_tokens=True)
    assert said.strip() == asked.answer
    more = encoder.encode_list(asked, 1, say_again=True)[2]
    again = {position: found for position, found in more.items() if position not in listed}
    assert [tokenizer.decode(label).strip() for label, _ in again.values()] == list(asked.answers)[:-1]
    assert all(tokenizer.decode(ids[i - 1]) == "," and not target.any() for i, (_, target) in again.items())


def test_a_larger_word_is_found_as_before(processor, grown, library):
    """Only the names' rows change, in length alone."""
    model = copy.deepcopy(grown)
    look_up.enlarge_words(model, processor, library, 20.0)
    names = processor.tokenizer.convert_tokens_to_ids([f"Ġ{name}" for name in library.names])
    before, after = (m.get_input_embeddings().weight for m in (grown, model))
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == sorted(names)
    norm = model.model.prefusion.layers[0].input_layernorm
    # The normalization's epsilon is one part in 2500 of a small row's square.
    torch.testing.assert_close(norm(after[names]), norm(before[names]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after[names].square().mean(1).sqrt(), torch.full((len(names),), 20.0))


def test_what_is_answered_takes_no_part_in_a_list(library, processor):
    """Names are read with the picture, the answer is not; both have labels."""
    batch = PackedBatches(processor, MIX, "x", library).list_batch(random.Random(0))
    is_listed = batch["attention_targets"].any(-1)
    assert batch["text_fusion_mask"][is_listed].all()
    assert (batch["labels"][:, 1:][is_listed[:, :-1]] != IGNORED).all()
    is_answer = batch["labels"] != IGNORED
    is_answer[:, 1:] &= ~is_listed[:, :-1]
    assert is_answer.any() and not batch["text_fusion_mask"][is_answer].any()


def test_what_names_attend_to_is_what_the_layer_attends_to(processor, grown, library, monkeypatch):
    """Against attention that is written out over the text that takes part, as `KeptText` orders it."""
    trainer = TinyTrainer.__new__(TinyTrainer)
    trainer.accuracy = {}
    batch = PackedBatches(processor, MIX, "x", library).list_batch(random.Random(0))
    losses, method = [], look_up.FirstLook.attention_loss

    def keep(self, *args):
        losses.append(method(self, *args))
        return losses[-1]

    monkeypatch.setattr(look_up.FirstLook, "attention_loss", keep)
    loss = trainer.compute_loss(grown, dict(batch) | {"prefusion_patches": 0.25})
    alone = {key: value for key, value in batch.items() if key != "attention_targets"}
    torch.testing.assert_close(loss, trainer.answer(grown, alone) + losses[0])  # of all patches, whatever the budget
    losses[0].backward()
    front, first = grown.model, grown.model.prefusion.layers[0]
    assert first.self_attn.q_proj.weight.grad.any() and grown.get_input_embeddings().weight.grad.any()
    grown.zero_grad()
    assert not front.prefusion._forward_pre_hooks

    with torch.no_grad():
        features = front.extract_features(batch["pixel_values"])[:, 0]
        vision = torch.cat([features, front.compressor(features)[0]], dim=1)
        patches = front.multi_modal_projector(vision)
    found = {True: [], False: []}
    for row, ids in enumerate(batch["input_ids"]):
        text = ids != grown.config.image_token_id
        hidden = torch.cat([patches[row], grown.get_input_embeddings()(ids[text])])[None]
        normed = first.input_layernorm(hidden)
        cos, sin = front.prefusion.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        projections = (first.self_attn.q_proj, first.self_attn.k_proj)
        heads = [layer(normed).view(1, -1, 4, 32).transpose(1, 2) for layer in projections]
        queries, keys = apply_rotary_pos_emb(*heads, cos, sin)
        scores = (queries @ keys.mT)[0] / 32**0.5
        shares = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
        for position, target in enumerate(batch["attention_targets"][row][text]):
            if target.any():
                share = shares[: look_up.HEADS, 37 + position, :37][:, target].sum(-1)
                found[bool(target[-1])].append(share.log().mean())
    expected = -(torch.stack(found[True]).mean() + torch.stack(found[False]).mean()) / 2
    torch.testing.assert_close(losses[0], expected, rtol=1e-4, atol=1e-5)  # sums in another order


def test_a_dictionary_tells_apart_what_patches_show(processor, grown, library):
    """Names' vectors name patches of pictures that were not seen, and no other token changes."""
    model = copy.deepcopy(grown)
    tables = [(model.get_input_embeddings(), grown.get_input_embeddings()), (model.lm_head, grown.lm_head)]
    assert look_up.write_dictionary(model, processor, library, num_pictures=60) > 0.5
    with torch.no_grad():
        names = processor.tokenizer.convert_tokens_to_ids([f"Ġ{name}" for name in library.names])
        others = [i for i in range(len(processor.tokenizer)) if i not in names]
        for table, before in tables:
            assert torch.equal(table.weight[others], before.weight[others])
            assert 0.2 < table.weight[names].std() / table.weight[others].std() < 5
        scene = PictureScene(things=[replace(two_things().things[0], x=42.0, y=42.0, size=60.0)])
        pixels = to_pixels(np.array(draw_picture(scene, library))[None, None])
        patches = model.model.multi_modal_projector(model.model.extract_features(pixels))[0, 0]
        patches = patches[look_up.covered_patches(scene.things[0])]
        written = model.model.language_model.norm(patches) @ model.lm_head.weight[names].mT
        read = patches @ model.get_input_embeddings().weight[names].mT
    for likeness in (written, read):
        assert (likeness.argmax(1) == library.names.index("dog")).float().mean() > 0.5


def test_lessons_are_the_same_from_any_process(library):
    lessons = teach_tower.Lessons(library, 0, 6, range(3, 6))
    for here, there in zip(lessons, torch.utils.data.DataLoader(lessons, batch_size=None, num_workers=1)):
        assert torch.equal(here[0][0], there[0][0]) and torch.equal(here[1][0], there[1][0])
    # What an interrupted run goes on with.
    assert torch.equal(lessons[2][1][0], teach_tower.Lessons(library, 0, 6, range(5, 9))[0][1][0])


def test_what_draws_can_be_sent_to_another_process(library, processor):
    """Where processes are not forked, as on macOS and from Python 3.14 on, they get it pickled."""
    batches = PackedBatches(processor, replace(MIX, lists=0.3, video=0.3), "x", library)
    sent = pickle.loads(pickle.dumps(batches))
    for here, there, _ in zip(batches, sent, range(6)):
        assert here.keys() == there.keys() and here["types"] == there["types"]
        assert all(torch.equal(here[name], there[name]) for name in here.keys() - {"types"})
    lessons = teach_tower.Lessons(library, 0, 6, range(3, 6))
    assert torch.equal(lessons[0][1][0], pickle.loads(pickle.dumps(lessons))[0][1][0])
    assert pickle.loads(pickle.dumps(take_batch))([here]) is here


def test_patch_labels_of_things(library):
    labels, positions = teach_tower.label_picture(two_things(), library)
    dog = labels["name"] == 1 + library.names.index("dog")
    assert dog.any() and (PATCH_CENTRES[dog][:, 0] < 42).all()
    assert (labels["category"][dog] == 1 + list(library.members).index("animal")).all()
    assert np.isnan(positions[labels["name"] == 0]).all() and np.allclose(positions[dog], [20 / 84, 40 / 84])
    garment = picture_scenes.sample_garment(random.Random(0), library)
    labels, _ = teach_tower.label_picture(garment, library)
    assert set(labels["garment"]) == {1 + library.garments["train"][1][garment.garment.index]}


def test_the_recipe_grows_once():
    of_shapes, of_things = split_recipe(json.loads((TINY / "recipe.json").read_text()))
    assert of_shapes and of_things and of_things[0]["grow"]
    assert not any("things" in sort for phase in of_shapes for sort in phase["mix"]["scenes"])
    assert all(phase["prefusion_shares"] for phase in of_things)


@pytest.fixture
def cache_folder(tmp_path) -> Path:
    """As pictures.py and evaluate_things.py leave it: few cut-outs of few colours, garments of noise, one stamp."""
    for i, style in enumerate(SOURCES):
        cutouts = {SLUGS.get(name, name): make_cutout(colour, 8 + 2 * i) for name, colour in COLOURS.items()}
        asked = np.array(picture_names.all_slugs())
        np.savez(tmp_path / f"{style}-{SOURCES[style].version}.npz", asked=asked, **cutouts)
    pixels, classes = make_garments()
    (tmp_path / GARMENTS_PACKAGE).mkdir()
    for prefix in ("train", "t10k"):
        for kind, values in (("images", pixels), ("labels", classes.astype(np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            file = tmp_path / GARMENTS_PACKAGE / f"{prefix}-{kind}-idx{values.ndim}-ubyte.gz"
            file.write_bytes(gzip.compress(header + values.tobytes()))
    stamps = tmp_path / evaluate_things.TUX_PAINT_PACKAGE
    stamps.mkdir()
    Image.fromarray(make_cutout(COLOURS["dog"], 8)).save(stamps / "dog.png")
    (stamps / "dog.txt").write_text("A brown dog.\n")
    return tmp_path


def test_a_tower_is_taught_and_goes_on_where_it_stopped(cache_folder, of_shapes, tmp_path):
    arguments = argparse.Namespace(output=tmp_path / "tower", steps=2, batch_size=8, lr=1e-3, muon_lr=0.01, seed=0)
    arguments.output.mkdir()
    library = Library.load(cache_folder, TRAINING_STYLES)
    assert set(library.names) == set(COLOURS)
    torch.manual_seed(0)
    lesson = teach_tower.Lesson(of_shapes[0].model.vision_tower, library)
    held = {name: value.clone() for name, value in lesson.before.named_parameters()}
    teach_tower.teach(lesson, library, arguments)
    assert all(torch.equal(value, held[name]) for name, value in lesson.before.named_parameters())
    state = torch.load(arguments.output / "state.pt")
    assert state["step"] == 2
    trained = {name: value.clone() for name, value in lesson.tower.named_parameters()}
    teach_tower.teach(lesson, library, arguments)  # nothing is left to do
    assert all(torch.equal(value, trained[name]) for name, value in lesson.tower.named_parameters())


def test_measuring_and_the_page(cache_folder, tmp_path, monkeypatch):
    """On a cache made here; numbers of the right size, and a page with every answer."""
    asker = evaluate_things.Asker(CHECKPOINT)
    results = evaluate_things.measure(asker, cache_folder, per_type=1, seed=0, num_garments=3)
    sizes = {row: result["n"] for row, result in results["names"].items()}
    assert list(sizes.values()) == [5, 5, 5 * len(TRAINING_STYLES), 3, 1]
    assert set(results["scenes, artists of the training"]) == set(picture_questions.CHANCE) - {"garment"}
    arguments = ["answers_page.py", "--cache", str(cache_folder), "--output", str(tmp_path / "page.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    answers_page.main()
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_counting_is_exact():
    assert evaluate_things.count(["dog", "a dog", "cat"], ["dog", "dog", "cat"], 0.5) == {
        "right": 2,
        "n": 3,
        "chance": 0.5,
    }
    assert questions.CHANCE.keys().isdisjoint(picture_questions.CHANCE)


def test_the_examples_are_answered_as_their_table_says():
    """Wrong answers as well: whoever trains a better model writes a better table."""
    folder = CHECKPOINT / "demo_examples"
    rows = re.findall(
        r"^\| `(\S+)` \| (.+?) \| (.+?) \| (?:wrong )?\|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 8 and {file for file, *_ in rows} == {file.name for file in folder.glob("*.png")}
    asker = evaluate_things.Asker(CHECKPOINT)
    for file, question, answer in rows:
        assert asker.answer([Image.open(folder / file).convert("RGB")], [question]) == [answer]


@pytest.mark.slow
def test_one_command_trains_it_again(tmp_path, cache_folder):
    """Some steps of everything: towers, phases of drawn pictures and of things, export, measurements, card."""
    phase = {"steps": 2, "lr": 1e-3, "muon_lr": 0.01, "mix": asdict(SHAPES)}
    mix = asdict(replace(MIX, video=0.3, lists=0.3, kinds=0.5))
    of_things = {"name": "things", "grow": True, "word_size": 2, "prefusion_shares": [1, 0.5], "mix": mix}
    recipe = [phase | {"name": "first"}, phase | {"name": "second"}, phase | of_things]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, TINY / "train_all.py", "--output", tmp_path / "run", "--tower_steps", "1"]
    command += ["--recipe", tmp_path / "recipe.json", "--per_type", "1", "--things_steps", "1", "--cache", cache_folder]
    subprocess.run(command, check=True, timeout=600)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "checkpoint")
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert "| colour |" in card and "| thing colour |" in card
    # And on from the drawn pictures, with random budgets.
    phase |= {"name": "budgets", "prefusion_shares": [0.5, 0.1]}
    (tmp_path / "recipe.json").write_text(json.dumps([phase]))
    command = [sys.executable, TINY / "train_tiny.py", "--start", tmp_path / "run" / "phases" / "second"]
    command += ["--recipe", tmp_path / "recipe.json", "--output", tmp_path / "on"]
    subprocess.run(command, check=True, timeout=600)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "on" / "budgets")
