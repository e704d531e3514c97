"""
Trains LLaVA-Mini in two stages on LLaVA-format conversations, with transformers' Trainer.

    python examples/training/train.py --model runs/untrained --stage 1 --data captions.json --media images \\
        --output_dir runs/stage1 --learning_rate 1e-3 ...
    python examples/training/train.py --model runs/untrained --projector runs/stage1/projector.safetensors --stage 2 \\
        --data mix.json --media images --output_dir runs/stage2 --learning_rate 1e-4 --projector_learning_rate 1e-5 ...

All of transformers' TrainingArguments are options too. The scripts beside this file hold the paper's numbers.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from conversation_data import CaptionCollator, ConversationCollator, ConversationDataset
from llava_mini_trainer import LlavaMiniTrainer, LlavaMiniTrainingArguments
from model_setup import add_lora, build_llava, freeze, load_part, quantization
from safetensors.torch import save_file
from transformers import HfArgumentParser, PreTrainedModel, set_seed

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


PROJECTOR_FILE = "projector.safetensors"


@dataclass
class ModelArguments:
    """What is trained."""

    model: str = field(metadata={"help": "LLaVA-Mini checkpoint: from prepare.py, converted, or trained before."})
    stage: int = field(default=2, metadata={"choices": [1, 2], "help": "1: projector only, 2: all but the tower."})
    projector: str | None = field(default=None, metadata={"help": "Projector of stage 1 (file or checkpoint)."})
    train_embeddings: bool = field(default=False, metadata={"help": "The authors' embedding table gets no gradient."})
    lora_rank: int | None = field(default=None, metadata={"help": "LoRA on the language model, through PEFT."})
    lora_alpha: int = field(default=256)
    quantize: bool = field(default=False, metadata={"help": "4-bit language model under LoRA (QLoRA)."})


@dataclass
class DataArguments:
    """What it is trained on."""

    data: list[str] = field(metadata={"help": "JSON files in LLaVA's format."})
    weights: list[float] | None = field(default=None, metadata={"help": "How often each file occurs in an epoch."})
    media: str | None = field(default=None, metadata={"help": "Folder that image and video paths are relative to."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Files for the evaluation loss."})
    max_length: int = field(default=4096, metadata={"help": "Tokens after which a conversation is cut."})


def load_model(arguments: ModelArguments, training: LlavaMiniTrainingArguments) -> PreTrainedModel:
    """The model of the stage, frozen and adapted as the options say."""
    dtype = torch.bfloat16 if training.bf16 and arguments.lora_rank else torch.float32
    model = LlavaMiniForConditionalGeneration.from_pretrained(
        arguments.model, dtype=dtype, quantization_config=quantization(dtype) if arguments.quantize else None
    )
    if arguments.projector:
        load_part(model, "multi_modal_projector", arguments.projector)
    freeze(model, arguments.train_embeddings, projector_only=arguments.stage == 1)
    if arguments.stage == 1:
        return build_llava(model)
    if arguments.lora_rank:
        return add_lora(model, arguments.lora_rank, arguments.lora_alpha)
    return model


def save(trainer: LlavaMiniTrainer, processor: LlavaMiniProcessor, arguments: ModelArguments, output: Path):
    """Stage 1 leaves its projector, stage 2 a checkpoint that AutoModel loads (with LoRA: the adapter to merge)."""
    if arguments.stage == 2:
        trainer.save_model(str(output))
        if trainer.is_world_process_zero():
            processor.save_pretrained(output)
        return
    trainer.check_weights()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        projector = {name: value.contiguous() for name, value in weights.items() if "multi_modal_projector" in name}
        save_file(projector, output / PROJECTOR_FILE)


def load_data(
    arguments: DataArguments, training: LlavaMiniTrainingArguments
) -> tuple[ConversationDataset, ConversationDataset | None]:
    """The records to train and to evaluate on, all of them looked at once, by the first process."""
    files, media = (arguments.data, arguments.weights), arguments.media
    train = ConversationDataset.from_files(*files, media_folder=media, seed=training.seed)
    evaluation = (
        ConversationDataset.from_files(arguments.eval_data, media_folder=media) if arguments.eval_data else None
    )
    for dataset in (train, evaluation):
        if dataset is not None and training.process_index == 0:
            dataset.check(show_progress=not training.disable_tqdm)
    return train, evaluation


def main(argv: list[str] | None = None) -> LlavaMiniTrainer:
    """Runs one stage and returns the trainer."""
    parser = HfArgumentParser((ModelArguments, DataArguments, LlavaMiniTrainingArguments))
    model_arguments, data_arguments, training = parser.parse_args_into_dataclasses(argv)
    if model_arguments.quantize and not model_arguments.lora_rank:
        raise ValueError("`--quantize` freezes the language model at 4 bits: give `--lora_rank` too.")
    if training.prefusion_shares and model_arguments.stage == 1:
        raise ValueError("`--prefusion_shares` is for stage 2: stage 1 has no pre-fusion.")
    set_seed(training.seed)
    processor = LlavaMiniProcessor.from_pretrained(model_arguments.model)
    train_dataset, eval_dataset = load_data(data_arguments, training)
    model = load_model(model_arguments, training)
    if model_arguments.stage == 1:
        collator = CaptionCollator(processor, model.config.image_seq_length, data_arguments.max_length)
    else:
        collator = ConversationCollator(processor, data_arguments.max_length)
    trainer = LlavaMiniTrainer(
        model=model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    save(trainer, processor, model_arguments, Path(training.output_dir))
    return trainer


def run() -> int:
    """The command: what can't be trained, or diverges, ends in one sentence and an exit code other than 0."""
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        # Workers of the data loader put a traceback before the sentence.
        print(f"train.py: {str(error).strip().splitlines()[-1].removeprefix('ValueError: ')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
