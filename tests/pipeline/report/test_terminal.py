"""What a person sees."""

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.report.ci import junit
from atopipe.pipeline.report.summary import Summary, VariantRow, both_readings, summarise
from atopipe.pipeline.report.terminal import LiveDisplay, PlainDisplay, QuietDisplay, epoch_line, open_display
from atopipe.pipeline.system.text import duration, scaled

METRICS = {
    "flops.dense": 166e6,
    "flops.shrunk": 49.8e6,
    "params.dense": 23.5e6,
    "params.shrunk": 7e6,
    "size.dense_bytes": 94e6,
    "size.shrunk_bytes": 28e6,
    "accuracy.onnx": 0.975,
    "latency.dense_p50_ms": 2.0,
    "latency.shrunk_p50_ms": 0.9,
    "latency.ratio": 0.45,
    "latency.ratio_low": 0.44,
    "latency.ratio_high": 0.46,
}
GATES = [{"name": "flops.ratio", "value": 0.3, "limit": "at most 0.3", "outcome": "pass", "reason": ""}]
RECORD: Any = SimpleNamespace(
    epoch=3,
    epochs=24,
    phase="search",
    loss=1.25,
    train_accuracy=0.5,
    val_accuracy=0.75,
    kept={"flops": 0.625},
    seconds=2.0,
)


@pytest.fixture
def summary() -> Summary:
    return summarise("resnet50 on digits", METRICS, GATES, {"flops": Target.parse(0.3)}, "runs/x/model.onnx", 312.0)


def test_the_table_compares_dense_with_shrunk(summary: Summary) -> None:
    cells = [line.split("  ") for line in summary.as_text().splitlines()]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in cells}
    assert rows["FLOPs per image"] == ["166 M", "49.8 M", "0.300"]
    assert rows["latency (p50, 1 image)"] == ["2 ms", "0.9 ms", "0.450 [0.440, 0.460]"]
    assert rows["accuracy (top-1)"] == ["0.9750"]
    assert "FLOPs within target" in rows


def test_a_dense_run_gives_the_difference_in_points_and_the_ratio_of_times() -> None:
    dense = {"accuracy.dense": 0.98, "time.dense_epochs_s": 80.0, "time.epochs_s": 50.0}
    text = summarise("x", METRICS | dense, GATES, {"flops": Target.parse(0.3)}, "m", 1.0).as_text()
    lines = {line.split("  ")[0]: line.split()[2:] for line in text.splitlines()}
    assert lines["accuracy (top-1)"] == ["0.9800", "0.9750", "-0.50", "points"]
    assert lines["training time"] == ["1", "min", "20", "s", "50.0", "s", "0.625"]


def test_variants_are_lines_for_a_terminal_and_a_table_for_a_page(summary: Summary) -> None:
    plain = VariantRow("fp32", "2 ms", "", "0.9750", "28 MB", fastest=False, reason=None)
    fast = VariantRow("int8", "1 ms", "0.500 [0.490, 0.510]", "0.9700", "7 MB", fastest=True, reason=None)
    none = VariantRow("fp16", "", "", "", "", fastest=False, reason="float16 ends at 65504")
    found = replace(summary, variants=(plain, fast, none))
    assert found.notes()[:3] == (
        "variant fp32: delivered; 2 ms, top-1 0.9750, 28 MB",
        "variant int8: fastest here; 1 ms, 0.500 [0.490, 0.510] of fp32, top-1 0.9700, 7 MB",
        "variant fp16: dropped; float16 ends at 65504",
    )
    assert found.notes()[3:] == summary.notes()
    markdown = found.as_markdown()
    assert "| int8 | fastest here | 1 ms | 0.500 [0.490, 0.510] | 0.9700 | 7 MB |  |\n" in markdown
    assert "| fp16 | dropped |  |  |  |  | float16 ends at 65504 |\n" in markdown
    assert "variant int8" not in markdown
    assert "| variant |" not in summary.as_markdown()


def test_every_form_says_both_readings_and_where_the_model_is(summary: Summary) -> None:
    stream = io.StringIO()
    LiveDisplay(stream).closing(summary)
    for text in (summary.as_text(), summary.as_markdown(), stream.getvalue()):
        assert "keep at most 30 %, prune 70 %" in text
        assert "runs/x/model.onnx" in text
        assert "49.8 M" in text
        assert "pass" in text


def test_what_was_not_measured_has_no_row() -> None:
    bare = summarise("x", {"flops.dense": 2.0, "flops.shrunk": 1.0}, [], {"flops": Target.parse(0.5)}, "m", 1.0)
    assert [row.name for row in bare.rows] == ["FLOPs per image"]


def test_every_budget_is_shown_under_its_own_name() -> None:
    record: Any = SimpleNamespace(**{**vars(RECORD), "kept": {"params": 0.25, "flops": 0.5}})
    assert "val 0.7500  parameters kept 0.2500  FLOPs kept 0.5000  2.0 s" in epoch_line(record)


def test_an_epoch_is_one_line() -> None:
    words = "epoch   3/24  search  loss 1.2500  accuracy train 0.5000 val 0.7500  FLOPs kept 0.6250  2.0 s"
    assert epoch_line(RECORD) == words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_display_shows_the_state_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    display = LiveDisplay(stream)
    display.begin("train")
    display.epoch(RECORD)
    display.progress(SimpleNamespace(step=5, steps=10, epoch=4, epochs=24, phase="search", loss=1.5))  # type: ignore[arg-type]
    display.stop()
    assert "epoch 4/24  search  loss 1.500  val 0.750  FLOPs kept 0.625" in stream.getvalue()
    assert " 50%" in stream.getvalue()


def test_the_display_fits_where_it_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert type(open_display(quiet=True, as_json=False)) is QuietDisplay
    plain = open_display(quiet=False, as_json=True)
    assert type(plain) is PlainDisplay
    plain.say("to a person")
    assert capsys.readouterr() == ("", "to a person\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("CI", "true")
    assert type(open_display(quiet=False, as_json=False)) is PlainDisplay
    monkeypatch.delenv("CI")
    assert type(open_display(quiet=False, as_json=False)) is LiveDisplay


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"flops": 0.3}, "0.3 of the dense FLOPs: keep at most 30 %, prune 70 %"),
        ({"flops": "25%"}, "0.25 of the dense FLOPs: keep at most 25 %, prune 75 %"),
        ({"flops": "1.2G"}, "1.2G of the dense 2 G FLOPs: keep at most 60 %, prune 40 %"),
        ({"params": "4M"}, "keep at most 4M parameters"),
        ({"flops": 1.0}, "1 of the dense FLOPs: keep at most 100 %, prune 0 %"),
        (
            {"flops": 0.5, "params": 0.2},
            (
                "0.5 of the dense FLOPs: keep at most 50 %, prune 50 %; "
                "0.2 of the dense parameters: keep at most 20 %, prune 80 %"
            ),
        ),
    ],
)
def test_a_target_is_read_both_ways(targets: dict[str, object], words: str) -> None:
    parsed = {cost: Target.parse(target) for cost, target in targets.items()}
    assert both_readings(parsed, {"flops": 2e9}) == words


def test_numbers_and_times_are_short() -> None:
    assert [scaled(value) for value in (12, 1234, 5.5e6, 4.1e9, 2e12)] == ["12", "1.23 k", "5.5 M", "4.1 G", "2 T"]
    assert [duration(value) for value in (0.04, 59.2, 61, 3725)] == ["0.0 s", "59.2 s", "1 min 01 s", "1 h 02 min"]


HOSTILE = "[/x] \x1b[31m<b>|\nnext"


def test_a_hostile_name_is_text_in_every_form() -> None:
    """A path or class name with markup of rich, HTML, a table's cell, an escape sequence and a line break."""
    gates = [{**GATES[0], "outcome": "fail", "reason": f"{HOSTILE} is bad"}]
    summary = summarise(f"net on {HOSTILE}", METRICS, gates, {"flops": Target.parse(0.3)}, HOSTILE, 1.0)
    live, plain = Terminal(), io.StringIO()
    LiveDisplay(live).closing(summary)
    PlainDisplay(plain).closing(summary)
    for text in (live.getvalue(), plain.getvalue(), summary.as_markdown()):
        assert "[/x]" in text
        assert "\x1b[31m<b>" not in text
    assert "\x1b" not in summary.as_markdown() + plain.getvalue()
    assert "<b>" not in summary.as_markdown()
    suite = ElementTree.fromstring(junit(f"net on {HOSTILE}", gates, 1.0))[0]  # noqa: S314 - our own text
    assert suite.get("name") == "net on [/x] \\x1b[31m<b>|\\nnext"
