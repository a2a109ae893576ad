"""The last step of a training job: is this still a chat model, also when it is quantized? `python smoke_test.py MODEL`.

Exit status as `hermetiq` has it: 0 good, 1 a check failed, 2 unusable.
"""

import sys
from tempfile import TemporaryDirectory

import hermetiq


def faults(model: str) -> list[str]:
    """What is wrong with a model, in a line each; nothing where all is well."""
    found = hermetiq.inspect(model, forward=True).findings
    if errors := [str(finding) for finding in found if finding.severity == "error"]:
        return errors
    with TemporaryDirectory() as scratch:
        hermetiq.export(model, scratch, to=["gguf:Q4_K_M"])
        reports = hermetiq.verify(scratch, model)
    return [f"{check.name}: {check.reason}" for report in reports for check in report.checks if not check.passed]


def main(model: str) -> int:
    try:
        lines = faults(model)
    except hermetiq.HermetiqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(lines) or "a chat model, and one when it is quantized")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
