"""What is raised and warned about sources that cannot be read as a model, or not all of which was."""

AGAIN = "Copy or download it again, or write it anew with save_pretrained()"


class CheckpointError(ValueError):
    """A source that cannot be read as a model: what it is, what is wrong with it, and the way to go on."""


class Quantised(CheckpointError):
    """A model whose weights are codes where one of numbers is expected."""


class NotRead(UserWarning):
    """Weights that lie beside the ones read and say something else, or a choice between several that was made."""


class PartLost(UserWarning):
    """A part of a base, such as its vision tower, that a fine-tune does not have."""


class OtherDtype(UserWarning):
    """A base and a fine-tune that are stored in other dtypes."""


def first_line(error: object) -> str:
    """Of what an error says, the kind of it where it says nothing; some libraries begin with an empty line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def some(names, count: int = 10) -> str:
    """The first names, and how many more there are: one cause is one line, however many tensors it has."""
    return first(sorted(map(str, names)), count)


def first(items, count: int = 10, between: str = ", ") -> str:
    """The first of what is listed, in its order, and how many more there are."""
    items = list(map(str, items))
    more = f"and {len(items) - count} more"
    shown = between.join(items[:count])
    return f"{shown}{' ' if between == ', ' else between}{more}" if len(items) > count else shown


def in_lines(what: str, wrong: list[str], count: int = 10) -> str:
    """What, and below it the first causes, a line each, and how many more there are."""
    return f"{what}:\n  {first(wrong, count, chr(10) + '  ')}"
