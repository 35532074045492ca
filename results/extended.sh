#!/usr/bin/env bash
# The runs behind "More modalities" in results/README.md: the extended catalogue, three seeds.
#
#   results/extended.sh WORK
#
# WORK   folder for everything; finished steps are kept, so the script can be stopped and repeated
set -eu
work=$1
here=$(cd "$(dirname "$0")" && pwd)

mkdir -p "$here/extended" "$work"
cd "$work"
for seed in 0 1 2; do
    runs=seed$seed/runs
    iisan demo --extended --seed $seed --out seed$seed --json >"$here/extended/seed$seed.json"
    iisan robustness "$runs/iisan" "$runs/iisan-modality-dropout" --modality text --rates 0,0.1,0.3,0.5,1 \
        --json >"$here/extended/no-text-seed$seed.json"
done
python "$here/make.py"
