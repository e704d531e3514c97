"""
The losses that trainers compute, against the model's own: answers take no part in pre-fusion, whatever a trainer does
with the labels. The small model knows its answers, so a loss with fused answers is thousands of times larger.
"""

import logging

import pytest
import torch
import transformers
from conversation_data import IGNORED, ConversationCollator
from datasets import Dataset
from PIL import Image, ImageDraw
from test_tiny import CHECKPOINT
from transformers import Trainer, TrainingArguments

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


trl = pytest.importorskip("trl", reason="TRL is among the packages of the extra `test`")
# TRL itself calls what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("default::FutureWarning")

ASKED = [("ellipse", "red", "What colour is the circle?"), ("rectangle", "blue", "What colour is the square?")]
# Sums of float32 in another order (padding, chunks of the head).
CLOSE = {"rel": 1e-3, "abs": 1e-6}


def picture(shape: str, colour: str) -> Image.Image:
    image = Image.new("RGB", (84, 84), "white")
    getattr(ImageDraw.Draw(image), shape)((20, 20, 60, 60), fill=colour)
    return image


IMAGES = [picture(shape, colour) for shape, colour, _ in ASKED]


def chat(index: int, answer: str | None = None, image: bool = False) -> list[dict]:
    """Question and answer, as TRL takes them or, with `image`, with the picture in its place."""
    seen = {"type": "image"} | ({"image": IMAGES[index]} if image else {})
    asked = {"role": "user", "content": [seen, {"type": "text", "text": ASKED[index][2]}]}
    return [asked, {"role": "assistant", "content": [{"type": "text", "text": answer or ASKED[index][1]}]}]


@pytest.fixture(scope="module")
def model():
    return LlavaMiniForConditionalGeneration.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def processor():
    return LlavaMiniProcessor.from_pretrained(CHECKPOINT)


def encode(processor, conversations) -> dict:
    """Ids, pixels and labels on the answers, and nothing that says what is fused but the labels."""
    inputs = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    del inputs["text_fusion_mask"]
    is_answer = inputs.pop("assistant_masks").bool()
    return dict(inputs) | {"labels": inputs["input_ids"].masked_fill(~is_answer, IGNORED)}


@pytest.fixture(scope="module")
def own_loss(model, processor):
    inputs = encode(processor, [chat(i, image=True) for i in range(2)])
    with torch.no_grad():
        loss = model(**inputs).loss.item()
        assert model(**inputs, text_fusion_mask=inputs["attention_mask"]).loss.item() > 1000 * loss
    return loss


def log_probability(model, processor, index: int, answer: str) -> tuple[float, float]:
    """Of an answer's tokens, by labels; and the mean entropy at them."""
    inputs = encode(processor, [chat(index, answer, image=True)])
    with torch.no_grad():
        scores = model(**inputs).logits[0, :-1].log_softmax(-1)
    targets = inputs["labels"][0, 1:]
    scores, targets = scores[targets != IGNORED], targets[targets != IGNORED]
    entropy = -(scores.exp() * scores).sum(-1).mean().item()
    return scores.gather(1, targets[:, None]).sum().item(), entropy


def arguments(config_class, folder, **options):
    return config_class(
        output_dir=str(folder), use_cpu=True, report_to=[], bf16=False, per_device_eval_batch_size=2, **options
    )


def shifted_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)


@pytest.mark.parametrize("collate", ["ours", "labels on answers alone"])
@pytest.mark.parametrize("way", ["the model's loss", "a loss of its own", "label smoothing"])
def test_plain_trainer(model, processor, own_loss, tmp_path, way, collate):
    collator = ConversationCollator(processor) if collate == "ours" else lambda rows: encode(processor, rows)
    trainer = Trainer(
        model,
        # So little smoothing that it leaves the loss as it is, but takes the labels out before the model sees them.
        arguments(
            TrainingArguments,
            tmp_path,
            label_smoothing_factor=1e-9 if way == "label smoothing" else 0.0,
            remove_unused_columns=False,
        ),
        data_collator=collator,
        eval_dataset=[chat(i, image=True) for i in range(2)],
        compute_loss_func=shifted_loss if way == "a loss of its own" else None,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own_loss, **CLOSE)


def sft(model, processor, rows, folder, **options):
    rows = Dataset.from_list(rows)
    config = arguments(trl.SFTConfig, folder, max_length=None, **options)
    return trl.SFTTrainer(model, config, train_dataset=rows, eval_dataset=rows, processing_class=processor)


MESSAGES = [{"messages": chat(i), "images": [IMAGES[i]]} for i in range(2)]
PROMPTS = [{"prompt": chat(i)[:1], "completion": chat(i)[1:], "images": [IMAGES[i]]} for i in range(2)]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (MESSAGES, {"assistant_only_loss": True}),
        (PROMPTS, {}),
        (PROMPTS, {"label_smoothing_factor": 1e-9}),
    ],
    ids=["assistant only", "prompt and completion", "smoothed"],
)
def test_trl_sft(model, processor, own_loss, tmp_path, rows, options):
    trainer = sft(model, processor, rows, tmp_path, **options)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own_loss, **CLOSE)


def test_trl_sft_on_whole_messages(model, processor, own_loss, tmp_path):
    """TRL's default also trains on the questions; their labels take nothing away from what is read."""
    trainer = sft(model, processor, MESSAGES, tmp_path)
    batch = trainer.data_collator([dict(row) for row in trainer.eval_dataset])
    answers = batch["labels"].masked_fill(batch["text_fusion_mask"].bool(), IGNORED)
    assert (answers != IGNORED).sum() < (batch["labels"] != IGNORED).sum()
    with torch.no_grad():
        assert model(**{**batch, "labels": answers}).loss.item() == pytest.approx(own_loss, **CLOSE)
        logits = model(**batch).logits
    torch.testing.assert_close(logits, model(**{**batch, "labels": answers}).logits)


def test_trl_takes_a_path(own_loss, processor, tmp_path):
    trainer = sft(str(CHECKPOINT), processor, PROMPTS, tmp_path)
    assert type(trainer.model).__name__ == "LlavaMiniForConditionalGeneration"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own_loss, **CLOSE)


def test_trl_dpo(model, processor, tmp_path):
    """The reference model is loaded by TRL from the checkpoint; both score what generation would."""
    others = ["blue", "red"]
    rows = Dataset.from_list(
        [
            {"prompt": chat(i)[:1], "chosen": chat(i)[1:], "rejected": chat(i, others[i])[1:], "images": [IMAGES[i]]}
            for i in range(2)
        ]
    )
    config = arguments(trl.DPOConfig, tmp_path, max_length=None)
    trainer = trl.DPOTrainer(model, args=config, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    measured = trainer.evaluate()
    for name, answers in (("chosen", [a[1] for a in ASKED]), ("rejected", others)):
        own = sum(log_probability(model, processor, i, answers[i])[0] for i in range(2)) / 2
        assert measured[f"eval_logps/{name}"] == pytest.approx(own, **CLOSE)
    assert measured["eval_loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=1e-4)


def test_trl_grpo(processor, tmp_path):
    """What was generated is scored as it was generated: both answers, and the entropies at them."""
    model = LlavaMiniForConditionalGeneration.from_pretrained(CHECKPOINT)
    made = []

    def reward(completions, **_):
        made.extend(completion[0]["content"].strip() for completion in completions)
        return [0.0] * len(completions)  # no advantage, so no step changes the model

    rows = Dataset.from_list([{"prompt": chat(i)[:1], "images": [IMAGES[i]]} for i in range(2)])
    config = arguments(
        trl.GRPOConfig,
        tmp_path,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=5,
        max_steps=2,
        logging_steps=1,
        shuffle_dataset=False,
    )
    trainer = trl.GRPOTrainer(model, reward_funcs=reward, args=config, train_dataset=rows, processing_class=processor)
    trainer.train()
    assert made == ["red", "red", "blue", "blue"]
    entropies = [row["entropy"] for row in trainer.state.log_history if "entropy" in row]
    own = [log_probability(model.eval(), processor, i, ASKED[i][1])[1] for i in range(2)]
    # TRL's entropy is log Z minus the mean logit, both about 20: float32 leaves some 1e-6 of the difference.
    assert entropies == pytest.approx(own, rel=1e-3, abs=5e-6)


@pytest.fixture
def warned():
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("llava_mini.front_llava_mini")
    transformers.utils.logging.warning_once.cache_clear()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_labels_over_the_whole_text_are_told(model, processor, warned):
    inputs = encode(processor, [chat(i, image=True) for i in range(2)])
    model(**inputs)
    assert warned == []
    no_label = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == processor.image_token_id)
    whole = inputs | {"labels": inputs["input_ids"].masked_fill(no_label, IGNORED)}
    for _ in range(2):
        model(**whole)
    assert len(warned) == 1 and "set `labels` to -100 on all but the answers" in warned[0]
