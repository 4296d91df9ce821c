"""Configs as data: JSON that keeps tuples, and what a config of plain values was in the Python text of earlier packed files.

Nothing here executes what it reads.
"""

import ast
import json

TUPLE, PAIRS = '()', '{}'  # JSON has neither tuples nor keys that are no text: {"()": [...]} and {"{}": [[key, value], ...]}


def to_json(config: dict) -> str:
    """The JSON text of nested dicts, lists, tuples, texts, numbers, booleans and ``None``; classes become their dotted names.

    Raises:
        ValueError: for any other object, named with its place.
    """
    return json.dumps(encoded(config, 'config'), ensure_ascii=False)


def encoded(value, place: str):
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and not value.keys() & {TUPLE, PAIRS}:
            return {key: encoded(item, f'{place}.{key}') for key, item in value.items()}
        return {PAIRS: [[encoded(key, place), encoded(item, f'{place}.{key}')] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [encoded(item, f'{place}[{i}]') for i, item in enumerate(value)]
        return items if isinstance(value, list) else {TUPLE: items}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    raise ValueError(f'{place} is a {type(value).__name__}, and a packed file keeps plain values only: texts, numbers, lists, '
                     'tuples and dicts')


def from_json(text: str):
    """What :func:`to_json` was given, but for names of classes. Raises ``ValueError`` for text that it did not write."""
    try:
        return json.loads(text, object_hook=decoded)
    except RecursionError:
        raise ValueError('it is nested too deep') from None


def decoded(value: dict):
    match value:
        case {'()': list(items), **rest} if not rest:
            return tuple(items)
        case {'{}': list(pairs), **rest} if not rest:
            try:
                return dict(pairs)
            except TypeError:
                raise ValueError('it has a key that is no plain value') from None
    return value


def from_python(text: str) -> dict:
    """The top-level assignments of the Python text of a config, if all are plain values; the text is parsed, never run.

    Raises:
        ValueError: for anything but ``name = value`` with literals, ``dict(...)``, lists and tuples, with its line.
    """
    try:
        return dict(map(assignment, ast.parse(text).body))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f'this is no config in Python ({type(error).__name__})') from None


def assignment(node: ast.stmt) -> tuple:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, literal(value)
    raise ValueError(f'line {node.lineno} is no plain "name = value"')


def literal(node: ast.expr):
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords) if all(word.arg for word in keywords):
            return {word.arg: literal(word.value) for word in keywords}
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {literal(key): literal(value) for key, value in zip(keys, values, strict=True)}
        case ast.List(elts=items):
            return list(map(literal, items))
        case ast.Tuple(elts=items):
            return tuple(map(literal, items))
        case ast.Name(id='inf' | 'nan' as number):
            return float(number)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f'line {node.lineno} has a value that is not plain: {ast.unparse(node)[:80]!r}') from None
