# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The paper's analysis of where vision tokens matter (section 3.2, appendix A), for LLaVA-Mini and for any model of
transformers with a language model that reads placeholders: LLaVA-1.5, LLaVA-NeXT and others, on Llama, Qwen2, Mistral.
"""

from .accuracy import Score, leave_out_vision, measure_accuracy
from .attention import AttentionByLayer, analyse_row, measure_attention
from .figures import plot_accuracy, plot_attention, plot_entropy
from .layers import Layer, find_layers
from .questions import KINDS, Question, find_kinds


__all__ = [
    "KINDS",
    "AttentionByLayer",
    "Layer",
    "Question",
    "Score",
    "analyse_row",
    "find_kinds",
    "find_layers",
    "leave_out_vision",
    "measure_accuracy",
    "measure_attention",
    "plot_accuracy",
    "plot_attention",
    "plot_entropy",
]
