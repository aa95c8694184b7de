#!/usr/bin/env bash
# All that is measured on a GPU, in one call of at most nine minutes, the most valuable first. gpu.py says what it does.
#   benchmarks/gpu.sh [--pack FOLDER] [--parts tests,scan,fit,compare] [--limit PART=SECONDS]
#   benchmarks/gpu.sh --dry-run      the same code with tiny models and data, on a CPU, in under a minute
# $OUT is where the results go (benchmarks/gpu-results), $PYTHON the interpreter (that of .venv, else python3). For a machine that
# lacks packages, models or data: benchmarks/gpu_pack.sh, on a machine that has them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
exec "$python" "$root/benchmarks/gpu.py" "$@"
