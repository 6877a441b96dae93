"""What a source raises when it cannot give a picture."""


class BrokenPicture(ValueError):
    """A picture of a source cannot be read; the message names it and says why."""
