#!/bin/bash
# Runs hydratune on this machine, one process. From the top of the repository:
#
#     launchers/local.sh experiment=demo run_dir=runs/demo
#
# All cores, and the first GPU where there is one. On a machine shared with others, THREADS=8 takes so many
# cores, GPU=2 takes that GPU, and GPU= takes none. All GPUs of this machine: node.sh.

set -euo pipefail

# PyTorch's threads spin when there are more of them than free cores.
[[ -z ${THREADS-} ]] || export OMP_NUM_THREADS=$THREADS
# One process would otherwise see every GPU, and another's first one may be full.
export CUDA_VISIBLE_DEVICES=${GPU-${CUDA_VISIBLE_DEVICES-0}}

exec "${HYDRATUNE_PYTHON:-.venv/bin/python}" -m hydratune "$@"
