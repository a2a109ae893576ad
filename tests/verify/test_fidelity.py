"""Fidelity against its definitions: token by token in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hermetiq.verify import fidelity
from hermetiq.verify.fidelity import Fidelity, compare
from tests.oracles import fidelity as oracle

VOCABULARY, HIDDEN, TERMINATOR = 97, 16, 5
LENGTHS = (1, 2, 40, fidelity.CHUNK, fidelity.CHUNK + 1, 150)


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length,), generator=draw).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def states(rows: list[list[int]]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(len(row), HIDDEN, generator=draw) for row in rows]


ENDS = [(2, 3), (2, 39), (3, 0), (5, 148), (5, 149)]


def heads() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    source = torch.randn(HIDDEN, VOCABULARY, generator=draw)
    return source, source + 0.2 * torch.randn(HIDDEN, VOCABULARY, generator=draw)


def measured(rows: list[list[int]], states: list[Tensor], source: Tensor, artifact: Tensor) -> Fidelity:
    both = list(zip(rows, states, strict=True))
    return compare(
        both,
        both,
        source_logits=lambda hidden: hidden @ source,
        artifact_logits=lambda hidden: hidden @ artifact,
        ends=ENDS,
        terminator=TERMINATOR,
    )


@pytest.mark.parametrize("shift", [0.0, 1000.0], ids=["as they are", "logits far from zero"])
def test_every_figure_is_what_its_definition_says(rows: list[list[int]], states: list[Tensor], shift: float) -> None:
    source, artifact = heads()
    both = list(zip(rows, states, strict=True))
    found = compare(
        both,
        both,
        source_logits=lambda hidden: hidden @ source,
        artifact_logits=lambda hidden: hidden @ artifact + shift,
        ends=ENDS,
        terminator=TERMINATOR,
    )
    tables = [[(part @ head).double().numpy() for part in states] for head in (source, artifact)]
    expected = oracle.compare(rows, *tables, ENDS, TERMINATOR)
    # Logits near 1000 have themselves lost four digits in float32.
    near = 1e-6 if shift == 0 else 1e-3
    assert found.tokens == len(expected.kl) == sum(LENGTHS) - len(LENGTHS)
    assert found.kl_mean == pytest.approx(np.mean(expected.kl), abs=near)
    assert found.kl_p99 == pytest.approx(oracle.percentile(expected.kl, 0.99), abs=near)
    assert found.perplexity_source == pytest.approx(math.exp(np.mean(expected.nll_source)), rel=near)
    assert found.perplexity_artifact == pytest.approx(math.exp(np.mean(expected.nll_artifact)), rel=near)
    assert found.top1_agreement == pytest.approx(np.mean(expected.same_choice))
    assert 0 < found.top1_agreement < 1
    for ends, theirs in ((found.source_ends, expected.ends_source), (found.artifact_ends, expected.ends_artifact)):
        assert [(end.row, end.position) for end in ends] == ENDS
        assert [end.rank for end in ends] == [rank for _, rank in theirs]
        assert [end.logprob for end in ends] == pytest.approx([value for value, _ in theirs], abs=near)
    drops = [
        before - after for (before, _), (after, _) in zip(expected.ends_source, expected.ends_artifact, strict=True)
    ]
    assert found.worst_end == drops.index(max(drops))


def test_equal_models_give_exactly_zero(rows: list[list[int]], states: list[Tensor]) -> None:
    source, _ = heads()
    found = measured(rows, states, source, source.clone())
    assert (found.kl_mean, found.kl_p99, found.top1_agreement) == (0, 0, 1)
    assert found.source_ends == found.artifact_ends


def test_nan_is_never_a_good_figure(rows: list[list[int]], states: list[Tensor]) -> None:
    source, artifact = heads()
    artifact[0, 0] = math.nan
    found = measured(rows, states, source, artifact)
    assert math.isnan(found.kl_mean)
    assert math.isnan(found.kl_p99)
    assert math.isnan(found.perplexity_artifact)
    assert found.top1_agreement < 0.1
    assert {end.rank for end in found.artifact_ends} == {VOCABULARY}


def test_a_destroyed_model_has_no_perplexity_and_no_traceback(rows: list[list[int]], states: list[Tensor]) -> None:
    source, artifact = heads()
    assert measured(rows, states, source, artifact * 1e6).perplexity_artifact == math.inf


def test_among_equals_the_terminator_comes_last(rows: list[list[int]], states: list[Tensor]) -> None:
    source, _ = heads()
    found = measured(rows, states, source, torch.zeros_like(source))
    assert {end.rank for end in found.artifact_ends} == {VOCABULARY}


def test_models_that_have_read_different_rows_are_not_compared(rows: list[list[int]], states: list[Tensor]) -> None:
    source, _ = heads()
    changed = [[*row[:-1], (row[-1] + 1) % VOCABULARY] for row in rows]
    with pytest.raises(ValueError, match="different rows"):
        compare(
            list(zip(rows, states, strict=True)),
            list(zip(changed, states, strict=True)),
            source_logits=lambda hidden: hidden @ source,
            artifact_logits=lambda hidden: hidden @ source,
            ends=ENDS,
            terminator=TERMINATOR,
        )
