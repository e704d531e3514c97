# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Big checkpoints: memory, interruptions, disks that are full, and the tools that make and measure them."""

import gc
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from authors_layout import CONFIG, all_tensors, copy_golden, read_weights, write_checkpoint, write_weights
from transformers import AutoModelForImageTextToText, AutoTokenizer

from llava_mini.configuration_llava_mini import DEFAULT_VISION_CONFIG
from llava_mini.conversion.command import convert, main
from llava_mini.conversion.mapping.model_layout import expected_shapes
from llava_mini.conversion.measuring import make_random_checkpoint, measure_conversion
from llava_mini.conversion.measuring.make_random_checkpoint import make_checkpoint, scaled_config
from llava_mini.conversion.reading import checkpoint_io
from llava_mini.conversion.reading.checkpoint_io import IN_PROGRESS, read_checkpoint
from llava_mini.conversion.writing.to_original import to_original


GOLDEN = Path(__file__).parent / "golden"
CONVERSION = Path(__file__).parents[1] / "conversion"
MEGABYTE = 2**20


def peak_memory():
    """The most memory this process has had since `forget_peak_memory`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def forget_peak_memory():
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process forget its peak")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_memory_does_not_grow_with_the_model(tmp_path, kind):
    config = CONFIG | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14}
    source = write_checkpoint(tmp_path / "input", config, all_tensors(config), kind=kind, shards=2)
    size = sum(tensor.nbytes for tensor in read_checkpoint(source).values())
    convert(GOLDEN / "standard" / "original", tmp_path / "tiny")  # imports and caches, whatever the size
    gc.collect()
    forget_peak_memory()
    before = peak_memory()
    convert(source, tmp_path / "output", max_shard_size=10 * MEGABYTE, verify=True)
    # An output shard is 10 MB and a tensor 4 MB; the rest is allocators' slack, far from the model's 230 MB.
    assert size > 200 * MEGABYTE
    assert peak_memory() - before < 60 * MEGABYTE


KILL_AT_SECOND_SHARD = """
import os
import sys
sys.path.insert(0, sys.argv[3])
from llava_mini.conversion.reading import checkpoint_io
from llava_mini.conversion.command import convert
save_file, count = checkpoint_io.save_file, 0
def save_or_die(*args, **kwargs):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), 9)
    save_file(*args, **kwargs)
checkpoint_io.save_file = save_or_die
convert(sys.argv[1], sys.argv[2], max_shard_size=200_000)
"""


@pytest.mark.slow
def test_killed_run_leaves_nothing_that_loads_and_the_next_one_cleans_up(tmp_path):
    source, output = GOLDEN / "standard" / "original", tmp_path / "output"
    arguments = [str(path) for path in (source, output, CONVERSION)]
    run = subprocess.run([sys.executable, "-c", KILL_AT_SECOND_SHARD, *arguments], capture_output=True, text=True)
    assert run.returncode == -9, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output.incomplete"]
    assert list((tmp_path / "output.incomplete").glob("*.safetensors"))
    with pytest.raises((OSError, ValueError)):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "output.incomplete")
    convert(source, output)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert not (output / IN_PROGRESS).exists()
    AutoModelForImageTextToText.from_pretrained(output)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no"), RuntimeError("no")])
def test_interrupted_run_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch, error):
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    monkeypatch.setattr(checkpoint_io, "save_file", lambda *args, **kwargs: (_ for _ in ()).throw(error))
    with pytest.raises(error if isinstance(error, type) else type(error)):
        convert(GOLDEN / "standard" / "original", output, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_foreign_directory_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "output.incomplete").mkdir()
    (tmp_path / "output.incomplete" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="output.incomplete is in the way"):
        convert(GOLDEN / "standard" / "original", tmp_path / "output")
    assert (tmp_path / "output.incomplete" / "notes.txt").exists()


def test_disk_space_is_checked_before_anything_is_written(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert main([str(GOLDEN / "standard" / "original"), str(tmp_path / "deep" / "output")]) == 2
    assert "has 0.0 GB free, but the output needs 0.1 GB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_progress_reaches_the_end_and_is_for_the_command_line(tmp_path, capsys):
    source, output = GOLDEN / "standard" / "original", tmp_path / "not" / "there" / "yet"
    convert(source, output)
    assert "Weights" not in capsys.readouterr().err
    assert not (output / IN_PROGRESS).exists() and not output.with_name("yet.incomplete").exists()
    assert main([str(source), str(output), "--overwrite", "--max-shard-size", "200KB"]) == 0
    assert "Weights: 100%" in capsys.readouterr().err
    assert len(list(output.glob("*.safetensors"))) > 4


def test_disk_that_fills_up_meanwhile(tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # a file any larger is refused by the system
    try:
        code = main([str(GOLDEN / "standard" / "original"), str(tmp_path / "output")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "model.safetensors can't be written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_disk_that_fails_meanwhile(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint_io, "write_json", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    assert main([str(GOLDEN / "standard" / "original"), str(tmp_path / "output"), "--max-shard-size", "200KB"]) == 2
    assert "error: [Errno 5] I/O error" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def write_old_bin(path):
    torch.save({"lm_head.weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)


def write_code(path):
    torch.save({"lm_head.weight": subprocess.Popen}, path)


BAD_BIN = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "can't be read .*truncated"),
    "empty": (lambda path: path.write_bytes(b""), "can't be read .*truncated"),
    "older than 1.6": (write_old_bin, "can't be read .*older than PyTorch 1.6"),
    "holds code": (write_code, "can't be read .*no weights file"),
    "holds a number": (lambda path: torch.save({"lm_head.weight": 3}, path), "something other than tensors"),
    "holds a list": (lambda path: torch.save([torch.zeros(3)], path), "something other than tensors"),
    "holds nothing": (lambda path: torch.save({}, path), "holds no tensors"),
}


@pytest.mark.parametrize("name", BAD_BIN)
def test_bad_bin_files(tmp_path, name, capsys):
    spoil, message = BAD_BIN[name]
    original = copy_golden("high_resolution", tmp_path)
    spoil(original / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        convert(original, tmp_path / "output")
    assert main([str(original), str(tmp_path / "output")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "output").exists()


def test_index_and_shards_have_to_agree(tmp_path):
    original = copy_golden("standard", tmp_path)
    path = original / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lists 1 tensor.*'model.extra'"):
        convert(original, tmp_path / "output")
    for nothing in ({}, {"weight_map": {}}, {"weight_map": ["model.norm.weight"]}, {"weight_map": {"a": 1}}):
        path.write_text(json.dumps(nothing))
        with pytest.raises(ValueError, match="has no `weight_map`"):
            convert(original, tmp_path / "output")


def test_packed_projection_with_a_row_too_many(tmp_path):
    original = copy_golden("standard", tmp_path)
    tensors = read_weights(original)
    for path in original.glob("model*"):
        path.unlink()
    name = "model.compressor.attn.in_proj_bias"
    write_weights(original, tensors | {name: torch.cat([tensors[name], torch.zeros(1)])})
    with pytest.raises(ValueError, match="'model.compressor.v_proj.bias': .33,. instead of .32,."):
        convert(original, tmp_path / "output")


def test_made_up_checkpoint_converts_and_goes_back(tmp_path):
    make_checkpoint(tmp_path / "input", scale=0.01, max_shard_size="10MB")
    report = convert(tmp_path / "input", tmp_path / "output", verify=True)
    assert len(report.verified) == 3
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "output")
    assert model.dtype == torch.bfloat16 and model.config.text_config.rope_parameters["rope_type"] == "llama3"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "output")
    assert tokenizer("!", add_special_tokens=False).input_ids == [0]
    assert "reserved_special_token" in report.filled["<image>"]
    to_original(tmp_path / "output", tmp_path / "back")
    assert not any("rows" in name for name in report.filled)
    before, after = read_weights(tmp_path / "input"), read_weights(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_made_up_weights_are_those_of_a_network(tmp_path):
    arguments = [str(tmp_path / "input"), "--scale", "0.01"]
    assert make_random_checkpoint.main(arguments) == 0
    assert make_random_checkpoint.main(arguments) == 2  # not empty
    assert make_random_checkpoint.main([*arguments, "--overwrite"]) == 0
    weights = read_weights(tmp_path / "input")
    query, key = (weights[f"model.layers.0.self_attn.{part}_proj.weight"].float() for part in "qk")
    assert not torch.equal(query[: len(key)], key)
    assert 0.018 < query.std() < 0.022
    assert 0.9 < weights["model.norm.weight"].min() < weights["model.norm.weight"].max() < 1.1
    settings = json.loads((tmp_path / "input" / "generation_config.json").read_text())
    assert settings == {
        "bos_token_id": 1280,
        "eos_token_id": [1289, 1288, 1281],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "input")
    assert tokenizer.convert_ids_to_tokens(1289) == tokenizer.eos_token == "<|eot_id|>"


def test_made_up_checkpoint_looks_for_space(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=18 * 10**9))
    assert make_random_checkpoint.main([str(tmp_path / "output")]) == 2
    assert "has 18.0 GB free, but the output needs 18.5 GB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_true_size_is_the_releases():
    config = scaled_config(1.0, torch.bfloat16)
    count = sum(torch.Size(shape).numel() for shape in expected_shapes(config).values())
    # Llama 3.1 8B, four more of its layers, CLIP ViT-L/14-336's vision half; the rest is compressor and projector.
    parts = 8_030_261_248 + 4 * 218_112_000 + 303_507_456
    assert 0 < count - parts < 30_000_000
    text = config.text_config
    assert text.bos_token_id == 128000 and text.eos_token_id == [128009, 128008, 128001]
    assert (text.num_attention_heads, text.num_key_value_heads, text.intermediate_size) == (32, 8, 14336)
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"], text.rope_parameters["factor"]) == (
        1e-5,
        500000.0,
        8,
    )
    vision = config.vision_config
    assert {name: getattr(vision, name) for name in DEFAULT_VISION_CONFIG} == DEFAULT_VISION_CONFIG


@pytest.mark.slow
def test_measuring(tmp_path, capfd):
    source = GOLDEN / "standard" / "original"
    assert measure_conversion.main([str(source), str(tmp_path / "output"), "--verify"]) == 0
    printed = capfd.readouterr().out
    assert "verified: " in printed
    numbers = json.loads(printed[printed.index("{") :])
    assert 0.1 < numbers["peak_memory_gib"] < 3
    assert numbers["times_the_copy"] > 1
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert measure_conversion.main([str(source), str(tmp_path / "output")]) == 2
    assert "failed with exit code 2" in capfd.readouterr().err
    assert measure_conversion.main([str(tmp_path), str(tmp_path / "other")]) == 2
    assert "has no weight files" in capfd.readouterr().err
