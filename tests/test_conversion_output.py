# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The converter's output against kills at every step, second writers, mount points and files that lead elsewhere."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from authors_layout import change_json, copy_golden
from transformers import AutoModelForImageTextToText

from llava_mini.conversion.command import convert, main
from llava_mini.conversion.writing import output_directory
from llava_mini.conversion.writing.output_directory import atomic_directory


GOLDEN = Path(__file__).parent / "golden"
CONVERTER = Path(__file__).parents[1] / "conversion" / "convert_llava_mini_weights_to_hf.py"
# What changes files, as the interpreter announces it just before.
STEPS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children that die at a chosen step are forked")


def write(output, text, overwrite=True, inside=lambda: None):
    with atomic_directory(output, overwrite) as folder:
        (folder / "a").write_text(text)
        inside()
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text(text)


def text_of(folder):
    """What `write` wrote, if all of it is there."""
    files = [folder / "a", folder / "deep" / "b"]
    texts = {path.read_text() for path in files if path.is_file()}
    return texts.pop() if all(path.is_file() for path in files) and len(texts) == 1 else None


def fork(function):
    child = os.fork()
    if child == 0:
        os._exit(_exit_code(function))
    return child


def _exit_code(function):
    try:
        function()
    except ValueError:
        return 2
    except BaseException:
        return 1
    return 0


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_and_die(output, number):
    """Dies before the step of that number."""
    left = number

    def count(event, arguments):
        nonlocal left
        if event in STEPS and str(output.parent) in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def run():
        sys.addaudithook(count)
        write(output, "new")

    return status_of(fork(run))


@pytest.mark.parametrize("was_there", [True, False])
def test_a_kill_at_any_step_leaves_a_whole_output_and_the_next_run_goes_on(tmp_path, was_there, caplog):
    found = set()
    for number in range(200):
        caplog.clear()
        output = tmp_path / str(number) / "output"
        if was_there:
            write(output, "old")
        code = write_and_die(output, number)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        replaced, incomplete = output.with_name("output.replaced"), output.with_name("output.incomplete")
        here = text_of(output)
        if was_there and here is None:
            assert not output.exists() and text_of(replaced) == "old" and text_of(incomplete) == "new"
        finished = was_there and text_of(incomplete) == "new" and not here
        if output.exists():
            with pytest.raises(ValueError, match="is not empty|replaced"):
                write(output, "newer", overwrite=False)
            assert text_of(output) == here, "nothing is lost where nothing may be replaced"
        elif finished:
            with pytest.raises(ValueError, match="is not empty"):
                write(output, "newer", overwrite=False)
            assert text_of(output) == "new"
        write(output, "newest")
        assert text_of(output) == "newest"
        assert sorted(path.name for path in output.parent.iterdir()) == ["output"]
        assert sorted(path.name for path in output.iterdir()) == ["a", "deep"]
        found |= {record.getMessage().split(str(tmp_path))[1].split(" ", 1)[1] for record in caplog.records}
    assert 10 < number < 199
    assert any("was left by a run that was killed" in text for text in found)
    assert any("killed before it put it there" in text for text in found)
    assert any("while it deleted the old one" in text for text in found)


def test_an_output_belongs_to_one_writer_for_as_long_as_it_lives(tmp_path, caplog):
    output, (told, tell) = tmp_path / "output", os.pipe()
    write(output, "old")

    def wait():
        os.write(tell, b"!")
        time.sleep(60)

    child = fork(lambda: write(output, "killed", inside=wait))
    os.read(told, 1)
    for overwrite in (True, False):
        with pytest.raises(ValueError, match="output is being written by another run: wait for it"):
            write(output, "second", overwrite)
    assert text_of(output) == "old" and (tmp_path / "output.incomplete" / "a").exists()
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    write(output, "third")
    assert text_of(output) == "third" and "output.incomplete was left by a run that was killed" in caplog.text


def test_many_writers_at_any_moment(tmp_path):
    output = tmp_path / "output"
    pauses = [0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.013]

    def run(pause):
        time.sleep(pause)
        write(output, f"{pause}", inside=lambda: time.sleep(0.003))

    for _ in range(10):
        codes = [status_of(child) for child in [fork(lambda p=pause: run(p)) for pause in pauses]]
        assert set(codes) <= {0, 2} and 0 in codes
        assert text_of(output) in map(str, pauses)
        assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.slow
def test_two_conversions_through_the_command_line(tmp_path):
    source, output = GOLDEN / "standard" / "original", tmp_path / "output"
    command = [sys.executable, str(CONVERTER), str(source), str(output), "--max-shard-size", "100KB"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(run.communicate()[1], run.returncode) for run in runs]
    assert 0 in {code for _, code in ends} and {code for _, code in ends} <= {0, 2}
    for text, code in ends:
        if code:  # the other was still at it, or had finished
            assert text.startswith("error: ") and text.count("\n") == 1
    AutoModelForImageTextToText.from_pretrained(output)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    output = tmp_path / "output"
    for missing in (None, type("fcntl", (), {"LOCK_EX": 2, "LOCK_NB": 4, "flock": staticmethod(_no_locks)})):
        monkeypatch.setattr(output_directory, "fcntl", missing)
        write(output, "first")
        assert text_of(output) == "first" and [path.name for path in tmp_path.iterdir()] == ["output"]
        with atomic_directory(output, overwrite=True), pytest.raises(ValueError, match="If none is running, delete"):
            write(output, "second")
        assert [path.name for path in tmp_path.iterdir()] == ["output"]


def _no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("is_known", [True, False])
def test_what_can_not_be_replaced_keeps_its_content(tmp_path, monkeypatch, is_known):
    """A mount point, which the system says, or does not say until it is moved."""
    output = tmp_path / "output"
    write(output, "old")
    if is_known:
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output)
    else:
        rename = Path.rename

        def refuse(self, target):
            if self == output:
                raise OSError(errno.EBUSY, "Device or resource busy")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ValueError, match="output (is a mount point|can't be replaced .*is as it was)"):
        write(output, "new")
    assert text_of(output) == "old" and [path.name for path in tmp_path.iterdir()] == ["output"]


def test_an_old_output_that_was_moved_aside_is_never_deleted_unasked(tmp_path):
    write(tmp_path / "output.replaced", "old")
    with pytest.raises(ValueError, match="output.replaced is in the way.*rename it to output"):
        write(tmp_path / "output", "new")
    assert text_of(tmp_path / "output.replaced") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["output.replaced"]


def test_leftovers_are_no_input(tmp_path):
    original = copy_golden("standard", tmp_path)
    leftover = original.rename(tmp_path / "output.incomplete")
    with pytest.raises(ValueError, match="output.incomplete holds the input"):
        convert(leftover, tmp_path / "output")
    assert (leftover / "config.json").exists()


def test_temporary_files_are_inside_what_is_cleaned_up(tmp_path, monkeypatch):
    """Killed while it reads the tokenizer, a run leaves nothing but the directory that the next one deletes."""
    from llava_mini import original_tokenizer_llava_mini

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(original_tokenizer_llava_mini, "_load", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    output = tmp_path / "output"
    assert status_of(fork(lambda: convert(GOLDEN / "standard" / "original", output))) == -signal.SIGKILL
    assert not list(elsewhere.iterdir()) and len(list((tmp_path / "output.incomplete").iterdir())) == 2
    monkeypatch.undo()
    convert(GOLDEN / "standard" / "original", output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "output"]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x", "C:\\x"])
def test_an_index_stays_in_its_folder(tmp_path, name, capsys):
    original = copy_golden("standard", tmp_path)
    path = original / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    (original.parent / "x.safetensors").write_bytes((original / "model-00001-of-00002.safetensors").read_bytes())
    change_json(path, weight_map=dict.fromkeys(weight_map, name))
    assert main([str(original), str(tmp_path / "output")]) == 2
    assert "which is not in its folder" in capsys.readouterr().err


def test_checksums_of_bin_files(tmp_path):
    original = copy_golden("high_resolution", tmp_path)
    path = original / "pytorch_model.bin"
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 5000] ^= 1  # a bit of a tensor
    assert torch.load(path, weights_only=True)
    path.write_bytes(data)
    assert torch.load(path, weights_only=True), "PyTorch reads it"
    with pytest.raises(ValueError, match="wrong checksum of .*download it again"):
        convert(original, tmp_path / "output")


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "TheirTokenizer"])
def test_a_tokenizer_with_code_asks_nothing(tmp_path, monkeypatch, kind):
    original = copy_golden("standard", tmp_path)
    auto_map = {"AutoTokenizer": ["theirs.TheirTokenizer", None]}
    change_json(original / "tokenizer_config.json", auto_map=auto_map, tokenizer_class=kind)
    (original / "theirs.py").write_text("raise SystemExit")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks on the terminal"))
    if kind == "TheirTokenizer":
        with pytest.raises(ValueError, match="The tokenizer in .* can't be read .it wants code of its own"):
            convert(original, tmp_path / "output")
    else:
        convert(original, tmp_path / "output", verify=True)
        assert "auto_map" not in (tmp_path / "output" / "tokenizer_config.json").read_text()
