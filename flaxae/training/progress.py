"""Progress of the training: a bar on a terminal, and a plain line per epoch anywhere else."""

import contextlib
import math
from collections.abc import Callable, Iterator

# epochs done (with the fraction), mean loss so far, examples per second, figures that people know
Report = Callable[[float, float, float, str], None]


@contextlib.contextmanager
def bar(epochs: int, start: float, *, show: bool) -> Iterator[Report]:
    """A function to call as `report(epochs_done, loss, examples_per_s, figures)`, now and then and after each epoch.

    Args:
        epochs: how many there are in all.
        start: how many were done before, if the run is resumed.
        show: whether to report anything.
    """
    if not show:
        yield lambda *_: None
        return
    import rich.console
    import rich.progress as rp

    console = rich.console.Console(stderr=False)
    if not console.is_terminal:
        reported = int(start)

        def line(done: float, loss: float, rate: float, figures: str) -> None:
            nonlocal reported
            if int(done) > reported:
                reported = int(done)
                print(f"epoch {reported}/{epochs}  loss {loss:.4f}  {figures}{rate:,.0f} examples/s", flush=True)

        yield line
        return

    columns = (
        rp.TextColumn("epoch {task.fields[epoch]}/{task.total:.0f}"),
        rp.BarColumn(),
        rp.TextColumn("loss {task.fields[loss]:.4f}"),
        rp.TextColumn("{task.fields[figures]}{task.fields[rate]:,.0f} examples/s"),
        rp.TimeElapsedColumn(),
        rp.TextColumn("left"),
        rp.TimeRemainingColumn(),
    )
    with rp.Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "", total=epochs, completed=int(start), epoch=int(start), loss=float("nan"), rate=0, figures=""
        )

        def advance(done: float, loss: float, rate: float, figures: str) -> None:
            epoch = min(int(done) + 1, epochs)
            progress.update(task, completed=done, epoch=epoch, loss=loss, rate=rate, figures=figures)

        yield advance


def figures(error: float, support: tuple[float, float]) -> str:
    """A mean squared error as people know it: for values in [0, 1] with its PSNR, that of the mean error."""
    if support != (0.0, 1.0):
        return f"MSE {error:.4f}  "
    return f"MSE {error:.4f} ({-10 * math.log10(max(error, 1e-10)):.1f} dB)  "
