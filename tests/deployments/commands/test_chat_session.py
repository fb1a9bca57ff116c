"""The /commands of `manta chat` and the request body they lead to."""

import pytest

from deployments.commands.chat_session import ChatSession, Quit


def session() -> ChatSession:
    return ChatSession(models=("demo", "large"), model="demo")


def test_the_body_holds_system_message_turns_and_settings() -> None:
    chat = session()
    chat.command("/system Be brief.")
    chat.command("/set temperature=0.5")
    chat.remember("hello", "hi")
    assert chat.request("and now?") == {
        "model": "demo",
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "and now?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_clear_forgets_turns_and_keeps_the_rest() -> None:
    chat = session()
    chat.command("/system Be brief.")
    chat.command("/set max_tokens=5")
    chat.remember("hello", "hi")
    chat.command("/clear")
    body = chat.request("again")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["max_tokens"] == 5


def test_system_message_is_shown_and_removed() -> None:
    chat = session()
    assert chat.command("/system") == "no system message"
    assert chat.command("/system Speak as a sailor.") == "system message: Speak as a sailor."
    assert chat.command("/system -") == "no system message"
    assert chat.system == ""


def test_models_are_listed_chosen_and_refused() -> None:
    chat = session()
    assert chat.command("/model") == "* demo\n  large"
    assert chat.command("/model large") == "talking to large"
    assert chat.command("/model huge") == "'huge' is not served here; there is: demo, large"
    assert chat.model == "large"


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("/set top_k=20", {"top_k": 20}),
        ('/set stop=["a", "b"]', {"stop": ["a", "b"]}),
        ("/set stop=END", {"stop": "END"}),
        ("/set  seed = 7 ", {"seed": 7}),
        ("/set ignore_eos=true", {"ignore_eos": True}),
        ("/set old=", {}),
    ],
)
def test_settings_are_json_or_text(line: str, settings: dict[str, object]) -> None:
    chat = session()
    chat.settings["old"] = 1
    chat.command(line)
    assert {key: value for key, value in chat.settings.items() if key != "old"} == settings
    assert ("old" in chat.settings) == (line != "/set old=")


@pytest.mark.parametrize("line", ["/set temperature", "/set =1", "/set a b=1", "/set stream=false", "/set model=x"])
def test_settings_that_cannot_be_are_refused(line: str) -> None:
    chat = session()
    assert "=" in chat.command(line) or "/model" in chat.command(line)
    assert chat.settings == {}


def test_unknown_commands_point_to_help() -> None:
    chat = session()
    assert chat.command("/halp") == "/halp is no command; /help lists them all"
    assert "/system" in chat.command("/help")


def test_quit() -> None:
    with pytest.raises(Quit):
        session().command("/quit")
