"""examples/tiny: deterministic pictures, packed batches that change nothing, and the shipped checkpoint's answers."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch


pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import ablation
import analyse
import questions
import scenes
import train_twin
from build import build_model, build_processor
from evaluate import evaluate
from make_data import make_records, sample_question
from muon import MuonWithAdamW, orthogonalize
from packing import IGNORED, Mix, PackedBatches, choose_questions, sample_scene
from pretrain_tower import IGNORED as NO_LABEL
from pretrain_tower import PATCH_CENTRES, label_patches, tower_config
from probe import probe
from train_tiny import TinyTrainer
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel

from llava_mini.conversion.command import convert
from llava_mini.conversion.writing.to_original import to_original


TINY = Path(__file__).parents[1] / "examples" / "tiny"
CHECKPOINT = TINY / "checkpoint"
MIX = Mix({"1": 1, "2": 1, "number": 1, "digit": 1}, pictures=4, questions=3, clips=2, clip_questions=2)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return build_model(processor, tower=None).eval()


def test_pictures_are_deterministic(tmp_path):
    for name in "ab":
        make_records(tmp_path / name, "test", 2, seed=3, types=["colour", "digit", "video order"])
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert len(list((tmp_path / "a").rglob("*.mp4"))) == 2


def test_splits_do_not_meet():
    rng = random.Random(0)
    for _ in range(200):
        assert scenes.sample_digit(rng, "train").digit < scenes.NUM_TRAIN_DIGITS
        assert scenes.sample_digit(rng, "test").digit >= scenes.NUM_TRAIN_DIGITS
        shape = scenes.sample_shapes(rng, 1).shapes[0]
        assert (shape.colour, shape.kind) not in scenes.UNSEEN_PAIRS
        shape = scenes.sample_shapes(rng, 1, pairs="unseen").shapes[0]
        assert (shape.colour, shape.kind) in scenes.UNSEEN_PAIRS
        frames = scenes.sample_clip(rng).all_frames()
        assert not {(s.colour, s.kind) for frame in frames for s in frame.shapes} & set(scenes.UNSEEN_PAIRS)


@pytest.mark.parametrize("kind", list(questions.CHANCE))
def test_every_type_has_questions(kind):
    answers = set()
    for i in range(40):
        _, question = sample_question(kind, "test", random.Random(f"{kind} {i}"))
        assert question.type == kind
        answers.add(question.answer)
    assert len(answers) > 1


def test_yes_and_no_are_equally_frequent():
    rng = random.Random(0)
    for kind in ("yes/no", "relation"):
        given = [sample_question(kind, "test", rng)[1].answer for _ in range(1000)]
        assert abs(given.count("yes") - given.count("no")) < 100


def test_patch_labels():
    shape = scenes.Shape("star", "red", "large", x=21.0, y=35.0, radius=14.0)
    labels, positions = label_patches(scenes.Scene("white", [shape]))
    inside = labels["kind"] > 0
    assert inside.sum() == 9  # three by three patches around the one that holds the centre
    assert set(labels["kind"][inside]) == {1 + scenes.KINDS.index("star")}
    assert PATCH_CENTRES[labels["centre"].argmax()].tolist() == [21.0, 35.0]
    assert np.allclose(positions[inside], [21 / 84, 35 / 84]) and np.isnan(positions[~inside]).all()
    # In half patches of 7 pixels, 0 being nothing.
    assert set(labels["column"][inside]) == {1 + 3} and set(labels["row"][inside]) == {1 + 5}
    assert not labels["column"][~inside].any()
    shape.radius = 11.0  # neither small nor large
    labels, _ = label_patches(scenes.Scene("white", [shape]))
    assert NO_LABEL in labels["size"]


def test_orthogonalize():
    for shape in ((3, 16, 48), (3, 48, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert singular.min() > 0.5 and singular.max() < 1.3


def test_muon_with_adamw_minimises():
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    matrix, vector = torch.nn.Parameter(torch.zeros(8, 8)), torch.nn.Parameter(torch.zeros(8))
    optimizer = MuonWithAdamW([{"params": [matrix], "use_muon": True, "lr": 0.03}, {"params": [vector], "lr": 0.03}])
    for _ in range(300):
        loss = (matrix + vector - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


def test_packed_batches_are_the_processors_inputs(processor):
    """Ids, labels and pixels as the processor makes them from the same chat."""
    batch = PackedBatches(processor, MIX, "x").image_batch(random.Random(0), is_caption=False)
    text = processor.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    question, answer = text.removeprefix("<s>user:<image>\n").removesuffix("</s>").split("\nassistant: ")
    picture = scenes.draw(sample_scene(MIX, random.Random(0)))
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture},
                                     {"type": "text", "text": question}]},
        {"role": "assistant", "content": answer},
    ]  # fmt: skip
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    length = inputs["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:1, :length], inputs["input_ids"])
    assert torch.equal(batch["labels"][0, :length] != IGNORED, inputs["assistant_masks"][0].bool())
    torch.testing.assert_close(batch["pixel_values"][:1], inputs["pixel_values"])


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(("is_blind", "share"), [(False, None), (True, None), (False, 0.25)])
def test_packing_changes_no_number(processor, model, kind, is_blind, share):
    """Questions that share a picture's encoded vision side get the logits of rows with a picture each."""
    batches = PackedBatches(processor, replace(MIX, blind=float(is_blind), blind_video=float(is_blind)), "x")
    rng = random.Random(1)
    batch = batches.video_batch(rng) if kind == "video" else batches.image_batch(rng, is_caption=False)
    batch.pop("types"), batch.pop("labels")
    assert batch["text_fusion_mask"].any() != is_blind
    rows = len(batch["input_ids"])
    each = dict(batch)
    for name in ("pixel_values", "pixel_values_videos", "video_num_frames"):
        if name in each:
            each[name] = each[name].repeat_interleave(rows // len(each[name]), dim=0)
    with torch.no_grad():
        expected = model(**each, prefusion_patches=share).logits
        if share is not None:  # as the trainer draws it
            assert not torch.allclose(expected, model(**each).logits, atol=1e-3)
            batch["prefusion_patches"] = share
        encoded = TinyTrainer.encode(None, model, batch, rows)
        assert "prefusion_patches" not in batch
        torch.testing.assert_close(model(**batch, mm_encoder_outputs=encoded).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_twins_shared_prompt_changes_no_number():
    """Questions that share the prompt up to the picture get the hidden states of rows with a picture each."""
    torch.manual_seed(0)
    twin_processor = train_twin.build_processor(CHECKPOINT)
    twin = train_twin.build_twin(twin_processor, CHECKPOINT).eval()
    mini = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    for name, weight in mini.model.vision_tower.state_dict().items():
        assert torch.equal(twin.model.vision_tower.state_dict()[name], weight), name
    num_tokens = twin.config.image_seq_length
    assert num_tokens == 36 and twin.config.text_config.num_hidden_layers == 5
    batches = PackedBatches(twin_processor, MIX, "x", num_image_tokens=num_tokens)
    batch = batches.image_batch(random.Random(1), is_caption=False)
    pictures = batch["pixel_values"][:, 0].repeat_interleave(MIX.questions, dim=0)
    with torch.no_grad():
        shared = train_twin.TwinTrainer.read(None, twin, dict(batch), len(pictures))
        each = twin.model(input_ids=batch["input_ids"], pixel_values=pictures).last_hidden_state
    start = each.shape[1] - shared.shape[1]
    assert (batch["input_ids"][:, start - 1] == twin.config.image_token_id).all()
    torch.testing.assert_close(shared, each[:, start:], rtol=1e-4, atol=1e-5)
    batch["input_ids"][0, 1] += 1
    with pytest.raises(ValueError, match="can't share it"):
        train_twin.TwinTrainer.read(None, twin, batch, len(pictures))


def test_types_without_weight_are_never_asked():
    """Even when the others are too few."""
    scene = scenes.sample_shapes(random.Random(0), 1)
    candidates = questions.about_scene(scene, random.Random(0))
    weights = dict.fromkeys(questions.CHANCE, 0.0) | {"count": 1.0, "size": 1.0}
    chosen = choose_questions(candidates, weights, 6, random.Random(0))
    assert len(chosen) == 6 and {question.type for question in chosen} == {"count", "size"}
    with pytest.raises(ValueError, match="no weight"):
        choose_questions(candidates, dict.fromkeys(questions.CHANCE, 0.0), 1, random.Random(0))


def test_ablation_compares_equals(processor):
    sizes = {}
    for name, options in ablation.TOKENS.items():
        options = {key: value for key, value in options.items() if key != "compressor_size"}
        sizes[name] = sum(p.numel() for p in build_model(processor, tower=None, **options).parameters())
    assert max(sizes.values()) < 1.001 * min(sizes.values())


def test_blank_tokens_leave_pre_fusion_alone(processor):
    model = build_model(processor, tower=None)
    pixels = torch.randn(2, 1, 3, 84, 84)
    as_ever = model.get_image_features(pixels)
    with ablation.blank_tokens():
        blank = model.get_image_features(pixels)
    assert all(not tokens.any() for tokens in blank.pooler_output) and as_ever.pooler_output[0].any()
    for pair, other in zip(blank.prefusion_key_values, as_ever.prefusion_key_values):
        assert torch.equal(pair[0], other[0]) and torch.equal(pair[1], other[1])
    assert all(map(torch.equal, model.get_image_features(pixels).pooler_output, as_ever.pooler_output))


def test_the_trained_language_model_starts_both_variants_alike(processor, tmp_path):
    torch.manual_seed(1)
    trained = build_model(processor, tower=None)
    for part in (trained, processor):
        part.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = build_model(processor, tower=None, num_prefusion_layers=2)
    layers = [dict(layer.named_parameters()) for layer in model.model.prefusion.layers]
    before = {name: value.clone() for name, value in layers[0].items()}
    ablation.take_language_model(model, processor, tmp_path)
    assert torch.equal(model.lm_head.weight, trained.lm_head.weight)
    own = dict(model.model.language_model.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in trained.model.language_model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in layers[0].items())  # at random
    ablation.initialise_prefusion(model, "llm")
    for layer, source in zip(layers, trained.model.language_model.layers):
        assert all(torch.equal(layer[name], value) for name, value in source.named_parameters())
    with pytest.raises(ValueError, match="another vocabulary"):
        ablation.take_language_model(model, processor, CHECKPOINT)


def test_a_language_model_to_start_from_has_to_be_named(monkeypatch, capsys, tmp_path):
    arguments = ["--tower", tmp_path, "--output", tmp_path / "out", "--set", "starts"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, arguments)])
    with pytest.raises(SystemExit):
        ablation.main()
    assert "--trained" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ablation_writes_table_and_plot(tmp_path, monkeypatch):
    CLIPVisionModel(tower_config()).save_pretrained(tmp_path / "tower")
    monkeypatch.setattr(ablation, "TYPES", ["colour"])
    arguments = ["--tower", tmp_path / "tower", "--output", tmp_path / "out", "--runs", tmp_path / "runs"]
    arguments += ["--steps", 1, "--seeds", 2, "--per_type", 2, "--variants", "pre-fusion, C = 2"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, arguments)])
    ablation.main()
    made = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (made["steps"], made["per_type"]) == (1, 2)
    assert [list(run) for run in made["scores"]["pre-fusion, C = 2"]] == [["colour"]] * 2
    assert "| pre-fusion, C = 2 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "scores.png").stat().st_size > 0
    monkeypatch.setattr(ablation, "run_variant", None)  # nothing is left to run
    ablation.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "2"])
    with pytest.raises(ValueError, match="1 steps.*another --output"):
        ablation.main()


def test_checkpoint_loads_with_the_auto_classes():
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) < 10e6
    model, info = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in model.parameters()) < 5e6 and model.dtype == torch.float32
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    assert processor.image_token_id == model.config.image_token_id
    assert processor.chat_template == (TINY / "chat_template.jinja").read_text()


# What the card reports below 0.94, about three standard errors of 100 answers lower.
HARDER = {"caption": 0.86, "unseen pair": 0.8}
BOUNDS = {
    kind: HARDER.get(kind, 0.9) for kind in questions.CHANCE if kind not in questions.MEASURED_ONLY or kind in HARDER
}


@pytest.mark.parametrize(("kind", "bound"), BOUNDS.items())
def test_answers_are_right(kind, bound):
    """Fixed held-out pictures and clips, through pipeline(), greedily."""
    result = evaluate(CHECKPOINT, 40 if "video" in kind else 100, seed=1, types=[kind])[kind]
    assert result["right"] / result["n"] >= bound


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # how transformers' processors read files
@pytest.mark.parametrize(("kind", "bound"), [("colour", 0.95), ("position", 0.93), ("relation", 0.93)])
def test_the_twin_answers(kind, bound):
    """In batches, for which its tokenizer has to pad in front."""
    result = evaluate(TINY / "twin", 100, seed=1, types=[kind])[kind]
    assert result["right"] / result["n"] >= bound


def test_the_twin_is_a_twin():
    """As many layers of the same size, in one place."""
    twin, mini = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (TINY / "twin", CHECKPOINT))
    of_layers = [sum(p.numel() for p in model.model.language_model.layers.parameters()) for model in (twin, mini)]
    assert of_layers[0] == of_layers[1] + sum(p.numel() for p in mini.model.prefusion.layers.parameters())
    card, measured = (TINY / "twin/README.md").read_text(), json.loads((TINY / "twin_results.json").read_text())
    for kind, result in measured["results"].items():
        assert f"| {kind} | {result['right'] / result['n']:.3f} | {result['n']} | {result['chance']:.2f} |" in card


@pytest.mark.slow
def test_the_analysis_is_what_was_measured(tmp_path, monkeypatch, capsys):
    """A small run of the command; and what is committed is one run's: table and numbers agree."""
    command = ["analyse.py", "--output", str(tmp_path), "--per_type", "4"]
    monkeypatch.setattr(sys, "argv", command)
    analyse.main()
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    names = ["accuracy_mini.png", "accuracy_twin.png", "attention.png", "entropy.png", "results.json", "table.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    saved = json.loads((TINY / "analysis/results.json").read_text())
    table = (TINY / "analysis/table.md").read_text()
    for name, layers in (("LLaVA twin", 5), ("LLaVA-Mini", 5)):
        own = saved[name]["attention"]
        for layer, attention in zip(own["layers"], own["attention"]):
            share = attention[0][1]
            assert f"| {layer} | {share:.2f} | " in table
        assert len(own["layers"]) == layers
        right = sum(by["nothing"] for by in saved[name]["right"].values())
        assert f"{right / (8 * saved['n a type']):.3f} right" in table
    assert all(path.stat().st_size < 100_000 for path in (TINY / "analysis").iterdir())


def test_the_card_says_what_it_can_not():
    """What was measured without having been trained stands in the card with its number, claimed or not."""
    card = (CHECKPOINT / "README.md").read_text()
    measured = json.loads((TINY / "results.json").read_text())["results"]
    claims, _, rest = card.partition("## What it answers about drawn shapes")[2].partition("Below 0.80")
    for kind in questions.CHANCE:
        share = measured[kind]["right"] / measured[kind]["n"]
        assert f"| {kind} | {share:.3f} |" in (claims if share >= 0.8 else rest)


def test_the_token_knows_what_is_seen():
    """Linear classifiers read it from the one vision token; a token that lost the picture gives guesses."""
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    scores = probe(model, num_train=400, num_test=200)
    assert max(scores["always the same"].values()) < 0.6
    assert min(scores["vision token"].values()) > 0.9


def test_checkpoint_survives_the_authors_layout(tmp_path):
    """The converter end to end on trained weights: there and back without a changed number."""
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    model.model.vision_tower.save_pretrained(tmp_path / "tower")
    to_original(CHECKPOINT, tmp_path / "original", vision_tower=str(tmp_path / "tower"))
    convert(tmp_path / "original", tmp_path / "back")
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    scene, question = sample_question("colour", "test", random.Random(0))
    content = [{"type": "image", "image": scenes.draw(scene)}, {"type": "text", "text": question.text}]
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, model(**inputs).logits)


def test_card_holds_the_measured_numbers():
    """The card's tables are what the scripts wrote, not somebody's memory of it."""
    card = (CHECKPOINT / "README.md").read_text()
    drawn, of_things = (json.loads((TINY / f"results{about}.json").read_text()) for about in ("", "_things"))
    for section in (drawn["results"], *of_things["results"].values()):
        for kind, result in section.items():
            assert f"| {kind} | {result['right'] / result['n']:.3f} | {result['n']} | {result['chance']:.2f} |" in card
