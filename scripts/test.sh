#!/usr/bin/env bash
# Run the tests in .venv, which is made if there is none.  Arguments go to pytest: bash scripts/test.sh -k metric
source "$(dirname "$0")/common.sh"
make_venv requirements.txt requirements-dev.txt
export HF_HUB_OFFLINE=1
# Two processes, as the tests that compile wait for one core; a file stays in one process, which shares its models.
run "$(venv_python)" -m pytest -n 2 --dist loadfile "$@"
