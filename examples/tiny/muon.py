"""Muon for matrices, AdamW for everything else, in float32: torch's own Muon computes in bfloat16, slow on CPUs."""

from collections.abc import Iterable

import torch


NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly, of `(n, rows, columns)`, by Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Groups with `use_muon=True` hold matrices and are updated by Muon (Jordan et al., 2024), the others by AdamW.

    Args:
        groups: dictionaries with `params`, `use_muon` and, optionally, `lr`, `momentum`, `betas`, `weight_decay`.
    """

    def __init__(self, groups: Iterable[dict]):
        defaults = {"lr": 2e-3, "use_muon": False, "momentum": 0.95, "betas": (0.9, 0.98), "weight_decay": 0.0}
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update; matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not group["use_muon"]:
                for parameter in parameters:
                    self._adamw(parameter, group)
                continue
            shapes = sorted({tuple(p.shape) for p in parameters})
            for shape in shapes:
                self._muon([p for p in parameters if tuple(p.shape) == shape], group)

    def _muon(self, parameters: list[torch.Tensor], group: dict):
        directions = []
        for parameter in parameters:
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(momentum, group["momentum"]))
        updates = orthogonalize(torch.stack(directions))
        scale = group["lr"] * max(1.0, updates.shape[-2] / updates.shape[-1]) ** 0.5
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update, alpha=scale)

    def _adamw(self, parameter: torch.Tensor, group: dict):
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - beta1)
        state["square"].lerp_(parameter.grad.square(), 1 - beta2)
        mean = state["mean"] / (1 - beta1 ** state["step"])
        square = state["square"] / (1 - beta2 ** state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, square.sqrt() + 1e-8, value=-group["lr"])


def split_parameters(model: torch.nn.Module, lr: float, muon_lr: float) -> list[dict]:
    """Trainable parameters in the two groups: inner matrices by Muon; embeddings, head, vectors by AdamW."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_inner = parameter.ndim == 2 and not any(part in name for part in ("embed", "head", "query"))
            (matrices if is_inner else others).append(parameter)
    return [{"params": matrices, "use_muon": True, "lr": muon_lr}, {"params": others, "use_muon": False, "lr": lr}]
