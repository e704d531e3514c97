#!/usr/bin/env bash
# LLaVA-Mini on Vicuna-7B and LLaVA-1.5's 665K instructions: one vision token an image, 336 pixels.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
prepare vicuna-7b lmsys/vicuna-7b-v1.5 vicuna_v1.jinja --prefusion "${PREFUSION:-random}"
stage1 vicuna-7b
stage2 vicuna-7b "$DATA/llava_v1_5_mix665k.json"
