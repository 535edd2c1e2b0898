#!/usr/bin/env bash
# Distillation as in Dynamic-TinyBERT, with its settings: fine-tune the teacher, let the student imitate its layers, then
# its predictions, then train with LengthDrop and the teacher.
#
#   bash scripts/distill.sh
#   TEACHER=bert-encoder STUDENT=small-encoder TRAIN_FILE=train.json VALIDATION_FILE=dev.json bash scripts/distill.sh
#
# TEACHER is the encoder that is fine-tuned and teaches (or a reader in $OUTPUT_DIR/teacher, which is then taken as it is),
# STUDENT what learns; both must share a tokenizer.  Steps whose results exist are skipped (FORCE=1 does them again), an
# interrupted one goes on.  Flags of run_qa.py go to every step, and a step warns of those that mean nothing to it.
source "$(dirname "$0")/common.sh"
choose_data
common=("${train_data[@]}" --do_train --do_eval --max_seq_length 384 --doc_stride 128 ${anew[@]+"${anew[@]}"})
taught=("${common[@]}" --teacher_model_name_or_path "$OUTPUT_DIR/teacher" --per_device_train_batch_size 16)

unless_done "$OUTPUT_DIR/teacher/eval_results.json" run_qa --model_name_or_path "${TEACHER:-bert-base-uncased}" \
  "${common[@]}" --learning_rate 3e-5 --num_train_epochs 2 --per_device_train_batch_size 8 \
  --output_dir "$OUTPUT_DIR/teacher" "$@"

unless_done "$OUTPUT_DIR/intermediate/eval_results.json" run_qa \
  --model_name_or_path "${STUDENT:-huawei-noah/TinyBERT_General_6L_768D}" "${taught[@]}" --state_loss_ratio 1.0 \
  --att_loss_ratio 1.0 --att_mse --learning_rate 5e-5 --num_train_epochs 20 --output_dir "$OUTPUT_DIR/intermediate" "$@"

unless_done "$OUTPUT_DIR/student/eval_results.json" run_qa --model_name_or_path "$OUTPUT_DIR/intermediate" \
  "${taught[@]}" --pred_distill --learning_rate 3e-5 --num_train_epochs 10 --output_dir "$OUTPUT_DIR/student" "$@"

unless_done "$OUTPUT_DIR/dynamic_student/eval_results.json" run_qa --model_name_or_path "$OUTPUT_DIR/student" \
  "${taught[@]}" --pred_distill --length_adaptive --num_sandwich 2 --length_drop_ratio_bound 0.2 \
  --layer_dropout_prob 0.2 --learning_rate 2e-5 --num_train_epochs 10 --output_dir "$OUTPUT_DIR/dynamic_student" "$@"
