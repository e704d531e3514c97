# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What becomes of names, configuration and tokenizer."""
