#!/usr/bin/env bash
# All that is measured on a GPU, in one call: the tests that load real models, then every benchmark, as JSON files in a folder.
#   benchmarks/gpu.sh DATA OUT          DATA holds instruct/*.parquet and ner/*.parquet
# It needs the packages of the extras demo and test, and the two packages of models (see the Makefile), and installs nothing.
# PYTHON names the interpreter; ROWS (2048), REPEATS (3) and METHOD_ROWS (2000) say how much is measured. Exit status: steps that failed.
set -uo pipefail
data=$(realpath "${1:?DATA, a folder}") out=$(realpath -m "${2:?OUT, a folder}")
cd "$(dirname "$0")/.."
mkdir -p "$out"
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3} rows=${ROWS:-2048} repeats=${REPEATS:-3} method_rows=${METHOD_ROWS:-2000} failed=0

step() {  # NAME COMMAND...: its output in OUT/NAME.json, what it says in OUT/NAME.log
    local name=$1 start=$SECONDS status=0
    shift
    "$@" >"$out/$name.json" 2>"$out/$name.log" || status=$?
    ((status == 0)) || failed=$((failed + 1))
    printf '%-24s exit %d, %d s\n' "$name" "$status" $((SECONDS - start))
    ((status == 0)) || tail -n 5 "$out/$name.log" "$out/$name.json"
}

nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null || echo "no GPU: everything runs on the CPU"
step tests "$python" -m pytest -q -m model tests
step scan "$python" benchmarks/scan.py --rows "$rows" --repeats "$repeats" --batch-tokens 32768 --data "$data"
step scan-ner "$python" benchmarks/scan.py --task ner --rows "$rows" --repeats "$repeats" --batch-tokens 32768 --data "$data"
step fit "$python" benchmarks/fit.py --rows "$rows" --repeats "$repeats" --data "$data"
step fit-ner "$python" benchmarks/fit.py --task ner --rows "$rows" --repeats "$repeats" --data "$data"
for task in instruction ner; do
    step "methods-$task" "$python" benchmarks/methods.py --task "$task" --rows "$method_rows" --target-rows 128 --repeats 1 --data "$data"
    grep '^|' "$out/methods-$task.log"
done
exit "$failed"
