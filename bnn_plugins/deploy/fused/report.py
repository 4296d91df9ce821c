"""What ``fuse_`` says: which layers run as what, and why others do not."""

from dataclasses import dataclass, field

from ...convert.tables import printed, report_table


@dataclass
class FusionReport:
    """The result of :func:`bnn_plugins.fuse_`. ``print(report)`` and rich both show it as a table.

    Attributes:
        rows: ``{packed layer: what it became}``; 'not fused: reason' for those that run as before.
        stems: ``{real convolution of an image: what it became}``; 'not fused: reason' for those that torch runs, and what
            follows them.
        parts: ``{module: what was traced there}``: the parts that run as one program, and those that could not be traced.
    """

    rows: dict[str, str] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def fused(self) -> list[str]:
        return [name for name, text in self.rows.items() if not text.startswith('not fused')]

    def summary(self) -> str:
        return f'{len(self.fused)} of {len(self.rows)} packed layers fused'

    def __rich__(self):
        parts = {name or '(the model)': text for name, text in self.parts.items()}
        rows = (*self.stems.items(), *self.rows.items(), *parts.items())
        return report_table('Fusion report', ('layer', 'runs as'), rows, self.summary(), overflow='fold')

    def __str__(self) -> str:
        return printed(self)
