"""Nothing stays behind on the CPU when work goes to another device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq import settle
from hermetiq.calibration import sums
from hermetiq.checkpoint.gguf_header import read_header
from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures import elsewhere
from tests.fixtures.models import tiny_checkpoint

ASKED = ("gptq:4bit-g32", "gptq:3bit-g32-asym-actorder", "awq:4bit-g32", "exl2:4.5bpw", "gguf:Q4_K_M")


@pytest.fixture
def there() -> Tensor:  # (3, 4)
    return torch.ones(3, 4).to(elsewhere.device())


def test_it_is_a_device_like_cuda(there: Tensor) -> None:
    assert there.device.type == (there @ there.T).device.type == torch.arange(3, device=there.device).device.type
    assert there.cpu().device.type == "cpu"
    assert torch.equal((there * 2)[torch.tensor([0, 2])].cpu(), torch.full((2, 4), 2.0))
    assert there.add_(torch.tensor(1.0)) is there
    assert (torch.ones(3, device=there.device) @ there).shape == (4,)
    here = torch.zeros(3, 4)
    assert float(here.copy_(there).sum()) == 24.0


def test_tensors_of_two_devices_do_not_meet(there: Tensor) -> None:
    here = torch.ones(3, 4)
    for meeting in (
        lambda: there + here,
        lambda: here.add_(there),
        lambda: torch.cat([there, here]),
        lambda: torch.where(there > 0, there, here),
        lambda: here[torch.zeros(1, dtype=torch.long, device=there.device)],
        lambda: there.index_put_((torch.tensor([0]),), torch.ones(4)),
    ):
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            meeting()


def test_an_export_there_is_one_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for ties: attention takes another path there, so sums differ in their last bits."""
    monkeypatch.setattr(sums, "_autocasts", lambda *_: False)
    # A model of random weights expects no end; its gains are to be settled all the same.
    monkeypatch.setattr(settle, "EXPECTED", -100.0)
    source = tiny_checkpoint(tmp_path / "m", hidden=64, intermediate=128)
    made = []
    for device in (torch.device("cpu"), elsewhere.device()):
        job, out = prepare(source, [parse(spec) for spec in ASKED], rows=4, row_tokens=64), tmp_path / device.type
        export(job, out, device=str(device))
        weights = [path for path in out.rglob("*") if path.suffix in (".safetensors", ".gguf")]
        made.append({path.relative_to(out): np.fromfile(path, np.uint8) for path in weights})
    here, there = made
    assert here.keys() == there.keys()
    assert len(here) == len(ASKED)
    # A GGUF file's gains are float32 and follow from all that was rounded: they are no ties, but as good as equal.
    for path in here:
        if path.suffix == ".gguf":
            norm = read_header(tmp_path / "cpu" / path).tensors["output_norm.weight"]
            gains = [data[norm.start : norm.start + norm.size] for data in (here[path], there[path])]
            np.testing.assert_allclose(gains[1].view(np.float32), gains[0].view(np.float32), rtol=0, atol=5e-4)
            gains[1][:] = gains[0]
    # Most bytes are the embedding's: of those that were rounded, a few in a thousand.
    assert all((here[path] != there[path]).mean() < 2e-5 for path in here)
