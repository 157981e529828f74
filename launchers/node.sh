#!/bin/bash
# Runs hydratune on all GPUs of this machine, one process each. From the top of the repository:
#
#     launchers/node.sh experiment=demo run_dir=runs/demo
#
# NPROC=2 starts two processes, on a CPU as well. A signal reaches all of them, and they have ten
# minutes to save. torchrun itself ends with status 1 whatever the processes' own was, and reports
# below what they said.

set -euo pipefail

exec "${HYDRATUNE_PYTHON:-.venv/bin/python}" -m torch.distributed.run --standalone --nproc-per-node="${NPROC:-gpu}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 --shutdown-timeout=600 -m hydratune "$@"
