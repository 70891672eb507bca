"""Which channels go together: tied, pinned, varying."""

import torch

from atopipe.ato.labels import Labels


def test_tying_is_transitive_and_a_pin_holds_for_everything_tied() -> None:
    labels = Labels()
    one, two, three = labels.fresh(4), labels.fresh(4), labels.fresh(4)
    labels.tie(one, two, "met a constant")
    labels.pin(three[1:2], "is the output")
    labels.tie(two, three, "met a constant")
    assert [labels.find(int(x)) for x in three] == one.tolist()
    assert [labels.reason(int(x)) for x in one] == [None, "is the output", None, None]


def test_tying_to_nothing_pins_with_the_reason() -> None:
    labels = Labels()
    one = labels.fresh(3)
    labels.tie(one, torch.tensor([0, int(one[1]), 0]), "met a constant")
    assert [labels.reason(int(x)) for x in one] == ["met a constant", None, "met a constant"]


def test_the_first_reason_is_reported() -> None:
    labels = Labels()
    one = labels.fresh(1)
    labels.pin(one, "first")
    labels.pin(one, "second")
    assert labels.reason(int(one)) == "first"


def test_expanded_and_tied_dimensions_do_not_vary() -> None:
    labels = Labels()
    channels = labels.fresh(6)
    assert labels.varying(channels.view(1, 6, 1, 1).expand(2, 6, 3, 3)) == [1]
    blocks = channels.view(2, 3)
    assert labels.varying(blocks) == [0, 1]
    labels.tie(blocks[0], blocks[1], "met a constant")
    assert labels.varying(blocks) == [1]
