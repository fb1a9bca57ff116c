"""`manta chat` against a server that speaks the wire format: piped and at a (pseudo) terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class ChatServer:
    """Answers every chat with the words of the last message, reversed; `endless` repeats them until cut off."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    client_left: threading.Event = field(default_factory=threading.Event)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}}])


def make_handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"object": "list", "data": [{"id": "echo"}, {"id": "other"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            words = body["messages"][-1]["content"].split()
            if body.get("temperature", 0) > 2:
                self.answer(400, {"error": {"message": "`temperature` is 9; at most 2.", "param": "temperature"}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.stream(words)

        def stream(self, words: list[str]) -> None:
            self.wfile.write(b": a comment\n\n")
            if words[0] == "break":
                self.wfile.write(piece("half ") + event(error={"message": "engine_failed"}))
            elif words[0] == "vanish":
                self.wfile.write(piece("half "))
            elif words[0] == "steer":
                self.wfile.write(piece("\x1b[31mred\x07") + b"data: [DONE]\n\n")
            elif words[0] == "endless":
                self.stream_until_cut_off()
            else:
                for word in reversed(words):
                    self.wfile.write(piece(f"{word} "))
                self.wfile.write(event(usage={"completion_tokens": len(words)}) + b"data: [DONE]\n\n")

        def stream_until_cut_off(self) -> None:
            try:
                for _ in range(1000):
                    self.wfile.write(piece("on and "))
                    time.sleep(0.02)
            except OSError:
                server.client_left.set()

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()
    listener = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(server))
    listener.daemon_threads = True
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    yield server
    listener.shutdown()
    listener.server_close()
    thread.join()


PROGRAM = (
    "import argparse, sys; from deployments.commands import chat_client; from engine.errors import MantaError\n"
    "parser = argparse.ArgumentParser(); chat_client.add_arguments(parser)\n"
    "try: sys.exit(chat_client.run(parser.parse_args()))\n"
    "except MantaError as error: sys.exit(f'manta: {error}')\n"
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *arguments]


def talk(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), input=text, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False
    )


def test_piped_lines_are_messages_of_one_conversation(chat_server: ChatServer) -> None:
    done = talk("/set max_tokens=9\none two\n\nthree four\n", "--url", f"{chat_server.url}/v1", "--system", "Short.")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two one \nfour three \n"
    assert done.stderr == "max_tokens=9\n"
    first, second = chat_server.bodies
    assert first["model"] == "echo" and first["max_tokens"] == 9
    assert [message["content"] for message in second["messages"]] == ["Short.", "one two", "two one ", "three four"]


def test_a_refusal_is_told_and_ends_a_pipe(chat_server: ChatServer) -> None:
    done = talk("one\ntwo\n", "--url", chat_server.url, "--set", "temperature=9", "--model", "other")
    assert done.returncode == 1
    assert done.stderr == "manta: 400: `temperature` is 9; at most 2.\n"
    assert len(chat_server.bodies) == 1 and chat_server.bodies[0]["model"] == "other"


@pytest.mark.parametrize(("text", "reason"), [("break", "engine_failed"), ("vanish", "ended before the answer did")])
def test_a_broken_stream_is_no_answer(chat_server: ChatServer, text: str, reason: str) -> None:
    done = talk(f"{text}\n", "--url", chat_server.url)
    assert done.returncode == 1
    assert done.stdout == "half \n"
    assert reason in done.stderr


def test_no_server() -> None:
    done = talk("hello\n", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "http://127.0.0.1:9: no server answers" in done.stderr and "scripts/serve" in done.stderr


def test_a_model_that_is_not_served(chat_server: ChatServer) -> None:
    done = talk("hello\n", "--url", chat_server.url, "--model", "huge")
    assert "model 'huge' is not served here; there is: echo, other" in done.stderr


class Screen:
    """A process at a pseudo terminal, and what it has shown."""

    def __init__(self, arguments: list[str]) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ["TERM"] = "xterm"
            os.execv(arguments[0], arguments)
        self.shown = self.passed = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        until = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < until, f"{text!r} did not come; shown: {self.shown!r}"
            self.read()
        before, self.shown = self.shown.split(text, 1)
        self.passed = before + text

    def read(self) -> None:
        ready, _, _ = select.select([self.terminal], [], [], 0.2)
        if ready:
            data = os.read(self.terminal, 65536).decode(errors="replace")
            if "\x1b[6n" in data:  # the program asks where the cursor is
                self.type("\x1b[1;1R")
            self.shown += data

    def exit_code(self) -> int:
        try:
            while True:
                self.read()
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.terminal)


def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(chat_server: ChatServer) -> None:
    screen = Screen(command("--url", chat_server.url))
    try:
        screen.wait_for("/help lists the commands")
        screen.wait_for("you")
        screen.type("steer\r")
        screen.wait_for("[31mred")
        assert not screen.passed.endswith("\x1b[31mred"), "an answer must not steer the terminal"
        screen.wait_for("you")
        screen.type("endless\r")
        screen.wait_for("on and on and")
        screen.type("\x03")
        screen.wait_for("stopped;")
        assert chat_server.client_left.wait(10), "the server was not told"
        screen.wait_for("you")
        screen.type("one two\r")
        screen.wait_for("two one")
        screen.wait_for("2 tokens")
        screen.wait_for("you")
        screen.type("\x04")
        assert screen.exit_code() == 0
    finally:
        screen.close()
    roles = [(message["role"], message["content"]) for message in chat_server.bodies[-1]["messages"]]
    assert roles[-1] == ("user", "one two")
    assert roles[-2][0] == "assistant" and roles[-2][1].startswith("on and ")
