#!/usr/bin/env bash
# Evaluate the reader of step 2 at full length and at the cheapest length config that the search of step 3 found
# within MAX_F1_DROP points of F1 (default: 1), then print both.  Further flags may follow and win over these.
source "$(dirname "$0")/common.sh"
choose_data
evaluate=(--model_name_or_path "${DYNAMIC:-$OUTPUT_DIR/dynamic}" "${validation_data[@]}" --do_eval --benchmark
  --max_seq_length 384 --doc_stride 128 --per_device_eval_batch_size 32)
run_qa "${evaluate[@]}" --output_dir "$OUTPUT_DIR/evaluation_full" "$@"
run_qa "${evaluate[@]}" --length_config_from "$OUTPUT_DIR/search" --max_f1_drop "${MAX_F1_DROP:-1}" \
  --output_dir "$OUTPUT_DIR/evaluation_searched" "$@"
run_python scripts/summary_table.py "$OUTPUT_DIR/evaluation_full" "$OUTPUT_DIR/evaluation_searched"
