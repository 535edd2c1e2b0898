#!/usr/bin/env bash
# The table of sizes, scores and speeds: the reader of step 2 in float32, bf16 and INT8 (step 4), each at full length and
# at LENGTH_CONFIG, and BERT-base for comparison.  Scores are evaluated first (skipped where they exist; FORCE=1 again),
# then all are timed in turn in one process.
#
#   VALIDATION_FILE=dev-v1.1.json LENGTH_CONFIG="(315, 251, 242, 159, 142, 33)" bash scripts/benchmark_table.sh
#
# DYNAMIC and INT8 name other folders than those of the steps, SCORES what is evaluated.  For the IPEX backend, with an
# INT8 folder that was tuned for it: VENV=.venv-ipex BACKEND=ipex INT8=folder ...; its results go to another folder.
source "$(dirname "$0")/common.sh"
: "${VALIDATION_FILE:?is needed: a file of questions}" "${LENGTH_CONFIG:?is needed: a length config}"
backend="${BACKEND:-pt2e}"
dynamic="${DYNAMIC:-$OUTPUT_DIR/dynamic}" int8="${INT8:-$OUTPUT_DIR/quantized}" folder="$OUTPUT_DIR/benchmark_$backend"
evaluate=(--validation_file "$VALIDATION_FILE" --do_eval --accuracy_only --max_seq_length 384 --doc_stride 128
  --per_device_eval_batch_size 32 --use_cpu)
# score NAME FLAGS...: the evaluations at full length and at the config, in folders of that name.
score() {
  local name="$1"
  shift
  [[ " ${SCORES:-float32 bfloat16 int8 int8_and_bfloat16} " == *" $name "* ]] || return 0
  unless_done "$folder/${name}_full/eval_results.json" run_qa "${evaluate[@]}" "$@" --output_dir "$folder/${name}_full"
  unless_done "$folder/${name}_config/eval_results.json" run_qa "${evaluate[@]}" "$@" --length_config "$LENGTH_CONFIG" \
    --output_dir "$folder/${name}_config"
}
score int8 --model_name_or_path "$int8" --int8 --quantization_backend "$backend"
score int8_and_bfloat16 --model_name_or_path "$int8" --int8 --quantization_backend "$backend" --bf16
score float32 --model_name_or_path "$dynamic"
score bfloat16 --model_name_or_path "$dynamic" --bf16
run_python scripts/benchmark_table.py --model "$dynamic" --int8 "$int8" --validation_file "$VALIDATION_FILE" \
  --length_config "$LENGTH_CONFIG" --accuracy "$folder" --output_dir "$folder"
