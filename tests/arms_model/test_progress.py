import logging
import time

import pytest

from arms_model.progress import Progress, clock


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (83, "1:23"), (3700, "1:01:40"), (59.6, "1:00")])
def test_clock_reads_like_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_progress_logs_done_total_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        Progress(400, "encoding pictures", "picture", seconds_between_lines=0) as progress,
    ):
        time.sleep(0.01)
        progress.update(100)
    line = caplog.messages[0]
    assert line.startswith("encoding pictures: 100/400 (25%), ")
    assert " pictures/s, 0:0" in line
    assert line.endswith(" left")
    assert caplog.messages[-1].startswith("encoding pictures: 100/400 pictures in ")


def test_progress_is_quiet_between_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress(10, "asking", "pair", seconds_between_lines=60) as progress:
        for _ in range(10):
            progress.update()
    assert len(caplog.messages) == 1  # the closing line alone


def test_progress_before_the_first_item_knows_no_time_left() -> None:
    assert Progress(10, "asking", "pair").line() == "asking: 0/10 (0%), 0.0 pairs/s, unknown time left"
