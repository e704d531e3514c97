# Sourced by the scripts beside it: where things are, and the numbers of the paper that all of them share.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
DATA="${DATA:-data}"       # LLaVA's blip_laion_cc_sbu_558k.json, llava_v1_5_mix665k.json and their picture folders
RUNS="${RUNS:-runs}"
ACCELERATE="${ACCELERATE:-$HERE/accelerate/zero3.yaml}"
PROCESSES="${PROCESSES:-8}"
BATCH="${BATCH:-8}"        # samples a device and step; PROCESSES * BATCH has to divide 256

# Batch 256, cosine, 3% warm-up, no weight decay, clip 0.5, bfloat16, checkpointed activations (PARITY.md).
train() {
  accelerate launch --config_file "$ACCELERATE" --num_processes "$PROCESSES" "$HERE/train.py" \
    --per_device_train_batch_size "$BATCH" --gradient_accumulation_steps "$((256 / (PROCESSES * BATCH)))" \
    --lr_scheduler_type cosine --warmup_steps 0.03 --weight_decay 0 --max_grad_norm 0.5 \
    --bf16 true --activation_checkpointing true --max_length 4096 --train_sampling_strategy group_by_length \
    --save_strategy steps --save_steps 1000 --save_total_limit 2 --logging_steps 10 --dataloader_num_workers 4 "$@"
}

# prepare NAME LANGUAGE_MODEL TEMPLATE [more options of prepare.py]
prepare() {
  local name="$1" llm="$2" template="$3"; shift 3
  [ -e "$RUNS/$name/config.json" ] || python "$HERE/prepare.py" --language_model "$llm" \
    --chat_template "$ROOT/conversion/chat_templates/$template" --output "$RUNS/$name" "$@"
}

stage1() {
  train --stage 1 --model "$RUNS/$1" --output_dir "$RUNS/$1-stage1" --learning_rate 1e-3 --num_train_epochs 1 \
    --data "$DATA/blip_laion_cc_sbu_558k.json" --media "$DATA/LLaVA-Pretrain"
}

# stage2 NAME DATA_FILE... [more options]
stage2() {
  local name="$1"; shift
  train --stage 2 --model "$RUNS/$name" --projector "$RUNS/$name-stage1/projector.safetensors" \
    --output_dir "$RUNS/$name-stage2" --learning_rate 1e-4 --projector_learning_rate 1e-5 --num_train_epochs 2 \
    --media "$DATA" --data "$@"
}
