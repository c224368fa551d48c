"""Errors a user can cause, one class a cause.

Every message is one line that says what is wrong, with which file, and what to do. The command line prints it and
exits with ``exit_code``: 2 for the user's mistake or a bad file. Anything that is not a :class:`TokodecError` is our
own fault.
"""


class TokodecError(Exception):
    """Base of every error that tokodec raises on purpose."""

    exit_code = 2


class UsageError(TokodecError):
    """An argument or a combination of arguments that makes no sense."""


class MediaError(TokodecError):
    """A picture, sound or video that cannot be read or written."""


class UnsupportedMediaError(MediaError):
    """Readable, but holds something we would have to drop in silence (animation, several pages, ...)."""


class ReaderGoneError(MediaError):
    """The pipe that is written to has lost its reader (``| head``): no fault, and nothing to say."""

    exit_code = 0


class OutputExistsError(TokodecError):
    """The output is there already and ``--force`` was not given."""


class RateError(TokodecError):
    """The asked size or rate cannot be reached with this model."""


class ModelError(TokodecError):
    """A model that is unknown, damaged or not the one that wrote the file."""


class WeightsMismatchError(ModelError):
    """The file was made with other weights (or another entropy model) than those at hand."""


class FormatError(TokodecError):
    """Base of everything that can be wrong with a ``.tok`` file."""


class SignatureError(FormatError):
    """Not a ``.tok`` file."""


class VersionError(FormatError):
    """A ``.tok`` file of a format version that this reader does not know."""


class TruncatedError(FormatError):
    """The file ends before the smallest thing that can be decoded."""


class HeaderError(FormatError):
    """The header is damaged or holds values out of range."""


class ChunkError(FormatError):
    """A chunk is malformed, or critical and unknown."""


class LimitError(FormatError):
    """The file declares more than the limits allow."""


def one_line(error: object) -> str:
    """What an error of somebody else's says, without its number and line ends."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = error.strerror.lower() if isinstance(error, OSError) and error.strerror else ""
    return text or " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


def too_small(least: int, most: int, *, pixels: int = 0, seconds: float = 0.0, note: str = "") -> RateError:
    """A size of ``most`` bytes that was asked for, where the smallest file takes ``least``.

    pixels, seconds: what the file holds, one of them, for its rate in words.  note: what else belongs to it.
    """
    rate = f"{8e-3 * least / seconds:.2f} kbps" if seconds else f"{8 * least / pixels:.4f} bpp"
    return RateError(f"the smallest file takes {least} bytes ({rate}){note}, more than the {most} asked for")


OUT_OF_MEMORY = "out of memory: this needs more than there is here"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's and NumPy's, or PyTorch's of the host or of a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
