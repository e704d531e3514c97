"""examples/training: conversations to batches, both stages, resuming, processes, LoRA, the authors' losses."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conversation_data import IGNORED, CaptionCollator, ConversationCollator, ConversationDataset, to_messages
from llava_mini_trainer import LlavaMiniTrainer, LlavaMiniTrainingArguments, ModalityLengthSampler
from model_setup import build_llava, freeze, initialise_prefusion, load_part
from PIL import Image
from prepare import main as prepare
from safetensors.torch import load_file
from tiny import make_uneven, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from train import PROJECTOR_FILE, main
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from llava_mini import (
    LlavaMiniForConditionalGeneration,
    LlavaMiniImageProcessor,
    LlavaMiniProcessor,
    LlavaMiniVideoProcessor,
    front_llava_mini,
)
from llava_mini.original_names_llava_mini import rename_key


ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
SIZE = 28


def make_processor() -> LlavaMiniProcessor:
    """A byte tokenizer, and the tiny model's picture size."""
    special = ["<unk>", "<pad>", "<image>", "<video>", "<s>", "</s>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(special + characters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return LlavaMiniProcessor(
        image_processor=LlavaMiniImageProcessor(**options),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        ),
        video_processor=LlavaMiniVideoProcessor(**options),
        chat_template=(ROOT / "examples" / "tiny" / "chat_template.jinja").read_text(),
    )


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


RECORDS = [
    {"id": "image", "image": "a.png", "conversations": turns("<image>\nColour?", "red", "Sure?", "yes")},
    {"id": "two", "image": ["a.png", "b.png"], "conversations": turns("<image>\n<image>\nSame?", "no")},
    {"id": "video", "video": "c.mp4", "conversations": turns("<video>\nMoves?", "left")},
    {"id": "text", "conversations": turns("Hi", "hello you")},
]


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """The four records with their media, written as files."""
    import av

    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (40, 30), (220, 30, 30)).save(folder / "a.png")
    Image.new("RGB", (30, 40), (30, 30, 220)).save(folder / "b.png")
    with av.open(str(folder / "c.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 32
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 * i, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (folder / "data.json").write_text(json.dumps(RECORDS))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model and its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = make_processor()
    torch.manual_seed(0)
    config = tiny_config(
        text={"vocab_size": len(processor.tokenizer), "initializer_range": 0.1},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        prefusion_ignored_token_ids=[],
    )
    LlavaMiniForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def arguments(media: Path, checkpoint: Path, output: Path, *more: str) -> list[str]:
    values = {
        "model": checkpoint,
        "data": media / "data.json",
        "media": media,
        "output_dir": output,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    flat = [str(part) for name, value in values.items() for part in (f"--{name}", value)]
    return [*flat, *more]


def losses(trainer: LlavaMiniTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_messages():
    """Media go where their placeholders stand; LLaVA-Mini's data writes <image> for videos too."""
    chat = to_messages(RECORDS[1], Path("folder"))
    assert chat[0]["content"] == [
        {"type": "image", "path": "folder/a.png"},
        {"type": "image", "path": "folder/b.png"},
        {"type": "text", "text": "Same?"},
    ]
    assert chat[1] == {"role": "assistant", "content": "no"}
    video = to_messages({"video": "v.mp4", "conversations": turns("<image>\nWhat?", "x")})
    assert video[0]["content"][0] == {"type": "video", "path": "v.mp4"}
    picture = Image.new("RGB", (4, 4))
    assert to_messages({"image": picture, "conversations": turns("<image>\nWhat?", "x")})[0]["content"][0] == {
        "type": "image",
        "image": picture,
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": turns("<image>\nWhat?", "x")}, "more <image> placeholders"),
        ({"image": "a.png", "conversations": turns("What?", "x")}, "without a placeholder"),
        ({"conversations": [{"from": "cat", "value": "meow"}]}, "speaker 'cat'"),
    ],
)
def test_bad_records_are_refused(record, message):
    with pytest.raises(ValueError, match=message):
        to_messages(record)


def test_weights_of_files(tmp_path):
    for name, count in (("a", 10), ("b", 4)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps([{"id": f"{name}{i}", "conversations": turns("q", "a")} for i in range(count)])
        )
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    mixed = ConversationDataset.from_files(paths, [0.5, 2.5])
    ids = [record["id"] for record in mixed.records]
    assert (sum(i.startswith("a") for i in ids), sum(i.startswith("b") for i in ids)) == (5, 10)
    assert ids == [record["id"] for record in ConversationDataset.from_files(paths, [0.5, 2.5]).records]
    with pytest.raises(ValueError, match="2 weights"):
        ConversationDataset.from_files(paths[:1], [1, 1])


def test_datasets_as_records(media):
    datasets = pytest.importorskip("datasets")
    column = datasets.Dataset.from_list([{"image": str(media / "a.png"), "conversations": RECORDS[0]["conversations"]}])
    dataset = ConversationDataset(column.cast_column("image", datasets.Image()))
    batch = ConversationCollator(make_processor())([dataset[0]])
    files = ConversationCollator(make_processor())([to_messages(RECORDS[0], media)])
    assert all(torch.equal(batch[name], files[name]) for name in files)


def test_labels_are_the_assistants_words(media):
    processor = make_processor()
    batch = ConversationCollator(processor)([to_messages(record, media) for record in RECORDS])
    said = [processor.decode(ids[labels != IGNORED]) for ids, labels in zip(batch["input_ids"], batch["labels"])]
    assert said == [" red</s> yes</s>", " no</s>", " left</s>", " hello you</s>"]
    answers = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][answers], batch["input_ids"][answers])
    mask = batch["attention_mask"]
    assert (mask.diff(dim=1) <= 0).all(), "padding is on the right"
    assert batch["pixel_values"].shape[:2] == (3, 1) and batch["video_num_frames"].tolist() == [2]
    assert set(batch) == {
        "input_ids", "attention_mask", "labels", "text_fusion_mask", "pixel_values", "pixel_values_videos",
        "video_num_frames",
    }  # fmt: skip
    assert torch.equal(batch["text_fusion_mask"], ~answers)


def test_long_conversations_are_cut_but_not_their_pictures(media):
    chats = [to_messages(record, media) for record in RECORDS]
    batch = ConversationCollator(make_processor(), max_length=30)(chats)
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 30)
    with pytest.raises(ValueError, match="raise `max_length`"):
        ConversationCollator(make_processor(), max_length=5)(chats)


def test_text_alone_runs_the_vision_side_and_changes_nothing(checkpoint):
    """Every process has to run the same modules; the silent row must not be felt."""
    processor = make_processor()
    chats = [to_messages(RECORDS[3])]
    gradients = []
    for always_visual in (True, False):
        model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
        batch = ConversationCollator(processor, always_visual=always_visual)(chats)
        assert ("pixel_values" in batch) == always_visual
        loss = model(**batch).loss
        loss.backward()
        gradients.append((loss.detach(), model.model.language_model.layers[0].mlp.up_proj.weight.grad))
        assert (model.model.compressor.query.grad is not None) == always_visual
    torch.testing.assert_close(gradients[0], gradients[1])
    assert model.model.compressor.query.grad is None


def test_batches_of_similar_length_and_one_modality():
    lengths = [*range(1, 41), *range(-40, 0)]
    sampler = ModalityLengthSampler(8, lengths, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(80))
    for start in range(0, 80, 8):
        batch = [lengths[i] for i in order[start : start + 8]]
        assert len({length > 0 for length in batch}) == 1
    assert order == list(ModalityLengthSampler(8, lengths, seed=0))
    sampler.set_epoch(1)
    assert order != list(sampler)


def test_freezing(checkpoint):
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    trained = lambda: {name for name, p in model.named_parameters() if p.requires_grad}  # noqa: E731
    freeze(model)
    frozen = {name for name, _ in model.named_parameters()} - trained()
    assert all("vision_tower" in name or "embed_tokens" in name for name in frozen)
    freeze(model, train_embeddings=True)
    assert "model.language_model.embed_tokens.weight" in trained()
    freeze(model, projector_only=True)
    assert trained() == {
        f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }


def test_prefusion_initialisation(checkpoint, tmp_path):
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    make_uneven(model)
    first = model.model.prefusion.layers[0].mlp.up_proj
    untouched = first.weight.clone()
    initialise_prefusion(model, "random")
    assert torch.equal(first.weight, untouched)
    initialise_prefusion(model, "llm")
    for ours, llm in zip(model.model.prefusion.layers, model.model.language_model.layers):
        assert all(torch.equal(value, llm.state_dict()[name]) for name, value in ours.state_dict().items())
    assert not torch.equal(first.weight, untouched)
    model.save_pretrained(tmp_path)
    other = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    initialise_prefusion(other, "file", tmp_path)
    assert torch.equal(other.model.prefusion.layers[0].mlp.up_proj.weight, first.weight)
    with pytest.raises(ValueError, match="file's path"):
        initialise_prefusion(other, "file")
    with pytest.raises(ValueError, match="not from 'best'"):
        initialise_prefusion(other, "best")


@pytest.mark.parametrize("name", ["standard", "high_resolution"])
def test_losses_and_gradients_are_the_authors(name, converted, tmp_path):
    """One training step of the trainer itself on golden/*/train, without its optimizer."""
    model = AutoModelForImageTextToText.from_pretrained(converted(name))
    tensors = load_file(GOLDEN / name / "tensors.safetensors")
    facts = json.loads((GOLDEN / name / "case.json").read_text())
    count = model.config.num_image_tokens

    def expand(values: torch.Tensor, fill: int) -> torch.Tensor:
        place = int((tensors["train.input_ids"][0] == -200).nonzero())
        return torch.cat([values[:, :place], torch.full((1, count), fill), values[:, place + 1 :]], dim=1)

    freeze(model)
    trainer = LlavaMiniTrainer(model=model, args=LlavaMiniTrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    labels = expand(tensors["train.labels"], IGNORED)
    inputs = {
        "input_ids": expand(tensors["train.input_ids"], model.config.image_token_id),
        "labels": labels,
        "pixel_values": tensors["image.images"],
    }
    loss = trainer.training_step(model, inputs, num_items_in_batch=(labels[:, 1:] != IGNORED).sum())
    torch.testing.assert_close(loss, tensors["train.loss"], rtol=1e-4, atol=0)
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    for key, norm in facts["train_gradient_norms"].items():
        ours = [gradients.pop(part, None) for part in rename_key(key)]
        if norm is None:
            assert ours == [None], key
        else:
            assert torch.cat([g.flatten() for g in ours]).norm().item() == pytest.approx(norm, rel=1e-4), key
    assert not gradients


def test_every_step_takes_one_of_the_shares(media, checkpoint, tmp_path, monkeypatch):
    """All of them come up, a resumed run would take the same, and what is learnt differs from training on all."""
    seen = []
    read_budget = front_llava_mini.read_budget
    monkeypatch.setattr(
        front_llava_mini, "read_budget", lambda config, *budget: seen.append(budget[0]) or read_budget(config, *budget)
    )
    options = arguments(media, checkpoint, tmp_path / "shares", "--max_steps", "12", "--save_strategy", "no")
    trainer = main([*options, "--prefusion_shares", "1", "0.5", "0.25"])
    assert set(seen) == {1.0, 0.5, 0.25}
    expected = [random.Random(f"{trainer.args.seed} {step}").choice([1.0, 0.5, 0.25]) for step in range(12)]
    assert [share for share, before in zip(seen, [None, *seen]) if share != before] == [
        share for share, before in zip(expected, [None, *expected]) if share != before
    ]
    with pytest.raises(ValueError, match="stage 1 has no pre-fusion"):
        main([*options, "--stage", "1", "--prefusion_shares", "0.5"])
    with pytest.raises(ValueError, match="`prefusion_shares` are"):
        main([*options, "--prefusion_shares", "0"])


def test_overfits_images_videos_and_text(media, checkpoint, tmp_path):
    """Both stages, as one would run them, down to a checkpoint that the Auto classes load and that answers."""
    caption = [{"image": "a.png", "conversations": turns("<image>\nDescribe.", "red")}]
    (tmp_path / "captions.json").write_text(json.dumps(caption))
    first = arguments(media, checkpoint, tmp_path / "stage1", "--stage", "1", "--max_steps", "3")
    first[first.index("--data") + 1] = str(tmp_path / "captions.json")
    stage1 = main(first)
    assert losses(stage1)[-1] < losses(stage1)[0]
    projector = tmp_path / "stage1" / PROJECTOR_FILE
    assert len(load_file(projector)) == 4

    more = ["--projector", str(projector), "--max_steps", "60", "--projector_learning_rate", "2e-3"]
    more += ["--lr_scheduler_type", "constant", "--eval_data", str(media / "data.json"), "--eval_strategy", "steps"]
    more += ["--eval_steps", "60"]
    trainer = main(arguments(media, checkpoint, tmp_path / "stage2", *more))
    assert losses(trainer)[-1] < 0.05
    assert [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1] < 0.05
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {5e-3, 2e-3}

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "stage2")
    processor = LlavaMiniProcessor.from_pretrained(tmp_path / "stage2")
    for record in RECORDS:
        chat = to_messages(record, media)
        inputs = processor.apply_chat_template(
            chat[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        made = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, eos_token_id=processor.tokenizer.eos_token_id
        )
        answer = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == f" {chat[1]['content']}", record["id"]


def test_stage_1_is_plain_llava(checkpoint, media):
    """All patches in the language model; what it trains is LLaVA-Mini's own projector."""
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    freeze(model, projector_only=True)
    llava = build_llava(model)
    batch = CaptionCollator(make_processor(), llava.config.image_seq_length)([to_messages(RECORDS[0], media)])
    assert (batch["input_ids"] == model.config.image_token_id).sum() == llava.config.image_seq_length == 16
    llava(**batch).loss.backward()
    projector = model.model.multi_modal_projector
    assert all(p.grad is not None for p in projector.parameters())
    assert [name for name, p in model.named_parameters() if p.grad is not None and "projector" not in name] == []


def test_activation_checkpointing_changes_nothing(media, checkpoint, tmp_path):
    runs = [
        main(arguments(media, checkpoint, tmp_path / switch, "--max_steps", "2", "--activation_checkpointing", switch))
        for switch in ("true", "false")
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)


def test_resumes_bit_exactly(media, checkpoint, tmp_path):
    def run(name: str, *more: str) -> LlavaMiniTrainer:
        options = ["--save_strategy", "steps", "--save_steps", "3", "--train_sampling_strategy", "group_by_length"]
        options += ["--per_device_train_batch_size", "2", "--max_steps", "6"]
        return main(arguments(media, checkpoint, tmp_path / name, *options, *more))

    whole = run("run")
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    resumed = run("run", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_lora(media, checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    options = ["--lora_rank", "4", "--lora_alpha", "8", "--max_steps", "6", "--lr_scheduler_type", "constant"]
    trainer = main(arguments(media, checkpoint, tmp_path / "lora", *options))
    assert losses(trainer)[-1] < losses(trainer)[0]
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any("compressor" in name for name in trained) and not any("vision_tower" in name for name in trained)

    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    batch = ConversationCollator(make_processor())([to_messages(record, media) for record in RECORDS])
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, trainer.model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)


def test_qlora(media, checkpoint, tmp_path):
    """4-bit layers in the language model alone: transformers ignores abbreviated names of what to leave out."""
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    options = ["--lora_rank", "4", "--lora_alpha", "8", "--quantize", "true", "--max_steps", "6"]
    trainer = main(arguments(media, checkpoint, tmp_path / "qlora", *options, "--lr_scheduler_type", "constant"))
    assert losses(trainer)[-1] < losses(trainer)[0]
    quantized = {name for name, p in trainer.model.named_parameters() if p.dtype == torch.uint8}
    assert len(quantized) == 7 * 2, "seven matrices in each of two layers"
    assert all("language_model" in name for name in quantized)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(media, checkpoint, tmp_path):
    data = media / "eight.json"
    data.write_text(json.dumps(RECORDS * 2))

    def command(output: Path, accumulation: int) -> list[str]:
        more = ["--gradient_accumulation_steps", str(accumulation), "--max_steps", "4"]
        more += ["--per_device_train_batch_size", "2", "--train_sampling_strategy", "group_by_length"]
        values = arguments(media, checkpoint, output, *more)
        values[values.index("--data") + 1] = str(data)
        return values

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ROOT / "examples" / "training" / "train.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, script, *command(tmp_path / "two", 1)], check=True, env=environment, timeout=300)
    one = main(command(tmp_path / "one", 2))
    two = load_file(tmp_path / "two" / "model.safetensors")
    for name, value in one.model.state_dict().items():
        if name in two:
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_accelerate_configurations():
    """They can't be run without GPUs; at least the classes to shard exist under these names."""
    folder = ROOT / "examples" / "training" / "accelerate"
    fsdp = yaml.safe_load((folder / "fsdp2.yaml").read_text())
    names = set(fsdp["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(","))
    assert names <= {type(module).__name__ for module in LlavaMiniForConditionalGeneration(tiny_config()).modules()}
    assert yaml.safe_load((folder / "zero3.yaml").read_text())["deepspeed_config"]["zero_stage"] == 3


def test_prepare_puts_the_parts_together(checkpoint, tmp_path):
    """A language model and a tower of their own, as anybody has them, to a model that trains."""
    whole = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    processor = make_processor()
    plain = PreTrainedTokenizerFast(
        tokenizer_object=processor.tokenizer.backend_tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    plain.save_pretrained(tmp_path / "llm")
    llm = LlamaForCausalLM(whole.config.text_config)
    llm.save_pretrained(tmp_path / "llm")
    tower = CLIPVisionModel(whole.config.vision_config)
    tower.save_pretrained(tmp_path / "tower")
    CLIPImageProcessor().save_pretrained(tmp_path / "tower")
    options = {
        "language_model": tmp_path / "llm",
        "vision_tower": tmp_path / "tower",
        "chat_template": ROOT / "examples" / "tiny" / "chat_template.jinja",
        "output": tmp_path / "made",
        "compressor_size": 2,
        "resolution_ratio": 2,
        "num_prefusion_layers": 2,
        "compressor_num_attention_heads": 4,
        "prefusion": "llm",
        "dtype": "float32",
    }
    prepare([str(part) for name, value in options.items() for part in (f"--{name}", value)])
    made = AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    assert torch.equal(made.lm_head.weight, llm.lm_head.weight)
    for ours, theirs in zip(made.model.prefusion.layers, llm.model.layers):
        assert torch.equal(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    kept = made.model.vision_tower.state_dict()
    assert len(kept) and all(torch.equal(kept[name], tower.state_dict()[name]) for name in kept)
    collator = ConversationCollator(LlavaMiniProcessor.from_pretrained(tmp_path / "made"))
    picture = {"image": Image.new("RGB", (50, 40), "red"), "conversations": turns("<image>\nColour?", "red")}
    batch = collator([to_messages(picture)])
    assert batch["pixel_values"].shape == (1, 5, 3, SIZE, SIZE)
    assert (batch["input_ids"] == made.config.image_token_id).sum() == 4
    assert made(**batch).loss.isfinite()


def test_load_part_names_what_is_missing(checkpoint, tmp_path):
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    load_part(model, "multi_modal_projector", checkpoint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        load_part(model, "prefusion", tmp_path / "empty")
