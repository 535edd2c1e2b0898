#!/usr/bin/env bash
# What an INT8-aware finish wins back: F1 of the float reader, of its INT8 folder, and of that folder finished at full
# length, at LENGTH_CONFIG and at LengthDrop's sub-models, each at full length and at LENGTH_CONFIG.
# What exists is skipped (FORCE=1 does it again).  Flags go to the three trainings and win over those here.
#
#   TRAIN_FILE=train-v1.1.json VALIDATION_FILE=dev-v1.1.json LENGTH_CONFIG="(315, 251, 242, 159, 142, 33)" \
#     bash scripts/int8_finish.sh --max_steps 500
#
# DYNAMIC names another float reader than that of step 2, INT8 another folder than that of step 4.
source "$(dirname "$0")/common.sh"
choose_data
: "${LENGTH_CONFIG:?is needed: a length config}"
dynamic="${DYNAMIC:-$OUTPUT_DIR/dynamic}" int8="${INT8:-$OUTPUT_DIR/quantized}" folder="$OUTPUT_DIR/int8_finish"
train=("${train_data[@]}")
if [[ -n "${TRAIN_FILE:-}" ]]; then train=(--train_file "$TRAIN_FILE"); fi
lengths=(--max_seq_length 384 --doc_stride 128)
# finish NAME FLAGS...: a training that leaves an INT8 folder of that name.
finish() {
  local name="$1"
  shift
  unless_done "$folder/$name/int8_recipe.json" run_qa --model_name_or_path "$dynamic" "${train[@]}" --do_train \
    --quantization_aware "$int8" "${lengths[@]}" --max_steps 500 --learning_rate 1e-6 --warmup_steps 0.1 \
    --per_device_train_batch_size 16 --kl_direction full_sub --output_dir "$folder/$name" ${anew[@]+"${anew[@]}"} "$@"
}
# score NAME FLAGS...: the evaluations at full length and at the config.
evaluated=()
score() {
  local name="$1" at
  shift
  for at in full config; do
    local more=()
    if [[ "$at" == config ]]; then more=(--length_config "$LENGTH_CONFIG"); fi
    unless_done "$folder/${name}_$at/eval_results.json" run_qa "$@" "${validation_data[@]}" --do_eval --accuracy_only \
      "${lengths[@]}" --per_device_eval_batch_size 32 --use_cpu ${more[@]+"${more[@]}"} --output_dir "$folder/${name}_$at"
    evaluated+=("$folder/${name}_$at")
  done
}
finish at_full_length "$@"
finish at_config --length_config "$LENGTH_CONFIG" "$@"
finish at_submodels --length_adaptive --num_sandwich 1 "$@"
score float32 --model_name_or_path "$dynamic"
score quantized --model_name_or_path "$int8" --int8
for name in at_full_length at_config at_submodels; do
  score "$name" --model_name_or_path "$folder/$name" --int8
done
run_python scripts/summary_table.py "${evaluated[@]}"
