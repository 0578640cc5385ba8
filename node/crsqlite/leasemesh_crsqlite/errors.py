"""Errors of getting the extension. Each message is one sentence that says what to do."""


class CrsqliteError(Exception):
    """The extension could not be got or must not be used."""


class CrsqliteMissing(CrsqliteError):
    """There is no extension that may be used, and looking for it is all that was asked."""


class WayFailed(CrsqliteError):
    """One way of getting the extension does not work here. Another one may.

    The message is a clause, such as "no C compiler was found", that `acquire` puts together with the others.
    """


class ChecksumMismatch(WayFailed):
    """What was fetched is not what its checksum says, and was thrown away unopened."""
