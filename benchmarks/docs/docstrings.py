"""Docstrings as the documentation site shows them; an extension of griffe, named in mkdocs.yml."""

import re

import griffe

ROLE = re.compile(r':(?:attr|class|data|exc|func|math|meth|mod):`~?\.?([^`]+)`')


class Docstrings(griffe.Extension):
    """Roles of Sphinx become code, ``Example:`` the section of examples that griffe knows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs):
        if obj.docstring is not None:
            text = ROLE.sub(r'`\1`', obj.docstring.value)
            obj.docstring.value = re.sub(r'^(\s*)Example:$', r'\1Examples:', text, flags=re.MULTILINE)
