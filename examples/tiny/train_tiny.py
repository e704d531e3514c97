"""
Trains the small model: phases of `recipe.json` one after another, each from the last one's weights; with `--grow` the
phases of things, from the end of the others.

    python examples/tiny/train_tiny.py --tower runs/tower --output runs/tiny
    python examples/tiny/train_tiny.py --grow runs/tiny/"sizes and counts" --tower runs/of_things --output runs/tiny
    python examples/tiny/train_tiny.py --start runs/tiny/"sizes and counts" --recipe examples/tiny/recipe_budget.json \\
        --output runs/budget     # goes on from a trained one
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from build import build_model, build_processor
from grow import grow
from look_up import FirstLook, enlarge_words, write_dictionary
from muon import MuonWithAdamW, split_parameters
from packing import IGNORED, Mix, PackedBatches
from picture_scenes import Library
from pictures import DEFAULT_CACHE, TRAINING_STYLES
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.outputs_llava_mini import LlavaMiniVisionOutput


sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from llava_mini_trainer import LlavaMiniTrainer, LlavaMiniTrainingArguments  # noqa: E402
from model_setup import freeze  # noqa: E402


def repeat_units(output: LlavaMiniVisionOutput, sizes: list[int], count: int) -> LlavaMiniVisionOutput:
    """The encoded pictures or clips, each `count` times in a row: what `count` questions about each read."""
    starts = torch.tensor([0, *sizes]).cumsum(0)
    units = [torch.arange(start, start + size).repeat(count) for start, size in zip(starts, sizes)]
    units = torch.cat(units)
    key_values = tuple((keys[units], values[units]) for keys, values in output.prefusion_key_values)
    tokens = [tokens for tokens in output.pooler_output for _ in range(count)]
    dropped = None if output.prefusion_dropped is None else output.prefusion_dropped[units]
    return LlavaMiniVisionOutput(pooler_output=tokens, prefusion_key_values=key_values, prefusion_dropped=dropped)


class TinyTrainer(LlavaMiniTrainer):
    """
    What differs from the training of large models: Muon, several questions a picture, the loss averaged over answers
    (else captions would outweigh one-word answers), and accuracy by question type on the way.
    """

    def __init__(self, *args, learning_rates: tuple[float, float], **kwargs):
        super().__init__(*args, **kwargs)
        self.learning_rates = learning_rates
        self.accuracy: dict[str, float] = {}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Muon and AdamW, with their own learning rates."""
        if self.optimizer is None:
            lr, muon_lr = self.learning_rates
            self.optimizer = MuonWithAdamW(split_parameters(self.model, lr, muon_lr))
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict, **kwargs) -> torch.Tensor:
        """Mean over answers of the mean over an answer's tokens."""
        if "attention_targets" in inputs:
            return self.look_up(model, inputs)
        return self.answer(model, inputs)

    def look_up(self, model: nn.Module, inputs: dict) -> torch.Tensor:
        """The loss of lists of names: of the answers, and of what the names attend to."""
        targets = inputs.pop("attention_targets")
        rows, tokens = targets.any(-1).nonzero(as_tuple=True)
        is_placeholder = inputs["input_ids"] == model.config.image_token_id
        positions = tokens - is_placeholder.cumsum(1)[rows, tokens]  # placeholders do not read
        with FirstLook(model.model.prefusion) as look:
            loss = self.answer(model, inputs | {"prefusion_patches": None})
            return loss + look.attention_loss(rows, positions, targets[rows, tokens])

    def answer(self, model: nn.Module, inputs: dict) -> torch.Tensor:
        """The loss of the answers."""
        types, labels = inputs.pop("types"), inputs.pop("labels")
        if not inputs["text_fusion_mask"].any():
            types = [f"{kind}, token only" for kind in types]
        hidden_states = self.read(model, inputs, len(labels))
        labels = labels[:, -hidden_states.shape[1] :]
        is_answer = labels[:, 1:] != IGNORED
        # The head runs on answers alone.
        logits = model.lm_head(hidden_states[:, :-1][is_answer])
        targets = labels[:, 1:][is_answer]
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        lengths = is_answer.sum(1)
        loss = (losses / lengths.repeat_interleave(lengths)).sum() / len(lengths)
        right = (logits.argmax(-1) == targets).split(lengths.tolist())
        self.record(types, [bool(answer.all()) for answer in right])
        return loss

    def read(self, model: nn.Module, inputs: dict, num_rows: int) -> torch.Tensor:
        """The language model's last hidden states `(rows, length, D)`, at least from the questions on."""
        inputs["mm_encoder_outputs"] = self.encode(model, inputs, num_rows)
        return model.model(**inputs).last_hidden_state

    def encode(self, model: nn.Module, inputs: dict, num_rows: int) -> dict[str, LlavaMiniVisionOutput]:
        """Takes the pixels out of `inputs`, encodes each picture or clip once and repeats it for its questions."""
        options = {"prefusion_patches": inputs.pop("prefusion_patches", None), "return_dict": True}
        if "pixel_values" in inputs:
            pixels = inputs.pop("pixel_values")
            output, sizes = model.get_image_features(pixels, **options), [1] * len(pixels)
            return {"image": repeat_units(output, sizes, num_rows // len(sizes))}
        sizes = inputs["video_num_frames"].tolist()
        output = model.get_video_features(inputs.pop("pixel_values_videos"), inputs.pop("video_num_frames"), **options)
        return {"video": repeat_units(output, sizes, num_rows // len(sizes))}

    def record(self, types: list[str], correct: list[bool]):
        """Running accuracy by type; pictures are new in every step, so it is measured on unseen ones."""
        for kind, is_right in zip(types, correct):
            self.accuracy[kind] = 0.995 * self.accuracy.get(kind, 0.0) + 0.005 * is_right

    def log(self, logs: dict[str, float], *args, **kwargs):
        """Adds the accuracies."""
        super().log(logs | {name: round(value, 3) for name, value in sorted(self.accuracy.items())}, *args, **kwargs)


class PrintLogs(TrainerCallback):
    """One JSON line a logging step."""

    def __init__(self):
        self.started = time.time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        print(json.dumps({"step": state.global_step, "seconds": round(time.time() - self.started), **logs}), flush=True)


class StopAfter(TrainerCallback):
    """Ends a phase before its learning rate has come down, as when one sees that another mix is needed."""

    def __init__(self, steps: int | None):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.steps


def take_batch(batches: list[dict]) -> dict:
    """The one batch that `PackedBatches` made whole. No lambda: processes that are not forked get it pickled."""
    return batches[0]


def run_phase(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    phase: dict,
    output: Path,
    seed: int,
    library: Library | None = None,
    trainer_class: type[TinyTrainer] = TinyTrainer,
    num_image_tokens: int | None = None,
):
    """
    Trains through one phase of the recipe and saves the result in `output`; `num_image_tokens` as `PackedBatches` takes
    them.
    """
    if "word_size" in phase:
        enlarge_words(model, processor, library, phase["word_size"])
    # Stage 2, but the embedding table trains too: there is no language model to start from.
    freeze(model, train_embeddings=True)
    arguments = LlavaMiniTrainingArguments(
        output_dir=output / "trainer",
        max_steps=phase["steps"],
        per_device_train_batch_size=1,
        lr_scheduler_type="linear",
        warmup_steps=phase.get("warmup", 50),
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=250,
        save_total_limit=1,
        report_to=[],
        use_cpu=True,
        dataloader_num_workers=1,  # draws meanwhile
        disable_tqdm=True,
        seed=seed,
        prefusion_shares=phase.get("prefusion_shares"),
    )
    data = PackedBatches(processor, Mix(**phase["mix"]), f"train {seed} {phase['name']}", library, num_image_tokens)
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=take_batch,
        callbacks=[PrintLogs(), StopAfter(phase.get("stop_after"))],
        learning_rates=(phase["lr"], phase["muon_lr"]),
    )
    trainer.train(resume_from_checkpoint=any((output / "trainer").glob("checkpoint-*")) or None)
    model.save_pretrained(output)
    processor.save_pretrained(output)


def split_recipe(phases: list[dict]) -> tuple[list[dict], list[dict]]:
    """The phases of drawn pictures, and those from the one with `"grow": true` on, of things as well."""
    first = next((i for i, phase in enumerate(phases) if phase.get("grow")), len(phases))
    return phases[:first], phases[first:]


def run_phases(model, processor, phases: list[dict], output: Path, seed: int, library: Library | None = None):
    """One phase after another; what is finished is not done again."""
    for phase in phases:
        folder = output / phase["name"]
        if (folder / "config.json").exists():
            model = LlavaMiniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        else:
            run_phase(model, processor, phase, folder, seed, library)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, help="what pretrain_tower.py saved, or with --grow teach_tower.py")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--start", type=Path, help="go on from this checkpoint as it is, with the recipe")
    start.add_argument("--grow", type=Path, help="go on from this checkpoint, grown, with the phases of things")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="of pictures.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipe.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    if (arguments.tower is None) != (arguments.start is not None):
        parser.error("give --tower, or else --start")
    of_shapes, of_things = split_recipe(json.loads(arguments.recipe.read_text()))
    if arguments.grow:
        model, processor = grow(arguments.grow, arguments.tower)
        library = Library.load(arguments.cache, TRAINING_STYLES)
        accuracy = write_dictionary(model, processor, library)
        print(json.dumps({"names told apart by patches that show them": round(accuracy, 3)}), flush=True)
        run_phases(model, processor, of_things, arguments.output, arguments.seed, library)
        return
    if arguments.start:
        processor = LlavaMiniProcessor.from_pretrained(arguments.start)
        model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.start, dtype=torch.float32)
    else:
        processor = build_processor()
        model = build_model(processor, arguments.tower)
    run_phases(model, processor, of_shapes, arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
