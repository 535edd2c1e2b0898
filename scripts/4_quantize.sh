#!/usr/bin/env bash
# Step 4: quantize the reader of step 2 to INT8, calibrated on training examples.
# Further flags may follow and win over these.
source "$(dirname "$0")/common.sh"
choose_data
run_qa --model_name_or_path "${DYNAMIC:-$OUTPUT_DIR/dynamic}" "${train_data[@]}" --tune --do_train --do_eval \
  --quantization_approach PostTrainingStatic --max_seq_length 384 --doc_stride 128 --per_device_eval_batch_size 32 \
  --use_cpu --output_dir "$OUTPUT_DIR/quantized" ${anew[@]+"${anew[@]}"} "$@"
