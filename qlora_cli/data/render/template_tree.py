"""Facts of a chat template that its parsed tree shows before it is run."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

_CONSTANT_NODES = (
    nodes.Output,
    nodes.TemplateData,
    nodes.Const,
    nodes.If,
    nodes.CondExpr,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Compare,
    nodes.Operand,
    nodes.Test,
    nodes.Add,
    nodes.Concat,
)
"""Text, constants, conditions over them. No calls, filters, attributes or assignments."""

_ASKED_FOR = "add_generation_prompt"
_OF_THE_CHAT = frozenset({"messages", "tools", "documents"})


def loop_before_constant_tail(tree: nodes.Template) -> int | None:
    """Number of the template's last loop, if all that follows it depends on nothing in the chat.

    Most templates end like the first one here, and then the generation prompt is the same for every conversation.

    Args:
        tree: a parsed template; its loops count from 0 in the order of the text.

    >>> from jinja2 import Environment
    >>> parse = Environment().parse
    >>> loop = "{% for m in messages %}.{% endfor %}"
    >>> loop_before_constant_tail(parse(loop + "{% if add_generation_prompt %}Assistant:{% endif %}"))
    0
    >>> loop_before_constant_tail(parse(loop + "{{ messages[-1].content }}"))
    >>> loop_before_constant_tail(parse("{% for m in messages %}.{{ ':' if add_generation_prompt }}{% endfor %}"))
    """
    at = max((at for at, node in enumerate(tree.body) if _holds_loop(node)), default=None)
    if at is None or not isinstance(tree.body[at], nodes.For):
        return None
    if any(name.name == _ASKED_FOR for node in tree.body[: at + 1] for name in _names(node)):
        return None  # the prompt, or a part of it, is printed in the loop
    changing = _OF_THE_CHAT | {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    changing |= {macro.name for macro in tree.find_all(nodes.Macro)}
    if not all(_is_constant(node, changing) for node in tree.body[at + 1 :]):
        return None
    return next(number for number, loop in enumerate(tree.find_all(nodes.For)) if loop is tree.body[at])


def prints(node: nodes.Node) -> bool:
    """Whether a part of a template can print more than spaces, or catch what is printed.

    >>> from jinja2 import Environment
    >>> [prints(Environment().parse(text)) for text in ("{% set x = 1 %} ", "{{ x }}", "{% set x %}a{% endset %}")]
    [False, True, True]
    """
    if isinstance(node, nodes.CallBlock) or node.find(nodes.CallBlock) is not None:
        return True
    outputs = [node] if isinstance(node, nodes.Output) else node.find_all(nodes.Output)
    return any(
        not isinstance(shown, nodes.TemplateData) or not shown.data.isspace()
        for output in outputs
        for shown in output.nodes
    )


def reads(tree: nodes.Template, name: str) -> bool:
    """Whether a template reads a variable or calls a function of this name."""
    return any(found.name == name and found.ctx == "load" for found in tree.find_all(nodes.Name))


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


def _holds_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.For) or node.find(nodes.For) is not None


def _is_constant(node: nodes.Node, changing: frozenset[str]) -> bool:
    if isinstance(node, nodes.Name):
        return node.name not in changing
    return isinstance(node, _CONSTANT_NODES) and all(_is_constant(child, changing) for child in node.iter_child_nodes())


def markup_read(tree: nodes.Template) -> frozenset[str]:
    """Words that the template looks for in what it is given, without spaces around them.

    >>> from jinja2 import Environment
    >>> sorted(markup_read(Environment().parse("{{ '<|end|>' if '</think>' in c else c.split('<think>\\\\n') }}")))
    ['</think>', '<think>']
    """
    assigned = {
        assign.target.name: assign.node.value
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and isinstance(assign.node, nodes.Const)
    }
    values = [
        assigned.get(node.name) if isinstance(node, nodes.Name) else node.value
        for node in _looked_for(tree)
        if isinstance(node, nodes.Name | nodes.Const)
    ]
    return frozenset(value.strip() for value in values if isinstance(value, str))


def _looked_for(tree: nodes.Template) -> Iterator[nodes.Node]:
    for compare in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            yield compare.expr
    for call in tree.find_all(nodes.Call):
        yield from call.args
    for applied in tree.find_all(nodes.Filter):
        yield from applied.args
