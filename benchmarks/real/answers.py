"""What an answer says: the number, the boxed expression, the program."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
ENDS = ("### Instruction", "### Response", "Instruction:", "Response:")  # a model that goes on asking itself


def cut(text: str) -> str:
    """The answer up to where the model begins another question."""
    return text[: min((at for end in ENDS if (at := text.find(end)) >= 0), default=len(text))]


def number(text: str) -> float | None:
    """The number that an answer gives: the first behind the last "answer is" (or GSM8K's ####), else the last one."""
    text = cut(text)
    after = re.split(r"answer is:?|####", text, flags=re.IGNORECASE)
    found = NUMBER.findall(after[-1]) if len(after) > 1 else NUMBER.findall(text)[-1:]
    return _value(found[0]) if found else None


def _value(text: str) -> float | None:
    above, _, below = text.replace(",", "").replace("$", "").partition("/")
    if below and not float(below):
        return None
    return float(above) / float(below or 1)


def same_number(text: str, solution: str) -> bool:
    """Does the answer give the number that stands behind the solution's #### ?"""
    wanted, given = number(solution), number(text)
    return given is not None and wanted is not None and abs(given - wanted) < 1e-6 * max(1.0, abs(wanted))


def boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, braces matched; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth < 0:
            return text[begin:at]
    return None


def same_expression(text: str, solution: str) -> bool:
    """Is the answer's last boxed expression (or what follows its last "answer is") written as the solution's, but for
    spaces, signs of layout and units?"""
    wanted = boxed(solution)
    text = cut(text)
    given = boxed(text)
    if given is None:
        after = re.split(r"answer is:?", text, flags=re.IGNORECASE)
        given = after[-1].strip().split("\n")[0].rstrip(".") if len(after) > 1 else None
    return given is not None and wanted is not None and _plain(given) == _plain(wanted)


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mbox)\{[^}]*\}$", "", text.strip())  # a unit
    for sign in ("\\left", "\\right", "\\!", "\\,", "\\ ", "\\$", "$", "\\%", "%", "^\\circ", "^{\\circ}"):
        text = text.replace(sign, "")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"\s", "", text).rstrip(".")


def program(text: str, opening: str = "") -> str:
    """The Python of an answer: of its first block between fences, else all of it; without what runs as a script.

    opening: a function's head, which goes before an answer that only continues it.
    """
    text = cut(text).replace("\r\n", "\n").replace("\t", "    ")
    fenced = FENCE.search(text)
    code = fenced[1] if fenced else text
    code = code.split('if __name__ == "__main__":')[0].split("if __name__ == '__main__':")[0]
    if opening and not re.search(r"^\s*def ", code, re.MULTILINE):
        return opening + code
    imports = "\n".join(line for line in opening.splitlines() if line.startswith(("import ", "from ")))
    return f"{imports}\n{code}" if imports else code
