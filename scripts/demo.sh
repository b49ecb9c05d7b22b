#!/usr/bin/env bash
# The whole chain on a laptop, called by `make demo`: simulate and run the shipped model and Sonnenschein's
# method through coffea; beside them a network that is trained here in two minutes, to show the trainer; plot.
# Usage: scripts/demo.sh [FOLDER]   (default results/demo; about six minutes on two cores)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/demo}

# Two samples with different seeds, so that nothing is evaluated on events that were trained on.
topreco simulate -n 25000 --seed 1 -o "$out/train.root" --overwrite
topreco simulate -n 15000 --seed 2 -o "$out/test.root" --overwrite

topreco skim "$out/train.root" --dataset train --config skim-loose.yaml -o "$out/train.parquet"
topreco-train --config demo.yaml "data.files=[$out/train.parquet]" "output=$out/model"
cp "$out/model/model.safetensors" "$out/trained_here.safetensors"

topreco run "$out/test.root" --dataset test --config run.yaml chunk_size=5000 -o "$out" \
  --method dilepton --method "$out/trained_here.safetensors" --method sonnenschein
