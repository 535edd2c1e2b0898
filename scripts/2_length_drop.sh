#!/usr/bin/env bash
# Step 2: make the reader of step 1 length-adaptive (LengthDrop).  Further flags may follow and win over these.
source "$(dirname "$0")/common.sh"
choose_data
run_qa --model_name_or_path "${FINETUNED:-$OUTPUT_DIR/finetuning}" "${train_data[@]}" --do_train --do_eval \
  --learning_rate 3e-5 --num_train_epochs 5 --max_seq_length 384 --doc_stride 128 --per_device_train_batch_size 8 \
  --length_adaptive --num_sandwich 2 --length_drop_ratio_bound 0.2 --layer_dropout_prob 0.2 \
  --output_dir "$OUTPUT_DIR/dynamic" ${anew[@]+"${anew[@]}"} "$@"
