"""The controller network: it learns, while the classifier trains, which groups to keep (ATO, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EMBEDDING_SIZE = 64
STATE_SIZE = 128


class Controller(nn.Module):
    """Frozen orthogonal inputs -> bidirectional GRU -> LayerNorm -> ReLU -> one linear head per group set -> scores.

    `sizes`: groups per set (L sets, G groups in all). One sequence step per set, so that the choice of a width can
    depend on all others. Parameters are initialised from `generator`.
    """

    inputs: Tensor

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        inputs = torch.empty(len(sizes), 1, EMBEDDING_SIZE)
        self.register_buffer(
            "inputs", nn.init.orthogonal_(inputs.view(len(sizes), -1), generator=generator).view_as(inputs)
        )
        self.gru = nn.GRU(EMBEDDING_SIZE, STATE_SIZE, bidirectional=True)
        self.norm = nn.LayerNorm(2 * STATE_SIZE)
        self.heads = nn.ModuleList(nn.Linear(2 * STATE_SIZE, size, bias=False) for size in sizes)
        _initialise(self, generator)

    def forward(self) -> Tensor:
        """Scores of all groups, [G]."""
        states = torch.relu(self.norm(self.gru(self.inputs)[0]))[:, 0]
        return torch.cat([head(state) for head, state in zip(self.heads, states, strict=True)])


def _initialise(controller: Controller, generator: torch.Generator) -> None:
    """PyTorch's default ranges, drawn from the passed generator: U(-b, b) with b = 1 / sqrt(fan)."""
    for module, fan in [(controller.gru, STATE_SIZE), *((head, 2 * STATE_SIZE) for head in controller.heads)]:
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -(fan**-0.5), fan**-0.5, generator=generator)


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise -log(-log U) of the shape of `like`."""
    uniform = torch.rand(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    tiny = torch.finfo(like.dtype).tiny
    noise = -torch.log(-torch.log(uniform.clamp(tiny, 1 - torch.finfo(like.dtype).eps)))
    return noise.to(like.device, non_blocking=True)


def relaxed_mask(scores: Tensor, noise: Tensor, offset: float, temperature: float) -> Tensor:
    """The Gumbel-sigmoid: sigmoid((scores + noise + offset) / temperature), in (0, 1), shape of `scores`."""
    return torch.sigmoid((scores + noise + offset) / temperature)


def straight_through(relaxed: Tensor) -> Tensor:
    """Exactly 0 or 1 (threshold 0.5) in the forward pass; the gradient passes to `relaxed` unchanged."""
    hard = (relaxed >= 0.5).to(relaxed.dtype)
    return hard + (relaxed - relaxed.detach())


def keep_probability(scores: Tensor, offset: float) -> Tensor:
    """P(a hard sample keeps the group) = P(noise >= -(scores + offset)) = 1 - exp(-exp(scores + offset)); no noise."""
    return -torch.expm1(-torch.exp(scores + offset))
