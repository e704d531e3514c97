"""What users of transformers expect of every model: offloading, quantisation, LoRA, caches, compilation, export."""

import pytest
import torch
from accelerate import cpu_offload
from tiny import IMAGE_ID, VIDEO_ID, collate, make_row, make_rows, tiny_model
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Cache,
    CompileConfig,
    QuantizedCache,
    StaticCache,
    TorchAoConfig,
)
from transformers.cache_utils import QuantizedLayer

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniModel


# Float32 sums in another order: the project's bar.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "suppress_tokens": [IMAGE_ID, VIDEO_ID]}
NAMES = ["one image", "text only", "two images", "one video"]
VISION = ("vision_tower", "compressor", "multi_modal_projector")


@pytest.fixture(scope="module")
def model():
    # bitsandbytes' kernels take sizes divisible by 64.
    text = {"hidden_size": 64, "intermediate_size": 128}
    return tiny_model(compressor_size=2, resolution_ratio=2, text=text)


@pytest.fixture(scope="module")
def inputs(model):
    return collate(make_rows(model.config, NAMES))


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    return path


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def generate(model, inputs, **kwargs):
    return model.generate(**inputs, **(GREEDY | kwargs))[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize(
    "on_disk", ["vision_tower", "compressor", "multi_modal_projector", "prefusion", "language_model"]
)
def test_every_part_can_be_offloaded_to_disk(model, inputs, directory, tmp_path, on_disk):
    parts = [name for name, _ in model.model.named_children()]
    device_map = {f"model.{part}": "disk" if part == on_disk else "cpu" for part in parts} | {"lm_head": "cpu"}
    loaded = AutoModelForImageTextToText.from_pretrained(directory, device_map=device_map, offload_folder=tmp_path)
    assert {name.split(".")[1] for name, p in loaded.named_parameters() if p.device.type == "meta"} == {on_disk}
    torch.testing.assert_close(run(loaded, inputs), run(model, inputs), **TOLERANCE)
    assert torch.equal(generate(loaded.eval(), inputs), generate(model, inputs))


def test_device_map_auto_spills_over_to_disk(model, inputs, directory, tmp_path):
    half = sum(p.nbytes for p in model.parameters()) // 2
    loaded = AutoModelForImageTextToText.from_pretrained(
        directory, device_map="auto", max_memory={"cpu": half}, offload_folder=tmp_path
    )
    assert {"cpu", "disk"} == set(map(str, loaded.hf_device_map.values()))
    torch.testing.assert_close(run(loaded, inputs), run(model, inputs), **TOLERANCE)
    # A compressor or pre-fusion layer is never split between devices: nothing below them has a place of its own.
    assert not any(name.count(".") > 3 or "compressor." in name for name in loaded.hf_device_map)


def test_cpu_offload(model, inputs, directory):
    """Weights wait in CPU memory and come in for their layer's turn."""
    loaded = cpu_offload(AutoModelForImageTextToText.from_pretrained(directory).eval(), execution_device="cpu")
    assert all(p.device.type == "meta" for p in loaded.parameters())
    torch.testing.assert_close(run(loaded, inputs), run(model, inputs), **TOLERANCE)
    assert torch.equal(generate(loaded, inputs), generate(model, inputs))


def test_embeddings_on_another_device_than_the_ids(model, inputs):
    """As with a device_map over several devices; "meta" stands for the other one."""
    embeds = torch.empty(*inputs["input_ids"].shape, 64, device="meta")
    mask = model.model.get_text_fusion_mask(inputs["input_ids"], embeds, inputs["attention_mask"])
    placeholders = model.model.get_placeholder_mask(inputs["input_ids"], embeds)
    assert {mask.device, *(found.device for found in placeholders.values())} == {torch.device("meta")}


def quantization_config(kind):
    if kind.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        return BitsAndBytesConfig(load_in_8bit=True) if kind.endswith("8") else BitsAndBytesConfig(load_in_4bit=True)
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return TorchAoConfig(torchao.Int8WeightOnlyConfig())


def is_quantized(module):
    return type(module) is not nn.Linear or type(module.weight) is not nn.Parameter


@pytest.mark.parametrize("kind", ["bitsandbytes 8", "bitsandbytes 4", "torchao 8"])
def test_quantized_loading(model, inputs, directory, tmp_path, kind):
    loaded = AutoModelForImageTextToText.from_pretrained(
        directory, quantization_config=quantization_config(kind)
    ).eval()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = {name for name in linear if is_quantized(loaded.get_submodule(name))}
    kept = {name for name in linear if name == "lm_head" or name.split(".")[1] in VISION}
    assert quantized == linear - kept and quantized
    for name, tensor in loaded.state_dict().items():
        if name.split(".")[1] in VISION:
            assert torch.equal(tensor, model.state_dict()[name])
    loaded.save_pretrained(tmp_path)  # before it runs: bitsandbytes packs 4-bit weights anew for CPUs that can use it
    logits, expected = run(loaded, inputs), run(model, inputs)
    # Rounded weights of a random model: close in direction, not in digits.
    assert nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.9
    assert generate(loaded, inputs).shape == (len(NAMES), GREEDY["max_new_tokens"])
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert {name for name in linear if is_quantized(again.get_submodule(name))} == quantized
    assert torch.equal(run(again, inputs), logits)


def test_base_model_and_given_names(directory):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    given = {"load_in_8bit": True}
    base = LlavaMiniModel.from_pretrained(directory, quantization_config=given)
    assert not is_quantized(base.compressor.q_proj) and is_quantized(base.prefusion.layers[0].mlp.up_proj)
    assert given == {"load_in_8bit": True}
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["model.language_model", "lm_head"])
    own = LlavaMiniForConditionalGeneration.from_pretrained(directory, quantization_config=config)
    assert is_quantized(own.model.compressor.q_proj)
    assert not is_quantized(own.model.language_model.layers[0].mlp.up_proj)


def lora(model, **kwargs):
    """LoRA on the language model and on pre-fusion, with factors that matter."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    targets = r"model\.(language_model|prefusion)\.layers\.\d+\..*(q_proj|v_proj|down_proj)"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, **kwargs))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return adapted.eval()


def test_lora_trains_language_model_and_prefusion_only(directory, inputs):
    adapted = lora(LlavaMiniForConditionalGeneration.from_pretrained(directory))
    labels = inputs["input_ids"].masked_fill(torch.rand(inputs["input_ids"].shape) < 0.5, -100)
    adapted(**inputs, labels=labels).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    expected = {name for name, _ in adapted.named_parameters() if "lora_" in name}
    assert trained == expected and {name.split(".")[3] for name in trained} == {"language_model", "prefusion"}


def test_lora_save_load_merge(model, directory, inputs, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapted = lora(LlavaMiniForConditionalGeneration.from_pretrained(directory))
    expected = run(adapted, inputs)
    assert (expected - run(model, inputs)).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")
    base = LlavaMiniForConditionalGeneration.from_pretrained(directory)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(run(loaded, inputs), expected)
    assert torch.equal(generate(loaded, inputs), generate(adapted, inputs))
    merged = loaded.merge_and_unload()
    # W + BA in one product instead of two, in float32.
    torch.testing.assert_close(run(merged, inputs), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(run(again, inputs), run(merged, inputs))


class RoundedLayer(QuantizedLayer):
    """A quantised layer without a library: 16 bits a number, one scale a token and head."""

    def _quantize(self, tensor, axis):
        scale = tensor.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 32767
        return (tensor / scale).round().to(torch.int16), scale

    def _dequantize(self, quantized):
        rounded, scale = quantized
        return rounded * scale


def quantized_cache(kind, config):
    if kind == "rounded":
        return Cache(layers=[RoundedLayer(residual_length=2) for _ in range(config.num_hidden_layers)])
    pytest.importorskip("hqq", reason="hqq is not installed, and optimum-quanto does not run on CPUs")
    return QuantizedCache("hqq", config, nbits=8, axis_key=1, axis_value=1)


@pytest.mark.parametrize("kind", ["rounded", "hqq"])
def test_quantized_cache(model, kind):
    """Rounded keys and values change scores a little, and no more than that."""
    row = make_row(model.config, [3, "image", 40, "image", 5])
    row_inputs = collate([row])
    scores = []
    for cache in (None, quantized_cache(kind, model.config.text_config)):
        made = model.generate(**row_inputs, **GREEDY, cache=cache, output_logits=True, return_dict_in_generate=True)
        scores.append(torch.stack(made.logits))
    assert not torch.equal(*scores)
    assert nn.functional.cosine_similarity(scores[0].flatten(), scores[1].flatten(), dim=0) > 0.999


def test_static_cache_of_a_given_length(model):
    row = make_row(model.config, [4, "image", 6])
    cache = StaticCache(config=model.config.text_config, max_cache_len=len(row.input_ids) + GREEDY["max_new_tokens"])
    row_inputs = collate([row])
    made = generate(model, row_inputs, cache=cache, disable_compile=True)
    assert torch.equal(made, generate(model, row_inputs))


class TowerAndCompressor(nn.Module):
    """Pixels to vision tokens as they enter the language model."""

    def __init__(self, model: LlavaMiniModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.encode_features(self.model.extract_features(pixel_values)).tokens


def test_vision_part_can_be_exported(model, tmp_path):
    part = TowerAndCompressor(model.model)
    pixels = torch.randn(3, model.config.num_crops, 3, 28, 28)
    units = torch.export.Dim("units", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(part, (pixels,), dynamic_shapes=({0: units},))
    torch.export.save(program, tmp_path / "vision.pt2")
    exported = torch.export.load(tmp_path / "vision.pt2").module()
    for count in (3, 5):
        pixels = torch.randn(count, model.config.num_crops, 3, 28, 28)
        expected = torch.stack(model.get_image_features(pixels).pooler_output)
        torch.testing.assert_close(exported(pixels), expected, **TOLERANCE)


@pytest.mark.slow
def test_compiled_forward(model, inputs):
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs), **TOLERANCE)


@pytest.mark.slow
def test_compiled_decoding(model):
    """With a static cache every new token is one graph without breaks."""
    torch.compiler.reset()
    row_inputs = collate(make_rows(model.config, NAMES))
    graphs = []

    def backend(graph, _inputs, **_options):
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(fullgraph=True, backend=backend)
    config._compile_all_devices = True  # transformers itself compiles on accelerators only
    made = generate(model, row_inputs, cache_implementation="static", compile_config=config, disable_compile=False)
    assert len(graphs) == 1 and torch.equal(made, generate(model, row_inputs))
