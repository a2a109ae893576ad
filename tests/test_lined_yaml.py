"""YAML by a person's hand: every fault has its line, and nothing means two things."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.lined_yaml import LinedYaml


def test_values_have_places(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"\xef\xbb\xbf# a recipe\na: 1\nb:\n  - x\n  - c: 0.5\n    d: [yes, null]\n")
    lined = LinedYaml.read(path)
    assert lined.data == {"a": 1, "b": ["x", {"c": 0.5, "d": [True, None]}]}
    places = {
        (): "2",
        ("a",): "2: a",
        ("b", 0): "4: b.0",
        ("b", 1, "d"): "6: b.1.d",
        ("b", 1, "missing"): "5: b.1.missing",
        ("b", 7): "3: b",
        ("a", "no step"): "2: a",
    }
    assert {location: lined.place(location) for location in places} == {
        location: f"{path}:{place}" for location, place in places.items()
    }


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a:\n\tb: 1\n", 2, "'\\t'"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' a second time"),
        ("a: 1\nb:\n  c: {d: 1, d: 2}\n", 3, "the key 'd' a second time"),
        ("a: &x 1\nb: 2\n", 1, "an anchor"),
        ("a: 1\nb: *x\n", 2, "an anchor"),
        ("a:\n  <<: {b: 1}\n", 2, "a key that is no text"),
        ("a: 1\n2: 3\n", 2, "a key that is no text"),
        ("a: 1\n? [b]\n: 1\n", 2, "a key that is no text"),
        ("a: 1\n--- \nb: 2\n", 2, "another document"),
        ("a: 1\nb: !!int ''\n", 2, "is no int"),
        ("a: 1\nb: " + "9" * 5000, 2, "is no int"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "a value of the kind"),
        ("name: 2024-13-45\n", 1, "needs quotes"),
        ("a: {b: 1\n", 2, "expected ',' or '}'"),
        ("a: " + "[" * 20 + "]" * 20, 1, "nested deeper"),
        ("[" * 60_000, 1, "nested deeper"),
        ("", 0, "nothing in this file"),
        ("# only talk\n", 0, "nothing in this file"),
        ("a: \x01", 0, "special characters"),
        ("a: " + "x" * 70_000, 0, "more than 65536 bytes"),
    ],
)
def test_what_has_no_one_reading_is_refused_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    path = tmp_path / "r.yml"
    path.write_text(text)
    with pytest.raises(HermetiqError) as refused:
        LinedYaml.read(path)
    assert what in refused.value.what
    assert refused.value.where == (f"{path}:{line}" if line else str(path))


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a: 1\nb: \xff\xfe")
    for name, where, what in (
        ("binary", "binary:2", "not UTF-8"),
        ("none", "none", "no such file"),
        (".", ".", "a folder"),
    ):
        with pytest.raises(HermetiqError, match=what) as refused:
            LinedYaml.read(tmp_path / name)
        assert refused.value.where == str(tmp_path / where)
    with pytest.raises(HermetiqError, match="a device"):
        LinedYaml.read(Path("/dev/zero"))
