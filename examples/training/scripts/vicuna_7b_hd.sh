#!/usr/bin/env bash
# LLaVA-Mini-HD: four sub-images beside the whole one (N = 2, 672 pixels) and 64 vision tokens (C = 8).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
BATCH="${BATCH_HD:-4}"
prepare vicuna-7b-hd lmsys/vicuna-7b-v1.5 vicuna_v1.jinja --prefusion "${PREFUSION:-random}" \
  --compressor_size 8 --resolution_ratio 2
stage1 vicuna-7b-hd
stage2 vicuna-7b-hd "$DATA/llava_v1_5_mix665k.json"
