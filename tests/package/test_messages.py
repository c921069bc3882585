"""Every message of the package names the argument, what was expected or helps, and what came.

The rules read the sources, so they cover what no test raises. What a rule cannot see is listed with its reason.
"""

from __future__ import annotations

import re

import pytest

from support.messages import Message, of_cpp, of_python

pytestmark = pytest.mark.hostile("messages")

# Raised within a reader that puts the path, the option or the module in front.
INNER = {"Different", "Unreadable", "ArgumentTypeError", "NotAnInteger"}
INNER_FILES = ("hiermt/training/", "hiermt/io/files.py", "hiermt/io/temporal.py", "hiermt/io/tensor_files.py")
# What a sentence begins with: a name and a colon, a value, an option, or the subject with a value in it.
NAMES = re.compile(r"^(--|[\w.:\[\]{}]+(, [\w.]+| and [\w.]+)*: |[\w.:{}]+ (was|has|needs|cannot)\b|[^;:]*\{\})")
# What came: a value, or a statement about it.
CAME = re.compile(
    r"\{\}|\b(got|came|is|are|has|have|was|holds|needs|neither|sets|NaN|missing|there|cannot|takes? no|do(es)? not)\b"
)
# What was expected: told, as a limit, as the way out after a semicolon, or as another value that it contradicts.
EXPECTED = re.compile(
    r"; |\b(expected|needs?|must|takes?|give|pass|use|only|at most|too|below|above|outside|before|exceed|fewer|without|"
    r"cannot|not?|but|than|this is|there are|install|damaged|already|gives|no|unknown)\b|\{\}.*, .*\{\}"
)
# The text is made elsewhere and is looked at there.
ELSEWHERE = re.compile(r"^(--config |launch: |\{\}|: |\s|\(|\))*$")


def messages() -> list[Message]:
    return [*of_python(), *of_cpp()]


def faults(message: Message) -> list[str]:
    inner = message.kind in INNER or message.where.startswith(INNER_FILES)
    rules = {"names nothing": NAMES, "does not say what came": CAME, "does not say what was expected": EXPECTED}
    if ELSEWHERE.match(message.text) or inner:
        rules = {"does not say what came": CAME}
    found = [fault for fault, rule in rules.items() if not rule.search(message.text)]
    # One sentence without an exclamation: a command line prints it behind the name of the program.
    if message.text.rstrip().endswith((".", "!")) and not message.text.endswith("..."):
        found.append("ends like a paragraph")
    if re.search(r"\b([Ii]nvalid|[Ii]llegal|[Bb]ad)\b", message.text):
        found.append("says that something is wrong, not what")
    return found


def test_every_message_says_what_to_change() -> None:
    found = messages()
    assert len(found) > 400, "the sources are not where they were"
    wrong = [f"{one.where}: {', '.join(faults(one))}: {one.text}" for one in found if faults(one)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text", ["wrong shape", "x: bad value {}", "Something failed!", "hidden: expected 1 or more.", "x: {}."]
)
def test_a_message_that_says_too_little_is_seen(text: str) -> None:
    assert faults(Message("hiermt/nn/loss.py:1", "ValueError", text))
