# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""A converted checkpoint as a Hub repository; `llava-mini push` is the same.

python conversion/hub.py --help
"""

import sys

from llava_mini.conversion.hub import main


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
