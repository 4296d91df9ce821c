"""What the documents are made of: blocks of code, and the commands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for path in (*ROOT.glob('*.md'), *ROOT.rglob('docs/**/*.md'), *ROOT.glob('kernels/*.md'),
                                     *ROOT.glob('benchmarks/**/*.md'), *ROOT.glob('configs/**/*.md')))
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```', re.DOTALL | re.MULTILINE)
PLACEHOLDERS = r'\[[\w. <>|=-]*\](?=\s|$)|\.\.\.'  # optional arguments in brackets, dots for more of them
INLINE = re.compile(r'`((?:\w+=\w+ )?(?:python (?:tools/|-m benchmarks)|make |bnn\s[\w-]+\s[^-`])[^`]+)`')


def blocks(language: str) -> list[tuple[Path, int, str]]:
    """``(document, number of the block in it, code)`` of every block of a language."""
    return [(path, number, code) for path in DOCUMENTS
            for number, (kind, code) in enumerate(BLOCK.findall(path.read_text())) if kind == language]


def commands() -> dict[str, Path]:
    """Every command that a document tells a user to type, in a shell block or (those of this repository) in backticks, and the
    first document that has it. Settings of variables before a command are left out."""
    found = {}
    for path in DOCUMENTS:
        text = path.read_text()
        shell = '\n'.join(code for kind, code in BLOCK.findall(text) if kind in ('shell', 'bash', 'console'))
        inline = (' '.join(line.split()) for line in INLINE.findall(BLOCK.sub('', text)))
        for line in [*shell.replace('\\\n', ' ').splitlines(), *inline]:
            for command in re.sub(PLACEHOLDERS, '', line).split('&&'):
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
                    words.pop(0)
                if words:
                    found.setdefault(shlex.join(words), path)
    return found
