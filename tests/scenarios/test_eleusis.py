"""Eleusis-7B: partitions of layers from relatives of Hermes, merged by SLERP; fast tokenizer only, not for profit."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from hermetiq.publish import prepare
from tests.scenarios.published import merged, relative, with_card
from tests.scenarios.shipping import CHATML_TAGS, IM_END, export, found, require_contract, require_verified

LICENCE = "cc-by-nc-4.0"
PARENTS = ("teknium/OpenHermes-2.5-Mistral-7B", "macadeliccc/laser-hermes")
RECIPE = f"""\
merge_method: slerp
base_model: {PARENTS[0]}
slices:
  - sources: [{{model: {PARENTS[0]}, layer_range: [0, 1]}}, {{model: {PARENTS[1]}, layer_range: [0, 1]}}]
  - sources: [{{model: {PARENTS[0]}, layer_range: [1, 3]}}, {{model: {PARENTS[1]}, layer_range: [1, 3]}}]
parameters:
  t: [{{filter: self_attn, value: 0.1}}, {{filter: mlp, value: [0.3, 0.5, 0.7]}}, {{value: 0.5}}]
"""


def partition(tensor: str) -> float:
    """The second parent's share: attention almost the base's, a gradient over the layers, ends half and half."""
    if "self_attn" in tensor:
        return 0.1
    return 0.3 + 0.2 * int(tensor.split(".")[2]) if ".layers." in tensor else 0.5


@pytest.fixture(scope="module")
def hermes_relatives(trained_hermes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parents")
    return trained_hermes, relative(trained_hermes, folder / "laser-hermes", seed=5)


@pytest.fixture(scope="module")
def eleusis(hermes_relatives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = merged(*hermes_relatives, tmp_path_factory.mktemp("eleusis") / "Eleusis-7B", partition)
    (folder / "tokenizer.model").unlink()
    (folder / "added_tokens.json").unlink()
    (folder / "mergekit_config.yml").write_text(RECIPE, encoding="utf-8")
    return with_card(folder, {"license": LICENCE, "base_model": list(PARENTS), "tags": ["mergekit", "merge"]})


def test_a_merge_of_relatives_with_a_fast_tokenizer_alone_is_in_order(
    eleusis: Path, hermes_relatives: tuple[Path, Path]
) -> None:
    parents = [word for parent in hermes_relatives for word in ("--parent", parent)]
    assert found(eleusis, *parents) == {}


def test_it_ships_in_every_format_and_stays_non_commercial(eleusis: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = export(eleusis, out)
    require_verified(eleusis, out)
    require_contract(out, terminator="<|im_end|>", terminator_id=IM_END, stop_ids=(IM_END,), tags=CHATML_TAGS)
    assert manifest.source.provenance.license == LICENCE
    assert manifest.source.provenance.base_models == PARENTS
    assert manifest.source.provenance.merge_recipe == RECIPE
    stated = gguf.GGUFReader(out / "gguf/Eleusis-7B-Q8_0.gguf").fields["general.license"]
    assert stated.contents() == LICENCE
    # Its parents may be used for profit, and still the merge may not.
    parents = dict.fromkeys(PARENTS, "apache-2.0")
    release = prepare(out, "someone/Eleusis-7B", base_model="none", licence_of=parents.get).release
    assert release.licence.name == LICENCE
