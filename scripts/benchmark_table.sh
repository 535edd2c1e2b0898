#!/usr/bin/env bash
# The table of sizes, scores and speeds: the reader of step 2 in float32, bf16 and INT8 (step 4), each at full length and
# at LENGTH_CONFIG, and BERT-base for comparison.  Scores are evaluated first (skipped where they exist; FORCE=1 again),
# then all are timed in turn in one process.  Arguments are INT8 folders, the default is that of step 4.
#
#   VALIDATION_FILE=dev-v1.1.json LENGTH_CONFIG="(315, 251, 242, 159, 142, 33)" bash scripts/benchmark_table.sh
#
# DYNAMIC names another float reader, TABLE another folder for the results, SCORES what else than float32 and INT8 is
# evaluated ("bfloat16" and the names of INT8 folders with _bfloat16; nothing on processors that only emulate bf16).
# For folders of the IPEX backend: VENV=.venv-ipex TABLE=output/benchmark_ipex bash scripts/benchmark_table.sh FOLDER
source "$(dirname "$0")/common.sh"
: "${VALIDATION_FILE:?is needed: a file of questions}" "${LENGTH_CONFIG:?is needed: a length config}"
dynamic="${DYNAMIC:-$OUTPUT_DIR/dynamic}" folder="${TABLE:-$OUTPUT_DIR/benchmark}"
if (($# == 0)); then set -- "$OUTPUT_DIR/quantized"; fi
evaluate=(--validation_file "$VALIDATION_FILE" --do_eval --accuracy_only --max_seq_length 384 --doc_stride 128
  --per_device_eval_batch_size 32 --use_cpu)
# score NAME FLAGS...: the evaluations at full length and at the config, in folders of that name.
score() {
  local name="$1"
  shift
  unless_done "$folder/${name}_full/eval_results.json" run_qa "${evaluate[@]}" "$@" --output_dir "$folder/${name}_full"
  unless_done "$folder/${name}_config/eval_results.json" run_qa "${evaluate[@]}" "$@" --length_config "$LENGTH_CONFIG" \
    --output_dir "$folder/${name}_config"
}
# wanted NAME: whether SCORES names it.
wanted() { [[ " ${SCORES:-} " == *" $1 "* ]]; }
score float32 --model_name_or_path "$dynamic"
if wanted bfloat16; then score bfloat16 --model_name_or_path "$dynamic" --bf16; fi
for int8 in "$@"; do
  name="$(basename "$int8")"
  score "$name" --model_name_or_path "$int8" --int8
  if wanted "${name}_bfloat16"; then score "${name}_bfloat16" --model_name_or_path "$int8" --int8 --bf16; fi
done
run_python scripts/benchmark_table.py --model "$dynamic" --int8 "$@" --validation_file "$VALIDATION_FILE" \
  --length_config "$LENGTH_CONFIG" --accuracy "$folder" --output_dir "$folder"
