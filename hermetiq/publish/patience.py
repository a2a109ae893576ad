"""Requests to the Hub that wait where it asks for time, and errors in one sentence.

`huggingface_hub` retries the bytes of a file, and gives up on the first refusal of everything else (U59). Here every
request waits as long as the server says. What the library says of an error is not repeated as it stands: it may quote
addresses with signatures or headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from logging import ERROR
from typing import Final, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hermetiq.errors import HermetiqError
from hermetiq.progress import Ticker

TRIES: Final = 8
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between tries where the server does not say: doubled each time."""
PATIENCE: Final = 3900.0
"""Seconds that a server may ask for: the Hub counts commits by the hour."""
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_CONFLICT: Final = frozenset({409, 412})
SHOWN: Final = 200
"""Characters of the server's own words that an error repeats."""
_SPENT: Final = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", re.ASCII)
"""`ratelimit: "api";r=0;t=55`: no request is left for 55 seconds (draft-ietf-httpapi-ratelimit-headers)."""

MEANINGS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("the Hub does not accept the token", "run `hf auth login` with a token that may write"),
    402: ("the Hub asks for a payment", "see the account's settings on the Hub"),
    403: ("the Hub does not allow it", "use a token that may write there, and see how much storage is left"),
    404: ("the Hub does not know it", "check the name, and that the token may see it"),
    409: ("the repo was changed by somebody else meanwhile", "look at it, and run again"),
    412: ("the repo was changed by somebody else meanwhile", "look at it, and run again"),
    413: ("too large for the Hub", "export smaller files"),
    429: ("the Hub takes no more requests for now", "run again later; what has arrived is kept"),
}
_BROKEN: Final = ("the Hub does not answer as it should", "run again later; what has arrived is kept")

T = TypeVar("T")


class Conflict(HermetiqError):
    """A branch moved between the look at it and the commit; nothing was committed."""


class Missing(HermetiqError):
    """There is no such repo, or the token may not see it."""


def ask(
    request: Callable[[], T],
    where: str,
    *,
    clean: Callable[[str], str],
    sleep: Callable[[float], None],
    tick: Ticker,
    tries: int = TRIES,
) -> T:
    """One request with patience.

    Args:
        where: what is asked about, for messages.
        clean: takes tokens out of somebody else's words.
        sleep: waits so many seconds.
        tick: hears of every wait.
        tries: requests until it is given up.

    Raises:
        Missing: no such repo.
        Conflict: another commit came first.
        HermetiqError: everything else, in a sentence.
    """
    for tried in range(tries):
        try:
            with _quiet():
                return request()
        # The library's errors, and those of the HTTP client below it, share no base class.
        except Exception as error:
            wait = _wait(error, tried)
            if wait is None or tried + 1 == tries:
                raise _told(error, where, clean) from None
        tick(f"{where}: waiting {wait:.0f} s for the Hub", 0.0)
        sleep(wait)
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
        what = f"the transfer failed: {type(first).__name__}: {clean(str(first))}"
        return HermetiqError(what, where=where, remedy="run again")
    what, remedy = MEANINGS.get(status, _BROKEN)
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
