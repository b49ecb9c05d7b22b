#!/usr/bin/env bash
# Where the limit lies: the same small network trained and tested on events in which parts of the measurement
# are replaced by the truth (perfect_inputs.py). docs/RESULTS.md has what it found.
# Usage: scripts/perfect_inputs.sh FOLDER TRAINING_SKIM TEST_SKIM
#        (seven trainings of 6 epochs on 30 000 events, 20 minutes on one core; continues where it stopped)
set -euo pipefail
if [ $# -ne 3 ]; then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 1
fi
out=$1
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$out"

for parts in none pairing met leptons jets jets,met jets,met,leptons; do
  name=${parts//,/_}
  python "$here/perfect_inputs.py" "$2" --replace "$parts" -o "$out/train_$name.parquet"
  python "$here/perfect_inputs.py" "$3" --replace "$parts" -o "$out/test_$name.parquet"
  topreco-train --config dilepton.yaml --quiet "data.files=[$out/train_$name.parquet]" data.test_fraction=0.0 \
    data.max_events=30000 epochs=6 model.backbone.blocks=4 model.backbone.vector_channels=16 \
    model.backbone.scalar_channels=48 "output=$out/$name"
  python "$here/compare_methods.py" "$out/test_$name.parquet" --methods "$out/$name/model.safetensors" \
    --json "$out/$name.json" --quiet
done
