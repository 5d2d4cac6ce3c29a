"""Rows of an HTTP API that answers JSON, a page at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import polars as pl
import tenacity

from ml_lifecycle.adapters.cursors import Cursor
from ml_lifecycle.adapters.tables import types_of
from ml_lifecycle.errors import SourceError, SourceNotReadyError
from ml_lifecycle.spec.source import Http

_TRIES = 6
_LONGEST_SECONDS = 60.0
_MAX_PAGES = 100_000
_NAMES = 12
_ABSENT = object()


class _NotNowError(Exception):
    """The API asked to come again.

    :ivar after: seconds to wait, if it said so
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def read_pages(
    client: httpx.Client,
    http: Http,
    since: Cursor | None,
    what: str,
    sleep: Callable[[float], None] = time.sleep,
) -> pl.DataFrame:
    """All rows, of every page; what is nested becomes columns such as ``price.amount``.

    What the API cannot do now (429, 5xx, no answer) is asked again, up to six times, when it says or with
    growing pauses.

    :param client: knows the API's address and how to prove who asks
    :param since: what ``http.cursor_parameter`` gets; None fetches all there is
    :param what: the source, for errors
    :raises SourceNotReadyError: it does not answer, or goes on to say "not now". Retry: yes.
    :raises SourceError: it refuses, or answers other than declared. Retry: no.
    """
    rows: list[Any] = []
    before: list[Any] = []
    for number, answer in enumerate(_answers(client, http, since, what, sleep)):
        page = _at(answer, http.rows)
        if page is _ABSENT:
            raise SourceError(
                f"{what}: the answer has no {http.rows!r}, where http.rows says that the rows are: "
                f"{_names(answer, http.rows)}"
            )
        if not isinstance(page, list) or not all(isinstance(row, dict) for row in page):
            place = repr(http.rows) if http.rows else "the answer"
            raise SourceError(
                f"{what}: {place} is no list of objects: http.rows says where in an answer the rows are, "
                "such as data.items"
            )
        # Later fetches may well find one page only; that the name is right was seen by the first.
        if number == 0 and page and since is None:
            _check_next(answer, http, what)
        if http.page_parameter is not None:
            if not page:
                break
            if page == before:
                raise SourceError(
                    f"{what}: two pages are alike: does {http.page_parameter!r} name the page? "
                    "http.page_parameter is what the API calls its number"
                )
        rows, before = rows + page, page
    try:
        return pl.json_normalize(rows, infer_schema_length=None) if rows else pl.DataFrame()
    except (OverflowError, UnicodeError) as error:
        raise SourceError(
            f"{what}: a number or a text of column {_first_unheld(rows)!r} is one that no column can hold, "
            "such as a whole number of forty digits, or half a character"
        ) from error
    except (TypeError, pl.exceptions.PolarsError) as error:
        # Polars says which value: it may be personal data.
        raise SourceError(f"{what}: {_mixed(rows)}") from error


def _check_next(answer: Any, http: Http, what: str) -> None:
    """That a name which is not there looks like a last page must not lose all pages but the first."""
    if http.next is None or http.next_optional or _at(answer, http.next) is not _ABSENT:
        return
    raise SourceError(
        f"{what}: the first page has rows and no {http.next!r}, where http.next says that the next page is "
        f"told: {_names(answer, http.next)}. Correct it; or write next_optional: true for an API that leaves "
        "it out where one page is all"
    )


def _first_unheld(rows: Sequence[Mapping[str, Any]]) -> str:
    """The column with a value that Polars cannot hold."""
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            pl.Series([row.get(name) for row in rows])
        except (OverflowError, UnicodeError):
            return name
        except (TypeError, pl.exceptions.PolarsError):
            continue  # that is another mistake
    return "?"


def _mixed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which columns hold values of several types."""
    names = dict.fromkeys(name for row in rows for name in row)
    held = {name: types_of([row.get(name) for row in rows]) for name in names}
    several = [f"column {name!r} holds {types}" for name, types in held.items() if " and " in types]
    return f"{'; '.join(several) or 'a column within a column holds several types'}, and not one type"


def _answers(
    client: httpx.Client, http: Http, since: Cursor | None, what: str, sleep: Callable[[float], None]
) -> Iterator[Any]:
    parameters: dict[str, str] = dict(http.parameters)
    if since is not None and http.cursor_parameter is not None:
        parameters[http.cursor_parameter] = str(since) if isinstance(since, str | int) else since.isoformat()
    # With a slash in front it would leave the path of the connection's address.
    url, seen = client.base_url.join(http.path.lstrip("/")), set[tuple[str, str]]()
    for page in range(1, _MAX_PAGES + 1):
        if http.page_parameter is not None:
            parameters[http.page_parameter] = str(page)
        if (asked := (str(url), str(parameters))) in seen:
            told = f": is {http.next_parameter!r} what the API takes {http.next!r} by?"
            raise SourceError(
                f"{what}: the API leads back to a page that was read: {url.path}"
                f"{told if http.next_parameter is not None else ''}"
            )
        seen.add(asked)
        answer = _ask(client, url, parameters, what, sleep)
        yield answer
        if http.page_parameter is not None:
            continue  # until a page is empty
        # Many APIs leave it out of their last answer.
        following = _at(answer, http.next) if http.next is not None else None
        if following in (None, "", _ABSENT):
            return
        if http.next_parameter is not None:
            parameters[http.next_parameter] = str(following)
            continue
        try:
            url, parameters = url.join(str(following)), {}
        except httpx.InvalidURL as error:
            raise SourceError(
                f"{what}: what {http.next!r} says of the next page is no URL: http.next_parameter names what "
                "gets it, where it is a token"
            ) from error
        if _server(url) != _server(client.base_url):
            # Who follows takes the credentials along.
            raise SourceError(
                f"{what}: the next page is said to be at {url.host}, which is another server than "
                f"{client.base_url.host} and would get its credentials: name one server in the connection, "
                "as the API does"
            )
    raise SourceError(
        f"{what}: more than {_MAX_PAGES:,} pages: ask for longer ones in http.parameters, or for less at once"
    )


def _server(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _ask(
    client: httpx.Client,
    url: httpx.URL,
    parameters: Mapping[str, str],
    what: str,
    sleep: Callable[[float], None],
) -> Any:
    asking = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_NotNowError),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=_pause,
        sleep=sleep,
        reraise=True,
    )
    try:
        response = asking(_once, client, url, parameters)
    except _NotNowError as error:
        raise SourceNotReadyError(f"{what}: {url.host} cannot be read now: {error}") from error
    except httpx.UnsupportedProtocol as error:
        raise SourceError(
            f"{what}: the connection's address is {client.base_url}, and begins neither with http:// nor https://"
        ) from error
    if response.status_code != 200:
        answered = f"{response.status_code} {response.reason_phrase}"
        raise SourceError(f"{what}: {url.host}{url.path} answered {answered}{_hint(response)}")
    try:
        return response.json()
    except ValueError as error:
        kind = response.headers.get("content-type", "no type").partition(";")[0]
        raise SourceError(
            f"{what}: {url.host}{url.path} answered no JSON, but {kind}: is that the API's address, and does "
            "it want to be asked for JSON, by a header in the connection's extra?"
        ) from error


def _hint(response: httpx.Response) -> str:
    """What would be right."""
    match response.status_code:
        case 401 | 403:
            return ": look at the login and password of the connection, and the headers in its extra"
        case 404:
            return ": http.path comes after the address of the connection"
        case 400 | 422:
            return ": are http.parameters and cursor_parameter what the API takes?"
    if response.next_request is None:
        return ""
    there = response.next_request.url
    return f": it leads on to {there.scheme}://{there.host}{there.path}; write where into connection and path"


def _once(client: httpx.Client, url: httpx.URL, parameters: Mapping[str, str]) -> httpx.Response:
    try:
        # With None httpx leaves the URL's own parameters alone; with an empty mapping it takes them off.
        response = client.get(url, params=parameters or None)
    except httpx.UnsupportedProtocol:
        raise
    except httpx.HTTPError as error:
        raise _NotNowError(f"{type(error).__name__}: {error}") from error
    if response.status_code == 429 or response.status_code >= 500:
        after = response.headers.get("retry-after", "")
        seconds = float(after) if after.isdigit() else None
        raise _NotNowError(f"{response.status_code} {response.reason_phrase}", seconds)
    return response


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    after = error.after if isinstance(error, _NotNowError) else None
    return min(2.0 ** (state.attempt_number - 1) if after is None else after, _LONGEST_SECONDS)


def _at(answer: Any, path: str) -> Any:
    """What is at a place such as ``data.items``; the whole answer at an empty one."""
    for key in path.split(".") if path else ():
        if not isinstance(answer, dict) or key not in answer:
            return _ABSENT
        answer = answer[key]
    return answer


def _names(answer: Any, path: str) -> str:
    """What there is, as far as a path leads."""
    place, keys = "", path.split(".")
    while keys and isinstance(answer, dict) and keys[0] in answer:
        answer, key = answer[keys[0]], keys.pop(0)
        place = f"{place}.{key}".lstrip(".")
    if not isinstance(answer, dict):
        return f"{place or 'the answer'} is no object"
    names = list(answer)
    return f"{place or 'it'} has {', '.join(names[:_NAMES]) or 'nothing'}{', …' if names[_NAMES:] else ''}"
