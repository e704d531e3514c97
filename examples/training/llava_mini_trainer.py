"""transformers' Trainer with what LLaVA's recipe adds: a rate for the projector, batches of similar samples."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from conversation_data import IGNORED
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from llava_mini.versions_llava_mini import CHECKPOINTING_ARGUMENT


@dataclass
class LlavaMiniTrainingArguments(TrainingArguments):
    """
    Args:
        projector_learning_rate (`float`, *optional*): of the projector (the paper's stage 2: 1e-5); by default as of
            everything else.
        prefusion_shares (`list[float]`, *optional*): shares of the patches that pre-fusion reads, in (0, 1]; every
            step takes one of them at random, so that the model answers at each (stage 2).
        activation_checkpointing (`bool`, *optional*): as in transformers since 5.24, on every version.
    """

    projector_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the projector."})
    prefusion_shares: list[float] | None = field(
        default=None, metadata={"help": "Shares of the patches in pre-fusion, of which every step takes one."}
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Compute activations again in the backward pass, to save memory."}
    )

    def __post_init__(self):
        if self.activation_checkpointing is not None:
            setattr(self, CHECKPOINTING_ARGUMENT, self.activation_checkpointing)
        super().__post_init__()
        if self.prefusion_shares is not None and not all(0 < share <= 1 for share in self.prefusion_shares):
            raise ValueError(f"`prefusion_shares` are {self.prefusion_shares}, but have to be above 0 and at most 1.")
        # Batches hold pixels and labels that the model's signature may hide behind PEFT.
        self.remove_unused_columns = False


class StopAtNoNumber(TrainerCallback):
    """Ends a run whose gradients are no numbers before they reach the weights."""

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if args.fp16:  # its scaler skips such steps, and goes on with a smaller scale
            return
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not nn.utils.get_total_norm(gradients).isfinite():
            raise FloatingPointError(_diverged(state.global_step, "the gradients are"))


def _diverged(step: int, what: str) -> str:
    return (
        f"Stopped after step {step}: {what} no finite numbers any more. Nothing was saved since the last checkpoint; "
        "lower the learning rate, or look at the data of this step."
    )


class LlavaMiniTrainer(Trainer):
    """
    `Trainer` for a `ConversationDataset` and `LlavaMiniTrainingArguments`. It ends with a FloatingPointError when loss,
    gradients or weights are no numbers, and saves nothing then.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(StopAtNoNumber())

    def training_step(self, model: nn.Module, inputs: dict, *args, **kwargs) -> torch.Tensor:
        """As in the base class, whose own filter would log such a loss as the mean of the others."""
        if self.args.prefusion_shares:
            # The same in every process and every batch of a step, also after resuming.
            step = random.Random(f"{self.args.seed} {self.state.global_step}")
            inputs = inputs | {"prefusion_patches": step.choice(self.args.prefusion_shares)}
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not loss.isfinite():
            if "labels" in inputs and not (inputs["labels"] != IGNORED).any():
                raise ValueError("A batch has no answer within `max_length` tokens: raise it or leave the records out.")
            raise FloatingPointError(_diverged(self.state.global_step, "the loss is"))
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in the base class, but for weights that are no numbers."""
        self.check_weights()
        super().save_model(output_dir, _internal_call)

    def check_weights(self):
        """Raises a FloatingPointError when the last step has ruined the weights."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(_diverged(self.state.global_step, "the weights are"))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in the base class, with the projector's parameters in groups of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rate = self.args.projector_learning_rate
        if is_new and rate is not None:
            named = (self.model if model is None else model).named_parameters()
            split_groups(optimizer, {id(p) for name, p in named if "multi_modal_projector" in name}, rate)
        return optimizer

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # The same order for any number of processes that make up one batch.
        arguments = self.args
        whole = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        return ModalityLengthSampler(whole, dataset.lengths(), seed)


def split_groups(optimizer: torch.optim.Optimizer, chosen: set[int], rate: float):
    """Moves the parameters with these ids into groups with another learning rate."""
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            optimizer.add_param_group({**group, "params": moved, "lr": rate})


class ModalityLengthSampler(torch.utils.data.Sampler):
    """
    Batches of similar length, and of one modality, in random order. The order depends on seed and epoch alone, so that
    a resumed run goes on with the samples that it would have met.

    Args:
        batch_size (`int`): samples of one optimizer step.
        lengths (`list[int]`): negative for text without pictures.
        seed (`int`).
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        self.batch_size, self.lengths, self.seed = batch_size, lengths, seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """Called by accelerate's data loader at the start of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        batches, rest = [], []
        for is_visual in (True, False):
            indices = [i for i, length in enumerate(self.lengths) if (length > 0) == is_visual]
            if not indices:
                continue
            lengths = [abs(self.lengths[i]) for i in indices]
            ordered = [indices[i] for i in LengthGroupedSampler(self.batch_size, lengths=lengths, generator=generator)]
            whole = len(ordered) // self.batch_size * self.batch_size
            batches += [ordered[i : i + self.batch_size] for i in range(0, whole, self.batch_size)]
            rest += ordered[whole:]
        # What fills no batch comes last, of both modalities.
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[i]
        yield from rest
