"""Text for mmengine's Runner: windows of a file, bits per character, samples."""

from .bits import BitsPerCharacter
from .text import TextWindows

__all__ = ['BitsPerCharacter', 'TextWindows']
