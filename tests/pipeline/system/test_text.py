"""Errors in one line, whatever their message holds."""

import pytest

from atopipe.pipeline.system.text import first_line, reason


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("one\ntwo", "one"), ("\n \n  two \nthree", "two"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_the_first_line_that_says_something(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_a_reason_without_a_message_is_the_kind_of_the_error() -> None:
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("bad\nworse")) == "ValueError: bad"
