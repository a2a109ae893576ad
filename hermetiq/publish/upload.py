"""A release as a transaction: everything is asked first, bytes are sent next, and branches move last.

1. Look: whose token it is, what the repos hold, whether they are ours. Nothing is changed.
2. Make missing repos and branches, and ask for room for all large files before the first of them is sent.
3. Send the large files, one by one; they lie in storage, and no branch shows them.
4. Commit each branch, all its files at once, and look at what the Hub then holds; `main`, whose card announces the
   others, comes last.

A cut leaves branches as they were or complete, and the next run goes on (U57, U59, U61, U62).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from huggingface_hub import CommitOperationAdd

from hermetiq.errors import CheckFailed, Refusal
from hermetiq.progress import Ticker, part, silent

from .hub import Hub
from .journal import Journal
from .patience import TRIES, Conflict
from .plan import CONTENTS, MAIN
from .standing import HUBS_OWN, Standings, collisions, stale_files, standing_of
from .targets import Item, Target

_SHOWN: Final = 3


def upload(
    hub: Hub, targets: Sequence[Target], standings: Standings, journal: Journal, *, private: bool, tick: Ticker = silent
) -> dict[str, str]:
    """Bring every target to the Hub; returns the commit of each branch, by `REPO@BRANCH`, `main` last in every repo.

    Raises:
        Refusal: `repo-not-ours`, a file of the release would replace somebody's.
        Conflict: somebody else changed a branch meanwhile; it stays as they left it.
        CheckFailed: the Hub holds other bytes than were sent; nothing was announced.
        HermetiqError: the Hub or the connection failed for good; the next run goes on.
    """
    repos = list(dict.fromkeys(target.repo for target in targets))
    taken = [each for target in targets for each in collisions(target, standings)]
    if taken:
        raise Refusal(*taken)
    for repo in repos:
        hub.create(repo, private=private)
    for repo in repos:
        hub.require_room(repo, {item.sha256: item.size for item in _large(targets, repo)})
    starts = _starts(hub, targets, standings)
    additions = _send(hub, targets, journal, part(tick, 0.0, 0.9))
    commits = {}
    ordered = sorted(targets, key=lambda target: target.branch == MAIN)
    for done, target in enumerate(ordered):
        tick(f"committing {target}", 0.9 + 0.1 * done / len(ordered))
        commits[str(target)] = _settle(hub, target, additions[str(target)], starts[str(target)])
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


def _starts(hub: Hub, targets: Sequence[Target], standings: Standings) -> dict[str, str]:
    """The commit that each branch is expected at: the one that was looked at, or the first of a new branch."""
    starts = {}
    for repo in dict.fromkeys(target.repo for target in targets):
        known, heads = standings.repos.get(repo, {}), hub.heads(repo) or {}
        for target in (each for each in targets if each.repo == repo):
            if target.branch in known:
                starts[str(target)] = known[target.branch].commit
            elif target.branch in heads:
                starts[str(target)] = _untouched(hub, target, heads[target.branch])
            else:
                starts[str(target)] = hub.create_branch(repo, target.branch)
    return starts


def _untouched(hub: Hub, target: Target, head: str) -> str:
    """The head of a branch that was not there a moment ago: ours to write, if nobody else has."""
    if hub.tree(target.repo, head).keys() - HUBS_OWN:
        raise _moved(target)
    return head


def _settle(hub: Hub, target: Target, additions: Mapping[str, CommitOperationAdd], start: str) -> str:
    """Commit what a branch lacks, and look again until it holds what it should; returns its commit.

    An answer that is lost leaves open whether the commit was made: the branch is looked at, not committed twice.

    Args:
        start: the commit that the branch was at when the release began.
    """
    made = None
    for _ in range(TRIES):
        head = (hub.heads(target.repo) or {}).get(target.branch, "")
        tree = hub.tree(target.repo, head)
        lacking = [item for item in target.items if not item.is_at(tree.get(item.path))]
        # With our list in place nothing of an earlier one is left: both went in one commit.
        listed = any(item.path == CONTENTS for item in lacking)
        stale = stale_files(target, standing_of(hub, target.repo, head, tree)) if listed else []
        if not lacking and not stale:
            return head
        if made == head:
            names = [item.path for item in lacking] or stale
            raise CheckFailed(
                f"the Hub does not hold what was sent: {', '.join(names[:_SHOWN])}", where=str(target),
                remedy="nothing was announced; run again",
            )  # fmt: skip
        if head != start:
            raise _moved(target)
        try:
            made = hub.commit(
                target.repo, target.branch, [additions[item.path] for item in lacking],
                deleted=stale, parent=head, message="Published by hermetiq",
            )  # fmt: skip
        except Conflict:
            continue
    raise _moved(target)


def _moved(target: Target) -> Conflict:
    return Conflict("somebody else changed it meanwhile", where=str(target), remedy="look at it, and run again")


def _large(targets: Sequence[Target], repo: str) -> Iterator[Item]:
    return (item for target in targets if target.repo == repo for item in target.items if item.large)


def _addition(item: Item) -> CommitOperationAdd:
    addition = CommitOperationAdd(item.path, item.content if isinstance(item.content, bytes) else str(item.content))
    if item.large:
        # Known and checked: the library need not read gigabytes once more.
        addition.upload_info.sha256 = bytes.fromhex(item.sha256)
    return addition
