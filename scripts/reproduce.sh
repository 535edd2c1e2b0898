#!/usr/bin/env bash
# The published recipe: MiniLMv2 from the hub, SQuAD, 2 epochs of fine-tuning and 5 of LengthDrop, search, evaluation,
# INT8 and its evaluation.
# Needs the hub (or MODEL= and TRAIN_FILE=/VALIDATION_FILE=, see common.sh); a GPU is advisable.
# Steps whose results exist are skipped; a training that was interrupted goes on from its last checkpoint.
#
# Flags of run_qa.py go to every step, so that all agree on the likes of --max_seq_length and --seed; a step warns of
# those that mean nothing to it.  Flags that fit one step only (--output_dir, --accuracy_only) belong to its own script.
source "$(dirname "$0")/common.sh"
make_venv requirements.txt
unless_done "$OUTPUT_DIR/finetuning/eval_results.json" bash scripts/1_finetune.sh "$@"
unless_done "$OUTPUT_DIR/dynamic/eval_results.json" bash scripts/2_length_drop.sh "$@"
unless_done "$OUTPUT_DIR/search/search_results.json" bash scripts/3_search.sh "$@"
bash scripts/evaluate.sh "$@"
unless_done "$OUTPUT_DIR/quantized/eval_results.json" bash scripts/4_quantize.sh "$@"
bash scripts/5_evaluate_int8.sh "$@"
