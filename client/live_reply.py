"""The wall for a reply that is shown while it is made: nothing is let through before it is known to be harmless.

What is held back ends at white space outside any bracket, since an address ends at white space and a picture, a link
and a tag at their bracket. Each part that is let through has gone through `client.wall.harmless_reply`.
"""

from __future__ import annotations

from client.wall import harmless_reply

LONGEST_HELD = 400
_OPEN, _CLOSE = "[(<", "])>"


class LiveReply:
    """Takes pieces of a reply and gives harmless text; an address that `question` itself holds stays."""

    def __init__(self, question: str = "") -> None:
        self._question, self._held = question, ""

    def add(self, piece: str) -> str:
        """Return what may be shown now, "" where nothing is certain yet."""
        self._held += piece
        at = _safe_end(self._held)
        if at == 0 and len(self._held) > LONGEST_HELD:
            return self.end()
        ready, self._held = self._held[:at], self._held[at:]
        return harmless_reply(ready, self._question) if ready else ""

    def end(self) -> str:
        """Return what was held back, harmless."""
        rest, self._held = self._held, ""
        return harmless_reply(rest, self._question)


def _safe_end(text: str) -> int:
    """Return where the last white space outside of brackets ends, 0 without one."""
    depth = found = 0
    for at, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth = max(0, depth - 1)
        elif character.isspace() and depth == 0:
            found = at + 1
    return found
