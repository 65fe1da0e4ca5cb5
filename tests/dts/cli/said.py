"""What a verb says of an error."""


def said(result) -> str:
    """An error's words, wherever the box breaks its lines."""
    return " ".join(result.stderr.replace("│", " ").split())
