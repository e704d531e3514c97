# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The authors' checkpoint to ours, or back; `llava-mini convert` is the same.

python conversion/convert_llava_mini_weights_to_hf.py --help
"""

import sys

from llava_mini.conversion.command import convert, main


__all__ = ["convert", "main"]

if __name__ == "__main__":
    sys.exit(main())
