"""What a class name says: readable words, or nothing at all."""

import re

_OPAQUE = re.compile(r"(class|label|category|cat|target|output|topic|id|type|group|cls|c|l)?[\s_\-]*\d+", re.IGNORECASE)


def is_opaque(name: str) -> bool:
    """Whether a class name carries no meaning: "", "0", "class_3", "LABEL_2", "-"."""
    return not any(c.isalpha() for c in name) or bool(_OPAQUE.fullmatch(name.strip()))


def readable(name: str) -> str:
    """A class name as people write it: "cardLost", "card_lost", "card-lost" -> "card lost"."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[\s_]+|(?<=\w)[-/.:](?=\w)", " ", name).strip().lower()
