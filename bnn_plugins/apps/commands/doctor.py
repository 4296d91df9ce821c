"""What is installed and what runs here: versions, backends with reasons, changes in other packages, what is missing."""

from argparse import ArgumentParser


def arguments(parser: ArgumentParser) -> None:
    pass


def main() -> int:
    from ..doctor import examine
    return examine()
