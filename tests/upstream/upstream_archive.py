"""
The test mixins that transformers ships in its source archive, of the version that is installed.

The archive holds `tests/test_*.py` but not the folders that some of them import. For those there are stand-ins that
hold no checks; what is lost by that is listed in `MISSING`, and the suite shows each as a skipped test.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import transformers
from upstream_media import url_to_local_path


PACKAGE = "transformers_archive_tests"  # not "tests", which many projects have
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llava-mini-hf" / "upstream-tests"
DOWNLOAD_TIMEOUT_SECONDS = 300

# What upstream's own models are tested with and its archive lacks, and where the same is tested here.
MISSING = {
    "generation/test_utils.py": "GenerationTesterMixin; tests/test_generation_llava_mini.py checks what it would",
    "exporters/test_export.py": "ExportTesterMixin; tests/test_features.py exports tower and compressor",
    "pipelines/test_pipelines_*.py": "the checks of each pipeline; only the mixin's own batch check runs",
    "distributed_testing_utils.py": "the launcher of several processes; tests/test_features_distributed.py has its own",
    "utils/test_configuration_utils.py": "the list of common arguments, which composite configurations skip anyway",
}


class StandIn(Loader, MetaPathFinder):
    """Makes modules that the archive lacks: whatever is imported from them is an empty class."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith(f"{PACKAGE}.") else None

    def exec_module(self, module: ModuleType):
        module.__getattr__ = lambda name: _empty_class(module, name)


def _empty_class(module: ModuleType, name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__module__": module.__name__})


def load(name: str) -> ModuleType:
    """A module of the archive's `tests`, such as "test_modeling_common"; skips the calling module when offline."""
    folder = _fetch()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        sys.meta_path.append(StandIn())
        hub_files = sys.modules.setdefault("fetch_hub_objects_for_ci", ModuleType("fetch_hub_objects_for_ci"))
        hub_files.url_to_local_path = url_to_local_path
    with (
        # The mixins load transformers a second time, from the archive; the installed one is meant.
        patch("transformers.utils.direct_transformers_import", lambda *_args, **_kwargs: transformers),
        # Tests that ask for it are to run: our video processor decodes with PyAV.
        patch("transformers.testing_utils.is_torchcodec_available", lambda: True),
    ):
        return importlib.import_module(f"{PACKAGE}.{name}")


def _fetch() -> Path:
    """The folder that holds `PACKAGE`, downloaded once a version."""
    folder = CACHE / transformers.__version__
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            _unpack(_download(Path(directory)), Path(directory) / "unpacked")
            try:
                (Path(directory) / "unpacked").rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    return folder


def _download(directory: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers", requirement]
    try:
        subprocess.run(
            [*command, "--quiet", "--dest", str(directory)],
            check=True,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last_line = ((error.stderr or "").strip().splitlines() or ["no answer"])[-1]
        pytest.skip(f"The source archive of {requirement} can't be downloaded: {last_line}", allow_module_level=True)
    return next(directory.glob("transformers-*.tar.gz"))


def _unpack(archive: Path, folder: Path):
    package = folder / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (package / parts[2]).write_bytes(tar.extractfile(member).read())
    # The pipeline mixin reads a list of tiny models while it is imported.
    summary = folder / "tests" / "utils" / "tiny_model_summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
