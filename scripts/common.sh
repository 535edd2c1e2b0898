# Sourced by the other scripts: runs them from the repository root and holds what they share.
#
#   PYTHON=python3.11                      the Python that makes VENV, or that runs the steps when there is none
#   MODEL=folder-or-hub-id                 the encoder to start from
#   DATASET=squad                          a data set on the hub, or else these two files:
#   TRAIN_FILE=a.json VALIDATION_FILE=b.json
#   VENV=.venv                             the virtual environment
#   OUTPUT_DIR=output                      every step writes into a folder of its own below this one
#   FORCE=1                                do steps again whose results exist

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUTPUT_DIR="${OUTPUT_DIR:-output}"
VENV="${VENV:-.venv}"
# What FORCE=1 adds to a training or a search, which would otherwise go on with what its folder holds.  Used in the form
# ${anew[@]+"${anew[@]}"}, because bash before 4.4 (that of macOS) takes an empty array for an unset variable.
anew=()
if [[ -n "${FORCE:-}" ]]; then anew=(--overwrite_output_dir); fi

# Fills the arrays `train_data` and `validation_data` with the flags that name the data.
choose_data() {
  if [[ -n "${VALIDATION_FILE:-}" ]]; then
    validation_data=(--validation_file "$VALIDATION_FILE")
    train_data=(--train_file "${TRAIN_FILE:?is needed beside VALIDATION_FILE}" "${validation_data[@]}")
  elif [[ -n "${TRAIN_FILE:-}" ]]; then
    echo "error: TRAIN_FILE needs VALIDATION_FILE beside it" >&2
    exit 2
  else
    validation_data=(--dataset_name "${DATASET:-squad}")
    train_data=("${validation_data[@]}")
  fi
}

venv_python() {
  if [[ -x "$VENV/Scripts/python" ]]; then echo "$VENV/Scripts/python"; else echo "$VENV/bin/python"; fi
}

# make_venv FILE...: a virtual environment in VENV that satisfies the requirement files; quick when it does already.
make_venv() {
  local base="${PYTHON:-python3}" file installed
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $base is not Python 3.11 or newer; name one with PYTHON=" >&2
    exit 2
  }
  # A folder alone says nothing: what an interrupted or failed `venv` leaves has no Python or no pip.
  local python
  python="$(venv_python)"
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 || "$base" -m venv --clear "$VENV"
  for file in "$@"; do
    installed="$VENV/installed-$file"
    cmp -s "$file" "$installed" && continue
    echo "installing $file ..."
    "$(venv_python)" -m pip install --quiet --disable-pip-version-check -r "$file"
    cp "$file" "$installed"
  done
}

# run COMMAND...: prints the command, then runs it.
run() {
  printf '\n+'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

# chosen_python: that of VENV where there is one.
chosen_python() {
  if [[ -d "$VENV" ]]; then venv_python; else echo "${PYTHON:-python3}"; fi
}

# run_python FILE FLAGS...: `python FILE FLAGS`.
run_python() {
  run "$(chosen_python)" "$@"
}

run_qa() {
  run_python run_qa.py "$@"
}

# unless_done RESULT COMMAND...: skips a command whose result file exists (FORCE=1 does it again).
unless_done() {
  local result="$1"
  shift
  if [[ -e "$result" && -z "${FORCE:-}" ]]; then
    echo "skipped: $result exists (FORCE=1 does it again)"
  else
    "$@"
  fi
}
