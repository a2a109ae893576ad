"""Calibration sees what each linear is fed, whole model and whole rows or not, and padding is no part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from hermetiq.calibration.activations import fp16_findings
from hermetiq.calibration.observe import Block, observe
from hermetiq.calibration.statistics import Statistics
from hermetiq.calibration.walk import Load, final_hidden
from hermetiq.errors import HermetiqError, Refusal
from tests.calibration.walking import opened
from tests.fixtures.models import tiny_checkpoint

LENGTHS = (21, 1, 40, 21, 700, 12)
"""The short rows share one padded batch; the long one stands alone."""
SHARED = (("q", "k", "v"), ("gate", "up"))


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 800, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, an intermediate size that is not a whole number of panels; qwen2 has biases, qwen3 head norms."""
    return tiny_checkpoint(
        tmp_path_factory.mktemp("observe") / "model", family=request.param, tokenizer="bpe", layers=3, intermediate=520
    )


def seen(folder: Path, rows: list[list[int]], device: torch.device | str = "cpu", **options: object) -> list[Block]:
    """Every block that `observe` shows."""
    blocks: list[Block] = []
    with opened(folder) as (config, load):
        observe(config, load, rows, blocks.append, device=device, **options)
    return blocks


def whole_model(folder: Path, rows: list[list[int]]) -> dict[str, tuple[Tensor, float]]:
    """The oracle: (inputs of every linear, all rows' tokens; largest |output|), by name, from each row alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs: dict[str, list[Tensor]] = {}
    peaks: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.setdefault(name, []).append(arguments[0][0].double())
            peaks[name] = max(peaks.get(name, 0.0), float(output.abs().max()))

        return keep

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(hook(name))
    with torch.inference_mode():
        for row in rows:
            model(torch.tensor([row]))
    return {name: (torch.cat(parts), peaks[name]) for name, parts in inputs.items()}


def test_statistics_are_those_of_every_row_run_alone_in_the_whole_model(
    folder: Path, rows: list[list[int]], device: torch.device
) -> None:
    oracle = whole_model(folder, rows)
    blocks = seen(folder, rows, device, precision="float32")
    inputs = {name: item for block in blocks for name, item in block.inputs.items()}
    peaks = {name: peak for block in blocks for name, peak in block.peaks.items()}
    assert set(inputs) == {f"{name}.weight" for name in oracle}
    for name, (x, peak) in oracle.items():
        item = inputs[f"{name}.weight"]
        assert item.tokens == sum(LENGTHS) == len(x)
        assert item.gram.dtype == torch.float32
        close(item.gram, x.T @ x)
        assert item.max_abs == pytest.approx(float(x.abs().max()), rel=1e-5)
        if name != "lm_head":
            assert peaks[name] == pytest.approx(peak, rel=1e-5)


def close(mine: Tensor, oracle: Tensor) -> None:
    torch.testing.assert_close(mine.double().cpu(), oracle, rtol=1e-4, atol=1e-5 * float(oracle.abs().max()))


def test_linears_that_share_an_input_share_its_statistics(folder: Path, rows: list[list[int]]) -> None:
    for block in seen(folder, rows)[:-1]:
        assert len({id(item) for item in block.inputs.values()}) == 4
        for names in SHARED:
            (first, *others) = (item for name in names for weight, item in block.inputs.items() if f"{name}_" in weight)
            assert all(other is first for other in others)


def test_blocks_come_in_order_with_all_their_weights_and_the_head_last(folder: Path, rows: list[list[int]]) -> None:
    blocks = seen(folder, rows[:2])
    assert [block.index for block in blocks] == [0, 1, 2, 3]
    with opened(folder) as (_, load):
        for block in blocks[:-1]:
            assert all(name.startswith(f"model.layers.{block.index}.") for name in block.weights)
            assert set(block.inputs) <= set(block.weights)
            for name, weight in block.weights.items():
                assert weight.dtype == torch.float32
                torch.testing.assert_close(weight, load(name).float(), rtol=0, atol=0)
    assert (dict(blocks[-1].weights), list(blocks[-1].inputs)) == ({}, ["lm_head.weight"])


def test_padding_is_not_seen_even_where_it_is_enormous(tmp_path: Path) -> None:
    """Padding is token 0. With a huge row for it, one padded position in one statistic would show."""
    folder = tiny_checkpoint(tmp_path / "model", tokenizer="bpe")
    rows = [[5, 6, 7], [8] * 30]
    plain = seen(folder, rows, precision="float32")
    loud = seen_with(
        folder, rows, {"model.embed_tokens.weight": lambda value: value.index_fill(0, torch.tensor(0), 1e6)}
    )
    for one, other in zip(plain, loud, strict=True):
        assert one.peaks == other.peaks
        for name, item in one.inputs.items():
            assert torch.equal(item.gram, other.inputs[name].gram)
            assert (item.max_abs, item.tokens) == (other.inputs[name].max_abs, 33)


def seen_with(folder: Path, rows: list[list[int]], edits: Mapping[str, Callable[[Tensor], Tensor]]) -> list[Block]:
    """Every block of the model with some tensors edited."""
    blocks: list[Block] = []
    with opened(folder) as (config, load):
        observe(config, edited(load, edits), rows, blocks.append, precision="float32")
    return blocks


def edited(load: Load, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Load:
    return lambda name: edits[name](load(name)) if name in edits else load(name)


def halved(block: Block) -> dict[str, Tensor]:
    return {name: weight / 2 for name, weight in block.weights.items() if name.endswith("_proj.weight")}


def test_replacements_are_what_the_next_block_sees(folder: Path, rows: list[list[int]]) -> None:
    """The oracle is a model whose earlier blocks are halved in the checkpoint itself."""
    heads: list[Statistics] = []

    def visit(block: Block) -> Mapping[str, Tensor] | None:
        heads.extend(block.inputs.values() if block.index == 3 else ())
        return halved(block)

    with opened(folder) as (config, load):
        observe(config, load, rows, visit, precision="float32", sequential=True)
        states = final_hidden(config, lambda name: load(name) / (2 if "_proj.weight" in name else 1), rows)
    x = torch.cat(states).double()
    close(heads[0].gram, x.T @ x)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_a_resumed_pass_has_the_same_bits(folder: Path, rows: list[list[int]], start: int, sequential: bool) -> None:
    def run(**options: object) -> list[Block]:
        blocks: list[Block] = []

        def visit(block: Block) -> Mapping[str, Tensor] | None:
            blocks.append(block)
            return halved(block) if sequential else None

        with opened(folder) as (config, load):
            observe(config, load, rows, visit, sequential=sequential, **options)
        return blocks

    whole = run()
    resumed = run(start=start, replaced=(lambda index: halved(whole[index])) if sequential else None)
    assert [block.index for block in resumed] == [0, 1, 2, 3][start:]
    for one, other in zip(whole[start:], resumed, strict=True):
        assert one.peaks == other.peaks
        assert list(one.inputs) == list(other.inputs)
        for name, item in one.inputs.items():
            assert torch.equal(item.gram, other.inputs[name].gram)


def test_a_replacement_that_fits_nowhere_is_refused(folder: Path, rows: list[list[int]]) -> None:
    for tensors in (
        {"model.layers.1.mlp.up_proj.weight": torch.zeros(520, 64)},
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(64, 520)},
    ):
        with opened(folder) as (config, load), pytest.raises(HermetiqError, match=r"no place for model.layers.\d.mlp"):
            observe(config, load, rows, lambda _, tensors=tensors: tensors, sequential=True)


def test_a_replacement_that_nobody_asked_for_is_an_error(folder: Path, rows: list[list[int]]) -> None:
    with opened(folder) as (config, load), pytest.raises(ValueError, match="sequential"):
        observe(config, load, rows, halved)


@pytest.mark.parametrize(
    ("tensor", "value", "first"),
    [
        ("model.embed_tokens.weight", float("nan"), "model.embed_tokens"),
        ("model.layers.1.self_attn.v_proj.weight", float("inf"), "model.layers.1.self_attn.v_proj"),
        ("model.layers.2.mlp.down_proj.weight", float("nan"), "model.layers.2.mlp.down_proj"),
        ("model.norm.weight", float("nan"), "model.norm"),
    ],
)
def test_the_first_broken_layer_is_named(
    folder: Path, rows: list[list[int]], tensor: str, value: float, first: str
) -> None:
    with pytest.raises(Refusal) as refused:
        seen_with(folder, rows, {tensor: lambda weight: torch.full_like(weight, value)})
    (finding,) = refused.value.findings
    assert (finding.rule, finding.field) == ("hessian-nan", first)
    assert "input" in finding.why
    assert "more" not in finding.repair


def test_squares_that_overflow_are_refused_too(folder: Path, rows: list[list[int]]) -> None:
    """Every activation is finite, and the sum of their squares is not."""
    up = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(Refusal, match="hessian-nan") as refused:
        seen_with(folder, rows, {up: lambda weight: weight.float() * 1e22})
    assert refused.value.findings[0].field == "model.layers.1.mlp.down_proj"


def test_activations_beyond_float16_are_found_with_layer_and_value(folder: Path, rows: list[list[int]]) -> None:
    assert fp16_findings({name: peak for block in seen(folder, rows) for name, peak in block.peaks.items()}) == ()
    name = "model.layers.1.self_attn.v_proj"
    blocks = seen_with(folder, rows, {f"{name}.weight": lambda weight: weight.float() * 1e6})
    peaks = {module: peak for block in blocks for module, peak in block.peaks.items()}
    (finding,) = fp16_findings(peaks)
    assert (finding.rule, finding.severity, finding.field) == ("fp16-range", "warning", name)
    assert f"{peaks[name]:.0f}" in finding.found


def test_float16_itself_ends_at_its_largest_number() -> None:
    assert fp16_findings({"a": 65504.0}) == ()
    (finding,) = fp16_findings({"a": 1.0, "b": 65505.0, "c": 1e6})
    assert (finding.field, finding.found) == ("b", "an activation of 65505; 2 modules in all, the largest 1000000 in c")


def test_progress_counts_every_block(folder: Path, rows: list[list[int]]) -> None:
    told: list[tuple[int, int]] = []
    seen(folder, rows[:1], start=1, on_block=lambda *progress: told.append(progress))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_first_token_of_each_row_counts_as_often_as_asked(folder: Path, rows: list[list[int]]) -> None:
    """As many rows of that token alone would add as much: causal attention shows it nothing else."""
    plain, weighted = seen(folder, rows), seen(folder, rows, first_token_weight=4)
    firsts = seen(folder, [row[:1] for row in rows])
    for before, first, after in zip(plain, firsts, weighted, strict=True):
        for name, item in after.inputs.items():
            expected = before.inputs[name].gram + 3 * first.inputs[name].gram
            torch.testing.assert_close(item.gram, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
            assert item.tokens == before.inputs[name].tokens
            assert not torch.equal(item.gram, before.inputs[name].gram)


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_side_by_side_see_what_one_sees(folder: Path, rows: list[list[int]], lanes: int) -> None:
    """Two or three threads that each compute alone, as one thread does: not a bit may differ, resumed or not."""
    # Rows of many lengths are many batches, and the last turn has fewer of them than there are lanes.
    many = [row[:length] for length, row in enumerate(rows * 3, start=300)] + rows
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = seen(folder, many, first_token_weight=16)
        torch.set_num_threads(lanes)
        together, resumed = (seen(folder, many, first_token_weight=16, start=start) for start in (0, 2))
    finally:
        torch.set_num_threads(before)
    assert [block.index for block in resumed] == [2, 3]
    for found, expected in ((together, alone), (resumed, alone[2:])):
        for mine, theirs in zip(found, expected, strict=True):
            assert list(mine.peaks.items()) == list(theirs.peaks.items())
            assert mine.inputs.keys() == theirs.inputs.keys()
            for name, item in mine.inputs.items():
                assert torch.equal(item.gram, theirs.inputs[name].gram), name
                assert (item.max_abs, item.tokens) == (theirs.inputs[name].max_abs, theirs.inputs[name].tokens)
