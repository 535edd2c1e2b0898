#!/usr/bin/env bash
# Step 1: fine-tune an encoder on question answering.  Further flags of run_qa.py may follow and win over these.
source "$(dirname "$0")/common.sh"
choose_data
run_qa --model_name_or_path "${MODEL:-nreimers/MiniLMv2-L6-H384-distilled-from-RoBERTa-Large}" "${train_data[@]}" \
  --do_train --do_eval --learning_rate 3e-5 --num_train_epochs 2 --max_seq_length 384 --doc_stride 128 \
  --per_device_train_batch_size 8 --output_dir "$OUTPUT_DIR/finetuning" ${anew[@]+"${anew[@]}"} "$@"
