#!/usr/bin/env bash
# Step 3: search the length configs of the reader of step 2, scored on a slice of the training questions.
# Further flags may follow and win over these.
source "$(dirname "$0")/common.sh"
choose_data
run_qa --model_name_or_path "${DYNAMIC:-$OUTPUT_DIR/dynamic}" "${train_data[@]}" --max_seq_length 384 \
  --doc_stride 128 --do_eval --per_device_eval_batch_size 32 --do_search --output_dir "$OUTPUT_DIR/search" \
  ${anew[@]+"${anew[@]}"} "$@"
