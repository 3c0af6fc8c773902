"""Says what is waited for once it lasts: a program that keeps silent looks hung. Knows neither nodes nor chains."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
_SILENT_SECONDS = 2.0


@contextmanager
def told(what: str, *, most_s: float) -> Iterator[None]:
    """Log as a warning that `what` is waited for, `most_s` seconds at most, if the block lasts longer than two."""
    if most_s <= _SILENT_SECONDS or not _log.isEnabledFor(logging.WARNING):
        yield
        return
    teller = threading.Timer(_SILENT_SECONDS, _log.warning, ("waiting for %s, up to %.0f s", what, most_s))
    teller.daemon = True
    teller.start()
    try:
        yield
    finally:
        teller.cancel()
