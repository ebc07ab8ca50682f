"""Adam (Kingma & Ba 2015, algorithm 1) by torch's own kernel, its state kept by parameter name.

`torch.optim.Adam` would do, but its first call imports torch's compiler, more than a second of
every start; the documented functional form beneath it is the same kernel without that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

State = dict[str, dict[str, Tensor]]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moves parameters in place along their `.grad`.

    Args:
        parameters: what is trained, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.state: State = {}
        """By name: step [], exp_avg and exp_avg_sq of the parameter's shape."""

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step; a parameter without a gradient stays where it is."""
        moved = {name: p for name, p in self.parameters.items() if p.grad is not None}
        for name, parameter in moved.items():
            if name not in self.state:
                self.state[name] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[name] for name in moved]
        adam(
            list(moved.values()),
            [p.grad for p in moved.values() if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            foreach=False,
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def load(self, state: State) -> None:
        """Go on from the state of an optimiser of the same parameters."""
        self.state = {name: dict(tensors) for name, tensors in state.items()}
