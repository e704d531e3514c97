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
