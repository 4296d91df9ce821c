"""The commands of ``bnn``: one module each, with ``arguments(parser)`` and ``main(**arguments)``.

``main`` imports what it needs: ``bnn --help`` and the arguments of a command need torch only. What ``main`` returns is the
exit status: nothing for success.
"""
