"""On vLLM greedy ids are those of transformers' `generate`, in float32, whatever the engine does with its batches."""

import pytest


pytest.importorskip("vllm.engine", reason="vLLM is not installed")

import json
import shutil
from pathlib import Path

import torch
from asking import ask, check_equal, engine, expected, make_chats, reference, user
from safetensors.torch import load_file, save_file
from tiny import make_uneven

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.front_llava_mini import LlavaMiniFront


CHECKPOINTS = ("standard", "high_resolution", "tiny")
# So small that prompts come in pieces, and pictures' prompts are computed once and read in pieces.
PIECES = {"max_num_batched_tokens": 64, "block_size": 32, "enable_prefix_caching": True, "max_num_seqs": 4}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_whole_prompts(checkpoints, name):
    with engine(checkpoints(name), enable_prefix_caching=False) as llm:
        check_equal(ask(llm, make_chats()), expected(checkpoints(name)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_chunked_prefill_and_a_warm_prefix_cache(checkpoints, name):
    with engine(checkpoints(name), **PIECES) as llm:
        check_equal(ask(llm, make_chats()), expected(checkpoints(name)))
        again = ask(llm, make_chats())
        check_equal(again, expected(checkpoints(name)))
        assert any(output.num_cached_tokens for output in again), "the prefix cache was not used"


def test_the_authors_checkpoint_as_it_is(checkpoints):
    with engine(checkpoints("original/standard")) as llm:
        check_equal(ask(llm, make_chats()), expected(checkpoints("standard")))


def test_two_ranks(checkpoints, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with engine(checkpoints("tiny"), tensor_parallel_size=2) as llm:
        check_equal(ask(llm, make_chats()), expected(checkpoints("tiny")))


def test_compiled(checkpoints):
    """vLLM's default: its language model is compiled, our front is not."""
    with engine(checkpoints("tiny"), enforce_eager=False) as llm:
        check_equal(ask(llm, make_chats()), expected(checkpoints("tiny")))


def test_quantised_language_model(checkpoints, tmp_path):
    """
    Eight bits in the form of compressed-tensors, which vLLM has kernels for on CPUs, with activations in bfloat16: the
    front keeps its numbers, and no more answers change than bfloat16 and eight bits can (the small model is sure).
    """
    checkpoint = quantise(checkpoints("tiny"), tmp_path / "checkpoint")
    with engine(checkpoint, dtype="bfloat16") as llm:
        made = [list(output.outputs[0].token_ids) for output in ask(llm, make_chats())]
        model = llm.llm_engine.model_executor.driver_worker.worker.get_model()
        kinds = {parameter.dtype for parameter in model.language_model.model.layers.parameters()}
        front = model.front.state_dict()
    assert torch.int8 in kinds
    weights = load_file(checkpoint / "model.safetensors")
    for name in ("compressor.query", "prefusion.layers.0.mlp.up_proj.weight", "multi_modal_projector.linear_1.weight"):
        assert torch.equal(front[name], weights[f"model.{name}"].bfloat16())
    right = sum(ids == wanted for ids, (_, wanted) in zip(made, expected(checkpoints("tiny"))))
    assert right >= 0.9 * len(made)


def quantise(source: Path, target: Path) -> Path:
    """The language model's products in eight bits, a scale a row, as compressed-tensors writes them."""
    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    for name in [name for name in weights if ".language_model.layers." in name and name.endswith("_proj.weight")]:
        scale = weights[name].float().abs().amax(1, keepdim=True) / 127
        weights[name] = (weights[name].float() / scale).round().to(torch.int8)
        weights[name.replace(".weight", ".weight_scale")] = scale
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    products = {
        "targets": ["Linear"],
        "weights": integers | {"strategy": "channel", "dynamic": False},
        "input_activations": integers | {"strategy": "token", "dynamic": True},
    }
    values = json.loads((target / "config.json").read_text())
    values["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": products},
    }
    (target / "config.json").write_text(json.dumps(values))
    return target


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_plain_text_embeddings_would_be_noticed(checkpoints, name, monkeypatch):
    """What running without pre-fusion gives: other ids for most prompts with pictures."""
    wanted = expected(checkpoints(name))
    fuse = LlavaMiniFront.fuse_modalities

    def leave_text_raw(self, input_ids, inputs_embeds, attention_mask, visuals):
        nothing = torch.zeros_like(input_ids)
        return fuse(self, input_ids, inputs_embeds, attention_mask, visuals, text_fusion_mask=nothing)

    monkeypatch.setattr(LlavaMiniFront, "fuse_modalities", leave_text_raw)
    chats = make_chats()[:20]
    with engine(checkpoints(name)) as llm:
        found = [list(output.outputs[0].token_ids) for output in ask(llm, chats)]
    wrong = sum(ids != right for ids, (_, right) in zip(found, wanted))
    assert wrong > len(chats) / 2


@pytest.mark.parametrize("text_type", ["mistral", "qwen2"])
def test_other_text_models(checkpoints, text_type, tmp_path):
    values = json.loads((checkpoints("tiny") / "config.json").read_text())
    changed = {"model_type": text_type, "sliding_window": None, "num_key_value_heads": 2, "architectures": None}
    values["text_config"] |= changed
    values["tie_word_embeddings"] = text_type == "qwen2"
    model = LlavaMiniForConditionalGeneration(LlavaMiniConfig.from_dict(values))
    make_uneven(model)
    model.save_pretrained(tmp_path)
    LlavaMiniProcessor.from_pretrained(checkpoints("tiny")).save_pretrained(tmp_path)
    with engine(tmp_path, max_model_len=512) as llm:
        check_equal(ask(llm, make_chats()), expected(tmp_path))


def test_frames_without_a_file(checkpoints):
    """Decoded frames, as offline users pass them, are all taken."""
    import numpy as np
    from vllm import SamplingParams

    checkpoint = checkpoints("tiny")
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    ours = reference(checkpoint)
    content = [{"type": "video"}, {"type": "text", "text": "Which way does it move?"}]
    text = ours.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = ours.processor(text=text, videos=[frames], add_special_tokens=False, return_tensors="pt")
    ids = ours.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    prompt = ours.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    with engine(checkpoint) as llm:
        request = {"prompt_token_ids": prompt, "multi_modal_data": {"video": [frames]}}
        output = llm.generate(request, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0]
    assert output.prompt_token_ids == inputs["input_ids"][0].tolist()
    assert list(output.outputs[0].token_ids) == ids.tolist()


@pytest.mark.parametrize("chosen", [{"fps": 2}, {"num_frames": 3}], ids=str)
def test_chosen_frames(checkpoints, chosen):
    """`fps` and `num_frames` mean what they mean to our video processor."""
    checkpoint = checkpoints("tiny")
    chat = [user(("video", 3), "Which shape is it?")]
    with engine(checkpoint, media_io_kwargs={"video": chosen}) as llm:
        wanted = reference(checkpoint).ask(chat, processor_kwargs={"videos_kwargs": chosen})
        check_equal(ask(llm, [chat]), [wanted])


def test_options_of_the_vision_side(checkpoints):
    """They reach the front: a budget of patches changes some answers, as in `generate`."""
    checkpoint, chats = checkpoints("high_resolution"), make_chats()[:12]
    options = {"prefusion_patches": 0.25}
    wanted = [reference(checkpoint).ask(chat, model_options=options) for chat in chats]
    assert wanted != expected(checkpoint)[:12]
    with engine(checkpoint, additional_config=options | {"vision_memory_budget": "1MB"}) as llm:
        check_equal(ask(llm, chats), wanted)
