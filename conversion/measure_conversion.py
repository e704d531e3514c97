# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Peak memory and time of a conversion.

python conversion/measure_conversion.py --help
"""

import sys

from llava_mini.conversion.measuring.measure_conversion import main


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
