# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Output, its report and its proof, and the way back."""
