"""What all stories share: verification reads a few of its held-out chats, which keeps six verifications short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hermetiq.calibration.heldout import held_out_chats
from hermetiq.verify import reference

FEW = 3


@pytest.fixture(scope="package", autouse=True)
def few_held_out_chats() -> Iterator[None]:
    """A story asks whether a model passes, not by how much; nothing else of a verification is left out."""
    some = held_out_chats()[:FEW]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "held_out_chats", lambda: some)
        yield
