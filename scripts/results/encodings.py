"""Encodings of objects compared, without any training: codebooks against bins, docs/PRETRAINING.md.

    python scripts/results/encodings.py train.parquet test.parquet --output docs/study/encodings.csv

Encodings are fitted to the first skim and measured with the second one, both in the axes of the event.
Columns: bits of an object if all integers were equally likely, entropy in bits of the integers of jets (each
by itself), resolutions as in `encoding.py`, and with `--classifier` the area under the ROC curve of boosted
trees that tell measured from decoded events. Needs the extras `tokens` and `calibration`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from encoding import classifier, codes_in_use, own, resolutions

from topreco.config import NextTokenConfig, TokensConfig, TransformerConfig
from topreco.core.files import write_csv
from topreco.core.skim import Skim
from topreco.network.tasks.next_tokens import NextTokenNetwork, as_events
from topreco.network.tokens import Inputs

ENCODINGS = (
    *(("bins", 4, codes) for codes in (8, 16, 32)),
    *(("codebook", 2, codes) for codes in (64, 256)),
    ("codebook", 1, 1024),
    ("codebook", 2, 1024),
    ("codebook", 3, 256),
)


def main() -> None:
    """Write and print a row for each encoding."""
    parser = argparse.ArgumentParser(description="Codebooks against bins; see the file's beginning.")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/encodings.csv"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--classifier", action="store_true", help="train one for each encoding")
    options = parser.parse_args()

    tokens = TokensConfig(btag="working_points")
    train, test = (
        own(Inputs.from_events(Skim(path).read()[0], tokens=tokens)) for path in (options.train, options.test)
    )
    rows = []
    for kind, levels, codes in ENCODINGS:
        config = NextTokenConfig(
            backbone=TransformerConfig(blocks=1), tokens=tokens, encoding=kind, levels=levels, codes=codes
        )
        torch.manual_seed(options.seed)
        network = NextTokenNetwork(config)
        started = time.process_time()
        network.fit_encoding(train)
        seconds = time.process_time() - started
        with torch.no_grad():
            decoded = network.round_trip(test)
            measured = network.inputs(network.objects(test))
        rows.append(
            {
                "encoding": kind,
                "integers": levels,
                "codes": codes,
                "bits": float(levels * np.log2(codes)),
                "entropy of jets": float(np.log2(codes_in_use(network, test)).sum()),
                "seconds": seconds,
                **resolutions(measured, decoded),
            }
        )
        if options.classifier:
            samples = as_events(own(measured), "measured"), as_events(own(decoded), "decoded")
            rows[-1]["AUC"] = classifier(*samples, options.seed)
        print({name: round(x, 4) if isinstance(x, float) else x for name, x in rows[-1].items()}, flush=True)
        write_csv(
            options.output,
            [{name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()} for row in rows],
        )


if __name__ == "__main__":
    main()
