#!/usr/bin/env bash
# Rows that take a CPU days, on one CUDA GPU: check it, time replayed steps, then cells side by side in lanes.
#
#   benchmarks/gpu.sh OUT_FOLDER DATA_DIR [SECONDS]
#
# Uses the torch that is installed there; needs what pyproject.toml lists. The lanes below took 430 s on an H100 with 16
# cores; what does not fit in the time is left out, and said. Pools that lie in the cache are not trained again:
# results/README.md says how to put ours there. Kernels of the lanes run side by side where CUDA's multi-process service
# can be started; without it they take turns.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUT_FOLDER DATA_DIR [SECONDS]}" && cd "$1" && pwd)
export POTSTILL_DATA_DIR=${2:?usage: benchmarks/gpu.sh OUT_FOLDER DATA_DIR [SECONDS]}
export PYTHONPATH=$PWD/src OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=4
python=${PYTHON:-python3} started=$SECONDS limit=${3:-600}
left() { echo $((limit - (SECONDS - started))); }

"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "gpu.sh: this torch sees no CUDA device")' || exit 1
if command -v nvidia-cuda-mps-control >/dev/null; then
  export CUDA_MPS_PIPE_DIRECTORY=$out/mps CUDA_MPS_LOG_DIRECTORY=$out/mps
  mkdir -p "$out/mps" && nvidia-cuda-mps-control -d && trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi

run() { # a line for each command: how it ended, how long it took
  local at=$SECONDS; [ "$(left)" -gt 15 ] || { echo "no time left: $*"; return 1; }
  timeout --signal=TERM "$(left)" "$@" >>"$out/log.$BASHPID" 2>&1; local ended=$?
  echo "exit $ended after $((SECONDS - at)) s: $*"; return $ended
}
cell() { # NAME NETS recipe words: distilled, then scored
  local name=$1 nets=$2; shift 2
  run "$python" -m potstill distill --out "$out/$name" "$@" && run "$python" -m potstill evaluate "$out/$name" --nets "$nets"
}
paper=(--config dsdm/paper_schedule --dataset cifar10 --ipc 10 --factor 2 --data.normalisation measured)

{ run "$python" benchmarks/gpu_check.py --out "$out/check.json"; run "$python" benchmarks/replay.py --out "$out/replay.json"; } &
{ cell lead_ipc10 3 --config dsdm_plus/cifar10_ipc10; } &
{ cell lead_ipc10_seed1 3 --config dsdm_plus/cifar10_ipc10 --seed 1; } &
{ cell dsdm 5 "${paper[@]}"; } &
{ cell dsdm_code 5 "${paper[@]}" --fidelity code; } &
{ cell ipc50 3 --config dsdm_plus/cifar10_ipc50; } &
{ for seed in 0 1; do cell "half_chroma_ipc1_seed$seed" 3 --config dsdm_plus/cifar10_ipc1 --seed "$seed"; done; } &
{ for ipc in 1 10; do cell "mix_ipc$ipc" 3 --config "dsdm_plus/cifar10_ipc$ipc" --method random_mix; done; } &
wait
