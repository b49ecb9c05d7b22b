#!/usr/bin/env bash
# Output heads and auxiliary losses on one budget: the same events, steps and seed for each, then all of them
# on the same other events. What it found is in docs/RESULTS.md.
# Usage: scripts/compare_heads.sh FOLDER TEST_SKIM TRAINING_SKIM...
#        (14 trainings of 4 epochs on 30 000 events, 20 minutes on one core; continues where it stopped)
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 1
fi
out=$1
test_skim=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")

# A smaller network than the shipped one, and its recipe but for what is compared.
budget=(data.test_fraction=0.0 data.max_events=30000 epochs=4
  model.head=on_shell loss.m_tt_kind=log loss.c_hel=0
  model.backbone.blocks=4 model.backbone.vector_channels=16 model.backbone.scalar_channels=48)
files=$(IFS=,; echo "$*")
models=()

train() {
  local name=$1
  shift
  topreco-train --config dilepton.yaml --quiet "data.files=[$files]" "${budget[@]}" "$@" "output=$out/$name"
  cp "$out/$name/model.safetensors" "$out/$name.safetensors"
  models+=("$out/$name.safetensors")
}

for head in on_shell projected three_momentum timelike direct neutrinos; do
  train "head_$head" "model.head=$head" loss.m_tt=10 loss.pt_top=0
done
train loss_none loss.m_tt=0 loss.pt_top=0
train loss_pt_top loss.m_tt=0 loss.pt_top=2
train loss_c_hel loss.m_tt=0 loss.pt_top=0 loss.c_hel=1
train loss_top_mass model.head=direct loss.m_tt=0 loss.pt_top=0 loss.top_mass=1
train loss_m_tt_pt_top loss.m_tt=10 loss.pt_top=2
train loss_m_tt_c_hel loss.m_tt=10 loss.pt_top=0 loss.c_hel=1
train loss_all loss.m_tt=10 loss.pt_top=2 loss.c_hel=1
train loss_all_direct model.head=direct loss.m_tt=10 loss.pt_top=2 loss.c_hel=1 loss.top_mass=1

methods=$(IFS=,; echo "${models[*]}")
python "$here/compare_methods.py" "$test_skim" --methods "$methods" --json "$out/heads.json" --quiet
