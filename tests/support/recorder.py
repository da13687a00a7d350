"""A tracker that records its calls."""


class Recorder:
    """Remembers its calls; raises in `log` if asked to."""

    where = "somewhere"

    def __init__(self, fails=False):
        self.fails, self.calls = fails, []

    def log(self, step, metrics):
        self.calls.append(step)
        if self.fails:
            raise ConnectionError("gone\nfor good")

    def log_image(self, step, name, grid):
        self.calls.append(name)

    def close(self, state):
        self.calls.append(state)
