"""The page says what the manifest says, escapes what it is given, and shows well in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hermetiq import cli
from hermetiq.errors import HermetiqError
from hermetiq.manifest import REPORT, Artifact, Ending, Manifest, combined_sha256
from hermetiq.repair import Change
from hermetiq.report import report
from hermetiq.report.page import render
from hermetiq.stages import Stage, Stages, Stopwatch
from hermetiq.verification import Check, TurnEnd, Verification
from tests.test_manifest import MANIFEST

HOSTILE = "</title><script>alert(1)</script>"
LAYERS = [f"model.layers.{block}.mlp.{kind}_proj" for block in range(3) for kind in ("gate", "up", "down")]


def artifact(spec: str, bpw: float, **more: object) -> Artifact:
    files = {f"{spec}/model.safetensors": "ab" * 32, f"{spec}/config.json": "cd" * 32}
    sizes = {"bytes": 10**8, "bpw": bpw, "nominal_bpw": bpw}
    return Artifact(spec=spec, file=spec, sha256=combined_sha256(files), files=files, **sizes, **more)  # type: ignore[arg-type]


def verified(made: Artifact, kl: float, *, passed: bool = True) -> Verification:
    figures = {
        "kl_mean": kl, "top1_agreement": 0.9, "terminator_logprob_source": -1.0, "terminator_logprob_artifact": -1.25,
        "smoke_agreed": 7.0, "smoke_prompts": 8.0,
    }  # fmt: skip
    ends = (
        TurnEnd(0, 7, "forty-two.", -0.5, 1, -2.5, 3),
        TurnEnd(1, 9, f"a < b & c{HOSTILE[:20]}", -1.0, 1, -1.5, 2),
        TurnEnd(2, 9, "lost its reading", -1.0, 1, None, 99),
    )
    check = Check("smoke-stops", passed, 7, 8, "" if passed else "goes on behind <|im_end|>")
    return Verification(made.sha256, (check,), figures, (), ends)


SETTLED = Ending(ends=104, source=-1.0, rounded=-1.1875, settled=-0.999)
GPTQ = artifact("gptq:4bit-g64", 4.5, errors=dict.fromkeys(LAYERS, 0.01) | {LAYERS[0]: 0.2}, ending=SETTLED)
EXL2 = artifact("exl2:4.65bpw", 4.65, widths=dict.fromkeys(LAYERS, "1:4b-g128") | {LAYERS[0]: "1:8b-g128"})
GGUF = artifact("gguf:Q8_0", 8.5)
FULL = replace(
    MANIFEST,
    artifacts=(GPTQ, EXL2, GGUF),
    repairs=(Change("eos-mismatch", "config.json", "eos_token_id", "2", "<|im_end|>", "why"),),
    verification={GPTQ.file: verified(GPTQ, 0.146), EXL2.file: verified(EXL2, 0.081, passed=False)},
)
STAGES = Stages({"export": (Stage("calibrate and quantize", 144.8, 3 << 30), Stage("write folders", 0.0, 3 << 30))})


def text_of(page: str) -> str:
    """What a reader sees, one space between words."""
    return " ".join(html.unescape(re.sub(r"<(style|title)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)).split())


def test_figures_are_those_of_the_manifest() -> None:
    text = text_of(render(FULL, STAGES))
    assert "gptq:4bit-g64 100.0 MB 4.50 0.1460 90.0 % -0.250 7/8 pass" in text
    assert "exl2:4.65bpw 100.0 MB 4.65 0.0810 90.0 % -0.250 7/8 fail" in text
    assert "gguf:Q8_0 100.0 MB 8.50 - - - - not verified" in text
    assert "smoke-stops : goes on behind <|im_end|>" in text
    assert "“forty-two.”: 2.00 nats, rank 1 to 3" in text
    assert "calibrate and quantize 144.8 3.00 GiB" in text
    assert "pale 0.01, full 0.2 of the output's energy" in text
    assert "pale 4, full 8 bits" in text
    assert text.count("final norm is settled") == 1
    assert "settled by 104 ends of other chats: -0.188 nats from the source before, +0.001 since" in text
    assert "repaired eos-mismatch config.json: eos_token_id from 2 to <|im_end|>" in text


def test_an_artifact_that_changed_since_is_not_verified() -> None:
    changed = replace(GPTQ, files={f"{GPTQ.file}/x": "00" * 32}, sha256="00" * 32)
    assert "gptq:4bit-g64 100.0 MB 4.50 - - - - not verified" in text_of(
        render(replace(FULL, artifacts=(changed,)), STAGES)
    )


def test_an_export_that_was_never_verified_has_a_page() -> None:
    text = text_of(render(replace(FULL, verification={}), Stages()))
    assert "Nothing was verified yet" in text
    assert "Where turns end" not in text
    assert "Time and memory" not in text


def test_what_a_checkpoint_says_is_text() -> None:
    source = replace(FULL.source, name=HOSTILE, contract=replace(FULL.source.contract, terminator=HOSTILE))
    page = render(replace(FULL, source=source), STAGES)
    assert "<script" not in page
    assert html.escape(HOSTILE) in page


def test_nothing_outside_the_page_is_asked_for() -> None:
    assert not re.search(r"https?:|src=|url\(|@import|<link|<script", render(FULL, STAGES))


def test_layers_of_other_names_are_left_out() -> None:
    odd = replace(
        EXL2, widths={"lm_head": "1:8b-g128", "model.layers.x.mlp.up_proj": "1:8b-g128", LAYERS[0]: "nonsense"}
    )
    assert "Bits by layer" not in render(replace(FULL, artifacts=(odd,)), STAGES)


def test_the_page_lies_in_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FULL.write(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["report", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / REPORT)
    first = (tmp_path / REPORT).read_bytes()
    assert report(tmp_path) == tmp_path / REPORT
    assert (tmp_path / REPORT).read_bytes() == first == render(FULL, Stages()).encode()


def test_without_an_export_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match=r"no hermetiq\.json"):
        report(tmp_path)
    assert not (tmp_path / REPORT).exists()


def test_stages_are_kept_by_command(tmp_path: Path) -> None:
    for command in ("export", "verify"):
        watch = Stopwatch()
        with watch.stage(f"first of {command}"):
            pass
        with pytest.raises(ZeroDivisionError), watch.stage("fails"):
            raise ZeroDivisionError
        watch.keep(tmp_path, command)
    commands = Stages.read(tmp_path).commands
    assert {name: [stage.name for stage in taken] for name, taken in commands.items()} == {
        "export": ["first of export"],
        "verify": ["first of verify"],
    }
    assert all(stage.peak > 1 << 20 and stage.seconds >= 0 for taken in commands.values() for stage in taken)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium on this machine (Debian's package `chromium`): the page was not opened in a browser")
    return found


MEASURE = """<iframe id="f" width="{width}" height="800" style="border:0"></iframe><pre id="out"></pre><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
  const letters = [...page.querySelectorAll("text")].map(t => t.getBoundingClientRect().height);
  document.getElementById("out").textContent = JSON.stringify({{
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    letters: Math.min(...letters), background: style.backgroundColor, ink: style.color}});
}};
frame.srcdoc = {page};
</script>"""


def seen(chromium: str, folder: Path, page: str, *, width: int, dark: bool) -> dict[str, float | str]:
    """What a browser makes of a page in a frame of that width. Fails on anything that it says to the console."""
    wrapper = folder / f"{width}-{dark}.html"
    # A policy without scripts holds for the frame, and the script is in the page around it.
    wrapper.write_text(MEASURE.format(width=width, page=json.dumps(page).replace("</", "<\\/")))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
    ]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [chromium, *flags, scheme, "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert found, done.stdout[:500]
    measured: dict[str, float | str] = json.loads(html.unescape(found[1]))
    return measured


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(chromium: str, tmp_path: Path, width: int, dark: bool) -> None:
    shown = seen(chromium, tmp_path, render(FULL, STAGES), width=width, dark=dark)
    assert shown["overflow"] == 0
    assert float(shown["letters"]) >= 9
    assert shown["background"] == ("rgb(21, 22, 26)" if dark else "rgb(253, 253, 252)")
    assert shown["ink"] == ("rgb(236, 237, 240)" if dark else "rgb(28, 29, 32)")


def test_a_browser_would_tell(chromium: str, tmp_path: Path) -> None:
    """What the test above relies on: too wide a page is measured, and the console is heard."""
    wide = '<!doctype html><body><div style="width:900px">x</div><svg><text>x</text></svg>'
    assert float(seen(chromium, tmp_path, wide, width=400, dark=False)["overflow"]) > 400
    with pytest.raises(AssertionError, match="CONSOLE"):
        seen(chromium, tmp_path, f"{wide}<script>console.error('heard')</script>", width=401, dark=False)


def test_what_is_read_was_written(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    assert Manifest.read(tmp_path) == FULL
