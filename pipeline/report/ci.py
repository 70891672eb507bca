"""What a build server reads: a JUnit file with one case per gate, and the job summary of GitHub Actions."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from atopipe.pipeline.system.text import printable

SUITE = "atopipe.gates"
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def junit(title: str, gates: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """The gates of gates.json as test cases: a failed gate is a failure, an inconclusive one an error."""
    count = {outcome: sum(gate["outcome"] == outcome for gate in gates) for outcome in ("fail", "inconclusive")}
    totals = {
        "tests": str(len(gates)),
        "failures": str(count["fail"]),
        "errors": str(count["inconclusive"]),
        "time": f"{seconds:.3f}",
    }
    root = Xml.Element("testsuites", totals)
    suite = Xml.SubElement(root, "testsuite", {"name": printable(title), **totals})
    for gate in gates:
        case = Xml.SubElement(suite, "testcase", {"classname": SUITE, "name": gate["name"], "time": "0"})
        element = {"fail": "failure", "inconclusive": "error"}.get(gate["outcome"], "system-out")
        detail = Xml.SubElement(case, element)
        detail.text = printable(gate["reason"])
        if element != "system-out":
            detail.set("message", detail.text)
            detail.set("type", gate["outcome"])
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def append_step_summary(markdown: str) -> None:
    """Adds the text to the file that GitHub Actions shows on the page of a job, where there is one."""
    if place := os.environ.get(STEP_SUMMARY):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(f"{markdown}\n")
