"""The forward gate: a sound model passes, and each fault that only running it shows is found by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermetiq import cli
from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.forward import Forward, forward
from tests.fixtures.hermes import CHATS
from tests.fixtures.models import copy_of, edit_json
from tests.verify.test_verify import small_questions

IM_END = 32000
ENDS = len(CHATS) + 1


@pytest.fixture(autouse=True)
def known_chats() -> Iterator[None]:
    with small_questions():
        yield


def broken(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    copy = copy_of(source, folder)
    (path,) = copy.glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})
    return copy


def seen(path: Path) -> Forward:
    return forward(str(path), derive(open_checkpoint(path)))


def never_says_it(weights: dict[str, Tensor]) -> None:
    weights["lm_head.weight"][IM_END] *= -1


def not_a_number(weights: dict[str, Tensor]) -> None:
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")


def too_large(weights: dict[str, Tensor]) -> None:
    """The last block's output, of which the final norm sees the direction alone."""
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.2.{part}.weight"] *= 1e6


def test_a_model_that_stops_has_no_finding(trained_hermes: Path) -> None:
    result = seen(trained_hermes)
    assert result.findings == ()
    assert (result.chats, result.turn_ends, result.first_choices, result.median_rank) == (len(CHATS), ENDS, ENDS, 1)
    assert result.mean_logprob is not None
    assert -0.1 < result.mean_logprob < 0
    assert result.largest_activation is not None
    assert 1 < result.largest_activation < 65504


def test_a_model_that_never_stops_is_told_so(trained_hermes: Path, tmp_path: Path) -> None:
    (item,) = seen(broken(trained_hermes, tmp_path / "m", never_says_it)).findings
    assert (item.rule, item.severity, item.file) == ("never-stops", "error", "held-out chats")
    assert item.found.startswith(f"<|im_end|> = {IM_END} of median rank ")
    assert "padding" not in item.found
    assert item.expected == "a median rank of at most 40"
    assert "no quantizer caused" in item.why


def test_padding_that_is_the_terminator_is_named_as_what_may_have_done_it(trained_hermes: Path, tmp_path: Path) -> None:
    copy = broken(trained_hermes, tmp_path / "m", never_says_it)
    edit_json(copy / "tokenizer_config.json", pad_token="<|im_end|>")
    assert seen(copy).findings[0].found.endswith("; it is the padding token as well")
    edit_json(copy / "tokenizer_config.json", pad_token=None)
    edit_json(copy / "config.json", pad_token_id=IM_END)
    assert seen(copy).findings[0].found.endswith("; it is the padding token as well")


def test_activations_that_are_no_numbers_end_the_pass(trained_hermes: Path, tmp_path: Path) -> None:
    result = seen(broken(trained_hermes, tmp_path / "m", not_a_number))
    (item,) = result.findings
    assert (item.rule, item.file, item.field) == ("hessian-nan", "held-out chats", "model.layers.1.mlp.up_proj")
    assert (result.turn_ends, result.first_choices, result.median_rank, result.mean_logprob) == (ENDS, None, None, None)


def test_activations_beyond_float16_are_told(trained_hermes: Path, tmp_path: Path) -> None:
    result = seen(broken(trained_hermes, tmp_path / "m", too_large))
    assert [(item.rule, item.severity, item.file) for item in result.findings if item.rule != "never-stops"] == [
        ("fp16-range", "warning", "held-out chats")
    ]
    assert result.largest_activation is not None
    assert result.largest_activation > 65504


def ran(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status: object = 0
    try:
        cli.main(["inspect", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    captured = capfd.readouterr()
    return int(str(status or 0)), captured.out, captured.err


def test_inspect_tells_it_only_when_asked(
    trained_hermes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = broken(trained_hermes, tmp_path / "m", never_says_it)
    assert ran(capfd, copy, "--no-weights")[0] == 0
    status, shown, _ = ran(capfd, copy, "--no-weights", "--forward")
    assert status == 1
    assert "error never-stops held-out chats" in shown
    assert f"the terminator is the first choice at 0 of {ENDS} turn ends of {len(CHATS)} held-out chats" in shown
    document = json.loads(ran(capfd, copy, "--no-weights", "--forward", "--json")[1])
    assert list(document) == ["path", "contract", "findings", "forward"]
    assert [item["rule"] for item in document["findings"]] == ["never-stops"]
    figures = ["chats", "turn_ends", "first_choices", "median_rank", "mean_logprob", "largest_activation", "notes"]
    assert list(document["forward"]) == figures
    for options in (("--ignore", "never-stops"), ("--select", "double-bos")):
        assert ran(capfd, copy, "--no-weights", "--forward", *options)[0] == 0


def test_a_model_without_a_contract_is_not_run_and_that_is_said(
    trained_hermes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(trained_hermes, tmp_path / "m")
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(copy / "tokenizer_config.json", chat_template=None)
    status, shown, talk = ran(capfd, copy, "--no-weights", "--forward", "--json")
    assert status == 1
    assert json.loads(shown)["forward"] is None
    assert "the model was not run" in talk
