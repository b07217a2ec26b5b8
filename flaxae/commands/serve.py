"""Serve: a trained model over HTTP, and a page where a file is dropped.

    flaxae serve runs/denoise/1

listens on this machine only. Then open http://127.0.0.1:8000, or from any language:

    curl --data-binary @noisy.png -H "Content-Type: image/png" -H "Accept: image/png" http://127.0.0.1:8000/reconstruct

Beyond this machine (`--host 0.0.0.0`) it listens only if the environment has a token, FLAXAE_TOKEN, which each request
then has to bear: `Authorization: Bearer TOKEN`. Encryption is for a proxy in front of it.
"""

import dataclasses
import ipaddress
import os
import pathlib
from typing import Annotated

import tyro

from flaxae.errors import ConfigError, missing

TOKEN = "FLAXAE_TOKEN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of `flaxae serve`."""

    run: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, or one that `flaxae.save` wrote or `flaxae export --format safetensors`."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8000
    """The port; 0 for a free one."""
    threshold: float | None = None
    """Of a detector, the score above which an example counts as anomalous; by default the run's."""
    megabytes: float = 32.0
    """The largest body of a request, in MiB."""
    seconds: float = 60.0
    """The longest that a request may take."""
    examples: int = 10_000
    """The most examples in a request."""
    held: int = 20_000
    """The most examples of all requests that wait; more are refused with the status 503."""
    at_once: int = 256
    """The most connections."""

    def __post_init__(self) -> None:
        for name in ("megabytes", "seconds", "examples", "held", "at_once"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it has to be above 0.")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port is {self.port}; it has to be from 0 to 65535.")


def is_loopback(host: str) -> bool:
    """Whether the address is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(flags: Flags) -> None:
    """Load the model and serve it until Ctrl-C."""
    token = os.environ.get(TOKEN) or None
    beyond = not is_loopback(flags.host)
    if beyond and token is None:
        raise ConfigError(
            f"--host {flags.host} is reached from other machines; set a token in the environment, which requests have "
            f"to bear: {TOKEN}=… ."
        )
    import flaxae
    from flaxae import runs, serving
    from flaxae.printing import say

    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(missing("`flaxae serve`", "serve", error)) from error
    what, threshold = flaxae.load(flags.run), flags.threshold
    if isinstance(what, flaxae.TrainedDetector) and threshold is None and (flags.run / "results.json").exists():
        threshold = runs.open(flags.run).results().get("threshold")
    limits = serving.Limits(flags.megabytes, flags.seconds, flags.examples, flags.held)
    hosts = ("*",) if beyond else ("localhost", "127.0.0.1", "[::1]")
    app = serving.app(what, threshold=threshold, token=token, limits=limits, hosts=hosts)
    config = uvicorn.Config(
        app, flags.host, flags.port, log_level="warning", limit_concurrency=flags.at_once, timeout_keep_alive=5
    )
    server = uvicorn.Server(config)
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise ConfigError(f"Can't listen on {flags.host}:{flags.port}: is it in use? Give another --port.") from None
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    say(f"Serves {flags.run} at http://{host}:{listening.getsockname()[1]} until Ctrl-C.")
    server.run(sockets=[listening])
