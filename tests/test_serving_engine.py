"""`llava-mini serve --engine`: which server runs; what vLLM itself does is tested in `on_vllm/`."""

import subprocess
import sys

import pytest

from llava_mini.serving import serve_with_engine
from llava_mini.vllm import serve as vllm_serve


@pytest.mark.parametrize(
    "options, engine",
    [
        (["DIR", "--port", "1"], "transformers"),
        (["DIR", "--engine", "transformers", "--port", "1"], "transformers"),
        (["--engine=vllm", "DIR", "--port", "1"], "vllm"),
        (["DIR", "--port", "1", "--engine", "vllm"], "vllm"),
    ],
)
def test_everything_else_goes_to_the_engine(monkeypatch, options, engine):
    seen = []
    monkeypatch.setattr("llava_mini.serving.serve", lambda rest: seen.append(("transformers", rest)))
    monkeypatch.setattr("llava_mini.vllm.serve.serve_vllm", lambda rest: seen.append(("vllm", rest)))
    serve_with_engine(options)
    assert seen == [(engine, ["DIR", "--port", "1"])]


def test_unknown_engines_are_refused(capsys):
    with pytest.raises(SystemExit):
        serve_with_engine(["DIR", "--engine", "another"])
    assert "vllm" in capsys.readouterr().err


def test_missing_vllm_is_named(monkeypatch):
    monkeypatch.setattr(vllm_serve, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"llava-mini-hf\[vllm\]"):
        vllm_serve.serve_vllm(["DIR"])


def test_given_options_win_over_defaults():
    options = vllm_serve.complete(["DIR", "--allowed_media_domains", "example.org", "--host=0.0.0.0"])
    assert options[:4] == ["DIR", "--allowed_media_domains", "example.org", "--host=0.0.0.0"]
    assert options[4:] == ["--limit-mm-per-prompt", '{"image": 16, "video": 4}']


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is a llama"):
        vllm_serve.check_checkpoint(str(tmp_path), None)


def test_nothing_of_vllm_is_imported_with_the_package():
    code = "import sys, llava_mini, llava_mini.cli; assert not {'vllm', 'llava_mini.vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
