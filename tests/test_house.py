"""The floor plan: what may import what, how large a room may be; and that what older plans saved still loads."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_versions_llava_mini import path_with

from llava_mini import LlavaMiniForConditionalGeneration, LlavaMiniProcessor, LlavaMiniVisionContext
from llava_mini.vision_context_llava_mini import CHECKSUM


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "llava_mini"
# Saved with its code by version 0.1.0 on transformers 5.23.0, from golden/high_resolution; `expected.safetensors` holds
# what that version answered about golden/preprocess/image0.png.
LAST_VERSION = ROOT / "tests" / "golden" / "last_version"
LAST_CONTEXTS = ROOT / "tests" / "golden" / "last_version_contexts"
MAX_LINES = 450
# `forward` names and documents every input of the model once.
MAX_FUNCTION_LINES = {"forward": 80}
DEFAULT_MAX_FUNCTION_LINES = 60


def files() -> dict[str, Path]:
    """Modules of the package by dotted name."""
    paths = {path.relative_to(SOURCE).with_suffix(""): path for path in SOURCE.rglob("*.py")}
    return {".".join(p for p in name.parts if p != "__init__"): path for name, path in paths.items()}


def imports_of(name: str, path: Path, known: set[str]) -> set[str]:
    """The package's modules that a module imports, anywhere in it."""
    found = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = (node.module or "").split(".") if node.module else []
            if not node.level:
                if parts[:1] != ["llava_mini"]:
                    continue
                parts = parts[1:]
            target = ".".join([*[p for p in base if p], *parts])
            found |= {target} | {f"{target}.{alias.name}".strip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("llava_mini.") for alias in node.names}
    return (found & known) - {name, ""}


def test_no_import_circle():
    modules = files()
    imports = {name: imports_of(name, path, set(modules)) for name, path in modules.items() if name}
    assert "compressor_llava_mini" in imports["pretrained_llava_mini"], "imports are read"
    open_rooms = dict(imports)
    while True:
        free = [name for name, needed in open_rooms.items() if not needed & open_rooms.keys()]
        if not free:
            break
        for name in free:
            del open_rooms[name]
    assert open_rooms == {}, "these import each other in a circle"


def test_rooms_and_functions_are_small():
    for path in files().values():
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_LINES, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                bound = MAX_FUNCTION_LINES.get(node.name, DEFAULT_MAX_FUNCTION_LINES)
                assert node.end_lineno - node.lineno + 1 <= bound, f"{path.name}: {node.name}"


def test_core_files_are_flat_and_listed():
    """What travels to the Hub: every core file, importing others as `.x_llava_mini` only."""
    from llava_mini.conversion.hub import CODE_FILES

    core = {path.name for path in SOURCE.glob("*_llava_mini.py")}
    assert set(CODE_FILES) == core
    for name in core:
        for node in ast.walk(ast.parse((SOURCE / name).read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 or (node.level == 1 and f"{node.module}.py" in core), f"{name}: {node.module}"
                assert node.module != "llava_mini" or node.level


def question(processor) -> dict:
    image = Image.open(ROOT / "tests/golden/preprocess/image0.png")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is in the picture?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def test_what_the_last_version_saved_loads_with_equal_outputs():
    expected = load_file(LAST_VERSION / "expected.safetensors")
    model = LlavaMiniForConditionalGeneration.from_pretrained(LAST_VERSION).eval()
    inputs = question(LlavaMiniProcessor.from_pretrained(LAST_VERSION))
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    # Another torchvision may round its resize otherwise; on the one that made the file they are equal.
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=1e-4, rtol=0)
    inputs["pixel_values"] = expected["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected["logits"], atol=1e-5, rtol=1e-5)
    assert torch.equal(model.generate(**inputs, do_sample=False, max_new_tokens=8), expected["ids"])


@pytest.mark.parametrize("keep", ["key_values", "features"])
def test_contexts_that_the_last_version_saved(keep, tmp_path):
    """They know no budget, no maker and no checksum: all patches, any model, whole as far as safetensors can tell."""
    expected = load_file(LAST_VERSION / "expected.safetensors")
    model = LlavaMiniForConditionalGeneration.from_pretrained(LAST_VERSION).eval()
    options = {"do_sample": False, "max_new_tokens": 8}
    context = LlavaMiniVisionContext.load(LAST_CONTEXTS / f"{keep}.safetensors")
    assert context.budget is None
    for own in (context, context[0]):
        ids = model.generate(input_ids=expected["input_ids"], vision_context=own, **options)
        assert torch.equal(ids, expected["ids"])
    with pytest.raises(IndexError, match="has 1 row"):
        context[1]
    if keep == "key_values":
        with pytest.raises(ValueError, match="made of all patches, but the call asks for"):
            model.generate(input_ids=expected["input_ids"], vision_context=context, prefusion_patches=0.5)
    # Saved again it has a checksum, and one that is lost is missed.
    context.save(tmp_path / "again")
    assert LlavaMiniVisionContext.load(tmp_path / "again").sizes == context.sizes
    content = (tmp_path / "again").read_bytes()
    (tmp_path / "again").write_bytes(content.replace(CHECKSUM.encode(), CHECKSUM.upper().encode()))
    with pytest.raises(ValueError, match="is damaged"):
        LlavaMiniVisionContext.load(tmp_path / "again")


ASK_WITH_ITS_OWN_CODE = """
import sys, torch
sys.modules["llava_mini"] = None
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
expected = load_file(folder + "/expected.safetensors")
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(input_ids=expected["input_ids"], pixel_values=expected["pixel_values"]).logits
torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
print("EQUAL")
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.18.0", "5.23.0"])
def test_what_the_last_version_pushed_runs_with_its_own_code(version, tmp_path):
    """On the versions that it knew; 5.24 can't make its outputs, which is why there is a new version."""
    environment = os.environ | {"PYTHONPATH": path_with(version), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", ASK_WITH_ITS_OWN_CODE, str(LAST_VERSION)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "EQUAL", done.stderr[-3000:]


def test_help_shows_the_arguments():
    for name in ("get_image_features", "get_video_features", "encode_visuals", "forward"):
        shown = inspect.signature(getattr(LlavaMiniForConditionalGeneration, name))
        assert {"pixel_values", "pixel_values_videos"} & set(shown.parameters), name
        assert "vision_memory_budget" in shown.parameters
        assert not any(p.kind is p.VAR_POSITIONAL for p in shown.parameters.values())
        documentation = getattr(LlavaMiniForConditionalGeneration, name).__doc__
        assert "Args:" in documentation and "Raises:" in documentation
