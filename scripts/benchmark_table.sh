#!/usr/bin/env bash
# The table of sizes, scores and speeds: the reader of step 2 in float32, bf16 and INT8 (step 4), each at full length and
# at LENGTH_CONFIG, and BERT-base for comparison.  Scores are evaluated first (skipped where they exist; FORCE=1 again),
# then all are timed in turn in one process.
#
#   VALIDATION_FILE=dev-v1.1.json TRAIN_FILE=train-v1.1.json LENGTH_CONFIG="(315, 251, 242, 159, 142, 33)" \
#     bash scripts/benchmark_table.sh
source "$(dirname "$0")/common.sh"
: "${VALIDATION_FILE:?is needed: a file of questions}" "${LENGTH_CONFIG:?is needed: a length config}"
dynamic="${DYNAMIC:-$OUTPUT_DIR/dynamic}" int8="${INT8:-$OUTPUT_DIR/quantized}" folder="$OUTPUT_DIR/benchmark"
evaluate=(--validation_file "$VALIDATION_FILE" --do_eval --accuracy_only --max_seq_length 384 --doc_stride 128
  --per_device_eval_batch_size 32 --use_cpu)
for at in full config; do
  lengths=()
  if [[ "$at" == config ]]; then lengths=(--length_config "$LENGTH_CONFIG"); fi
  score() {
    unless_done "$folder/$1_$at/eval_results.json" run_qa "${evaluate[@]}" "${@:2}" ${lengths[@]+"${lengths[@]}"} \
      --output_dir "$folder/$1_$at"
  }
  score float32 --model_name_or_path "$dynamic"
  score bfloat16 --model_name_or_path "$dynamic" --bf16
  score int8 --model_name_or_path "$int8" --int8
done
python="${PYTHON:-python3}"
[[ ! -d .venv ]] || python="$(venv_python)"
run "$python" scripts/benchmark_table.py --model "$dynamic" --int8 "$int8" --validation_file "$VALIDATION_FILE" \
  --length_config "$LENGTH_CONFIG" --accuracy "$folder" --output_dir "$folder"
