#!/bin/bash
# Submits a sweep to Slurm, from a login node. From the top of the repository:
#
#     launchers/sweep.sh experiment=demo lora.r=8,16 trainer.learning_rate=5e-4,1e-3
#
# Your site's partition, account and modules are in a file, SITE (mine/cluster/site.yaml): docs/slurm.md.
# LAUNCHER=slurm_node gives each job all GPUs of a node, slurm_multinode two nodes. A job takes one GPU otherwise.
# It ends when the jobs are submitted, and prints their folder. Then:
#
#     hydratune sweep status FOLDER      hydratune sweep logs FOLDER      hydratune sweep report FOLDER

set -euo pipefail

site=${SITE:-mine/cluster/site.yaml}
options=()
if [[ -f $site ]]; then
    # --config-dir is the folder above cluster/
    options=(--config-dir "$(dirname "$(dirname "$site")")" "cluster=$(basename "$site" .yaml)")
elif [[ -n ${SITE-} ]]; then
    echo "sweep.sh: there is no file $SITE" >&2
    exit 2
fi

exec "${HYDRATUNE_PYTHON:-.venv/bin/python}" -m hydratune -m "hydra/launcher=${LAUNCHER:-slurm_1gpu}" "${options[@]}" "$@"
