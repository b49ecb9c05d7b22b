#!/usr/bin/env bash
# The samples of the package's own simulation that the shipped models are trained and tested on, and their
# skims. Files are made one by one and kept, so the same command continues an interrupted run, adds files to a
# smaller one, or makes only some of the seeds on each of several machines.
# Usage: scripts/make_samples.sh [FOLDER] [TRAINING_FILES] [TEST_FILES]
#        (default results/samples 5 5: 500 000 events, 80 minutes on one core, 0.4 GB)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/samples}
n_train=${2:-5}
n_test=${3:-5}

# Simulate the file of a seed and skim it, what is there already excepted. The dataset's name is part of each
# event's identity and event numbers restart in every file, so each file is a dataset of its own.
make_file() {
  local seed=$1 selection=$2 root="$out/tt_$1.root" skim="$out/tt_$1_$2.parquet"
  [ -e "$root" ] || topreco simulate --config sim/tt2l_13tev.yaml --seed "$seed" -o "$root"
  [ -e "$skim" ] || topreco skim "$root" --dataset "tt_$seed" --config "skim-$selection.yaml" -o "$skim"
}

for ((seed = 101; seed < 101 + n_train; seed++)); do
  make_file "$seed" loose
done
for ((seed = 201; seed < 201 + n_test; seed++)); do
  make_file "$seed" tight
done
