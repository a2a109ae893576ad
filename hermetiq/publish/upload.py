"""A release as a transaction: everything is asked first, bytes are sent next, and branches move last.

1. Look: whose token it is, what the repos hold, whether they are ours. Nothing is changed.
2. Make missing repos and branches, and ask for room for all large files before the first of them is sent.
3. Send the large files, one by one; they lie in storage, and no branch shows them.
4. Commit each branch, all its files at once, and look at what the Hub then holds; `main`, whose card announces the
   others, comes last.

A cut leaves branches as they were or complete, and the next run goes on (U57, U59, U61, U62).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from huggingface_hub import CommitOperationAdd

from hermetiq import typed_json
from hermetiq.errors import CheckFailed, Finding, HermetiqError, Refusal
from hermetiq.progress import Ticker, part, silent
from hermetiq.rules import finding

from . import contents
from .contents import Contents
from .hub import TRIES, Account, Conflict, Hub, RemoteFile
from .journal import Journal
from .plan import CARD, CONTENTS, MAIN

_SHOWN: Final = 3
_GIT: Final = ".gitattributes"
"""The Hub puts it into every repo."""
_LARGE: Final = 5_000_000
"""Bytes from which a file is sent by itself, whatever its kind."""
_WEIGHTS: Final = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Item:
    """One file on its way to a branch."""

    path: str
    """In the repo."""
    sha256: str
    size: int
    """Bytes."""
    content: Path | bytes

    @property
    def large(self) -> bool:
        return self.path.endswith(_WEIGHTS) or self.size >= _LARGE

    @property
    def blob(self) -> str:
        """Git's hash of the content."""
        data = self.content.read_bytes() if isinstance(self.content, Path) else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def is_at(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub holds these very bytes."""
        if remote is None or remote.bytes != self.size:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 else remote.blob == self.blob


@dataclass(frozen=True)
class Target:
    """One branch as it is to be; the list of its files is among them."""

    repo: str
    branch: str
    items: tuple[Item, ...]

    def __str__(self) -> str:
        return f"{self.repo}@{self.branch}"


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
            found[repo] = {name: _standing(hub, repo, head, hub.tree(repo, head)) for name, head in there.items()}
    foreign = [each for repo, known in found.items() for each in _strangers(repo, known)]
    if not forced:
        foreign += [each for repo, known in found.items() for each in _changed(repo, known)]
    if foreign:
        raise Refusal(*foreign)
    return Standings(account, found)


def upload(
    hub: Hub, targets: Sequence[Target], standings: Standings, journal: Journal, *, private: bool, tick: Ticker = silent
) -> dict[str, str]:
    """Bring every target to the Hub; returns the commit of each branch, by `REPO@BRANCH`, `main` last in every repo.

    Raises:
        Refusal: `repo-not-ours`, a file of the release would replace somebody's.
        CheckFailed: the Hub holds other bytes than were sent; nothing was announced.
        HermetiqError: the Hub or the connection failed for good; the next run goes on.
    """
    repos = list(dict.fromkeys(target.repo for target in targets))
    collisions = [each for target in targets for each in _collisions(target, standings)]
    if collisions:
        raise Refusal(*collisions)
    for repo in repos:
        hub.create(repo, private=private)
    for repo in repos:
        hub.require_room(repo, {item.sha256: item.size for item in _large(targets, repo)})
    for repo in repos:
        heads = hub.heads(repo) or {}
        for target in targets:
            if target.repo == repo and target.branch not in heads:
                hub.create_branch(repo, target.branch)
    additions = _send(hub, targets, journal, part(tick, 0.0, 0.9))
    commits = {}
    ordered = sorted(targets, key=lambda target: target.branch == MAIN)
    for done, target in enumerate(ordered):
        tick(f"committing {target}", 0.9 + 0.1 * done / len(ordered))
        commits[str(target)] = _settle(hub, target, additions[str(target)])
        journal.committed(str(target), commits[str(target)])
    return commits


def _send(
    hub: Hub, targets: Sequence[Target], journal: Journal, tick: Ticker
) -> dict[str, dict[str, CommitOperationAdd]]:
    """Put all large files into storage; returns every file as a commit takes it, by branch and path."""
    additions: dict[str, dict[str, CommitOperationAdd]] = {}
    done, total = 0, max(1, sum(item.size for target in targets for item in target.items))
    for target in targets:
        additions[str(target)] = {item.path: _addition(item) for item in target.items}
        for item in target.items:
            if item.large and not journal.holds(target.repo, item.sha256):
                tick(f"sending {item.path}", done / total)
                hub.send(target.repo, target.branch, additions[str(target)][item.path])
                journal.sent(target.repo, item.sha256)
            done += item.size
    return additions


def _settle(hub: Hub, target: Target, additions: Mapping[str, CommitOperationAdd]) -> str:
    """Commit what a branch lacks, and look again until it holds what it should; returns its commit.

    An answer that is lost leaves open whether the commit was made: the branch is looked at, not committed twice.
    """
    made = None
    for _ in range(TRIES):
        head = (hub.heads(target.repo) or {}).get(target.branch, "")
        tree = hub.tree(target.repo, head)
        lacking = [item for item in target.items if not item.is_at(tree.get(item.path))]
        # With our list in place nothing of an earlier one is left: both went in one commit.
        listed = any(item.path == CONTENTS for item in lacking)
        stale = _stale(target, _standing(hub, target.repo, head, tree)) if listed else []
        if not lacking and not stale:
            return head
        if made == head:
            names = [item.path for item in lacking] or stale
            raise CheckFailed(
                f"the Hub does not hold what was sent: {', '.join(names[:_SHOWN])}", where=str(target),
                remedy="nothing was announced; run again",
            )  # fmt: skip
        try:
            made = hub.commit(
                target.repo, target.branch, [additions[item.path] for item in lacking],
                deleted=stale, parent=head, message="Published by hermetiq",
            )  # fmt: skip
        except Conflict:
            continue
    raise Conflict("other commits came first each time", where=str(target), remedy="run again later")


def _standing(hub: Hub, repo: str, commit: str, tree: Mapping[str, RemoteFile]) -> Standing:
    listed, card = None, ""
    if _is_text(tree.get(CONTENTS)):
        listed = contents.read(hub.read(repo, CONTENTS, commit))
    if listed and _is_text(tree.get(CARD)):
        card = hub.read(repo, CARD, commit).decode(errors="replace")
    return Standing(commit, tree, listed, card)


def _is_text(file: RemoteFile | None) -> bool:
    """Whether it is small enough to be one of our texts; what somebody else put there may be of any size."""
    return file is not None and file.bytes <= typed_json.LARGEST


def _strangers(repo: str, branches: Mapping[str, Standing]) -> Iterator[Finding]:
    """Branches that hold files and no list of ours."""
    for branch, standing in branches.items():
        held = sorted(standing.tree.keys() - {_GIT})
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
            if remote and path != CARD and (remote.sha256 or remote.blob) not in (listed.sha256, listed.blob):
                yield finding(
                    "repo-not-ours", file=f"{repo}@{branch}", field=path, found="a file that was changed by hand",
                    expected="what hermetiq put there",
                )  # fmt: skip


def _collisions(target: Target, standings: Standings) -> Iterator[Finding]:
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


def _stale(target: Target, standing: Standing) -> list[str]:
    """Files of an earlier release that are no part of this one; what others added stays."""
    wanted = {item.path for item in target.items}
    listed = standing.listed.files if standing.listed else {}
    return sorted(path for path in listed if path in standing.tree and path not in wanted)


def _large(targets: Sequence[Target], repo: str) -> Iterator[Item]:
    return (item for target in targets if target.repo == repo for item in target.items if item.large)


def _addition(item: Item) -> CommitOperationAdd:
    addition = CommitOperationAdd(item.path, item.content if isinstance(item.content, bytes) else str(item.content))
    if item.large:
        # Known and checked: the library need not read gigabytes once more.
        addition.upload_info.sha256 = bytes.fromhex(item.sha256)
    return addition
