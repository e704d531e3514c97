#!/usr/bin/env bash
# LLaVA-Mini on Llama-3.1-8B with pictures and videos, as the released checkpoint (3M samples, 100K of them videos).
# MIX: your JSON files in LLaVA's format, WEIGHTS: how often each is seen in an epoch.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MIX="${MIX:-$DATA/images.json $DATA/videos.json}"
WEIGHTS="${WEIGHTS:-1 1}"
prepare llama31-8b meta-llama/Llama-3.1-8B-Instruct llama3.jinja --prefusion "${PREFUSION:-random}"
stage1 llama31-8b
read -ra FILES <<< "$MIX"
read -ra SHARES <<< "$WEIGHTS"
stage2 llama31-8b "${FILES[@]}" --weights "${SHARES[@]}"
