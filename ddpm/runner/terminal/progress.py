"""Progress of a run: a bar in a terminal or a notebook, plain lines elsewhere."""

import sys
import time
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar over steps with loss, images/s and time left; periodic lines without a terminal or a
    notebook.

    Args:
        total, start: the last step, and the number of steps done at the start.
        enabled: False on all ranks but rank 0.
        seconds_between_lines: without a terminal.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        unit: str = "step",
        enabled: bool = True,
        seconds_between_lines: float = 10,
    ) -> None:
        self.total, self.start, self.unit, self.enabled = total, start, unit, enabled
        self.seconds_between_lines = seconds_between_lines
        terminal = sys.stderr.isatty() or in_notebook()
        self.bar = _bar_class()(
            total=total,
            initial=start,
            unit=unit,
            disable=not (enabled and terminal),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
        )
        self.lines = enabled and not terminal
        self.started = time.monotonic()
        self.printed = -float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, steps: int = 1) -> None:
        self.bar.update(steps)

    def reach(self, step: int) -> None:
        """Set the number of finished steps."""
        self.bar.update(step - self.bar.n)

    def show(self, step: int, text: str) -> None:
        """Show the progress after `step` steps, e.g. `"loss 0.031, 900 images/s"`."""
        self.bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self.lines and (now - self.printed > self.seconds_between_lines or step == self.total):
            self.printed = now
            left = (now - self.started) / max(step - self.start, 1) * (self.total - step)
            width = len(str(self.total))
            print(
                f"{self.unit} {step:>{width}}/{self.total}  {text}  {clock(left)} left", flush=True
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            self.bar.write(text)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(ipython, "config", ())


def _bar_class() -> type[tqdm]:
    """The bar of notebooks in a notebook, a line of text if that lacks ipywidgets."""
    if not in_notebook():
        return tqdm
    from tqdm.auto import tqdm as bar

    return bar


def clock(seconds: float) -> str:
    """A duration as `m:ss`, `h:mm:ss` or, from two days on, in days."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.{1 if seconds < 10 * 86400 else 0}f} days"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
