"""Conversations of every kind that chat templates are compared on."""

from __future__ import annotations

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "City"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": PARAMETERS}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


TO_COLOGNE = {"type": "function", "id": "cdefghijk", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
SUNNY = {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi", "name": "weather"}
RAINY = {"role": "tool", "content": '{"sky": "rainy", "°C": 9}', "tool_call_id": "cdefghijk", "name": "weather"}

CONVERSATIONS = [
    [user("Hi"), assistant("Hello there")],
    [system("Be brief."), user("Hi"), assistant("Hello")],
    [system(""), user("Hi"), assistant("Hello")],
    [user("Hi"), assistant("Hello"), user("What?"), assistant("Paris, of course.")],
    [system("Be brief."), user("a"), assistant("one"), user("b"), assistant("two"), user("c"), assistant("three")],
    [user("Grüße 🙂 你好"), assistant("こんにちは 🎉 naïve")],
    [user("Code?"), assistant("def add(a, b):\n    return a + b")],
    [user("assistant"), assistant("assistant\nuser\nassistant")],
    [user("Think"), assistant("<think>\nhm\n</think>\n\nYes")],
    [user("Think"), assistant("Yes", reasoning_content="hm hm")],
    [user("Say it twice"), assistant("twice"), user("Say it twice"), assistant("twice")],
    [assistant("I begin"), user("Hi"), assistant("Hello")],
    [user("Weather?"), assistant("", tool_calls=[CALL])],
    [user("Weather?"), assistant("", tool_calls=[CALL]), SUNNY, assistant("It is sunny.")],
    [
        system("Be brief."),
        user("Weather?"),
        assistant("I look.", tool_calls=[CALL]),
        SUNNY,
        assistant("It is sunny."),
        user("Thanks"),
        assistant("Welcome"),
    ],
    [
        user("Weather?"),
        assistant("", tool_calls=[CALL]),
        SUNNY,
        assistant("", tool_calls=[CALL]),
        SUNNY,
        assistant("So"),
    ],
    [
        user("Weather in both?"),
        assistant("", tool_calls=[CALL, TO_COLOGNE]),
        SUNNY,
        RAINY,
        assistant("Sun, rain 🌧."),
    ],
    [
        system("Think first."),
        user("1"),
        assistant("a", reasoning_content="first thought"),
        user("2"),
        assistant("b", reasoning_content="second thought"),
    ],
    [user("Two lines"), assistant("one\n\n\ntwo  "), user("  and spaces "), assistant("    indented\n")],
    [
        system("Answer in JSON."),
        user('{"x": "\\n"}'),
        assistant('{"a": [1, "x\\n"], "b": null}'),
        user("<b>&amp;</b> 'quoted'"),
        assistant('"text" \\ back'),
    ],
]
