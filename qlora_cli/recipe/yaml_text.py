"""YAML text to values that know the file and line they were written at.

The scalars are those of the YAML 1.2 core schema: `2e-4` is a number, `on` and `yes` are text. PyYAML scans and
composes; values are built here, so that no tag can run code and aliases cannot grow without bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from qlora_cli.recipe.tree import UNREADABLE, Node, PlacedProblem, RecipePlace, TreeValue, Unreadable, problem_at

MAX_TEXT_BYTES = 1024 * 1024
MAX_VALUES = 20_000  # a recipe holds about a hundred; an alias bomb holds billions
MAX_DEPTH = 50  # no recipe is nested more than six times; a mapping that holds itself has no end
MAX_DIGITS = 18  # whole numbers of more digits do not fit 64 bits

_TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    "merge": re.compile(r"^<<$"),
}
"""YAML 1.2 core schema, section 10.3.2; an int also matches `float`, so the order counts."""


@dataclass(frozen=True)
class Parsed:
    """A parsed text: its root (None where the text cannot be used at all) and its problems."""

    root: Node | None
    problems: list[PlacedProblem]


class CoreSchemaLoader(yaml.SafeLoader):
    """Scans and composes YAML, resolving plain scalars by the 1.2 core schema."""


CoreSchemaLoader.yaml_implicit_resolvers = {
    None: [(_TAG + name, pattern) for name, pattern in SCALARS.items()]  # None: whatever the first character
}


def parse_yaml(text: str, file: str, *, is_option: bool = False) -> Parsed:
    """Read one YAML document.

    Args:
        text: the YAML text.
        file: name of the file for places; for an option its text, e.g. `--set lora.r=8`.
        is_option: the text is a command-line value, whose places have no line.
    """
    try:
        root = CoreSchemaLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        what = " ".join(part for part in (error.context, error.problem) if part)
        is_unclosed = "<stream end>" in what or "end of stream" in what
        mark = error.context_mark if is_unclosed and error.context_mark else error.problem_mark
        last_line = text.rstrip().count("\n") + 1  # what ends too early is found missing after the last line
        line = 0 if is_option or mark is None else min(mark.line + 1, last_line)
        return Parsed(None, [problem_at(RecipePlace(file, line), f"this is not YAML: {what}", _syntax_hint(what))])
    except yaml.reader.ReaderError as error:
        line = 0 if is_option else text.count("\n", 0, error.position) + 1
        what = f"the character U+{error.character:04X} is not allowed in YAML"
        return Parsed(None, [problem_at(RecipePlace(file, line), what, "take it out")])
    except RecursionError:
        return Parsed(None, [problem_at(RecipePlace(file, 0 if is_option else 1), "values are nested too deeply")])
    if root is None:
        return Parsed(None, [])
    builder = _Builder(file, is_option)
    node = builder.build(root, builder.place(root), depth=0)
    return Parsed(None if builder.is_exhausted else node, builder.problems)


SYNTAX_HINTS = (
    ("'\\t'", "indent with spaces, not tabs"),
    (
        "mapping values are not",
        "write each setting as `key: value` on a line of its own; quote text that holds a colon",
    ),
    ("expected ':'", "write each setting as `key: value` on a line of its own; quote text that holds a colon"),
    ("<stream end>", "close the bracket that opens there"),
    ("end of stream", "close the quote that opens there"),
    ("<block", "keys of one section start in the same column"),
    ("undefined alias", "name the value that it stands for with `&` further up"),
    ("single document", "take out the `---` line: a recipe is one document"),
    ("", "put text that holds special characters in quotes"),
)
"""A part of PyYAML's message -> what to do; the first that fits."""


def _syntax_hint(what: str) -> str:
    return next(hint for part, hint in SYNTAX_HINTS if part in what)


class _Builder:
    """Turns composed YAML nodes into `Node`s and collects what is wrong on the way."""

    def __init__(self, file: str, is_option: bool) -> None:
        self.file = file
        self.is_option = is_option
        self.problems: list[PlacedProblem] = []
        self.num_values = 0
        self.is_exhausted = False

    def place(self, node: yaml.Node) -> RecipePlace:
        return RecipePlace(self.file, 0 if self.is_option else node.start_mark.line + 1)

    def report(self, place: RecipePlace, text: str, hint: str = "") -> Unreadable:
        self.problems.append(problem_at(place, text, hint))
        return UNREADABLE

    def build(self, node: yaml.Node, place: RecipePlace, depth: int) -> Node:
        """Build `node`, whose key is at `place`."""
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            if not self.is_exhausted:
                self.report(place, "aliases or nesting make this recipe too large", "write the values out")
            self.is_exhausted = True
            return Node(UNREADABLE, place)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._mapping(node, depth), place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Node([self.build(item, self.place(item), depth + 1) for item in node.value], place)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node, place), place)
        return Node(self._refuse_tag(node, place), place)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        written: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if self.is_exhausted:
                break
            if key_node.tag == _TAG + "merge":
                merged |= self._merge_values(value_node, place, depth)
                continue
            key = self._key(key_node, place)
            if key is None:
                continue
            if key in written:
                first = written[key].place
                self.report(place, f"duplicate key '{key}', first written at {first}", "keep one of the two")
            if value_node.tag == _TAG + "null" and value_node.value == "":
                hint = f"write its value, `{key}: {{}}` for a section of defaults, or `{key}: null` for none"
                written[key] = Node(self.report(place, f"the key '{key}' has no value", hint), place)
            else:
                written[key] = self.build(value_node, place, depth + 1)
        return merged | written

    def _merge_values(self, node: yaml.Node, place: RecipePlace, depth: int) -> dict[str, Node]:
        """The mapping or mappings under a `<<` key; of several, the first wins (YAML merge key, 1.1 types)."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Node] = {}
        for source in sources:
            value = self.build(source, place, depth + 1).value
            if isinstance(value, dict):
                merged = value | merged
            else:
                self.report(place, "'<<' merges mappings only", "give it an alias of a mapping: `<<: *name`")
        return merged

    def _key(self, node: yaml.Node, place: RecipePlace) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str" and not _is_unusable(node.value):
            return node.value
        seen = f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        self.report(place, f"a key must be text, not {seen}", "put it in quotes if it is meant as text")
        return None

    def _scalar(self, node: yaml.ScalarNode, place: RecipePlace) -> TreeValue:
        tag, text = node.tag.removeprefix(_TAG), node.value
        if tag in ("str", "merge"):
            if _is_unusable(text):
                return self.report(place, "text holds a NUL or half of a surrogate pair", "write plain text")
            return text
        if tag not in SCALARS:
            return self._refuse_tag(node, place)
        if not SCALARS[tag].match(text):
            return self.report(place, f"'{text}' is not of the type !!{tag}", "take the tag out")
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if len(text) > MAX_DIGITS:
            return self.report(place, f"the number {text[:MAX_DIGITS]}… has too many digits", "write a smaller one")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def _refuse_tag(self, node: yaml.Node, place: RecipePlace) -> Unreadable:
        tag = node.tag.replace(_TAG, "!!")
        return self.report(place, f"the YAML tag '{tag}' is not allowed", "write plain text, numbers and lists")


def _is_unusable(text: str) -> bool:
    """Whether text holds what no file name and no UTF-8 file can hold; only escapes can bring it in."""
    return any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
