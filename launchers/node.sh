#!/bin/bash
# Runs hydratune on all GPUs of this machine, one process each. From the top of the repository:
#
#     launchers/node.sh experiment=demo run_dir=runs/demo
#
# NPROC=2 starts two processes, on a CPU as well. A signal reaches all of them, and they save. It ends
# with their exit status: hydratune.torchrun is PyTorch's torchrun, with that alone added.

set -euo pipefail

exec "${HYDRATUNE_PYTHON:-.venv/bin/python}" -m hydratune.torchrun --standalone --nproc-per-node="${NPROC:-gpu}" \
    -m hydratune "$@"
