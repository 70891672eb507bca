"""The search for the operation to blame, on graphs of any shape."""

from dataclasses import dataclass

import numpy as np
import pytest

from atopipe.validate.first_divergence import Run, difference, first_parting
from atopipe.validate.session import CPU, Optimisation


@dataclass(frozen=True)
class Operation:
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def some_graph(generator: np.random.Generator) -> list[Operation]:
    """Up to 40 operations in a chain with branches; each reads its predecessor or an earlier one, the last one more."""
    graph = [Operation(("images",), ("t0",))]
    for index in range(1, int(generator.integers(2, 40))):
        read = {f"t{max(0, index - int(generator.integers(1, 4)))}" for _ in range(int(generator.integers(1, 3)))}
        graph.append(Operation(tuple(sorted(read)), (f"t{index}",)))
    return graph


def spoilt_by(graph: list[Operation], guilty: set[int]) -> set[str]:
    """The tensors that a fault in these operations reaches."""
    wrong: set[str] = set()
    for index, operation in enumerate(graph):
        if index in guilty or wrong & set(operation.inputs):
            wrong |= set(operation.outputs)
    return wrong


@pytest.mark.parametrize("seed", range(50))
def test_the_blamed_operation_is_one_that_is_guilty(seed: int) -> None:
    generator = np.random.default_rng(seed)
    graph = some_graph(generator)
    guilty = {int(index) for index in generator.integers(0, len(graph), size=2)}
    wrong = spoilt_by(graph, guilty)
    found = first_parting(graph, lambda tensor: tensor in wrong)
    if graph[-1].outputs[0] in wrong:
        assert found in [graph[index] for index in guilty]
    else:
        assert found is None


def test_few_tensors_are_asked_about() -> None:
    chain = [Operation((f"t{index - 1}",), (f"t{index}",)) for index in range(1000)]
    asked: list[str] = []

    def parts(tensor: str) -> bool:
        asked.append(tensor)
        return int(tensor[1:]) >= 700

    assert first_parting(chain, parts) == chain[700]
    assert len(asked) == len(set(asked)) <= 12


@pytest.mark.parametrize(
    ("wanted", "got", "apart"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([0.0, 0.0], [0.0, 1.0], np.inf),
        ([1.0, 2.0], [1.0, 2.0, 3.0], np.inf),
        ([1.0], None, np.inf),
    ],
)
def test_differences_are_relative_and_what_cannot_be_compared_differs(
    wanted: list[float], got: list[float] | None, apart: float
) -> None:
    assert difference(np.array(wanted), None if got is None else np.array(got)) == apart


def test_a_tensor_that_cannot_be_had_is_none(images) -> None:
    def cut(tensor: str) -> bytes:
        raise KeyError(tensor)

    assert Run(cut, CPU, Optimisation.NONE).tensor("t", images) is None
    assert Run(lambda tensor: b"no model", CPU, Optimisation.NONE).tensor("t", images) is None
