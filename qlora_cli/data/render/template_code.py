"""A chat template compiled twice: as it is, and with the marks that `traced_template.py` reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import CodeType

from jinja2 import Environment, nodes
from jinja2.visitor import NodeTransformer

# The environment that `apply_chat_template` renders with: sandbox, filters, extensions. It has no public name.
from transformers.utils.chat_template_utils import _compile_jinja_template

from qlora_cli.data.render.quick_sandbox import quick_getattr
from qlora_cli.data.render.template_tree import loop_before_constant_tail, markup_read, prints, reads

MARK_MESSAGE, MARK_LOOP_END, MARK_GENERATION = "mark_message", "mark_loop_end", "mark_generation"
"""Names of the filters that print marks."""

NO_MESSAGE = -1
"""Index in the mark of an end."""

NOTHING = "_nothing"
"""Name of a variable for marks that look at none."""


@dataclass(frozen=True, slots=True)
class TemplateCode:
    """A template's code, and what its tree says."""

    unchanged: CodeType

    marked: CodeType
    """The same with marks."""

    markup_read: frozenset[str]
    """Words that the template looks for in the messages, such as `</think>`."""

    reads_clock: bool
    """Whether it may print today's date."""

    last_loop: int | None
    """Number of its last loop, where all that follows is the same after every conversation."""

    has_generation_blocks: bool
    """Whether the template says itself what the assistant says."""


def environment_of(source: str) -> Environment:
    """An environment like the one that transformers renders the template with, with quicker attributes."""
    environment = _compile_jinja_template(source).environment.overlay()
    environment.getattr = quick_getattr(environment)
    return environment


@cache
def compiled(source: str) -> TemplateCode:
    """Parse and compile a template, which takes much longer than rendering a chat with it.

    Raises:
        jinja2.TemplateSyntaxError: if `source` is not Jinja.
    """
    environment = environment_of(source)
    names = (MARK_MESSAGE, MARK_LOOP_END, MARK_GENERATION)  # Jinja compiles no filter that it does not know
    environment.filters = {**environment.filters, **dict.fromkeys(names, str)}
    tree = environment.parse(source)
    words, is_dated, last_loop = markup_read(tree), reads(tree, "strftime_now"), loop_before_constant_tail(tree)
    inserter = _MarkInserter()
    marked = inserter.visit(tree)
    marked.set_environment(environment)
    return TemplateCode(
        unchanged=environment.compile(source),
        marked=environment.compile(marked),
        markup_read=words,
        reads_clock=is_dated,
        last_loop=last_loop,
        has_generation_blocks=inserter.has_generation_blocks,
    )


class _MarkInserter(NodeTransformer):
    """Puts the marks into a parsed template.

    A mark is printed by a filter (`{{ message | mark_message(0) }}`): the sandbox checks every call of a function
    at a cost of a microsecond, and no filter.
    """

    def __init__(self) -> None:
        self.num_loops = 0
        self.has_generation_blocks = False

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:  # noqa: N802 - the name that Jinja calls
        loop = self.num_loops
        self.num_loops += 1
        self.generic_visit(node)
        if isinstance(node.target, nodes.Name) and any(map(prints, node.body)):
            node.body.insert(0, _print_filtered(node.lineno, node.target.name, MARK_MESSAGE, loop))
        return [node, _print_filtered(node.lineno, NOTHING, MARK_LOOP_END, loop)]

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802 - the name that Jinja calls
        self.generic_visit(node)
        called = node.call.node
        if isinstance(called, nodes.ExtensionAttribute) and called.name == "_generation_support":
            self.has_generation_blocks = True
            start = _print_filtered(node.lineno, NOTHING, MARK_GENERATION, 0)
            end = _print_filtered(node.lineno, NOTHING, MARK_GENERATION, NO_MESSAGE)
            node.body = [start, *node.body, end]
        return node


def _print_filtered(line: int, variable: str, filter_name: str, number: int) -> nodes.Output:
    """The node of `{{ variable | filter_name(number) }}`."""
    shown = nodes.Filter(nodes.Name(variable, "load"), filter_name, [nodes.Const(number)], [], None, None)
    return nodes.Output([shown], lineno=line)
