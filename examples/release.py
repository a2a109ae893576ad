"""Lint a chat model, quantize it twice, and prove both files: `python examples/release.py MODEL OUT`."""

import sys

import hermetiq


def show(what: str, share: float) -> None:
    """One line at the terminal that is written over and over."""
    print(f"\r{share:4.0%} {what:.60}\033[K", end="", file=sys.stderr, flush=True)


def main(model: str, out: str) -> int:
    for finding in hermetiq.inspect(model, progress=show).findings:
        print(f"\r{finding.severity}: {finding}")

    hermetiq.export(model, out, to=["gguf:Q8_0", "gguf:Q4_K_M"], overwrite=True, progress=show)
    reports = hermetiq.verify(out, model, progress=show)

    for report in reports:
        verdict = "pass" if report.passed else "FAIL"
        print(f"\r{report.file}: {report.bpw:.2f} bits per weight, KL {report.kl:.4f}, stops {report.stops}, {verdict}")
    return 0 if all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
