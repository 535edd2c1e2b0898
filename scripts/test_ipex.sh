#!/usr/bin/env bash
# Test the IPEX backend in an environment of its own, .venv-ipex, which is made if there is none (it takes 12 GB of disk
# to install and 7 to keep): the INT8 tests on small models, then, if you name one, tuning and evaluating a real reader.
# Arguments go to pytest.
#
#   bash scripts/test_ipex.sh
#   MODEL=output/dynamic TRAIN_FILE=train-v1.1.json VALIDATION_FILE=dev-v1.1.json \
#     LENGTH_CONFIG="(315, 251, 242, 159, 142, 33)" bash scripts/test_ipex.sh
VENV="${VENV:-.venv-ipex}"
source "$(dirname "$0")/common.sh"
make_venv requirements-ipex.txt
export HF_HUB_OFFLINE=1
run_python -m pytest --quantization_backend ipex tests/test_int8_modules.py tests/test_quantization.py \
  tests/test_sensitivity.py tests/test_int8_stages.py "$@"
[[ -n "${MODEL:-}" ]] || exit 0
choose_data
common=(--model_name_or_path "$MODEL" --quantization_backend ipex --output_dir "$OUTPUT_DIR/quantized_ipex" --do_eval
  --accuracy_only --max_seq_length 384 --doc_stride 128 --per_device_eval_batch_size 32)
run_qa "${common[@]}" "${train_data[@]}" --tune --do_train --is_relative false --perf_tol 0.2 --overwrite_output_dir
run_qa "${common[@]}" "${validation_data[@]}" --int8 --length_config "${LENGTH_CONFIG:?is needed: a length config}"
