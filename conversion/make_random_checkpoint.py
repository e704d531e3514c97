# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""A made-up checkpoint in the authors' layout, by default at the 8B release's size.

python conversion/make_random_checkpoint.py --help
"""

import sys

from llava_mini.conversion.measuring.make_random_checkpoint import main


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
