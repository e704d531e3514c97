"""The README's ten lines print what it says."""

import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def test_ten_lines():
    readme = (ROOT / "README.md").read_text()
    code, printed = re.search(r"## Ten lines\n\n```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL).groups()
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    )
    assert run.stdout == printed


def test_training_with_trl(tmp_path):
    """The training section's lines, with the picture of the ten lines; from the repository, into another folder."""
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"## Train\n.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    before = (
        "from datasets import Dataset\nfrom PIL import Image\npicture = Image.new('RGB', (84, 84), 'red')\n"
        "import transformers; transformers.utils.logging.disable_progress_bar()\n"
    )
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = subprocess.run(
        [sys.executable, "-c", before + code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "'loss'" in run.stdout or "train_loss" in run.stdout
