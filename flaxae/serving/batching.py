"""Examples of several requests run through a model together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxae.errors import FlaxaeError

MOST = 256  # examples that are run together


class Full(FlaxaeError):
    """More examples wait than the server holds."""


class Waiting(NamedTuple):
    """A request's examples, and where its result goes."""

    x: Any
    examples: int
    done: asyncio.Future
    since: float


class Batcher:
    """Runs `function` on the examples of requests, together where they came in meanwhile, one batch at a time.

    A batch is what waits when the one before it is done, so a lone request waits for nothing. A mistake in one
    request's examples fails that request alone.

    Args:
        function: from examples, an array, to results for each, an array or a dict of arrays.
        held: examples that may wait; more are refused by `Full`, so that memory is bounded.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], *, held: int, worker: ThreadPoolExecutor):
        self.function, self.held, self.worker = function, held, worker
        self.waiting: deque[Waiting] = deque()
        self.count = 0  # examples that wait or run
        self.batches = 0
        self.seconds = 0.0  # that the model ran
        self.task: asyncio.Task | None = None

    async def __call__(self, x: np.ndarray) -> Any:
        """The results for the examples of one request.

        Raises:
            Full: too many examples wait.
        """
        if self.count and self.count + len(x) > self.held:
            raise Full(f"{self.count:,} examples wait already; try again later.")
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(x, len(x), future, time.monotonic()))
        self.count += len(x)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            batch = self._next()
            wanted = [one for one in batch if not one.done.cancelled()]  # whose client hasn't gone
            try:
                if wanted:
                    started = time.monotonic()
                    made = await loop.run_in_executor(self.worker, self._run, wanted)
                    self.batches += 1
                    self.seconds += time.monotonic() - started
                    for one, result in zip(wanted, made, strict=True):
                        if one.done.cancelled():
                            continue
                        if isinstance(result, Exception):
                            one.done.set_exception(result)
                        else:
                            one.done.set_result(result)
            finally:
                self.count -= sum(one.examples for one in batch)

    def _next(self) -> list[Waiting]:
        """The requests that come next and whose examples fit together, of one shape and type."""
        batch = [self.waiting.popleft()]
        alike = batch[0].x.shape[1:], batch[0].x.dtype
        total = batch[0].examples
        while self.waiting and (self.waiting[0].x.shape[1:], self.waiting[0].x.dtype) == alike:
            total += self.waiting[0].examples
            if total > MOST:
                break
            batch.append(self.waiting.popleft())
        return batch

    def _run(self, batch: list[Waiting]) -> list[Any]:
        """A result for each request, or the exception that its examples raise."""
        try:
            made = self.function(np.concatenate([one.x for one in batch]))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for one in batch for result in self._run([one])]
        ends = np.cumsum([one.examples for one in batch]).tolist()
        slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return [jax.tree.map(lambda leaf, part=part: leaf[part], made) for part in slices]
