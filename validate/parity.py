"""Parity: the exported model gives the logits of the network it was made from, to within float32's rounding.

Checked on real and on random images, at several batch sizes, with ONNX Runtime's graph optimisation off and on: a
fixed batch axis shows at another batch size only, and a wrong operator fusion with optimisation only.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atopipe.validate.session import CPU, Optimisation, open_session

Images = NDArray[np.float32]
Logits = NDArray[np.float32]
Network = Callable[[Images], Logits]

TOLERANCE = 1e-4
"""Largest difference allowed, as a fraction of the logits' standard deviation; sound exports stay below 1e-5."""


class ParityError(Exception):
    """The two networks do not agree, or cannot be compared. One sentence for the user."""


@dataclass(frozen=True)
class Case:
    """One comparison. `scale` is the standard deviation of the reference logits for this kind of images."""

    images: str  # "real" or "random"
    batch: int
    optimisation: str  # "NONE" or "ALL"
    max_abs_diff: float
    scale: float
    agreement: float  # fraction of the batch with the same top-1 class

    @property
    def max_rel_diff(self) -> float:
        """The largest difference in units of the logits' scale."""
        return self.max_abs_diff / self.scale


@dataclass(frozen=True)
class Parity:
    """All comparisons of one model with its reference."""

    cases: tuple[Case, ...]
    tolerance: float

    @property
    def worst(self) -> Case:
        """The case with the largest difference relative to its scale."""
        return max(self.cases, key=lambda case: case.max_rel_diff)

    @property
    def max_abs_diff(self) -> float:
        """The largest difference of a logit in any case, in the logits' own unit."""
        return max(case.max_abs_diff for case in self.cases)

    @property
    def max_rel_diff(self) -> float:
        """The largest difference in any case, in units of that case's scale."""
        return self.worst.max_rel_diff

    @property
    def scale(self) -> float:
        """The smallest of the cases' scales: the strictest to hold `max_abs_diff` against."""
        return min(case.scale for case in self.cases)

    @property
    def agreement(self) -> float:
        """The smallest top-1 agreement of any case."""
        return min(case.agreement for case in self.cases)

    def to_json(self) -> dict[str, object]:
        """Return plain data for a report."""
        return asdict(self) | {
            name: getattr(self, name) for name in ("max_abs_diff", "max_rel_diff", "scale", "agreement")
        }


def measure_parity(
    reference: Network,
    model: Path | bytes,
    images: Images,
    *,
    batch_sizes: Sequence[int] = (1, 2, 7, 64),
    tolerance: float = TOLERANCE,
    seed: int = 0,
    provider: str = CPU,
    threads: int = 1,
) -> Parity:
    """Compare a model with a reference on real and random images.

    Args:
        reference: the network the model was exported from, as a function images [B, C, H, W] -> logits [B, K].
        model: the ONNX file, or its bytes.
        images: real images [N, C, H, W], preprocessed as the network wants them.
        batch_sizes: sizes to try; one that is larger than N becomes N.
        tolerance: recorded with the result.
        seed: of the random images, which have the real ones' mean and standard deviation.
        provider, threads: where ONNX Runtime runs the model.

    Raises:
        ParityError: shapes differ, a logit is not finite, or the reference's logits are all equal.
    """
    generator = np.random.default_rng(seed)
    noise = generator.normal(images.mean(), images.std(), images.shape).astype(np.float32)
    sizes = sorted({min(size, len(images)) for size in batch_sizes})
    sessions = [open_session(model, provider=provider, threads=threads, optimisation=level) for level in Optimisation]
    cases: list[Case] = []
    for kind, source in {"real": images, "random": noise}.items():
        wanted = {size: reference(source[:size]) for size in sizes}
        scale = _scale(list(wanted.values()), kind)
        for session, size in itertools.product(sessions, sizes):
            got = session.run(source[:size])
            place = f"at batch {size} ({kind} images, optimisation {session.optimisation.name})"
            difference = max_difference(wanted[size], got, place)
            agreement = float(np.mean(wanted[size].argmax(1) == got.argmax(1)))
            cases.append(Case(kind, size, session.optimisation.name, difference, scale, agreement))
    return Parity(tuple(cases), tolerance)


def max_difference(wanted: Logits, got: Logits, place: str) -> float:
    """Return the largest absolute difference; raise ParityError if shapes differ or a logit is not finite."""
    if wanted.shape != got.shape:
        raise ParityError(f"ONNX Runtime gives logits of shape {list(got.shape)}, torch {list(wanted.shape)}, {place}")
    for name, logits in {"torch": wanted, "ONNX Runtime": got}.items():
        if not np.isfinite(logits).all():
            raise ParityError(f"{name} gives a logit that is not a finite number {place}")
    return float(np.abs(wanted.astype(np.float64) - got).max())


def _scale(logits: Sequence[Logits], kind: str) -> float:
    scale = float(np.std(np.concatenate([batch.ravel() for batch in logits]).astype(np.float64)))
    if scale == 0:
        raise ParityError(f"the network gives the same logit for everything on {kind} images: agreement proves nothing")
    return scale
