#!/usr/bin/env bash
# Samples of the package's own simulation and their skims, for training and for tests. Files are made one by one
# and kept, so the same command continues an interrupted run, adds files to a smaller one, or makes only some of
# the seeds on each of several machines.
# Usage: scripts/make_samples.sh [FOLDER] [TRAINING_FILES] [TEST_FILES] [new | pileup | plain]
#        (default results/samples 5 5 new: 180 000 loosely selected events for training, 11 000 tightly selected
#        ones for tests, 80 minutes on one core, 0.5 GB)
# new:   training with ten W decays for each hard event, tests with one; spin correlation of leading-order QCD.
# pileup: the same with the pile-up of Run 2, seeds from 151 and 251; training takes 30 minutes a file.
# plain: Pythia's own decays without spin correlation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/samples}
n_train=${2:-5}
n_test=${3:-5}
kind=${4:-new}

# Hard events of a seed are the same in every recipe.
first=1
options=()
case $kind in
  new) train=tt2l_13tev_redecay train_name=tt_redecay tests=tt2l_13tev_spin test_name=tt_spin ;;
  pileup)
    train=tt2l_13tev_pileup train_name=tt_pileup tests=tt2l_13tev_spin test_name=tt_spin_pileup
    first=51 options=(pileup=run2)
    ;;
  plain) train=tt2l_13tev train_name=tt tests=tt2l_13tev test_name=tt ;;
  *) echo "make_samples.sh: '$kind' is no kind of sample; allowed are new, pileup, plain" >&2; exit 2 ;;
esac

# Simulate the file of a seed and skim it, what is there already excepted. The dataset's name is part of each
# event's identity and event numbers restart in every file, so each file is a dataset of its own.
make_file() {
  local recipe=$1 name=$2_$3 seed=$3 selection=$4
  local root="$out/$name.root" skim="$out/${name}_$selection.parquet"
  [ -e "$root" ] || topreco simulate --config "sim/$recipe.yaml" ${options[@]+"${options[@]}"} --seed "$seed" -o "$root"
  [ -e "$skim" ] || topreco skim "$root" --dataset "$name" --config "skim-$selection.yaml" -o "$skim"
}

# Training and tests need different seeds.
for ((seed = 100 + first; seed < 100 + first + n_train; seed++)); do
  make_file "$train" "$train_name" "$seed" loose
done
for ((seed = 200 + first; seed < 200 + first + n_test; seed++)); do
  make_file "$tests" "$test_name" "$seed" tight
done
