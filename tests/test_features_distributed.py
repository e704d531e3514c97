"""Tensor parallelism and FSDP2 with two processes: the same numbers as one process. This file is also their program."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import collate, make_rows, tiny_model
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llava_mini import LlavaMiniForConditionalGeneration


NUM_PROCESSES = 2
# Sums over two halves instead of one whole, in float32.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
LEARNING_RATE = 0.1


def make_inputs(model):
    inputs = collate(make_rows(model.config, ["one image", "text only", "two images", "one video"]))
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    return inputs, labels


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_model(compressor_size=2).save_pretrained(path)
    return path


def run_processes(name, directory, output):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_PROCESSES}"]
    finished = subprocess.run(
        [*command, __file__, name, str(directory), str(output)], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(output, weights_only=True)


@pytest.mark.slow
def test_tensor_parallel_forward_and_generation(directory, tmp_path):
    made = run_processes("tensor_parallel", directory, tmp_path / "made.pt")
    # The language model and pre-fusion are cut along heads and the MLP, the vision part is whole in each process.
    sharded = {name.removeprefix("model.").split(".")[0] for name in made["sharded"]}
    assert sharded == {"language_model", "prefusion", "lm_head"}
    for layer in ("self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        assert f"model.prefusion.layers.1.{layer}.weight" in made["sharded"]
    model = LlavaMiniForConditionalGeneration.from_pretrained(directory).eval()
    inputs, _ = make_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(made["logits"], model(**inputs).logits, **TOLERANCE)
    assert torch.equal(made["generated"], model.generate(**inputs, do_sample=False, max_new_tokens=4))


def tensor_parallel(directory: Path) -> dict:
    model = LlavaMiniForConditionalGeneration.from_pretrained(directory, tp_plan="auto").eval()
    whole = LlavaMiniForConditionalGeneration.from_pretrained(directory).state_dict()
    inputs, _ = make_inputs(model)
    with torch.no_grad():
        logits = model(**inputs).logits
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    local = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    sharded = [name for name, p in local.items() if p.shape != whole[name].shape]
    return {"logits": logits, "generated": generated, "sharded": sharded}


@pytest.mark.slow
def test_fsdp2_training_step(directory, tmp_path):
    made = run_processes("fsdp2", directory, tmp_path / "made.pt")
    model = LlavaMiniForConditionalGeneration.from_pretrained(directory)
    inputs, labels = make_inputs(model)
    loss = train_step(model, inputs, labels)
    torch.testing.assert_close(made["loss"], loss, **TOLERANCE)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(made["parameters"][name], parameter.data, **TOLERANCE)
    assert made["sharded"] == len(list(model.parameters()))


def fsdp2(directory: Path) -> dict:
    model = LlavaMiniForConditionalGeneration.from_pretrained(directory)
    inputs, labels = make_inputs(model)
    mesh = distributed.init_device_mesh("cpu", (NUM_PROCESSES,))
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = sum(isinstance(parameter, DTensor) for parameter in model.parameters())
    loss = train_step(model, inputs, labels)
    parameters = {name: parameter.data.full_tensor() for name, parameter in model.named_parameters()}
    return {"loss": loss, "parameters": parameters, "sharded": sharded}


def train_step(model, inputs, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def main(name: str, directory: str, output: str):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    made = {"tensor_parallel": tensor_parallel, "fsdp2": fsdp2}[name](Path(directory))
    if distributed.get_rank() == 0:
        torch.save(made, output)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
