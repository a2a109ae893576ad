"""The card of a repo: what somebody needs to run the model rightly, and to know what it is (U50, U63, U64).

Every number comes from the manifest, every stop id from the contract, and the example is what the model's own template
prints. The code is that of the runtime recipes, so that what people copy ends the model's turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from huggingface_hub.constants import ENDPOINT

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.template import RenderRequest, render_each
from hermetiq.errors import HermetiqError
from hermetiq.evaluate import Evaluation
from hermetiq.manifest import Artifact, Manifest
from hermetiq.quantize.spec import parse
from hermetiq.units import size
from hermetiq.verify import ArtifactReport

from . import usage
from .benchmarks import benchmarks
from .front_matter import front_matter
from .guard import unverified
from .licence import Licence
from .markdown import block, code, plain, table, without_paths
from .own_text import CLOSE, OPEN
from .plan import Branch, Plan, Repo

_CHAT: Final = (
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
)


@dataclass(frozen=True)
class Release:
    """All that the cards of a release are made from."""

    manifest: Manifest
    plan: Plan
    licence: Licence
    base_model: str | None
    """Hub id of the model that was quantized; None where it is on no Hub."""
    example: str
    """A chat as the model's own template prints it; empty for a base model."""
    forced: str | None = None
    """Why something is published that no verification passed."""
    evaluation: Evaluation | None = None
    """Benchmarks that hold for these artifacts."""

    def artifacts(self, repo: Repo) -> Iterator[tuple[Branch, Artifact]]:
        """Every artifact of a repo with its branch."""
        return usage.artifacts(self.manifest, repo)


def card(release: Release, repo: Repo, own_text: str) -> str:
    """The card of one repo, with the text that its owner wrote on an earlier one."""
    artifacts = tuple(release.artifacts(repo))
    bits = frozenset(
        parse(artifact.spec).linear.bits for _, artifact in artifacts if parse(artifact.spec).format in ("gptq", "awq")
    )
    data = front_matter(
        formats=repo.formats,
        base_model=release.base_model,
        licence=release.licence,
        publisher=repo.id.partition("/")[0],
        prompt_format=release.manifest.source.contract.prompt_format,
        bits=bits,
    )
    sections = (
        _opening(release, repo),
        f"{OPEN}{own_text}{CLOSE}",
        _files(release, repo),
        benchmarks(release.evaluation, {artifact.file for _, artifact in artifacts}),
        _prompt(release.manifest.source.contract, release.example),
        usage.running(release.manifest, repo),
        usage.loading(artifact for _, artifact in artifacts),
        _calibration(release.manifest, repo),
        _checks(release, repo),
        _provenance(release),
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _opening(release: Release, repo: Repo) -> str:
    unproven = unverified(release.manifest)
    names = " and ".join(usage.FORMATS[format] for format in repo.formats)
    source = plain(release.manifest.source.name)
    if release.base_model:
        source = f"[{plain(release.base_model)}]({ENDPOINT}/{release.base_model})"
    lines = [
        f"# {plain(repo.id.partition('/')[2])}",
        f"{source} as {names}, quantized{'' if unproven else ' and verified'} by hermetiq {release.manifest.hermetiq}.",
    ]
    if release.forced is not None:
        failed = "; ".join(f"{code(each.file)}: {plain(each.reason)}" for each in unproven)
        what = f" Not verified: {failed}." if failed else ""
        lines.append(f"> **Published against the checks.** Reason given: {plain(release.forced)}.{what}")
    others = [other.id for other in release.plan.repos if other.id != repo.id]
    if others:
        lines.append("Other formats: " + ", ".join(f"[{plain(each)}]({ENDPOINT}/{each})" for each in others) + ".")
    return "\n\n".join(lines)


def _files(release: Release, repo: Repo) -> str:
    rows = []
    for branch, artifact in release.artifacts(repo):
        verification = release.manifest.verified(artifact)
        report = None if verification is None else ArtifactReport(artifact, verification)
        link = f"[{code(_shown(branch, artifact))}]({ENDPOINT}/{repo.id}/tree/{branch.name})"
        figures = ["-"] * 4
        if report:
            figures = [_number(report.kl, "{:.4f}"), _number(report.top1, "{:.1%}"),
                       _number(report.terminator, "{:+.3f}"), report.stops]  # fmt: skip
        rows.append([link, code(artifact.spec), size(artifact.bytes), f"{artifact.bpw:.2f}", *figures])
    head = ("file or branch", "recipe", "size", "bits per weight", "KL", "top-1", "terminator", "stops")
    legend = (
        "KL: mean divergence from the source's next-token distribution, in nats per token, on held-out chats. Top-1: "
        "share of tokens with the same first choice. Terminator: change of the log-probability of the token that ends "
        "a turn, in nats, where turns end. Stops: prompts on which artifact and source agree where the turn ends."
    )
    return f"## Files\n\n{table(head, rows)}\n\n{legend}"


def _prompt(contract: ChatContract, example: str) -> str:
    if not contract.is_chat:
        return "## Prompt format\n\nA base model: it has no chat template and continues plain text."
    stops = ", ".join(f"{token}" for token in contract.stop_ids)
    tags = ", ".join(f"{code(tag.text)} = {tag.id}" for tag in contract.tags)
    return "\n\n".join((
        "## Prompt format",
        f"A chat as the model's own template prints it ({plain(contract.prompt_format)}), ready for an answer:",
        block(example),
        f"A turn ends with {code(contract.terminator)} (id {contract.terminator_id}); stop on the ids {stops}. "
        f"{'BOS is put before it by the tokenizer.' if contract.add_bos else 'No BOS is added to it.'}",
        f"Control tokens: {tags}.",
    ))  # fmt: skip


def example(contract: ChatContract) -> str:
    """A chat as the model's template prints it, without a system turn where it takes none; empty for a base model.

    Raises:
        HermetiqError: the template prints no chat, or is not safe to render.
    """
    if not contract.is_chat:
        return ""
    requests = [RenderRequest(chat, add_generation_prompt=True) for chat in (_CHAT, _CHAT[1:], _CHAT[1:2])]
    outcomes = render_each(contract.template, requests)
    for outcome in outcomes:
        if isinstance(outcome, str):
            return outcome
    raise HermetiqError("the template prints none of the example chats", where="chat template")


def _calibration(manifest: Manifest, repo: Repo) -> str:
    used = manifest.calibration
    here = {file for branch in repo.branches for file in branch.artifacts}
    if used is None or not here & {*used.serves}:
        return "## Calibration\n\nNone: these types are rounded without looking at any text."
    how = "each block behind the quantized ones before it" if used.sequential else "all blocks in one pass"
    return (
        f"## Calibration\n\n{used.rows_used} rows, {used.tokens} tokens of the corpus {code(used.corpus)} in the "
        f"model's own chat template (seed {used.seed}; {used.template_share:.0%} of the tokens are the template's), "
        f"{how}. SHA-256 of the token ids: {code(used.sha256)}.{_settled(manifest, repo)}"
    )


def _settled(manifest: Manifest, repo: Repo) -> str:
    told = "; ".join(
        f"{code(_shown(branch, artifact))} {ending.rounded - ending.source:+.3f} before, "
        f"{ending.settled - ending.source:+.3f} since"
        for branch, artifact in usage.artifacts(manifest, repo)
        if (ending := artifact.ending)
    )
    return told and (
        " The gains of the final norm are then settled on other chats, so that the token which ends a turn is as "
        f"probable where answers end as in the source; nats apart: {told}."
    )


def _checks(release: Release, repo: Repo) -> str:
    lines = ["## Checks", f"By {code('hermetiq verify')}, against the source, on the very bytes published here:"]
    listed = []
    notes: dict[str, None] = {}
    for branch, artifact in release.artifacts(repo):
        verification = release.manifest.verified(artifact)
        checks = verification.checks if verification else ()
        passed = sum(check.passed for check in checks)
        failed = [f"{code(check.name)}: {plain(check.reason)}" for check in checks if not check.passed]
        told = f"; failed {'; '.join(failed)}" if failed else ""
        listed.append(f"- {code(_shown(branch, artifact))}: {passed} of {len(checks)} passed{told}")
        notes |= dict.fromkeys(f"- {plain(note)}" for note in (verification.notes if verification else ()))
    lines.append("\n".join(listed))
    if notes:
        lines += ["Notes:", "\n".join(notes)]
    found = [f"- {code(each.rule)} ({each.severity}) {plain(str(each))}" for each in release.manifest.source.findings]
    if found:
        lines += ["Findings in the source:", "\n".join(found)]
    mended = [
        f"- {': '.join(code(part) for part in (each.file, each.field) if part)} from {code(each.old)} to "
        f"{code(each.new)}. {plain(each.why)}"
        for each in release.manifest.repairs or ()
    ]
    if mended:
        lines += ["Repaired in what was quantized, not in the source:", "\n".join(mended)]
    return "\n\n".join(lines)


def _provenance(release: Release) -> str:
    source, made = release.manifest.source, release.manifest.source.provenance
    stated = {
        "source": code(made.name) + (f" at revision {code(made.revision)}" if made.revision else ""),
        "fingerprint of the source": code(source.fingerprint),
        "made of": ", ".join(_linked(each) for each in made.base_models),
        "adapter merged at load": code(made.adapter) if made.adapter else "",
        "tokenizer taken from": code(made.tokenizer) if made.tokenizer else "",
        "licence": f"{plain(release.licence.name)}, from {plain(release.licence.origin)}",
        "licences of the parents": ", ".join(f"{plain(k)}: {plain(v)}" for k, v in release.licence.parents.items()),
        "versions": ", ".join(f"{name} {number}" for name, number in release.manifest.libraries.items()),
    }
    lines = ["## Provenance", "\n".join(f"- {name}: {value}" for name, value in stated.items() if value)]
    if made.merge_recipe:
        lines += ["Merge recipe:", block(without_paths(made.merge_recipe), "yaml")]
    lines.append(f"{code('hermetiq-files.json')} lists the SHA-256 of every file, "
                 f"{code('hermetiq.json')} every measurement.")  # fmt: skip
    return "\n\n".join(lines)


def _linked(name: str) -> str:
    """A parent by its Hub id; of a path only the last part."""
    shown = without_paths(name)
    is_id = shown == name and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return f"[{plain(name)}]({ENDPOINT}/{name})" if is_id and " " not in name else plain(PurePosixPath(shown).name)


def _shown(branch: Branch, artifact: Artifact) -> str:
    return PurePosixPath(artifact.file).name if artifact.file in artifact.files else branch.name


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
