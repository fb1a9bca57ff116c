"""The oracle: what a client has read, against what it must have read.

Per request: (a) what was read is a beginning of the answer; (b) it is over without an error exactly when it is the
whole answer; (c) each index came once, in order; (d) after an error event there is no `[DONE]`; (e) the usage is told
once and is true; (f) it was over by its deadline. Rule (g), the gaps, is `scripts.chaos_run.gaps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scripts.chaos_run.journal import ChoiceJournal, Journal
from scripts.chaos_run.workload import Expected


class Wrong(StrEnum):
    """Kinds of violations."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    CHANGED = "changed"
    CLIENT_ERROR = "client error"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Wrong
    request: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: request {self.request}: {self.why}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Nothing in `violations`: the request was answered as it must be."""

    violations: list[Violation]
    num_near_ties: int = 0  #: choices that went another way where two tokens are all but equal
    num_positions: int = 0  #: tokens compared


def judge(journal: Journal, expected: Sequence[Expected]) -> Verdict:
    """Rules (a) to (f) on one request."""
    name = journal.ask.name
    found = [Violation(Wrong.CLIENT_ERROR, name, error) for error in journal.errors]
    tied = 0
    for number, (choice, wanted) in enumerate(zip(journal.choices, expected, strict=True)):
        at = _first_difference(choice.token_ids, wanted.token_ids)
        if at in wanted.near_ties:
            tied += 1
            continue
        where = f"choice {number}: "
        if at is not None:
            found.append(_difference(name, where, choice.token_ids, wanted.token_ids, at))
        elif not journal.errors:
            found += _incomplete(name, where, choice, wanted)
    if journal.wrong_ids and not found:
        found.append(Violation(Wrong.CHANGED, name, journal.wrong_ids[0]))
    if journal.errors and journal.num_done:
        found.append(Violation(Wrong.CHANGED, name, "[DONE] after an error event"))
    if not journal.errors:
        if journal.num_done != 1:
            found.append(Violation(Wrong.LOST, name, f"{journal.num_done} times [DONE]"))
        if not tied:
            found += _wrong_usage(journal, expected)
    return Verdict(found, tied, sum(len(choice.token_ids) for choice in journal.choices))


def _first_difference(got: Sequence[int], wanted: Sequence[int]) -> int | None:
    """The first place where `got` is no beginning of `wanted`."""
    for at, (token, right) in enumerate(zip(got, wanted, strict=False)):
        if token != right:
            return at
    return len(wanted) if len(got) > len(wanted) else None


def _difference(name: str, where: str, got: list[int], wanted: list[int], at: int) -> Violation:
    """Names what happened at the first difference, by how what follows lines up again."""
    rest = got[at:]
    probe = rest[:4]
    for shift in range(1, len(wanted) - at):
        if probe == wanted[at + shift : at + shift + len(probe)]:
            return Violation(Wrong.LOST, name, f"{where}{shift} tokens lost at {at} of {len(wanted)}")
    for shift in range(1, at + 1):
        if rest[:shift] == wanted[at - shift : at][: len(rest)]:
            return Violation(Wrong.DUPLICATED, name, f"{where}{shift} tokens came again at {at} of {len(wanted)}")
    return Violation(Wrong.CHANGED, name, f"{where}token {at} of {len(wanted)} differs")


def _incomplete(name: str, where: str, choice: ChoiceJournal, wanted: Expected) -> list[Violation]:
    """What an answer that ended well lacks."""
    found = []
    if len(choice.token_ids) < len(wanted.token_ids):
        missing = f"{where}ended after {len(choice.token_ids)} of {len(wanted.token_ids)} tokens"
        found.append(Violation(Wrong.LOST, name, missing))
    elif choice.text != wanted.text:
        found.append(Violation(Wrong.CHANGED, name, f"{where}the text is not that of its tokens"))
    if choice.finish_reasons != [wanted.finish_reason]:
        reasons = f"{where}finish reasons {choice.finish_reasons} instead of [{wanted.finish_reason!r}]"
        found.append(Violation(Wrong.CHANGED, name, reasons))
    return found


def _wrong_usage(journal: Journal, expected: Sequence[Expected]) -> list[Violation]:
    """Also that log probabilities, where asked for, are as many as tokens."""
    output = sum(len(wanted.token_ids) for wanted in expected)
    told = [(usage.get("prompt_tokens"), usage.get("completion_tokens")) for usage in journal.usages]
    found = []
    if told != [(len(journal.ask.prompt), output)]:
        why = f"usage {told} instead of once {(len(journal.ask.prompt), output)}"
        found.append(Violation(Wrong.USAGE, journal.ask.name, why))
    if "logprobs" in journal.ask.options:
        counts = [(len(choice.logprobs), len(choice.token_ids)) for choice in journal.choices]
        if any(told != tokens for told, tokens in counts):
            found.append(Violation(Wrong.CHANGED, journal.ask.name, f"log probabilities and tokens: {counts}"))
    return found
