"""A service under load: `python -m benchmarks.serving` has 64 clients ask at once for codes of MNIST's test digits.

It prints how many of the answers came, how many were those that flaxae gives by itself, the requests and digits a
second, the slowest answer, and the most memory that the process took.
"""

import argparse
import asyncio
import io
import threading
import time

import httpx
import numpy as np
import uvicorn

import flaxae
from flaxae import presets, serving
from flaxae.data import Scaling
from flaxae.trained import Trained

HEADERS = {"content-type": "application/x-npy", "accept": "application/x-npy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--digits", type=int, default=8, help="in a request")
    given = parser.parse_args()
    test = flaxae.data.load("mnist").test
    model = flaxae.build(presets.denoising(), (28, 28, 1))
    trained = Trained(model, Scaling((0.0,), (255.0,), "uint8"), (28, 28, 1), "image", None)
    expected = trained.encode(test)
    config = uvicorn.Config(serving.app(trained), "127.0.0.1", 0, log_level="error")
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    starts = np.random.default_rng(0).integers(0, len(test) - given.digits, given.requests)
    started = time.perf_counter()
    right, seconds, metrics = asyncio.run(ask(url, test, expected, starts.tolist(), given.clients, given.digits))
    wall = time.perf_counter() - started
    server.should_exit = True
    thread.join()
    peak = next(float(line.split()[1]) for line in metrics.splitlines() if "peak_memory" in line)
    batches = next(int(line.split()[1]) for line in metrics.splitlines() if 'batches_total{method="encode"}' in line)
    print(f"{given.clients} clients, {given.requests:,} requests of {given.digits} digits: {len(seconds):,} answered, ")
    print(f"{right:,} of them with flaxae's own codes; {batches:,} batches; {given.requests / wall:,.0f} requests a ")
    print(f"second; median {1000 * np.median(seconds):.0f} ms, slowest {1000 * max(seconds):.0f} ms; peak memory ")
    print(f"{peak / 2**20:,.0f} MiB")


async def ask(
    url: str, test: np.ndarray, expected: np.ndarray, starts: list[int], clients: int, digits: int
) -> tuple[int, list[float], str]:
    """How many answers were right, the seconds that each took, and the service's metrics at the end."""
    waiting, seconds, right = iter(starts), [], 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal right
        for start in waiting:
            body = io.BytesIO()
            np.save(body, test[start : start + digits])
            began = time.perf_counter()
            answer = await http.post("/encode", content=body.getvalue(), headers=HEADERS)
            seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
            made = np.load(io.BytesIO(answer.content))
            right += np.allclose(made, expected[start : start + digits], atol=1e-4)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return right, seconds, (await http.get("/metrics")).text


if __name__ == "__main__":
    main()
