"""The Hub as a release needs it: few requests, patience where it asks for patience, and errors in one sentence.

`huggingface_hub` retries the bytes of a file, and gives up on the first refusal of everything else (U59). Here every
request waits as long as the server says. What the library says of an error is not repeated as it stands: it may quote
addresses with signatures or headers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from logging import ERROR
from typing import Any, Final, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, logging  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hermetiq.errors import HermetiqError
from hermetiq.progress import Ticker, silent

from .plan import MAIN
from .secrets import redacted

TRIES: Final = 8
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between tries where the server does not say: doubled each time."""
PATIENCE: Final = 3900.0
"""Seconds that a server may ask for: the Hub counts commits by the hour."""
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_CONFLICT: Final = frozenset({409, 412})
_LONGEST: Final = 200
"""Characters of the server's own words that an error repeats."""
_BATCH: Final = 256
_SPENT: Final = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", re.ASCII)
"""`ratelimit: "api";r=0;t=55`: no request is left for 55 seconds (draft-ietf-httpapi-ratelimit-headers)."""

_MEANINGS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("the Hub does not accept the token", "run `hf auth login` with a token that may write"),
    402: ("the Hub asks for a payment", "see the account's settings on the Hub"),
    403: ("the Hub does not allow it", "use a token that may write there, and see how much storage is left"),
    404: ("the Hub does not know it", "check the name, and that the token may see it"),
    409: ("the repo was changed by somebody else meanwhile", "look at it, and run again"),
    412: ("the repo was changed by somebody else meanwhile", "look at it, and run again"),
    413: ("too large for the Hub", "export smaller files"),
    429: ("the Hub takes no more requests for now", "run again later; what has been sent is kept"),
}
_BROKEN: Final = ("the Hub does not answer as it should", "run again later; what has been sent is kept")

T = TypeVar("T")


class Conflict(HermetiqError):
    """A branch moved between the look at it and the commit; nothing was committed."""


class Missing(HermetiqError):
    """There is no such repo, or the token may not see it."""


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
        self, api: HfApi | None = None, *, sleep: Callable[[float], None] = time.sleep, tick: Ticker = silent
    ) -> None:
        """`tick` hears of every wait."""
        self._api = api or HfApi(library_name="hermetiq", library_version=version("hermetiq"))
        self._sleep, self._tick = sleep, tick

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
                raise HermetiqError(f"the Hub does not take the files: {told}", where=repo, remedy=_MEANINGS[403][1])

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

    def create_branch(self, repo: str, branch: str) -> None:
        """Make a branch as empty as a repo begins: it starts at the first commit."""
        commits = self._ask(repo, lambda: self._api.list_repo_commits(repo, revision=MAIN))
        first = commits[-1].commit_id
        self._ask(repo, lambda: self._api.create_branch(repo, branch=branch, revision=first, exist_ok=True))

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
            card = self._ask(repo, lambda: self._api.model_info(repo)).card_data
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
        return redacted(line.replace(token, "[redacted]") if token else line)[:_LONGEST]

    def _ask(self, where: str, request: Callable[[], T]) -> T:
        """One request with patience.

        Raises:
            Missing: no such repo.
            Conflict: another commit came first.
            HermetiqError: everything else, in a sentence.
        """
        for tried in range(TRIES):
            try:
                with _quiet():
                    return request()
            # The library's errors, and those of the HTTP client below it, share no base class.
            except Exception as error:
                wait = _wait(error, tried)
                if wait is None or tried + 1 == TRIES:
                    raise _told(error, where, self._clean) from None
            self._tick(f"{where}: waiting {wait:.0f} s for the Hub", 0.0)
            self._sleep(wait)
        raise AssertionError("the last try returns or raises")


def _wait(error: BaseException, tried: int) -> float | None:
    """Seconds until another try is worth it; None where it is not."""
    status, headers = _answer(error)
    if status is None and not _is_network(error):
        return None
    if status is not None and status not in _TRANSIENT:
        return None
    asked = _asked_wait(headers)
    if asked is None:
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0**tried)
    return asked if asked <= PATIENCE else None


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """What the server asks for: the end of its window, or `Retry-After` in seconds or as a date behind its own."""
    if window := _SPENT.search(headers.get("ratelimit", "")):
        return float(window[1])
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(headers["date"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from: uploads in threads wrap theirs."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _answer(error: BaseException) -> tuple[int | None, Mapping[str, str]]:
    """Status and headers of the answer that an error came with."""
    for each in _causes(error):
        if (response := getattr(each, "response", None)) is not None:
            return int(response.status_code), response.headers
    return None, {}


def _is_network(error: BaseException) -> bool:
    """A connection that failed: the client below `huggingface_hub` has changed its name, not that of its errors."""
    return any(
        isinstance(each, ConnectionError | TimeoutError)
        or any(kind.__name__ == "TransportError" for kind in type(each).__mro__)
        for each in _causes(error)
    )


def _told(error: BaseException, where: str, clean: Callable[[str], str]) -> HermetiqError:
    """The error in a sentence, with the server's own words where they hold no secret."""
    if isinstance(error, LocalTokenNotFoundError):
        return HermetiqError("not logged in", remedy="run `hf auth login`, or set HF_TOKEN")
    status, _ = _answer(error)
    if status is None:
        if _is_network(error):
            return HermetiqError("the connection to the Hub was lost", where=where, remedy=_BROKEN[1])
        *_, first = _causes(error)
        what = f"the upload failed: {type(first).__name__}: {clean(str(first))}"
        return HermetiqError(what, where=where, remedy="run again")
    what, remedy = _MEANINGS.get(status, _BROKEN)
    said = next((text for each in _causes(error) if (text := getattr(each, "server_message", None))), None)
    words = f" ({clean(str(said))})" if said else ""
    kind = HermetiqError
    if status in _CONFLICT:
        kind = Conflict
    elif isinstance(error, RepositoryNotFoundError):
        kind = Missing
    return kind(f"{what}: {status}{words}", where=where, remedy=remedy)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's bars and warnings are silent: progress is told by us, and addresses of uploads are no log."""
    verbosity = logging.get_verbosity()
    # Where the environment decides on bars, the library warns about everybody who wants it otherwise.
    ours = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    if ours:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if ours:
            enable_progress_bars()
