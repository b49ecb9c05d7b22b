"""The progress bar: on the standard error, with text and rate, or not at all."""

import pytest

from topreco.core.progress import progress_bar


@pytest.mark.parametrize("show", [True, False])
def test_progress_is_shown_on_request(capsys, show):
    with progress_bar("skimming", 10, show=show, unit="events", done=4) as advance:
        advance(5)
        advance(1, "last file")
        advance(0)
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = "skimming" in captured.err and "10/10" in captured.err and "events/s" in captured.err
    assert (shown and "last file" in captured.err) == show


def test_steps_without_a_total(capsys):
    with progress_bar("waiting", None, show=True) as advance:
        advance()
    assert "1/?" in capsys.readouterr().err
