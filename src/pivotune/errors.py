"""The one exception that user-facing checks raise: bad options, bad data, unsupported models."""


class PivotuneError(ValueError):
    """A problem the user can fix. The message names the option or the file and line, the value, and the fix."""
