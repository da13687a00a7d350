"""A picture of a report, as Chromium shows it, for the README.

python run.py job=report sweep=<name>
python benchmarks/screenshot.py <folder of the report>/report.html benchmarks/pictures/report.png
"""

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("no-first-run", "disable-background-networking", "disable-component-update")
QUIET += ("disable-sync", "disable-quic", "disable-gpu", "hide-scrollbars")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--dark", action="store_true")
    asked = parser.parse_args()
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit(f"None of {', '.join(NAMES)} is installed: no picture is taken.")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        words = [f"--{word}" for word in QUIET]
        words += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root without
        words += ["--blink-settings=preferredColorScheme=0"] if asked.dark else []
        words += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        words += [f"--window-size={asked.width},{asked.height}", asked.page.resolve().as_uri()]
        subprocess.run(
            [browser, "--headless", *words], check=True, timeout=120, stderr=subprocess.DEVNULL
        )
        image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    # Of a page of a few colours 256 are enough, and a third of the bytes.
    image.quantize(256, dither=Image.Dither.NONE).save(asked.picture, optimize=True)
    print(asked.picture, f"{asked.picture.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
