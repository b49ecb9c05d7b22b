#!/usr/bin/env bash
# Train on one simulation, test on the other: the same network, number of steps and seed on sample A, on sample
# B, and on as many events of each together, then all three on test skims of both. docs/RESULTS.md has what it
# found. Lists of skims are separated by commas.
# Usage: scripts/cross_domain.sh FOLDER N_EVENTS A_TRAINING B_TRAINING A_TEST B_TEST
#        (three trainings of 8 times N_EVENTS; with 21 900, 8 minutes on one core; continues where it stopped)
set -euo pipefail
if [ $# -ne 6 ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 1
fi
out=$1
n_events=$2
here=$(dirname "${BASH_SOURCE[0]}")
budget=(data.test_fraction=0.0
  model.backbone.blocks=4 model.backbone.vector_channels=16 model.backbone.scalar_channels=48)
models=()

# NAME FILES MAX_EVENTS EPOCHS
train() {
  topreco-train --config dilepton.yaml --quiet "data.files=[$2]" "data.max_events=$3" "epochs=$4" \
    "${budget[@]}" "output=$out/$1"
  cp "$out/$1/model.safetensors" "$out/$1.safetensors"
  models+=("$out/$1.safetensors")
}

train on_a "$3" "$n_events" 8
train on_b "$4" "$n_events" 8
# Files are read in their order, so A must have as many events as asked for.
train on_both "$3,$4" $((2 * n_events)) 4

methods=$(IFS=,; echo "${models[*]}"),sonnenschein
IFS=, read -ra a_test <<<"$5"
IFS=, read -ra b_test <<<"$6"
python "$here/compare_methods.py" "${a_test[@]}" --methods "$methods" --json "$out/test_a.json" --quiet
python "$here/compare_methods.py" "${b_test[@]}" --methods "$methods" --json "$out/test_b.json" --quiet
