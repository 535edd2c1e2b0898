#!/usr/bin/env bash
# Step 5: evaluate the INT8 reader of step 4 at the cheapest length config that the search of step 3 found within
# MAX_F1_DROP points of F1 (default: 1).  Further flags may follow and win over these.
source "$(dirname "$0")/common.sh"
choose_data
run_qa --model_name_or_path "$OUTPUT_DIR/quantized" "${validation_data[@]}" --int8 --do_eval --benchmark \
  --max_seq_length 384 --doc_stride 128 --per_device_eval_batch_size 32 --use_cpu \
  --length_config_from "$OUTPUT_DIR/search" --max_f1_drop "${MAX_F1_DROP:-1}" \
  --output_dir "$OUTPUT_DIR/evaluation_int8" "$@"
