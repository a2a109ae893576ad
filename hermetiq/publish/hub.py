"""The Hub as a release needs it: few requests, each with patience, and what they tell in types of our own.

Everything goes through `huggingface_hub`, which finds the token and the address in its usual places (U59, U61).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from hermetiq import __version__
from hermetiq.errors import HermetiqError
from hermetiq.progress import Ticker, silent

from .patience import MEANINGS, SHOWN, TRIES, Missing, ask
from .plan import MAIN
from .secrets import redacted

LOOKS: Final = 3
"""Tries for what is asked before any work is done: without a network that is said in seconds."""
_BATCH: Final = 256
"""Objects that one request may ask about."""
T = TypeVar("T")


@dataclass(frozen=True)
class Account:
    """Who the token belongs to, and where it could publish."""

    name: str
    namespaces: frozenset[str]
    """The account's own and those of its organizations."""
    may_write: bool


@dataclass(frozen=True)
class RemoteFile:
    """A file of a branch, as the Hub knows it."""

    bytes: int
    blob: str
    """Git's hash of what git stores."""
    sha256: str | None
    """Of the content, for a file in large-file storage."""


class Hub:
    """One Hub and one token; `huggingface_hub` finds both in its usual places."""

    def __init__(
        self,
        api: HfApi | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        tick: Ticker = silent,
        tries: int = TRIES,
    ) -> None:
        """`tick` hears of every wait."""
        self._api = api or HfApi(library_name="hermetiq", library_version=__version__)
        self._sleep, self._tick, self._tries = sleep, tick, tries

    @property
    def endpoint(self) -> str:
        """Address of the Hub."""
        return str(self._api.endpoint)

    def account(self) -> Account:
        """Whose token it is."""
        found = self._ask("the account", self._api.whoami)
        organizations = {str(each.get("name")) for each in found.get("orgs", ())}
        role = found.get("auth", {}).get("accessToken", {}).get("role")
        return Account(str(found["name"]), frozenset({str(found["name"]), *organizations}), role != "read")

    def heads(self, repo: str) -> dict[str, str] | None:
        """The commit of every branch; None where there is no such repo that the token may see."""
        try:
            refs = self._ask(repo, lambda: self._api.list_repo_refs(repo))
        except Missing:
            return None
        return {ref.name: ref.target_commit for ref in refs.branches}

    def require_writable(self, repo: str) -> None:
        """Stop where the token may not write to an existing repo."""
        self._ask(repo, lambda: self._api.auth_check(repo, write=True))

    def create(self, repo: str, *, private: bool) -> None:
        """Make a repo; one that is there stays as it is."""
        self._ask(repo, lambda: self._api.create_repo(repo, private=private, exist_ok=True))

    def require_room(self, repo: str, files: Mapping[str, int]) -> None:
        """Ask for room for all large files, by SHA-256 with their bytes, before the first of them is sent (U61)."""
        infos = [UploadInfo(sha256=bytes.fromhex(digest), size=size, sample=b"") for digest, size in files.items()]
        for start in range(0, len(infos), _BATCH):
            some = infos[start : start + _BATCH]
            _, errors, _ = self._ask(repo, lambda some=some: self._batch(repo, some))  # type: ignore[misc]
            if errors:
                told = self._clean(str(errors[0].get("error", {}).get("message", "")))
                raise HermetiqError(f"the Hub does not take the files: {told}", where=repo, remedy=MEANINGS[403][1])

    def tree(self, repo: str, revision: str) -> dict[str, RemoteFile]:
        """All files of a commit, by path."""
        entries = self._ask(repo, lambda: list(self._api.list_repo_tree(repo, recursive=True, revision=revision)))
        return {
            entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def read(self, repo: str, path: str, revision: str) -> bytes:
        """The bytes of a small file of a commit."""
        url = hf_hub_url(repo, path, revision=revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token, library_name="hermetiq")

        def request() -> bytes:
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
            return response.content

        return self._ask(f"{repo}: {path}", request)

    def download(self, repo: str, path: str, revision: str) -> Path:
        """A file of a commit in the library's cache, downloaded where it is not there yet."""
        found = self._ask(f"{repo}: {path}", lambda: self._api.hf_hub_download(repo, path, revision=revision))
        return Path(found)

    def create_branch(self, repo: str, branch: str) -> str:
        """Make a branch as empty as a repo begins, at its first commit, which is returned."""
        commits = self._ask(repo, lambda: self._api.list_repo_commits(repo, revision=MAIN))
        first = str(commits[-1].commit_id)
        self._ask(repo, lambda: self._api.create_branch(repo, branch=branch, revision=first, exist_ok=True))
        return first

    def send(self, repo: str, branch: str, file: CommitOperationAdd) -> None:
        """Put a large file into the repo's storage, without a commit; one that is there is not sent again."""
        where = f"{repo}@{branch}"
        self._ask(where, lambda: self._api.preupload_lfs_files(repo, [file], revision=branch, free_memory=False))

    def commit(
        self,
        repo: str,
        branch: str,
        files: Sequence[CommitOperationAdd],
        *,
        deleted: Sequence[str],
        parent: str,
        message: str,
    ) -> str:
        """Commit files, all or none, behind the commit `parent`; returns the new commit.

        Raises:
            Conflict: the branch is no longer at `parent`. After a lost answer this may be our own commit.
        """
        gone = [CommitOperationDelete(path, is_folder=False) for path in deleted]
        done = self._ask(
            f"{repo}@{branch}",
            lambda: self._api.create_commit(
                repo, [*files, *gone], commit_message=message, revision=branch, parent_commit=parent
            ),
        )
        return str(done.oid)

    def licence(self, repo: str) -> str | None:
        """What a model's card states as its licence; None where nothing is stated, or the model cannot be seen."""
        try:
            card = self._ask(repo, lambda: self._api.model_info(repo), tries=LOOKS).card_data
        except HermetiqError:
            return None
        stated = card.get("license") if card else None
        return stated if isinstance(stated, str) else None

    def _batch(self, repo: str, infos: Sequence[UploadInfo]) -> tuple[list[Any], list[Any], str | None]:
        token = self._api.token
        return post_lfs_batch_info(
            infos,
            token=token if isinstance(token, str) else None,
            repo_type="model",
            repo_id=repo,
            revision=MAIN,
            endpoint=self._api.endpoint,
        )

    def _clean(self, text: str) -> str:
        """One short line of somebody else's words, without the token and what looks like one."""
        token = self._api.token if isinstance(self._api.token, str) else get_token()
        line = (text.splitlines() or [""])[0]
        return redacted(line.replace(token, "[redacted]") if token else line)[:SHOWN]

    def _ask(self, where: str, request: Callable[[], T], *, tries: int | None = None) -> T:
        """`patience.ask`, with this Hub's sleep and ticker."""
        most = self._tries if tries is None else tries
        return ask(request, where, clean=self._clean, sleep=self._sleep, tick=self._tick, tries=most)
