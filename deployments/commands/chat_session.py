"""The conversation that `manta chat` holds: messages, settings, what the /commands do.

Knows no terminal and no socket.
"""

import json
from dataclasses import dataclass, field
from typing import Any

HELP = """\
/help                  this list
/system [TEXT]         set the system message; without TEXT show it; /system - removes it
/model [NAME]          talk to another model; without NAME list them
/set [KEY=VALUE]       set a sampling field, such as temperature=0.5 or max_tokens=200; KEY= unsets it
/clear                 forget the conversation; model, system message and settings stay
/quit                  end (so does Ctrl-D)
Ctrl-C stops an answer; what has come stays in the conversation. Alt-Enter begins a new line."""


class Quit(Exception):
    """The person has asked to end."""


@dataclass(slots=True)
class ChatSession:
    """One conversation with one of the `models` that a server offers."""

    models: tuple[str, ...]
    model: str
    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def request(self, text: str) -> dict[str, Any]:
        """The body that asks for the answer to `text`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            **self.settings,
            "model": self.model,
            "messages": [*system, *self.messages, {"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def remember(self, text: str, answer: str) -> None:
        """Add a turn to the conversation."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; what to tell the person. Raises `Quit` for /quit."""
        name, _, rest = line.removeprefix("/").strip().partition(" ")
        rest = rest.strip()
        match name:
            case "help":
                return HELP
            case "system":
                return self._set_system(rest)
            case "model":
                return self._set_model(rest)
            case "set":
                return self._set_field(rest)
            case "clear":
                self.messages.clear()
                return "the conversation is forgotten"
            case "quit" | "exit":
                raise Quit
        return f"/{name} is no command; /help lists them all"

    def _set_system(self, text: str) -> str:
        if text:
            self.system = "" if text == "-" else text
        return f"system message: {self.system}" if self.system else "no system message"

    def _set_model(self, name: str) -> str:
        if not name:
            return "\n".join(f"{'*' if model == self.model else ' '} {model}" for model in self.models)
        if name not in self.models:
            return f"{name!r} is not served here; there is: {', '.join(self.models)}"
        self.model = name
        return f"talking to {name}"

    def _set_field(self, text: str) -> str:
        if text:
            try:
                self.set_field(text)
            except ValueError as error:
                return str(error)
        if not self.settings:
            return "nothing is set; the server's defaults count"
        return "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.settings.items())

    def set_field(self, text: str) -> None:
        """Take `key=value` (JSON, or plain text where it is none) into the settings; an empty value unsets."""
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key.isidentifier():
            raise ValueError(f"write key=value, for example temperature=0.5; {text!r} is not that")
        if key in ("model", "messages", "stream", "stream_options"):
            raise ValueError(f"{key} is the chat's own; /model and /system change the conversation")
        if not value:
            self.settings.pop(key, None)
            return
        try:
            self.settings[key] = json.loads(value)
        except json.JSONDecodeError:
            self.settings[key] = value
