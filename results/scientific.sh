#!/usr/bin/env bash
# The runs behind results/README.md, from raw files on.
#
#   results/scientific.sh DATA MODEL WORK
#
# DATA   folder with items.tsv and users.tsv (Amazon "Industrial & Scientific" as published with the IISAN paper)
# MODEL  a text encoder: hub id or folder (here: all-MiniLM-L6-v2)
# WORK   folder for everything; finished steps are kept, so the script can be stopped and repeated
set -eu
data=$1 model=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)

[ -e "$work/data/dataset.json" ] || iisan prepare reference "$data" --out "$work/data"
iisan describe "$work/data"
iisan cache "$work/data" --text "$model" --recipe default --out "$work/states-default"

iisan cache "$work/data" --text "$model" --recipe reference --out "$work/states-reference"

run() { # RECIPE SEED STATES SETTING…
    iisan train "$1" --dataset "$work/data" --states "$work/states-$3" --out "$work/runs/$1-seed$2" \
        --set evaluation.policy=exclude-all --set training.seed="$2" "${@:4}"
}
run similarity 0 default
for seed in 0 1 2 3 4; do
    for recipe in default frozen ids; do run $recipe $seed default --set anchor=true; done
done
for seed in 0 1 2; do
    run=$work/runs
    iisan join "$run/default-seed$seed" "$run/ids-seed$seed" --out "$run/two-seed$seed"
    iisan join "$run/default-seed$seed" "$run/frozen-seed$seed" "$run/ids-seed$seed" --out "$run/three-seed$seed"
done
for seed in 0 1 2; do
    for recipe in paper reference; do run $recipe $seed reference; done
done
python "$here/anchor.py" "$work/runs" "$here/scientific/anchor.json"
python "$here/near_duplicates.py" "$here/scientific/near-duplicates.json" "$work"/runs/{similarity,default}-seed0
python "$here/cold_items.py" "$here/scientific/cold-items.json" "$work/cold" \
    "$work"/runs/{similarity-seed0,default-seed0,default-seed1}
python "$here/ngrams.py" "$work/data" "$work/ngrams"
iisan cache "$work/data" --text "$model" --recipe default --out "$work/states-texts"
iisan import-states "$work/data" "$work/ngrams.npy" --ids "$work/ngrams.txt" --name ngrams --out "$work/states-texts"
# The recorded rows of "Two texts" are of earlier settings.
texts() { # NAME SEED SETTING…: train on the titles and their n-grams
    run=$work/$1-seed$2
    iisan train default --dataset "$work/data" --states "$work/states-texts" --out "$run" \
        --set evaluation.policy=exclude-all --set training.seed="$2" --set anchor=false "${@:3}"
    cp "$run/result.json" "$here/scientific/$1-seed$2.json"
}
for seed in 0 1 2; do texts both $seed --set "modalities=[text, ngrams]"; done
texts ngrams 0 --set "modalities=[ngrams]"
texts nonorm 0 --set "modalities=[text]" --set items.level_norm=none
python "$here/make.py"
