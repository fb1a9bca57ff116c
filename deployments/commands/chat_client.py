"""`manta chat`: a conversation in the terminal over the HTTP API; each word appears when the server has sent it.

At a terminal it edits lines and keeps their history; in a pipe every line of input is one message, and the answers
are all that goes to standard output.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from cluster.client import ResumingStream, StreamFailed, StreamLost, bearer
from deployments.commands.chat_session import ChatSession, Quit
from deployments.commands.key import add_key_argument
from engine.errors import MantaError

#: A connection must come at once; a first token may wait in the server's queue.
TIMEOUT = httpx.Timeout(600.0, connect=5.0)
CHAT = "/v1/chat/completions"
_CONTROL_CHARACTERS = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


class ChatFailed(MantaError):
    """The server cannot be talked to; `why` says what to do."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url, self.why = url, why

    def __str__(self) -> str:
        return f"{self.url}: {self.why}"


class RequestFailed(MantaError):
    """The server has refused or broken off one answer, in its own words; the conversation can go on."""


@dataclass(slots=True)
class Answer:
    """What has come of an answer so far."""

    text: str = ""
    tokens: int | None = None
    first_s: float | None = None
    total_s: float = 0.0

    def summary(self) -> str:
        """Tokens and seconds, for a person."""
        parts = [] if self.tokens is None else [f"{self.tokens} tokens"]
        parts.append(f"{self.total_s:.2f} s")
        if self.first_s is not None:
            parts.append(f"first after {self.first_s:.2f} s")
        return ", ".join(parts)


class Terminal(Protocol):
    """How a person is asked and told."""

    def ask(self) -> str:
        """The next line; EOFError at the end, KeyboardInterrupt when the person takes the line back."""

    def begin_answer(self, model: str) -> None:
        """An answer is about to come."""

    def show(self, piece: str) -> None:
        """Some more of the answer."""

    def end_answer(self, note: str) -> None:
        """The answer is over; `note` is about it."""

    def tell(self, text: str) -> None:
        """Something that is not part of an answer."""

    def warn(self, text: str) -> None:
        """Something went wrong."""


class PipedTerminal:
    """Lines in, answers out; all else goes to standard error."""

    def ask(self) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def begin_answer(self, model: str) -> None:
        pass

    def show(self, piece: str) -> None:
        print(piece, end="", flush=True)

    def end_answer(self, note: str) -> None:
        print(flush=True)

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        print(f"manta: {text}", file=sys.stderr)


class ScreenTerminal:
    """A person at a screen. Control characters of an answer are dropped: a model must not steer the terminal."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from rich.console import Console

        self._prompt: PromptSession[str] = PromptSession()
        self._console = Console(highlight=False)

    def ask(self) -> str:
        from prompt_toolkit.formatted_text import HTML
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        return self._prompt.prompt(HTML("<b><ansicyan>you</ansicyan></b>  "), key_bindings=keys)

    def begin_answer(self, model: str) -> None:
        self._console.print(f"[bold green]{model}[/]  ", end="")

    def show(self, piece: str) -> None:
        sys.stdout.write(piece.translate(_CONTROL_CHARACTERS))
        sys.stdout.flush()

    def end_answer(self, note: str) -> None:
        self._console.print(f"\n[dim]{note}[/]\n")

    def tell(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def warn(self, text: str) -> None:
        self._console.print(text, style="bold red", markup=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `manta chat`."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    add_key_argument(parser)
    parser.add_argument("--model", help="the model to talk to (default: the first that the server lists)")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="sampling field")


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends; 1 when piped input met an error."""
    url = args.url.rstrip("/").removesuffix("/v1")
    with httpx.Client(base_url=url, timeout=TIMEOUT, headers=bearer(args.key)) as client:
        session = open_session(client, args)
        if sys.stdin.isatty() and sys.stdout.isatty():
            screen = ScreenTerminal()
            screen.tell(f"{session.model} at {url}; /help lists the commands, Ctrl-D ends\n")
            converse(client, session, screen, goes_on=True)
            return 0
        return 0 if converse(client, session, PipedTerminal(), goes_on=False) else 1


def open_session(client: httpx.Client, args: argparse.Namespace) -> ChatSession:
    """Ask the server for its models and begin a conversation."""
    url = str(client.base_url).rstrip("/")
    try:
        response = client.get("/v1/models")
        response.raise_for_status()
        models = tuple(str(card["id"]) for card in response.json()["data"])
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        hint = "give a valid key with --key or MANTA_API_KEY" if status == 401 else "is this a Manta server?"
        raise ChatFailed(url, f"/v1/models answers {status}; {hint}") from None
    except httpx.HTTPError as error:
        raise ChatFailed(url, f"no server answers ({error}); start one with scripts/serve or give --url") from None
    except (ValueError, KeyError, TypeError):
        raise ChatFailed(url, "/v1/models is not what an OpenAI-compatible server answers; check --url") from None
    if not models:
        raise ChatFailed(url, "the server lists no model")
    model = args.model or models[0]
    if model not in models:
        raise ChatFailed(url, f"model {model!r} is not served here; there is: {', '.join(models)}")
    session = ChatSession(models, model, args.system)
    for assignment in args.set:
        try:
            session.set_field(assignment)
        except ValueError as error:
            raise ChatFailed(url, f"--set: {error}") from None
    return session


def converse(client: httpx.Client, session: ChatSession, terminal: Terminal, goes_on: bool) -> bool:
    """Ask and answer until the input ends; False when an error ended it (never with `goes_on`)."""
    while True:
        try:
            line = terminal.ask().strip()
            if line.startswith("/"):
                terminal.tell(session.command(line))
            elif line:
                answer_line(client, session, terminal, line)
        except (EOFError, Quit):
            return True
        except KeyboardInterrupt:
            if not goes_on:
                raise
        except MantaError as error:
            terminal.warn(str(error))
            if not goes_on:
                return False


class CtrlC:
    """Raises KeyboardInterrupt on Ctrl-C, and remembers it: Python drops an exception raised inside a finalizer."""

    def __init__(self) -> None:
        self._pressed = False

    def __enter__(self) -> "CtrlC":
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self._pressed = True
        raise KeyboardInterrupt

    def after(self, show: Callable[[str], None]) -> Callable[[str], None]:
        """`show`, ending the answer when Ctrl-C was pressed before."""

        def show_unless_pressed(piece: str) -> None:
            show(piece)
            if self._pressed:
                raise KeyboardInterrupt

        return show_unless_pressed


def answer_line(client: httpx.Client, session: ChatSession, terminal: Terminal, line: str) -> None:
    """Stream the answer to one message; Ctrl-C keeps what has come and tells the server to stop."""
    answer = Answer()
    terminal.begin_answer(session.model)
    try:
        with CtrlC() as ctrl_c:
            show = ctrl_c.after(terminal.show)
            stream_answer(client, session.request(line), answer, show, time.monotonic)
        terminal.end_answer(answer.summary())
    except RequestFailed:
        terminal.end_answer("broken off" if answer.text else "no answer")
        answer.text = ""
        raise
    except KeyboardInterrupt:
        terminal.end_answer(f"stopped; {answer.summary()}")
        raise
    finally:
        if answer.text:
            session.remember(line, answer.text)


def stream_answer(
    client: httpx.Client,
    body: dict[str, Any],
    answer: Answer,
    show: Callable[[str], None],
    now: Callable[[], float],
) -> None:
    """Post `body` and fill `answer` as its events come, also over a lost gateway. Leaving early frees the work."""
    began = now()
    try:
        who = {name: value for name, value in client.headers.items() if name == "authorization"}
        with closing(iter(ResumingStream(str(client.base_url), CHAT, body, headers=who))) as events:
            for event in events:
                take_event(event, answer, show, now() - began)
    except (StreamFailed, StreamLost) as error:
        raise RequestFailed(str(error)) from None
    finally:
        answer.total_s = now() - began


def take_event(event: dict[str, Any], answer: Answer, show: Callable[[str], None], elapsed_s: float) -> None:
    """Add one event's text and usage to the answer."""
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    for choice in event.get("choices", ()):
        piece = choice["delta"].get("content") or ""
        if piece:
            if answer.first_s is None:
                answer.first_s = elapsed_s
            answer.text += piece
            show(piece)
