#!/usr/bin/env bash
# Small samples of the package's own simulation at three top masses, for `topreco validate --mass-scan`. What is
# there already is kept.
# Usage: scripts/mass_scan.sh [FOLDER] [EVENTS]
#        (default results/mass_scan 20000: 1700 selected events each, 10 minutes on one core)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/mass_scan}
events=${2:-20000}

seed=401
for mass in 169.5 175.5 172.5; do
  root="$out/tt_$mass.root" skim="$out/tt_$mass.parquet"
  [ -e "$root" ] || topreco simulate --config simulate.yaml --events "$events" --seed "$seed" \
    --workers "${WORKERS:-1}" -o "$root" "m_top=$mass"
  [ -e "$skim" ] || topreco skim "$root" --dataset "tt_$mass" --config skim-tight.yaml -o "$skim"
  seed=$((seed + 1))
done
