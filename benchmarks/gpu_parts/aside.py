"""Parts in another process: compiling takes many cores for minutes, and some errors of a GPU end
all use of it by the process that met them."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_parts.part import MARGIN, Machine, Part, Result
from gpu_parts.process import Process

SCRIPT = Path(__file__).parent.parent / "gpu_check.py"
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch.compile keeps what it has compiled
GRACE = 20.0  # seconds after its deadline until such a process is killed


class Aside(Process):
    """A process of gpu_check.py for some of the parts.

    Args:
        name: of its log, among other such processes.
        deadline: on the clock of `time.monotonic`.
        turn: whether it is to wait for `give_turn` before it measures anything.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        parts: Sequence[Part],
        deadline: float,
        *,
        turn: bool = False,
    ) -> None:
        self.parts, self.deadline = parts, deadline
        self.turn = machine.work / f"{name}.turn"
        self.output = machine.work / f"{name}.json"
        budget = deadline - time.monotonic() + MARGIN
        arguments = [str(SCRIPT), "--device", machine.device.type, f"--budget={budget:.1f}"]
        arguments += ["--in-order", "--output", str(self.output)]
        arguments += ["--cache", os.environ[CACHE]] if CACHE in os.environ else []
        arguments += ["--turn", str(self.turn)] if turn else []
        arguments += ["--only", *(part.name for part in parts)]
        super().__init__(arguments, machine.work, machine.work / f"{name}.log")

    def give_turn(self) -> None:
        """Nothing else uses the GPU now."""
        self.turn.touch()

    def results(self) -> list[Result]:
        """Wait for its end: what came of each part."""
        self.start()
        assert self.process is not None
        while self.process.poll() is None and time.monotonic() < self.deadline + GRACE:
            time.sleep(0.1)
        ended = self.process.poll() is not None
        self.kill()
        found = self.written()
        lost = [part.name for part in self.parts if part.name not in found]
        if ended and lost:
            first = lost.pop(0)  # the one that was running
            reason = f"its process ended with status {self.process.returncode}"
            text = self.printed()[-4000:]
            found[first] = Result(first, "failed", 0.0, reason, traceback=text)
        for name in lost:
            reason = "its process ended" if ended else "the budget ended"
            found[name] = Result(name, "skipped", 0.0, reason)
        return [found[part.name] for part in self.parts]

    def written(self) -> dict[str, Result]:
        """The results in its JSON."""
        try:
            parts = json.loads(self.output.read_text())["parts"]
        except (OSError, ValueError):
            return {}
        return {part["name"]: Result(**part) for part in parts}
