#!/usr/bin/env bash
# One call, under ten minutes, on a machine with a CUDA GPU: check, time against plain.py, run full-schedule cells.
#
#   benchmarks/gpu.sh OUT_FOLDER [DATA_DIR]
#
# Uses the torch that is installed there; needs numpy, safetensors, pillow, pyyaml, jsonargparse, rich, filelock,
# matplotlib and jinja2. Cells run for the data sets found in DATA_DIR (default POTSTILL_DATA_DIR), best first, each as
# a resumable run folder; what does not fit in the time is left out, and said.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?usage: benchmarks/gpu.sh OUT_FOLDER [DATA_DIR]}
export POTSTILL_DATA_DIR=${2:-${POTSTILL_DATA_DIR:-}} PYTHONPATH=src POTSTILL_CACHE_DIR=${POTSTILL_CACHE_DIR:-$PWD/runs/gpu-cache}
python=${PYTHON:-python3}
mkdir -p "$out"
started=$SECONDS
left() { echo $((570 - (SECONDS - started))); }

"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "gpu.sh: this torch sees no CUDA device")' || exit 1
timeout 120 "$python" benchmarks/gpu_check.py --out "$out/check.json" || exit 1
timeout 150 "$python" benchmarks/speed.py --device cuda --pairs 5 --ipcs 1 10 50 --out "$out/speed.json"
timeout 90 "$python" benchmarks/side_by_side.py --device cuda --nets 3 --at-once 3 --pairs 1 --out "$out/side_by_side.json"
for cell in dsdm/cifar10_ipc10:cifar10 dsdm/fashion_mnist_ipc10:fashion_mnist; do
  recipe=${cell%%:*} name=${cell##*:}
  [ "$(left)" -gt 60 ] || { echo "gpu.sh: no time left for $name"; continue; }
  timeout --signal=TERM "$(left)" "$python" -m potstill compare --config "$recipe" --methods dsdm \
    --methods.dsdm.steps 10000 --pool.members 10 --pool.schedule paper --device cuda --out "runs/gpu/$name" --json -q >"$out/$name.json" \
    || echo "gpu.sh: $name did not finish; the same call goes on with it"
done
