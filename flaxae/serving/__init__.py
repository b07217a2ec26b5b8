"""A trained model as a web service: `app` gives the application, and `flaxae serve RUN` runs it.

    GET  /                a page where a file is dropped
    GET  /about           what the model takes, and what it does
    POST /reconstruct     likewise /encode, /score, /probabilities: whichever of them the model has
    GET  /health, /metrics

The body is JSON ({"x": [[…], …]} or {"rows": [{…}, …]}), CSV, `.npy`, PNG or JPEG; the header Accept says which of
them is answered. Requests that come in while the model runs are run together.
"""

import asyncio
import contextlib
import functools
import hmac
import pathlib
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import flaxae
from flaxae import denoising, training
from flaxae.anomaly import Detector, conformal
from flaxae.autoencoder import Autoencoder
from flaxae.errors import ConfigError, FlaxaeError, missing
from flaxae.finetuning import Classifier
from flaxae.serving import formats
from flaxae.serving.batching import Batcher, Full
from flaxae.trained import Trained, TrainedClassifier, TrainedDetector

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ConfigError(missing("`flaxae serve`", "serve", error)) from error

PAGE = pathlib.Path(__file__).parent / "page"
PAGES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
IN_FLIGHT = 8  # times the most bytes of one request, that all of them may have together


class Limits(NamedTuple):
    """What one request, and all of them together, may take."""

    megabytes: float = 32.0  # of a body
    seconds: float = 60.0  # until a request is answered, and until its body has come
    examples: int = 10_000  # in a request
    held: int = 20_000  # examples of all requests that wait


class Method(NamedTuple):
    """What the model does: `prepare` each request's examples, run those of several `together`, `finish` each's."""

    prepare: Callable[[Any], np.ndarray]
    together: Callable[[np.ndarray], Any]
    finish: Callable[[Any, Any], dict[str, Any]]  # of what was given, and what was made of it


def methods(what: Any, threshold: float | None = None) -> dict[str, Method]:
    """What a trained model does, by name.

    Args:
        what: what `flaxae.load` returned.
        threshold: of a detector, the score above which an example is anomalous; by default the one that flags a
            hundredth of normal examples at most, or as few as the held-out scores can promise.

    Raises:
        ConfigError: it can't be served.
    """
    if isinstance(what, TrainedDetector):
        calibration = what.detector.calibration
        limit = threshold
        if limit is None:
            limit = conformal.threshold(calibration, max(0.01, 1 / (len(calibration) + 1)))
        return {"score": Method(what.trained.units_removed, _scores(what.detector, limit), lambda x, made: made)}
    if isinstance(what, TrainedClassifier):
        named = {name: i for i, name in enumerate(what.classes)}

        def classes(x: Any, made: np.ndarray) -> dict[str, Any]:
            likeliest = np.array(what.classes, object)[made.argmax(axis=1)]
            return {"class": likeliest, **{f"p({name})": made[:, i] for name, i in named.items()}}

        apply = functools.partial(training.apply, Classifier.probabilities, what.classifier)
        return {**methods(what.trained), "probabilities": Method(what.trained.scaled, apply, classes)}
    if not isinstance(what, Trained):
        raise ConfigError(f"A {type(what).__name__} can't be served; autoencoders, detectors and classifiers can.")
    return _of_autoencoder(what)


def _of_autoencoder(trained: Trained) -> dict[str, Method]:
    encode = functools.partial(training.apply, Autoencoder.encode, trained.model)
    found = {"encode": Method(trained.scaled, encode, lambda x, made: {"code": made})}
    if isinstance(trained.model.shape, tuple) and not isinstance(
        training.apply(Autoencoder.encode, trained.model, np.zeros((1, *trained.shape), np.float32)), np.ndarray
    ):
        found = {}  # the tree of a U-Net
    if trained.kind == "image":
        clean = functools.partial(denoising.denoise, trained)
        found["reconstruct"] = Method(np.asarray, clean, lambda x, made: {"reconstruction": made})
        return found

    def undone(x: Any, made: np.ndarray) -> dict[str, Any]:
        values = trained.scaling.undo(made)
        is_frame = isinstance(x, pd.DataFrame) and trained.encoding is not None
        return {"reconstruction": trained.encoding.undo(values) if is_frame else values}

    reconstruct = functools.partial(training.apply, Autoencoder.reconstruct, trained.model)
    found["reconstruct"] = Method(trained.scaled, reconstruct, undone)
    return found


def _scores(detector: Detector, limit: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def scores(x: np.ndarray) -> dict[str, np.ndarray]:
        score = detector.score(x)
        made = {
            "score": score,
            "p_value": conformal.p_values(score, detector.calibration),
            "anomalous": score > limit,
        }
        return made if detector.local is None else {**made, "heat": detector.heat(x)}

    return scores


class Service:
    """A model, its batchers and its counters."""

    def __init__(self, what: Any, threshold: float | None, token: str | None, limits: Limits):
        self.what, self.token, self.limits = what, token, limits
        self.trained = what if isinstance(what, Trained) else what.trained
        self.methods = methods(what, threshold)
        self.worker, self.reader = ThreadPoolExecutor(1), ThreadPoolExecutor(1)  # one batch and one body at a time
        self.batchers = {
            name: Batcher(method.together, held=limits.held, worker=self.worker)
            for name, method in self.methods.items()
        }
        self.most_bytes = int(limits.megabytes * 2**20)
        self.bytes = 0  # of all bodies that are held
        self.answered: Counter[tuple[str, int]] = Counter()
        self.examples = 0

    def about(self) -> dict[str, Any]:
        """What the model takes, and what it does."""
        trained, columns = self.trained, self.trained.columns
        if trained.encoding is not None and trained.framing is None:
            columns = tuple(column.name for column in trained.encoding.columns)
        return {
            "model": type(self.what).__name__,
            "flaxae": flaxae.__version__,
            "kind": trained.kind,
            "shape": trained.shape,
            "dtype": trained.scaling.dtype,
            "columns": columns,
            "does": list(self.methods),
            "takes": [*formats.TYPES],
            "limits": self.limits._asdict(),
            "token": self.token is not None,
        }

    async def answer(self, request: Request, name: str) -> Response:
        """Run the model on a request's examples."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in formats.TYPES:
            raise HTTPException(415, f"The body is {kind or 'of no type'}; expected {', '.join(formats.TYPES)}.")
        wanted = request.headers.get("accept", "*/*").partition(";")[0].strip().lower()
        answer = wanted if wanted in (formats.CSV, formats.NPY, formats.PNG) else formats.JSON
        held = 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = bytearray()
                async for part in request.stream():
                    held += len(part)
                    self.bytes += len(part)
                    if held > self.most_bytes:
                        raise HTTPException(413, f"The body is larger than {self.limits.megabytes:g} MiB.")
                    if self.bytes > IN_FLIGHT * self.most_bytes:
                        raise Full("Too many requests are held already; try again later.")
                    body += part
                return await self._run(name, bytes(body), kind, answer)
        except TimeoutError:
            raise HTTPException(504, f"It took more than {self.limits.seconds:g} s; give less at once.") from None
        finally:
            self.bytes -= held

    async def _run(self, name: str, body: bytes, kind: str, answer: str) -> Response:
        method, loop = self.methods[name], asyncio.get_running_loop()
        given, x, notes = await loop.run_in_executor(self.reader, self._prepared, method, body, kind)
        made = await self.batchers[name](x)
        self.examples += len(x)

        def finished() -> bytes:
            return formats.write(method.finish(given, made), answer, self.trained)

        note = {"x-note": " ".join(notes).encode("ascii", "replace").decode()[:1000]} if notes else {}
        return Response(await loop.run_in_executor(self.reader, finished), media_type=answer, headers=note)

    def _prepared(self, method: Method, body: bytes, kind: str) -> tuple[Any, np.ndarray, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            given = formats.read(body, kind, self.trained, self.limits.examples)
            x = method.prepare(given)
        return given, x, [str(warning.message) for warning in caught]

    def metrics(self) -> str:
        """Counters, in the text format of Prometheus."""
        lines = [f'flaxae_requests_total{{path="{p}",status="{s}"}} {n}' for (p, s), n in self.answered.items()]
        for name, batcher in self.batchers.items():
            lines += [f'flaxae_batches_total{{method="{name}"}} {batcher.batches}']
            lines += [f'flaxae_model_seconds_total{{method="{name}"}} {batcher.seconds:.6f}']
            lines += [f'flaxae_waiting_examples{{method="{name}"}} {batcher.count}']
        lines += [f"flaxae_examples_total {self.examples}", f"flaxae_body_bytes {self.bytes}"]
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return "\n".join([*lines, f"flaxae_peak_memory_bytes {peak}", ""])

    def check_token(self, request: Request) -> None:
        """Raise unless the request bears the token, if there is one."""
        if self.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(401, "Give the token: `Authorization: Bearer TOKEN`.", {"www-authenticate": "Bearer"})


def app(
    what: Any,
    *,
    threshold: float | None = None,
    token: str | None = None,
    limits: Limits | None = None,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]"),
) -> Starlette:
    """The application (ASGI).

    Args:
        what: what `flaxae.load` returned.
        threshold: see `methods`.
        token: that requests have to bear; None for none.
        limits: see `Limits`.
        hosts: the names that it may be called by; "*" for any.
    """
    service = Service(what, threshold, token, limits or Limits())

    def guarded(path: str, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            started = time.monotonic()
            try:
                response = await answer(request)
            except HTTPException as error:
                response = _mistake(error.status_code, error.detail, error.headers)
            except Full as error:
                response = _mistake(503, str(error), {"retry-after": "1"})
            except FlaxaeError as error:
                response = _mistake(400, str(error))
            except ClientDisconnect:
                response = Response(status_code=499)
            response.headers.update(HEADERS)
            response.headers["server-timing"] = f"total;dur={1000 * (time.monotonic() - started):.1f}"
            service.answered[path, response.status_code] += 1
            return response

        return endpoint

    async def page(request: Request) -> Response:
        name, kind = PAGES[request.url.path]
        return Response((PAGE / name).read_bytes(), media_type=kind)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def about(request: Request) -> Response:
        return JSONResponse(service.about())

    async def metrics(request: Request) -> Response:
        service.check_token(request)
        return PlainTextResponse(service.metrics())

    def method(name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            service.check_token(request)
            return await service.answer(request, name)

        return answer

    got = {**dict.fromkeys(PAGES, page), "/health": health, "/about": about, "/metrics": metrics}
    routes = [Route(path, guarded(path, answer), methods=["GET"]) for path, answer in got.items()]
    routes += [Route(f"/{n}", guarded(f"/{n}", method(n)), methods=["POST"]) for n in service.methods]

    async def unknown(request: Request, error: Exception) -> Response:
        does = ", ".join(f"POST /{name}" for name in service.methods)
        return _mistake(getattr(error, "status_code", 404), f"There is {', '.join(got)}, {does}.")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for pool in (service.worker, service.reader):
            pool.shutdown(wait=False, cancel_futures=True)

    guard = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(
        routes=routes, middleware=[guard], exception_handlers={404: unknown, 405: unknown}, lifespan=lifespan
    )


def _mistake(status: int, message: str, headers: Any = None) -> Response:
    return JSONResponse({"error": message}, status, headers=headers)


__all__ = ["Limits", "app", "methods"]
