"""A module's source → every small fault of the kind that slips into code, each as a whole source."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
NOT_CODE = ("annotation", "returns", "decorator_list", "type_params", "bases")


def with_fields(node: Any, **fields: Any) -> Any:
    """A copy of a node with other fields."""
    changed = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def variants(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901 (one case for each kind of node)
    """What may stand in a node's place by mistake."""
    match node:
        case ast.Compare(ops=ops):
            for n, op in enumerate(ops):
                yield from (with_fields(node, ops=[*ops[:n], to(), *ops[n + 1 :]]) for to in COMPARISONS[type(op)])
        case ast.BinOp(op=ast.BitOr()):
            yield node.left
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield with_fields(node, op=OPERATORS[type(op)]())
        case ast.BoolOp(op=op):
            yield with_fields(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.IfExp():
            yield with_fields(node, body=node.orelse, orelse=node.body)
        case ast.Call():
            yield from variants_of_call(node)
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.If(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield with_fields(node, test=ast.UnaryOp(ast.Not(), test))
            if not node.orelse:
                yield ast.Pass()
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def variants_of_call(node: ast.Call) -> Iterator[ast.AST]:
    """A call without one of its keyword arguments, `min` for `max`, the other order."""
    for number, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield with_fields(node, keywords=node.keywords[:number] + node.keywords[number + 1 :])
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in ("min", "max"):
        yield with_fields(node, func=ast.Name("min" if name == "max" else "max"))
    if name == "sorted":
        yield ast.Subscript(node, ast.Slice(step=ast.UnaryOp(ast.USub(), ast.Constant(1))))


def places(tree: ast.AST, inside: bool = False) -> Iterator[tuple[Any, Any, ast.AST, bool]]:
    """Where nodes of code hang, as (list or node, index or field, node, within a function), in the file's order."""
    within = inside or isinstance(tree, ast.FunctionDef | ast.Lambda)
    for name, value in ast.iter_fields(tree):
        if name not in NOT_CODE:
            where = value if isinstance(value, list) else tree
            for key, node in enumerate(value) if isinstance(value, list) else [(name, value)]:
                if isinstance(node, ast.AST):
                    # defaults of arguments are made when the function is
                    yield where, key, node, within and name != "args"
                    yield from places(node, within and name != "args")


def faults(source: str) -> list[dict[str, Any]]:
    """Every fault: first and last line, whether a call must reach it, what was and what is there, the whole source."""
    tree, found = ast.parse(source), []
    for where, key, node, inside in list(places(tree)):
        for variant in variants(node):
            before = ast.unparse(node)
            put(where, key, variant)
            changed = {"inside": inside, "source": ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))}
            put(where, key, node)
            # an `if` stands for its test: its body may never run
            last = node.test.end_lineno if isinstance(node, ast.If | ast.While) else node.end_lineno  # type: ignore[attr-defined]
            found.append({"lines": (node.lineno, last), **differing(before, ast.unparse(variant)), **changed})  # type: ignore[attr-defined]
    return found


def put(where: Any, key: Any, node: ast.AST) -> None:
    """Hang a node where another one was."""
    if isinstance(where, list):
        where[key] = node
    else:
        setattr(where, key, node)


def differing(before: str, after: str) -> dict[str, str]:
    """Both texts from shortly before the first character that differs."""
    before, after = (" ".join(text.split()) for text in (before, after))
    start = max(0, next((n for n, two in enumerate(zip(before, after, strict=False)) if len(set(two)) > 1), 0) - 40)
    return {"before": before[start : start + 90], "after": after[start : start + 90]}
