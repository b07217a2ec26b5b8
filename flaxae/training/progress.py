"""Progress of the training: a bar on a terminal, and a plain line per epoch anywhere else."""

import contextlib
from collections.abc import Callable, Iterator

Report = Callable[[float, float, float], None]  # epochs done (with the fraction), mean loss so far, examples per second


@contextlib.contextmanager
def bar(epochs: int, start: float, *, show: bool) -> Iterator[Report]:
    """A function to call as `report(epochs_done, loss, examples_per_s)` now and then, and at the end of each epoch.

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

        def line(done: float, loss: float, rate: float) -> None:
            nonlocal reported
            if int(done) > reported:
                reported = int(done)
                print(f"epoch {reported}/{epochs}  loss {loss:.4f}  {rate:,.0f} examples/s", flush=True)

        yield line
        return

    columns = (
        rp.TextColumn("epoch {task.fields[epoch]}/{task.total:.0f}"),
        rp.BarColumn(),
        rp.TextColumn("loss {task.fields[loss]:.4f}"),
        rp.TextColumn("{task.fields[rate]:,.0f} examples/s"),
        rp.TimeElapsedColumn(),
        rp.TextColumn("left"),
        rp.TimeRemainingColumn(),
    )
    with rp.Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=epochs, completed=int(start), epoch=int(start), loss=float("nan"), rate=0)

        def advance(done: float, loss: float, rate: float) -> None:
            progress.update(task, completed=done, epoch=min(int(done) + 1, epochs), loss=loss, rate=rate)

        yield advance
