"""Every error that confide raises on purpose.

    ConfideError
    ├── ConfigError           a setting or a query that cannot be meant
    ├── DataError             people's input that cannot be read; names file and line, never text
    ├── WireError             bytes that are not exactly one message of this version
    ├── EncodingError         an update that cannot be encoded: NaN, infinity, wrong shape or norm
    ├── LedgerError           a ledger that is torn, forked, out of order or written twice
    ├── SignatureInvalid      one opaque error for every failed verification
    ├── CohortTooSmall        fewer survivors than the query promised
    ├── SumInvalid            a masked sum whose masks cannot be removed beyond doubt
    ├── ReleaseInvalid        a release whose files, hashes or claims do not agree
    ├── ModelError            a model or adapter that does not fit
    ├── VaultError            a device's vault that cannot be opened, read or written
    ├── ExportRefused         an own adapter that may not leave its device
    ├── TrainingPaused        a training that stopped for now, its state kept
    └── PolicyRefused         the device says no; carries a code of a closed list
        └── BudgetExhausted   the device says no for good: the budget is spent

A message says what was wrong, where, and what to do. It never holds a person's text: messages of other errors cross
process borders.
"""

from __future__ import annotations


class ConfideError(Exception):
    """The root: catch it at the edge of a command, print one line, exit non-zero."""


class ConfigError(ConfideError):
    """A setting or a query that cannot be meant."""


class DataError(ConfideError):
    """Input of people that cannot be read."""


class WireError(ConfideError):
    """Bytes that are not exactly one message of this version."""


class EncodingError(ConfideError):
    """An update that cannot be encoded within its norm."""


class LedgerError(ConfideError):
    """A ledger that is torn, forked, out of order or written by two at once."""


class SignatureInvalid(ConfideError):
    """A signature that does not verify; the same error whatever the reason."""

    def __init__(self, what: str = "signature") -> None:
        super().__init__(f"{what} does not verify")


class CohortTooSmall(ConfideError):
    """Fewer survivors than the query promised: the sum is not released."""


class SumInvalid(ConfideError):
    """A masked sum whose masks cannot be removed beyond doubt: somebody's shares are false. Nothing is released."""


class ReleaseInvalid(ConfideError):
    """A release whose files, hashes or claims do not agree."""


class ModelError(ConfideError):
    """A model or adapter that does not fit what was asked."""


class VaultError(ConfideError):
    """A device's vault that cannot be opened, read or written; what it held before is still in it."""


class ExportRefused(ConfideError):
    """An own adapter without record-level privacy: it may know any document by heart, and stays on its device."""


class TrainingPaused(ConfideError):
    """A training on the device stopped for now, its state kept: the next one goes on from there."""


class PolicyRefused(ConfideError):
    """The device refuses a query. `code`, one of `privacy.wire.RefusalCode`, may leave the device; `detail` stays."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type[PolicyRefused], tuple[str, str]]:
        return type(self), (self.code, self.detail)


class BudgetExhausted(PolicyRefused):
    """The device refuses because the charge would pass its budget. There is no override."""
