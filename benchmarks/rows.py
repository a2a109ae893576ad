"""The rows that hermetiq calibrates a model on, for others: `python -m benchmarks.rows MODEL FILE ROWS ROW_TOKENS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hermetiq.chat.calibration import calibration_rows
from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint


def main(model: str, file: str, rows: str, row_tokens: str) -> None:
    """Write a JSON list of rows of token ids, of the built-in corpus and the default seed."""
    checkpoint = open_checkpoint(model)
    found = calibration_rows(checkpoint, derive(checkpoint), rows=int(rows), row_tokens=int(row_tokens))
    Path(file).write_text(json.dumps([list(row) for row in found.rows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
