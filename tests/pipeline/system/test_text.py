"""Errors in one line, whatever their message holds."""

import pytest

from atopipe.pipeline.system.text import first_line, in_markdown, printable, reason


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("one\ntwo", "one"), ("\n \n  two \nthree", "two"), ("", "ValueError"), (" \n", "ValueError")],
)
def test_the_first_line_that_says_something(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_a_reason_without_a_message_is_the_kind_of_the_error() -> None:
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("bad\nworse")) == "ValueError: bad"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\nb\t", "a\\x1b[31mred\\nb\\t"),
        ("\udcff.jpg", "\\udcff.jpg"),  # a name of bytes that are no UTF-8
        ("exe.\u202egnp", "exe.\\u202egnp"),
        ("Käse [/x] 猫", "Käse [/x] 猫"),
    ],
)
def test_what_moves_a_cursor_or_hides_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert in_markdown(text).encode() == shown.encode()


def test_markdown_takes_a_name_for_no_html_and_no_cell() -> None:
    assert in_markdown("<img src=x>|\n") == "&lt;img src=x&gt;\\|\\n"
