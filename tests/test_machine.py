"""What the machine says of itself, and what a container's limit leaves of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq import machine
from hermetiq.machine import cores, free_memory


def test_there_is_a_core_and_some_memory() -> None:
    assert cores() >= 1
    assert free_memory() > 1_000_000


@pytest.mark.parametrize("group", machine._GROUPS, ids=lambda group: group.limit)
def test_a_containers_limit_counts_and_files_in_memory_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: machine._Group
) -> None:
    (tmp_path / group.limit).write_text("5000000\n")
    (tmp_path / group.used).write_text("4000000\n")
    (tmp_path / "memory.stat").write_text(f"anon 3500000\n{group.cached} 500000\n")
    monkeypatch.setattr(machine, "_GROUPS", (replace(group, folder=tmp_path),))
    assert free_memory() == 1_500_000
    (tmp_path / group.used).write_text("9000000\n")
    assert free_memory() == 0
    (tmp_path / group.limit).write_text("max\n")
    assert free_memory() > 1_000_000
