"""Progress of long work: a bar on a terminal, elsewhere a log line every few seconds.

Lines carry done/total, rate and time left. A log file or a scheduler's console gets lines that can be read later
instead of a bar's control characters.
"""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Counts finished items: `with Progress(total, "pictures", "picture") as progress: progress.update(32)`."""

    def __init__(self, total: int, what: str, unit: str, *, seconds_between_lines: float = 5.0) -> None:
        """Start counting.

        Args:
            total: items to be done.
            what: what is being done, e.g. `encoding pictures`.
            unit: one item's name, e.g. `picture`.
            seconds_between_lines: time between log lines, s.
        """
        self._total, self._what, self._unit = total, what, unit
        self._done = 0
        self._note = ""
        self._pause = seconds_between_lines
        self._started = self._last_line = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False) if is_terminal else None

    def __enter__(self) -> "Progress":
        return self

    def update(self, num_items: int = 1, *, note: str = "") -> None:
        """Count `num_items` more as done; `note` stands at the end of the line, e.g. what was spent so far."""
        self._done += num_items
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(num_items)
        elif time.monotonic() - self._last_line >= self._pause:
            self._last_line = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """The state in words, e.g. `encoding pictures: 120/400 (30 %), 12.0 pictures/s, 0:23 left`."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / elapsed_s
        left = clock((self._total - self._done) / rate) if rate else "unknown time"
        share = self._done / self._total if self._total else 1.0
        pace = f"{1 / rate:.0f} s per {self._unit}" if 0 < rate < 0.1 else f"{rate:.1f} {self._unit}s/s"
        note = f", {self._note}" if self._note else ""
        return f"{self._what}: {self._done}/{self._total} ({share:.0%}), {pace}, {left} left{note}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elapsed_s = time.monotonic() - self._started
        logger.info("%s: %d/%d %ss in %s", self._what, self._done, self._total, self._unit, clock(elapsed_s))


def clock(seconds: float) -> str:
    """Seconds as a clock shows them: 83 -> `1:23`, 3700 -> `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
