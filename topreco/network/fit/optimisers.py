"""Optimisers, the schedule of their learning rate, and the average of the weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from topreco.config import OptimiserConfig


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Learning rate of a step: a linear rise, then a constant or a quarter period of a cosine down to zero.

    Parameters
    ----------
    step
        Number of steps before this one.
    total_steps
        Steps of the whole training.
    config
        Largest rate and schedule.

    Returns
    -------
    rate
        Learning rate.
    """
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def build_optimisers(
    config: OptimiserConfig,
    network: nn.Module,
    loaded: Collection[str] = (),
    *,
    rate: float = 1.0,
    decays: bool = True,
) -> list[torch.optim.Optimizer]:
    """Optimisers that share the parameters of a network.

    Weight decay applies to matrices alone: biases and norms it would only shift. Muon is for matrices between
    hidden layers; what leads in and out of the network is AdamW's. The factor ``rate_factor`` of a group of
    parameters belongs to its learning rate.

    Parameters
    ----------
    config
        Kind, largest learning rate, weight decay.
    network
        The network.
    loaded
        Names of parameters that were loaded from another model.
    rate
        Factor on their learning rate.
    decays
        Whether their weights decay to zero as those of the others do.
    """
    # Lists of matrices for Muon, other matrices and vectors; of what is new, and of what was loaded.
    parts: dict[bool, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {
        False: ([], [], []),
        True: ([], [], []),
    }
    for name, p in network.named_parameters():
        is_hidden = config.kind == "muon" and ".blocks." in name and ".norm" not in name and p.ndim == 2
        parts[name in loaded][0 if is_hidden else 1 if p.ndim >= 2 else 2].append(p)
    hidden: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for is_loaded, (for_muon, matrices, vectors) in parts.items():
        factor = {"rate_factor": rate if is_loaded else 1.0}
        decay = config.weight_decay if decays or not is_loaded else 0.0
        hidden.append({"params": for_muon, "weight_decay": decay, **factor})
        others.append({"params": matrices, "weight_decay": decay, **factor})
        others.append({"params": vectors, "weight_decay": 0.0, **factor})
    hidden, others = ([group for group in groups if group["params"]] for groups in (hidden, others))
    found: list[torch.optim.Optimizer] = []
    if hidden:
        found.append(Muon(hidden, lr=config.learning_rate, adjust_lr_fn="match_rms_adamw"))
    if others:
        found.append(torch.optim.AdamW(others, lr=config.learning_rate, fused=True))
    return found


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Update an exponential moving average of the weights, quickly at first to forget the initial ones.

    Statistics of batch normalisation are averaged with them.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(_averaged(average), _averaged(network), 1 - decay)


def _averaged(network: nn.Module) -> list[torch.Tensor]:
    """Parameters and the statistics of batch normalisation."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    statistics = [b for norm in norms for name, b in norm.named_buffers() if name.startswith("running_")]
    return [*network.parameters(), *statistics]


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` [1]_, with the arithmetic arranged for many small matrices.

    Torch orthogonalises one matrix at a time, in bfloat16, which most CPUs have to emulate: half of the time
    of a training. Here all matrices of a shape are one batch in their own precision. Parameters and state
    are those of torch's class.

    References
    ----------
    .. [1] K. Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024),
       https://kellerjordan.github.io/posts/muon.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Parameters
        ----------
        closure
            Evaluates the loss anew, if given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            if not parameters:
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = momenta
            if group["nesterov"]:
                updates = [
                    gradient.lerp(momentum, group["momentum"])
                    for gradient, momentum in zip(gradients, momenta, strict=True)
                ]
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            alike = defaultdict(list)
            for parameter, update in zip(parameters, updates, strict=True):
                alike[parameter.shape].append((parameter, update))
            for shape, members in alike.items():
                rate = group["lr"] * _relative_rate(shape, group["adjust_lr_fn"])
                directions = orthogonalised(
                    torch.stack([update for _, update in members]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                torch._foreach_add_([parameter for parameter, _ in members], list(directions), alpha=-rate)
        return loss


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, by Newton-Schulz iteration.

    Parameters
    ----------
    matrices
        Shape (k, m, n).
    coefficients
        a, b, c of the polynomial a x + b x³ + c x⁵ that is applied to the singular values.
    steps
        Number of iterations.
    epsilon
        Smallest norm that divides a matrix.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _relative_rate(shape: torch.Size, kind: str | None) -> float:
    """Learning rate of a matrix relative to that of the group, as `torch.optim.Muon` has it."""
    rows, columns = shape
    if kind == "match_rms_adamw":
        return 0.2 * float(max(rows, columns)) ** 0.5
    return float(max(1.0, rows / columns)) ** 0.5
