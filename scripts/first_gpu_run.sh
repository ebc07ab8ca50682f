#!/usr/bin/env bash
# The first quarter of an hour on a GPU, from a checkout on a bare machine: see docs/bare-node.md.
#
#   scripts/first_gpu_run.sh 1              compile, capture, compare, measure (360 s)
#   scripts/first_gpu_run.sh 2              right after it: train, and bring the weights home (480 s)
#   scripts/first_gpu_run.sh 3              on any machine: score those weights on a CPU
#
# Options: --out DIR (default results/gpu), --seconds N, --work DIR, --rehearse (tiny, on a CPU).
# PYTHON is the interpreter with torch (default python3), WHEELS the folder of what it lacks
# (default .whl), GLAS_BENCH_DATA the folder of packed data (default packed, if it is there).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=${TMPDIR:-/tmp}/glas-first-gpu-run-site
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if ! "$python" -c 'import pydantic' 2>/dev/null; then
    timeout 60 "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" \
        "${WHEELS:-.whl}"/*.whl || {
        echo "wheels: pydantic is missing, and ${WHEELS:-.whl} has no wheels of it that fit:" \
            "see docs/bare-node.md"
        exit 1
    }
    echo "wheels: installed from ${WHEELS:-.whl}"
fi
if [ -z "${GLAS_BENCH_DATA:-}" ] && [ -d packed ]; then
    export GLAS_BENCH_DATA=$PWD/packed
fi
exec "$python" scripts/first_gpu_run.py "$@"
