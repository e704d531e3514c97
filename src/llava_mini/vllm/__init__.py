# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
LLaVA-Mini for vLLM, joined by the entry point `vllm.general_plugins`; nothing here is imported unless vLLM runs.

The whole prompt is ONE multimodal item (offset 0, as long as the prompt; its hash covers pixels and ids), since all
text depends on the pictures: our own front makes the prompt's embeddings, vLLM's own language model does the rest.
"""
