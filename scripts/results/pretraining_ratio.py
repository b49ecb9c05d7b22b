r"""Whether pre-training pays for a ratio of densities: spin correlation of QCD over none.

    python scripts/results/pretraining_ratio.py --a tt_redecay_101_loose.parquet \
        --b tt_redecay_102_loose.parquet --test tt_201_loose.parquet \
        --masked results/masked/model.safetensors --tokens results/tokens/model.safetensors \
        --output results/pretraining_ratio

The table of docs/PRETRAINING.md. All skims are of events without spin correlation, and those of A get the
weights of leading order (`topreco.core.spin.event_spin_weight`). The task ``ratio`` learns from reconstructed
objects; on the test events its log-ratio is compared with the logarithm of the true weight of each event,
which no reconstruction knows fully. A training that exists is kept.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

import topreco
from topreco.config import RatioTrainConfig, load_config
from topreco.core.files import writable_folder, write_csv
from topreco.core.skim import Skim, SkimWriter
from topreco.core.spin import event_spin_weight
from topreco.network.train_ratio import train_ratio

SLIM = "model.backbone={kind: lgatr_slim}"
PET = "model.backbone={kind: pet, blocks: 4, channels: 64}"
TRANSFORMER = "model.backbone={kind: transformer, blocks: 4, channels: 64}"


def weighted(paths: list[Path], folder: Path) -> list[Path]:
    """Skims of the same events, weighted to the spin correlation of QCD."""
    found = []
    for path in paths:
        skim, target = Skim(path), folder / f"weighted_{path.name}"
        if not target.exists():
            with SkimWriter(target) as writer:
                writer.metadata |= skim.metadata
                for events, truth in skim.row_groups():
                    weight = event_spin_weight(truth)
                    known = np.isfinite(weight)
                    changed = dataclasses.replace(events[known], weight=(events.weight * weight)[known])
                    writer.write(changed, truth[known])
        found.append(target)
    return found


def main() -> None:
    """Read the command line, train, compare, write a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--a", type=Path, nargs="+", required=True)
    parser.add_argument("--b", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--masked", type=Path, required=True, help="model of the task masked, backbone pet")
    parser.add_argument("--tokens", type=Path, required=True, help="model of the task tokens")
    parser.add_argument("--parent", default="dilepton", help="trained model whose encoder slim begins with")
    parser.add_argument("--events", type=int, nargs="+", default=[3000, 30000], help="of A and B together")
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 6], help="for each number of events")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    folder = writable_folder(given.output)
    networks = {
        "slim": [SLIM],
        f"slim, {given.parent}": [
            SLIM,
            f"init={{model: {given.parent}, rate: 1}}",
        ],
        "pet": [PET],
        "pet, masked": [PET, f"init={{model: {given.masked}, rate: 1}}"],
        "transformer": [TRANSFORMER],
        "transformer, tokens": [TRANSFORMER, f"init={{model: {given.tokens}, rate: 1}}"],
    }
    a = weighted(given.a, folder)
    samples = [f"a=[{','.join(map(str, a))}]", f"b=[{','.join(map(str, given.b))}]"]
    tests = [Skim(path).read() for path in given.test]
    rows: list[dict[str, Any]] = []
    for n, epochs in zip(given.events, given.epochs, strict=True):
        for name, overrides in networks.items():
            values: dict[str, list[float]] = {"correlation": [], "seconds": []}
            for seed in given.seeds:
                where = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{n}_{seed}"
                config = load_config(
                    RatioTrainConfig,
                    "ratio.yaml",
                    [
                        *samples,
                        *overrides,
                        "model.tokens.btag=working_points",
                        f"data.max_events={n // 2}",
                        "data.folds=2",
                        f"epochs={epochs}",
                        f"seed={seed}",
                        f"output={where}",
                    ],
                )
                began = time.process_time()
                ratio = topreco.load(train_ratio(config, progress=False))
                values["seconds"].append(time.process_time() - began)
                found, true = [], []
                for events, truth in tests:
                    weight = event_spin_weight(truth)
                    known = weight > 0
                    found.append(ratio.log_ratio(events[known]))
                    true.append(np.log(weight[known]))
                values["correlation"].append(np.corrcoef(np.concatenate(found), np.concatenate(true))[0, 1])
            row = {"network": name, "events": n, "seeds": len(given.seeds)}
            for key, each in values.items():
                row[key] = f"{np.mean(each):.3g}"
                if key == "correlation" and len(each) > 1:
                    row["deviation"] = f"{np.std(each, ddof=1):.2g}"
            rows.append(row)
            print(row, flush=True)
            write_csv(folder / "pretraining_ratio.csv", rows)


if __name__ == "__main__":
    main()
