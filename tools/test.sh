#!/usr/bin/env bash
# Runs the tests in .venv, made as needed: bash tools/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$REPO_ROOT"

make_venv test,clients
export OPENBLAS_NUM_THREADS=1  # the two pytest workers are the parallelism
"$VENV_PYTHON" -m pytest -n 2 "$@"
