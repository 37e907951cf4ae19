"""What other packages say on standard error while they work for us, and why nobody needs to read it."""

from __future__ import annotations

import logging
import warnings

OURS = ("privacy", "client", "server", "simulation", "confide")
TALKATIVE = ("bm25s", "opacus", "presidio-analyzer", "transformers")


def quiet_libraries() -> None:
    """Silence warnings of other packages in this process, and their log below errors; ours are heard as before.

    Known and dealt with: bm25s narrates each index; torch says that Opacus' hooks fire without input gradients (inputs
    are frozen activations); Opacus that an RDP order lies at the edge of its grid (its bound is then loose, not wrong).
    """
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    warnings.filterwarnings("ignore", module=rf"(?!({'|'.join(OURS)})\b)")
    for name in TALKATIVE:
        logging.getLogger(name).addFilter(_is_error)  # a level would not last: bm25s sets its own on import


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
