"""Requests meet the model: one thread for all that the model does, in the order it was asked; others for the vault.

A hundred requests at once wait for each other and none is lost; finding and settings never wait for a reply. A reply
whose reader has gone stops at its next token.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from client.face.guard import TooLong, fault, may
from privacy.errors import ConfideError

logger = logging.getLogger(__name__)
VAULT_THREADS = 4
T = TypeVar("T")


class _End:
    """Stands behind the last item of a stream."""


class Work:
    """The threads of one face, until `close`."""

    def __init__(self) -> None:
        self._model = ThreadPoolExecutor(1, "model")
        self._vault = ThreadPoolExecutor(VAULT_THREADS, "vault")

    async def model(self, act: Callable[[], T]) -> T:
        """Return what `act` gives, done in the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._model, act)

    async def vault(self, act: Callable[[], T]) -> T:
        """Return what `act` gives, done beside the model."""
        return await asyncio.get_running_loop().run_in_executor(self._vault, act)

    async def stream(self, make: Callable[[threading.Event], Iterator[T]]) -> AsyncIterator[T]:
        """Yield what an iterator gives in the model's thread; it hears by its event that nobody reads any more.

        Raises ConfideError as the iterator does; of any other error its kind is logged and RuntimeError raised.
        """
        loop, stopped = asyncio.get_running_loop(), threading.Event()
        queue: asyncio.Queue[T | BaseException | _End] = asyncio.Queue()

        def put(item: T | BaseException | _End) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def run() -> None:
            try:
                if not stopped.is_set():
                    for item in make(stopped):
                        put(item)
            except ConfideError as error:
                put(error)
            except Exception as error:  # noqa: BLE001 - an error's text may hold a person's; its kind is all that is kept
                logger.warning("a reply failed: %s", type(error).__name__)
                put(RuntimeError(type(error).__name__))
            put(_End())

        loop.run_in_executor(self._model, run)
        try:
            while not isinstance(item := await queue.get(), _End):
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()

    def close(self) -> None:
        """Take no more work; what runs is run to its end."""
        self._model.shutdown(wait=True, cancel_futures=True)
        self._vault.shutdown(wait=True, cancel_futures=True)


Endpoint = Callable[[Request], Awaitable[Response]]


def answering(scope: str, act: Callable[[Request], Awaitable[Response | dict[str, Any]]]) -> Endpoint:
    """Return an endpoint for bearers of a scope; errors become one line, and no text of them reaches a log."""

    async def answered(request: Request) -> Response:
        if scope and not may(request, scope):
            return fault(403, f"this token is not for {scope}")
        try:
            made = await act(request)
        except ConfideError as error:
            return fault(400, str(error))
        except TooLong:
            return fault(413, "the request is too long")
        except Exception as error:  # noqa: BLE001 - an error's text may hold a person's; its kind is all that is kept
            logger.warning("%s failed: %s", request.url.path, type(error).__name__)
            return fault(500, "that failed; the program's log has the kind of error")
        return made if isinstance(made, Response) else JSONResponse(made)

    return answered
