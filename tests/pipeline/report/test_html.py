"""The page of a run: whole, self-contained, and without complaint in a real browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from atopipe.pipeline.report.html import _layers, _natural, render
from atopipe.pipeline.report.results import results_of, summary_of
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import ResultForm
from atopipe.pipeline.stages import report
from atopipe.pipeline.system.files import read_sealed, sha256_file, write_sealed

SECTIONS = (
    "verdict",
    "gates",
    "accuracy",
    "classes",
    "latency",
    "training",
    "widths",
    "flops",
    "certificate",
    "environment",
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"meta", "link", "br", "img"}


class Tags(HTMLParser):
    """Every element with its attributes, and what was opened but not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return (finished / "out/report.html").read_text(encoding="utf-8")


def ids(text: str) -> Iterator[str]:
    return (str(attributes["id"]) for _, attributes in Tags(text).seen if "id" in attributes)


def test_the_page_has_every_section_and_the_verdict_first(page: str) -> None:
    assert tuple(ids(page)) == SECTIONS
    assert Tags(page).open == []


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    asked = [
        value
        for _, attributes in Tags(page).seen
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "data"}
    ]
    assert asked[0] == "data:,"
    assert all(address.startswith("data:image/png;base64,") for address in asked[1:] if address)
    assert not re.search(r"@import|url\(|<script|<iframe", page)


def test_the_page_says_what_was_measured(finished: Path, page: str) -> None:
    metrics = json.loads((finished / "out/metrics.json").read_text())
    gates = json.loads((finished / "out/stages/validate/gates.json").read_text())
    manifest = json.loads((finished / "out/manifest.json").read_text())
    assert f"{100 * metrics['flops.ratio']:.1f} %" in page
    assert f"{100 * metrics['accuracy.onnx']:.2f} %" in page
    assert [gate["reason"] for gate in gates if gate["reason"] not in page] == []
    digests = {stage["stage"]: stage["digest"] for stage in manifest["stages"]}
    assert [name for name, digest in digests.items() if digest not in page] == ["report"]
    assert "opset 18, IR version 8, 5 nodes; loads in ONNX Runtime 1.14 and newer" in page
    assert f"{metrics['parity.rounding_ratio']:.2g} times the difference of torch in float32, at most 10" in page
    skipped = json.loads((finished / "out/stages/validate/parity.json").read_text())["skipped"]
    assert [name for name in skipped if f"not compared: {name}, because " not in page] == []
    assert page.count("<svg ") == 5  # training and the dense training, each broad and narrow, and widths


def test_variants_have_a_section_of_their_own(finished_with_variants: Path) -> None:
    text = (finished_with_variants / "out/report.html").read_text(encoding="utf-8")
    verdict = json.loads((finished_with_variants / "out/stages/validate/variants.json").read_text())
    sections = list(ids(text))
    assert sections[sections.index("latency") + 1] == "variants"
    assert {*sections} - {"variants"} == {*SECTIONS}
    assert Tags(text).open == []
    section = text.partition('id="variants"')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', section) == [*verdict["kept"], *verdict["dropped"]]
    assert section.count("chip pass") == len(verdict["kept"])
    assert section.count("fastest here") == 1
    assert [reason for reason in verdict["dropped"].values() if escape(reason) not in section] == []


def test_layers_are_shown_in_order_and_add_up(finished: Path) -> None:
    run = RunDirectory.open(finished / "out")
    shown = _layers(run)
    metrics = json.loads((finished / "out/metrics.json").read_text())
    assert [layer["name"] for layer in shown] == ["0", "5"]
    assert sum(layer["shrunk"] for layer in shown) == metrics["flops.shrunk"]
    assert max(layer["whole"] for layer in shown) == 1
    assert sorted(["layer10.a", "layer2.b", "layer2.a"], key=_natural) == ["layer2.a", "layer2.b", "layer10.a"]


def test_a_layer_that_cannot_be_counted_is_named_on_the_page(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    path = tmp_path / "out/stages/export/layers.json"
    layers = json.loads(path.read_text())
    path.write_text(json.dumps([{**layers[0], "shrunk": None}, *layers[1:]]))
    reseal(tmp_path / "out/stages/export", "layers.json")
    run = RunDirectory.open(tmp_path / "out")
    assert [layer["name"] for layer in _layers(run)] == ["5"]
    results = results_of(run, report.STAGE.inputs)
    page = render(run, summary_of(run, results), results)
    assert "Not shown, since their FLOPs cannot be read from both files: 0.</p>" in page


def reseal(folder: Path, name: str) -> None:
    """Makes a stage's result fit a changed file of it."""
    result = read_sealed(folder / "result.json", ResultForm)
    digests = {**result["artifacts"], name: sha256_file(folder / name)}
    write_sealed(folder / "result.json", {**result, "artifacts": digests})


def browser(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr"]
    command = [str(BROWSER), "--headless", *settings, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("run", ["finished", "finished_with_variants"])
def test_a_browser_shows_it_without_complaint(
    run: str, tmp_path: Path, width: int, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(run) / "out/report.html"
    done = browser(tmp_path, f"--window-size={width},900", "--dump-dom", page.as_uri())
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert re.findall(r'<(?:section|header) id="(\w+)"', done.stdout) == list(ids(page.read_text(encoding="utf-8")))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_it_prints_on_few_pages(finished: Path, tmp_path: Path) -> None:
    browser(tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}", (finished / "out/report.html").as_uri())
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "report.pdf").read_bytes())) <= 4
