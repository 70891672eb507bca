"""How a network is run: number format, compiler, replicas. None of it changes what is computed but for rounding."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


def _itself(model: nn.Module) -> Forward:
    return model


@dataclass(frozen=True)
class Execution:
    """`precision`: number format of convolutions and matrix products; weights, norms and losses keep their own.

    `wrap` gives what runs the network in the weight step: compiled, replicated, or the network itself.
    """

    precision: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    wrap: Callable[[nn.Module], Forward] = _itself

    def prepare(self, model: nn.Module) -> Forward:
        """What runs `model` in the weight step, after the model's own memory is laid out; again after every cut."""
        return self.wrap(model.to(memory_format=self.memory_format))

    def logits(self, network: Forward, images: Tensor) -> Tensor:
        """The network's output for `images` [B, C, H, W], in at least float32."""
        lower = self.precision is not torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=lower):
            logits = network(images.contiguous(memory_format=self.memory_format))
        return logits.float() if lower else logits


PLAIN = Execution()
CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # a plain RuntimeError in torch


@torch.no_grad()
def best_memory_format(model: nn.Module, example: Tensor) -> torch.memory_format:
    """channels_last, the layout convolutions are fastest in, unless the network cannot work on it.

    A network that calls `view` on an activation, say, needs the other one. `example` [B, C, H, W]; the model is copied.
    """
    copied = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    try:
        copied(example.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return torch.contiguous_format
    return torch.channels_last


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: that says something of the machine, and nothing of the network."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or CPU_ALLOCATOR in str(error)


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes with it natively, float32 elsewhere.

    Half the memory traffic and twice the multiplications or more; its exponents are those of float32, so that no loss
    has to be scaled.
    """
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


PRECISIONS: dict[str, Callable[[torch.device], torch.dtype]] = {
    "auto": best_precision,
    "float32": lambda device: torch.float32,
    "bfloat16": lambda device: torch.bfloat16,
}
