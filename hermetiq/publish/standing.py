"""What stands on the Hub before a release, and whether it is ours to change (U62).

Whatever hermetiq did not put there stays as it is: a repo without our list is somebody else's, a file of ours that
differs from the list was changed by somebody, and a name that is taken is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hermetiq import typed_json
from hermetiq.errors import Finding, HermetiqError, Refusal
from hermetiq.rules import finding

from . import contents
from .contents import Contents, Listed
from .hub import Account, Hub, RemoteFile
from .plan import CARD, CONTENTS, MAIN
from .targets import Target

HUBS_OWN: Final = frozenset({".gitattributes"})
"""The Hub puts it into every repo."""
_SHOWN: Final = 3


@dataclass(frozen=True)
class Standing:
    """What a branch holds before the release."""

    commit: str
    tree: Mapping[str, RemoteFile]
    listed: Contents | None
    card: str
    """Text of the card; empty where there is none of ours."""


@dataclass(frozen=True)
class Standings:
    """What all repos of a release hold before it; those that do not exist yet are left out."""

    account: Account
    repos: Mapping[str, Mapping[str, Standing]] = field(default_factory=dict)
    """By repo and branch."""

    def card(self, repo: str) -> str:
        """The card that a repo has, of an earlier release."""
        standing = self.repos.get(repo, {}).get(MAIN)
        return standing.card if standing else ""


def look(hub: Hub, branches: Mapping[str, Sequence[str]], *, forced: bool = False) -> Standings:
    """Whose token it is and what stands where the release goes; nothing is changed.

    Args:
        branches: names of the branches that will be written, by repo.
        forced: files of ours that somebody changed by hand may be replaced.

    Raises:
        Refusal: `repo-not-ours`.
        HermetiqError: no token, one that may not write there, or no answer.
    """
    account = hub.account()
    if not account.may_write:
        raise HermetiqError("the token may only read", remedy="run `hf auth login` with a token that may write")
    found = {}
    for repo, names in branches.items():
        if repo.partition("/")[0] not in account.namespaces:
            raise HermetiqError(
                f"{account.name} does not belong to it", where=repo,
                remedy="publish under " + " or ".join(sorted(account.namespaces)),
            )  # fmt: skip
        heads = hub.heads(repo)
        if heads is not None:
            hub.require_writable(repo)
            there = {name: heads[name] for name in dict.fromkeys((MAIN, *names)) if name in heads}
            found[repo] = {name: standing_of(hub, repo, head, hub.tree(repo, head)) for name, head in there.items()}
    foreign = [each for repo, known in found.items() for each in _strangers(repo, known)]
    if not forced:
        foreign += [each for repo, known in found.items() for each in _changed(repo, known)]
    if foreign:
        raise Refusal(*foreign)
    return Standings(account, found)


def standing_of(hub: Hub, repo: str, commit: str, tree: Mapping[str, RemoteFile]) -> Standing:
    """What a commit holds, whose `tree` is known.

    Raises:
        HermetiqError: a card of ours that is no text any more.
    """
    listed, card = listed_at(hub, repo, commit, tree), ""
    if listed and is_text(tree.get(CARD)):
        card = _text(repo, hub.read(repo, CARD, commit))
    return Standing(commit, tree, listed, card)


def listed_at(hub: Hub, repo: str, commit: str, tree: Mapping[str, RemoteFile]) -> Contents | None:
    """The list of ours in a commit, whose `tree` is known; None where there is none."""
    return contents.read(hub.read(repo, CONTENTS, commit)) if is_text(tree.get(CONTENTS)) else None


def _text(repo: str, card: bytes) -> str:
    try:
        return card.decode()
    except UnicodeDecodeError:
        raise HermetiqError("the card is not UTF-8", where=f"{repo}: {CARD}", remedy="mend it on the Hub") from None


def is_text(file: RemoteFile | None) -> bool:
    """Whether it is small enough to be one of our texts; what somebody else put there may be of any size."""
    return file is not None and file.bytes <= typed_json.LARGEST


def is_untouched(remote: RemoteFile, listed: Listed) -> bool:
    """Whether a file holds what our list says."""
    return (remote.sha256 or remote.blob) in (listed.sha256, listed.blob)


def _strangers(repo: str, branches: Mapping[str, Standing]) -> Iterator[Finding]:
    """Branches that hold files and no list of ours."""
    for branch, standing in branches.items():
        held = sorted(standing.tree.keys() - HUBS_OWN)
        if held and standing.listed is None:
            shown = ", ".join(held[:_SHOWN]) + (" and more" if len(held) > _SHOWN else "")
            yield finding(
                "repo-not-ours", file=f"{repo}@{branch}", found=shown, expected=f"an empty branch, or a {CONTENTS}"
            )


def _changed(repo: str, branches: Mapping[str, Standing]) -> Iterator[Finding]:
    """Files of ours that are not as we left them; the card is judged by its text (`run.py`)."""
    for branch, standing in branches.items():
        for path, listed in standing.listed.files.items() if standing.listed else ():
            remote = standing.tree.get(path)
            if remote and path != CARD and not is_untouched(remote, listed):
                yield finding(
                    "repo-not-ours", file=f"{repo}@{branch}", field=path, found="a file that was changed by hand",
                    expected="what hermetiq put there",
                )  # fmt: skip


def collisions(target: Target, standings: Standings) -> Iterator[Finding]:
    """Files of a branch that the release would replace, and that hermetiq did not put there."""
    standing = standings.repos.get(target.repo, {}).get(target.branch)
    if standing is None or standing.listed is None:
        return
    for item in target.items:
        remote = standing.tree.get(item.path)
        theirs = item.path not in standing.listed.files and item.path != CONTENTS
        if remote and theirs and not item.is_at(remote):
            yield finding(
                "repo-not-ours", file=str(target), field=item.path, found="a file that is not on our list",
                expected="none of that name",
            )  # fmt: skip


def stale_files(target: Target, standing: Standing) -> list[str]:
    """Files of an earlier release that are no part of this one; what others added stays."""
    wanted = {item.path for item in target.items}
    listed = standing.listed.files if standing.listed else {}
    return sorted(path for path in listed if path in standing.tree and path not in wanted)
