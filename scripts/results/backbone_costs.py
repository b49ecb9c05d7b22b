"""Cost of the backbones: parameters, floating-point operations, seconds and memory, docs/PRETRAINING.md.

    python scripts/results/backbone_costs.py

Of networks of the tops with the sizes of configs/study/pretraining.yaml, on one CPU core, with random events
of up to six jets. Operations are those of the matrix products that torch counts in one pass of an event,
without the packed kernels of L-GATr, which torch cannot see into; a multiplication and an addition count two.
Times are of the processor and of an event, the smallest of several passes of 256 events, and of several steps
of training, forward and backward, of 128 events. Memory is what is kept for the gradient, of one event.
"""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from topreco.config import ModelConfig, build_config
from topreco.core.events import toy_events
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

BACKBONES = {
    "slim": {},
    "pet": {"kind": "pet", "blocks": 4, "channels": 64},
    "transformer": {"kind": "transformer", "blocks": 4, "channels": 64},
}
N_EVENTS, N_STEP, REPEATS = 256, 128, 7


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| backbone | parameters | MFLOP, forward | ms, forward | ms, training | kB, training |")
    print("|---|---:|---:|---:|---:|---:|")
    inputs = Inputs.from_events(toy_events(N_EVENTS, max_jets=6, seed=1))
    few = inputs.take(slice(0, N_STEP))
    for name, backbone in BACKBONES.items():
        model = {"backbone": backbone, "head": "on_shell"}
        network = TopNetwork(build_config(ModelConfig, model, name))
        parameters = sum(p.numel() for p in network.parameters())

        def forward(network: TopNetwork = network) -> None:
            with torch.no_grad():
                network(inputs)

        def step(network: TopNetwork = network) -> None:
            network.zero_grad()
            (network(few) / 100).square().mean().backward()

        kept = [0]

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(few)
        forward_s, step_s = smallest(forward) / N_EVENTS, smallest(step) / N_STEP
        if hasattr(network.encoder.backbone, "packed"):
            network.encoder.backbone.packed = False
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(inputs)
        flops = counter.get_total_flops() / N_EVENTS / 1e6
        print(
            f"| {name} | {parameters:,} | {flops:.2f} | {1e3 * forward_s:.3f} | {1e3 * step_s:.3f} | "
            f"{kept[0] / N_STEP / 1e3:.0f} |"
        )


def smallest(function: Callable[[], None]) -> float:
    """Smallest processor time of several calls in seconds, the first not counted."""
    function()
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        function()
        found.append(time.process_time() - started)
    return min(found)


if __name__ == "__main__":
    main()
