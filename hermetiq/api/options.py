"""Options that a command, a function and a recipe file share, so that the three cannot drift apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Required, TypedDict

Device = Literal["auto", "cpu", "cuda"]
"""Where tensors are worked on; `auto` takes a GPU where there is one."""
LayoutName = Literal["per-format", "single"]
"""A repo for each format, or one for all."""
MaxKl = float | Mapping[str, float]
"""Largest mean KL, nats per token: for every artifact, or by spec (`gguf:Q4_K_M`) or format (`gguf`)."""


class PrepareOptions(TypedDict, total=False):
    """What decides the bytes of an export, besides its source and its specs."""

    adapter: str | None
    """LoRA folder (peft layout), merged at load."""
    ignore: Sequence[str]
    """Rules whose errors become warnings of the manifest."""
    name: str | None
    """Base name of the files; the model's own by default."""
    calibration: str | Path | None
    """Corpus: `.jsonl` of chats or texts, `.txt`, or a `datasets` id; built in by default."""
    rows: int
    """Rows of tokens to calibrate on; 128 by default."""
    row_tokens: int
    """Tokens of a row, at most; 512 by default."""
    seed: int
    """Draws the rows; 0 by default."""
    sequential: bool
    """Calibrate each block behind the quantized ones; one spec only."""
    imatrix: bool | None
    """Importance matrix for GGUF; by default where something else is calibrated anyway."""
    measurement: Path | None
    """`measurement.json` of an earlier export, for further EXL2 targets."""
    repair: bool
    """Repair the model first, in memory; the source is only read."""
    base_model: bool
    """The model has no chat template, and that is right."""


class ExportOptions(PrepareOptions, total=False):
    """All that decides the bytes of an export, besides its source."""

    to: Required[Sequence[str]]
    """Specs, for instance `gptq:4bit-g64`, `awq:4bit-g64`, `exl2:4.65bpw`, `gguf:Q4_K_M`."""
    init_tags: str | None
    """Rows for untrained tags, given by a repair: `copy:TOKEN`, `mean` or `parent:PATH`."""
    chat_template: str | Path | None
    """Template that a repair puts in: a text file, or a parent's folder."""


class VerifyOptions(TypedDict, total=False):
    """How an export is held against its source."""

    adapter: str | None
    """The LoRA of the export, if it had one."""
    max_kl: MaxKl | None
    """In place of each type's own limit."""
    init_tags: str | None
    """Asked for where rows of tags came from a parent, whose path no manifest holds."""


class PublishOptions(TypedDict, total=False):
    """Where a release goes, and what its card says."""

    layout: LayoutName
    base_model: str | None
    """Hub id of the model that was quantized, or `none`."""
    license: str | None
    """Its licence, where no card states the right one."""
    private: bool
    """Make new repos private."""
