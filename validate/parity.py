"""Parity: the exported model gives the logits of the network it was made from, to within float32's rounding.

Checked on real and on random images, at several batch sizes, with ONNX Runtime's graph optimisation off and on, on
every provider: a fixed batch axis shows at another batch size only, and a wrong operator fusion with optimisation only.

How much rounding is normal is not guessed. The same network in float64 gives the true logits; torch in float32 is off
from them by rounding alone, and ONNX Runtime may be off by a few times as much, but no more than the tolerance.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atopipe.validate.session import ONLY_CPU, Optimisation, Providers, Session, open_session

Images = NDArray[np.float32]
Logits = NDArray[np.float32]
TrueLogits = NDArray[np.float64]
Network = Callable[[Images], Logits]
ExactNetwork = Callable[[Images], TrueLogits]

TOLERANCE = 1e-4
"""Largest difference allowed, as a fraction of the logits' standard deviation; sound exports stay below 1e-5."""


class ParityError(Exception):
    """The two networks do not agree, or cannot be compared. One sentence for the user."""


ROUNDING_LIMIT = 10.0
"""How many times torch's own rounding ONNX Runtime may be off: sums in another order and folded norm layers stay below
3 in every network measured, from a tiny one to resnet50 and convnext_tiny."""

_ULP = 2.0**-23  # distance of the float32 numbers next to 1


@dataclass(frozen=True)
class Case:
    """One comparison. Differences are the largest of any logit; "true" logits are those of the network in float64."""

    provider: str
    images: str  # "real" or "random"
    batch: int
    optimisation: str  # "NONE" or "ALL"
    max_abs_diff: float  # ONNX Runtime from torch, both in float32
    float64_diff: float  # ONNX Runtime from the true logits
    rounding: float  # what float32 costs in torch on images of this kind, and at least the last digit of a logit
    scale: float  # standard deviation of the true logits of this kind of images
    agreement: float  # fraction of the batch with torch's top-1 class

    @property
    def max_rel_diff(self) -> float:
        """The largest difference from torch in units of the logits' scale."""
        return self.max_abs_diff / self.scale

    @property
    def float64_rel_diff(self) -> float:
        """The largest difference from the true logits in units of their scale."""
        return self.float64_diff / self.scale

    @property
    def rounding_ratio(self) -> float:
        """How many times as far from the true logits as torch ONNX Runtime is."""
        return self.float64_diff / self.rounding

    def holds(self, tolerance: float) -> bool:
        """Whether no difference is larger than the tolerance, nor than rounding explains."""
        near = max(self.max_rel_diff, self.float64_rel_diff) <= tolerance
        return near and self.rounding_ratio <= ROUNDING_LIMIT


@dataclass(frozen=True)
class Parity:
    """All comparisons of one model with its reference; `skipped`: providers that are not usable here, and why."""

    cases: tuple[Case, ...]
    tolerance: float
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> Case:
        """The case with the largest difference from torch relative to its scale."""
        return max(self.cases, key=lambda case: case.max_rel_diff)

    @property
    def max_abs_diff(self) -> float:
        """The largest difference of a logit from torch in any case, in the logits' own unit."""
        return max(case.max_abs_diff for case in self.cases)

    @property
    def max_rel_diff(self) -> float:
        """The largest difference from torch in any case, in units of that case's scale."""
        return self.worst.max_rel_diff

    @property
    def float64_rel_diff(self) -> float:
        """The largest difference from the true logits in any case, in units of that case's scale."""
        return max(case.float64_rel_diff for case in self.cases)

    @property
    def rounding_ratio(self) -> float:
        """The largest ratio in any case of ONNX Runtime's error to what torch's float32 says is normal."""
        return max(case.rounding_ratio for case in self.cases)

    @property
    def scale(self) -> float:
        """The smallest of the cases' scales: the strictest to hold `max_abs_diff` against."""
        return min(case.scale for case in self.cases)

    @property
    def agreement(self) -> float:
        """The smallest top-1 agreement of any case."""
        return min(case.agreement for case in self.cases)

    @property
    def broken(self) -> tuple[Case, ...]:
        """The cases in which ONNX Runtime is not as near to torch and to the true logits as it must be."""
        return tuple(case for case in self.cases if not case.holds(self.tolerance))

    def to_json(self) -> dict[str, object]:
        """Return plain data for a report."""
        return asdict(self) | {name: getattr(self, name) for name in SUMMED_UP}


SUMMED_UP = ("max_abs_diff", "max_rel_diff", "float64_rel_diff", "rounding_ratio", "scale", "agreement")


@dataclass(frozen=True)
class _Truth:
    """What the reference says about one kind of images."""

    kind: str
    exact: TrueLogits  # of the largest batch; the smaller ones are its first images
    single: Mapping[int, Logits]  # batch size -> torch's logits
    scale: float
    rounding: float


def measure_parity(
    reference: Network,
    model: Path | bytes,
    images: Images,
    *,
    exact: ExactNetwork,
    batch_sizes: Sequence[int] = (1, 2, 7, 64),
    tolerance: float = TOLERANCE,
    seed: int = 0,
    providers: Providers = ONLY_CPU,
    threads: int = 1,
) -> Parity:
    """Compare a model with a reference on real and random images.

    Args:
        reference: the network the model was exported from, as a function images [B, C, H, W] -> logits [B, K].
        model: the ONNX file, or its bytes.
        images: real images [N, C, H, W], preprocessed as the network wants them.
        exact: the same network in float64.
        batch_sizes: sizes to try; one that is larger than N becomes N.
        tolerance: recorded with the result.
        seed: of the random images, which have the real ones' mean and standard deviation.
        providers: those on which ONNX Runtime runs the model, each compared on its own.
        threads: of ONNX Runtime.

    Raises:
        ParityError: shapes differ, a logit is not finite, or the reference's logits are all equal.
    """
    sizes = sorted({min(size, len(images)) for size in batch_sizes})
    sessions = [
        open_session(model, provider=provider, threads=threads, optimisation=level)
        for provider, level in itertools.product(providers.usable, Optimisation)
    ]
    cases: list[Case] = []
    for kind, source in kinds_of_images(images, seed).items():
        truth = _truth(kind, reference, exact, source, sizes)
        cases += [_compare(truth, session, source[:size]) for session, size in itertools.product(sessions, sizes)]
    return Parity(tuple(cases), tolerance, providers.skipped)


def kinds_of_images(images: Images, seed: int) -> dict[str, Images]:
    """What parity is measured on: the real images, and as many of noise with their mean and deviation."""
    noise = np.random.default_rng(seed).normal(images.mean(), images.std(), images.shape).astype(np.float32)
    return {"real": images, "random": noise}


def _truth(kind: str, reference: Network, exact: ExactNetwork, source: Images, sizes: Sequence[int]) -> _Truth:
    """The reference's logits in both formats, and from them what float32's rounding normally costs."""
    true = exact(source[: sizes[-1]])
    single = {size: reference(source[:size]) for size in sizes}
    errors = [
        max_difference(true[:size], got, f"at batch {size} ({kind} images)", ("torch in float64", "torch"))
        for size, got in single.items()
    ]
    scale = float(np.std(true))
    if scale == 0:
        raise ParityError(
            f"the network gives the same logit for everything on {kind} images, so that agreement says nothing"
        )
    return _Truth(kind, true, single, scale, max(*errors, _ULP * float(np.abs(true).max())))


def _compare(truth: _Truth, session: Session, images: Images) -> Case:
    size, level = len(images), session.optimisation.name
    wanted, got = truth.single[size], session.run(images)
    place = f"at batch {size} ({truth.kind} images, optimisation {level})"
    return Case(
        provider=session.provider,
        images=truth.kind,
        batch=size,
        optimisation=level,
        max_abs_diff=max_difference(wanted, got, place),
        float64_diff=max_difference(truth.exact[:size], got, place),
        rounding=truth.rounding,
        scale=truth.scale,
        agreement=float(np.mean(wanted.argmax(1) == got.argmax(1))),
    )


def max_difference(
    wanted: Logits | TrueLogits, got: Logits, place: str, names: tuple[str, str] = ("torch", "ONNX Runtime")
) -> float:
    """Return the largest absolute difference; raise ParityError if shapes differ or a logit is not finite."""
    if wanted.shape != got.shape:
        raise ParityError(
            f"{names[1]} gives logits of shape {list(got.shape)}, {names[0]} {list(wanted.shape)}, {place}"
        )
    for name, logits in zip(names, (wanted, got), strict=True):
        if not np.isfinite(logits).all():
            raise ParityError(f"{name} gives a logit that is not a finite number {place}")
    return float(np.abs(wanted.astype(np.float64) - got).max())
