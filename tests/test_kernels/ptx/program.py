"""PTX text to a list of instructions."""

import re
from typing import NamedTuple

SIZES = {'pred': 1, 'b8': 1, 'b16': 2, 'b32': 4, 'b64': 8, 'f32': 4}
ENTRY = re.compile(r'\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)\s*\.reqntid\s+(\d+).*?\{(.*)\}', re.DOTALL)
LABEL = re.compile(r'(\$?\w+):')
GUARD = re.compile(r'@(!?)(%?\w+)\s+')


class Instruction(NamedTuple):
    op: tuple[str, ...]  # 'ld.global.b32' as its parts
    operands: tuple
    guard: str | None  # a predicate register
    negated: bool
    text: str


class Memory(NamedTuple):
    """[base + offset]; the base is a register or a name."""

    base: str
    offset: int


class Program(NamedTuple):
    name: str
    parameters: tuple[str, ...]
    threads: int
    registers: dict[str, int]  # bytes; 0 is a predicate
    instructions: list[Instruction]
    labels: dict[str, int]


def parse(text: str) -> Program:
    text = re.sub(r'//[^\n]*', '', text).partition('.section')[0]  # what follows is for debuggers
    text = re.sub(r'^\s*\.(loc|file)\b[^\n]*$', '', text, flags=re.MULTILINE)
    name, parameters, threads, body = ENTRY.search(text).groups()
    registers, instructions, labels, scopes = {}, [], {}, [{}]
    for statement in re.split(r'([;{}])', _protect(body)):
        statement = statement.strip()
        while label := LABEL.match(statement):
            labels[label[1]] = len(instructions)
            statement = statement[label.end():].strip()
        if statement == '{':
            scopes.append({})
        elif statement == '}':
            scopes.pop()
        elif statement.startswith('.reg'):
            _declare(statement, registers, scopes)
        elif statement and statement != ';' and not statement.startswith('.'):
            instructions.append(_instruction(statement, scopes))
    return Program(name, tuple(re.findall(r'(\w+)\s*(?:,|$)', parameters)), int(threads), registers, instructions, labels)


def _protect(body: str) -> str:
    """Braces of vectors become brackets of another kind, so that only those of scopes are left."""
    return re.sub(r'\{([^;{}]*)\}', r'<\1>', body)


def _declare(statement: str, registers: dict, scopes: list[dict]) -> None:
    kind, names = re.match(r'\.reg\s+\.(\w+)\s+(.*)', statement, re.DOTALL).groups()
    for name in names.split(','):
        stem, count = re.match(r'(%?\w+?)(?:<(\d+)>)?$', name.strip()).groups()
        for register in [stem] if count is None else [f'{stem}{i}' for i in range(int(count))]:
            unique = register if len(scopes) == 1 else f'{register}@{len(registers)}'  # a name of inline assembly
            scopes[-1][register] = unique
            registers[unique] = 0 if kind == 'pred' else SIZES[kind.replace('s', 'b').replace('u', 'b')]


def _instruction(statement: str, scopes: list[dict]) -> Instruction:
    text, guard, negated = ' '.join(statement.split()), None, False
    if match := GUARD.match(text):
        negated, guard = match[1] == '!', match[2]
    op, _, rest = text[match.end() if match else 0:].partition(' ')
    operands = tuple(_operand(item, scopes) for item in _split(rest))
    return Instruction(tuple(re.split(r'\.|::', op)), operands, guard, negated, text)


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    return [item.strip() for item in re.findall(r'(?:<[^>]*>|\[[^\]]*\]|[^,<\[])+', text) if item.strip()]


def _operand(text: str, scopes: list[dict]):
    """A register, special register or name (str), a number (int), a vector (tuple) or a memory address."""
    if text[0] == '<':
        return tuple(_operand(item, scopes) for item in _split(text[1:-1]))
    if text[0] == '[':
        base, _, offset = text[1:-1].replace(' ', '').partition('+')
        return Memory(_operand(base, scopes), int(offset or '0', 0))
    text = text.split('|')[0]  # the second result of shfl is not used
    for scope in reversed(scopes):
        if text in scope:
            return scope[text]
    if re.match(r'-?\d', text):
        return int(text[2:], 16) if text.startswith('0f') else int(text.rstrip('U'), 0)
    return text
