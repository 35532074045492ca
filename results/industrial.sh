#!/usr/bin/env bash
# The runs behind "a public benchmark's test rows" in results/README.md, from raw files on.
#
#   results/industrial.sh DATA MODEL WORK
#
# DATA   folder with items.tsv, train.tsv, valid.tsv and test.tsv
# MODEL  a text encoder: hub id or folder (here: all-MiniLM-L6-v2)
# WORK   folder for everything; finished steps are kept, so the script can be stopped and repeated
set -eu
data=$1 model=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)

[ -e "$work/data/dataset.json" ] || iisan prepare reference "$data/items.tsv" "$data/train.tsv" \
    --validation "$data/valid.tsv" --test "$data/test.tsv" --out "$work/data"
iisan cache "$work/data" --text "$model" --recipe default --out "$work/states"
run() { # RECIPE SEED
    iisan train "$1" --dataset "$work/data" --states "$work/states" --out "$work/runs/$1-seed$2" \
        --set evaluation.policy=all --set training.seed="$2"
}
run similarity 0
for seed in 0 1 2 3 4; do run default $seed; done
mkdir -p "$here/industrial"
python "$here/anchor.py" "$work/runs" "$here/industrial/anchor.json"
python "$here/make.py"
