"""A verification as JUnit XML: one suite an artifact, one test case a check.

There is no standard behind the name. What is written here is the part of the Jenkins schema that every reader shares:
`testsuites`, `testsuite`, `testcase`, `failure`, `system-out`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from hermetiq.verify.report import ArtifactReport

_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML may hold, however they are written (XML 1.0, 2.2)."""


def junit(reports: Sequence[ArtifactReport]) -> bytes:
    """The document as UTF-8; the same reports give the same bytes."""
    root = ElementTree.Element("testsuites", name="hermetiq")
    for report in reports:
        checks, notes = report.checks, report.verification.notes
        failures = sum(not check.passed for check in checks)
        suite = _child(root, "testsuite", name=report.file, tests=str(len(checks)), failures=str(failures), errors="0")
        for check in checks:
            case = _child(suite, "testcase", classname=report.file, name=check.name)
            if not check.passed:
                failure = _child(case, "failure", message=check.reason, type=check.name)
                failure.text = _sound(f"{check.reason}\nmeasured {check.value}, limit {check.limit}")
        if notes:
            _child(suite, "system-out").text = _sound("\n".join(notes))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _child(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: _sound(value) for name, value in attributes.items()})


def _sound(text: str) -> str:
    """What XML cannot hold is spelled out."""
    return _NO_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
