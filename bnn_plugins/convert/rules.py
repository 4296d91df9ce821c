"""Which layers of a float model become binary and which stay float, each with a reason that can be printed.

What is particular to a library (torch itself, mmdet, diffusers, yours) is a :class:`RuleSet`, added by :func:`register_rules`.
"""

import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain

from torch import Tensor, nn

from ..binarize.lookup import unknown
from ..layers import BinaryConv1d, BinaryConv2d, BinaryConv3d, BinaryConvTranspose2d, BinaryLayer, BinaryLinear
from .dataflow import LAYERS
from .flow import Probe, Trace


@dataclass(frozen=True)
class Candidate:
    """A layer of the float model, and where it is.

    Attributes:
        name: its dotted name.
        module: the layer itself.
        parents: the modules that contain it, the model first.
    """

    name: str
    module: nn.Module
    parents: tuple[nn.Module, ...]

    @property
    def model(self) -> nn.Module:
        """The model that is converted."""
        return self.parents[0] if self.parents else self.module

    @property
    def parts(self) -> list[str]:
        """The parts of its dotted name."""
        return self.name.split('.')

    def inside(self, *patterns: str) -> bool:
        """Whether the class of a module around it has one of these names (patterns as in :mod:`fnmatch`)."""
        return any(fnmatchcase(type(parent).__name__, pattern) for parent in self.parents for pattern in patterns)


Rule = Callable[[Candidate], str | None]
# The binary layer of each float one.
BINARY_FORMS: dict[type[nn.Module], type[BinaryLayer]] = {
    nn.Linear: BinaryLinear, nn.Conv1d: BinaryConv1d, nn.Conv2d: BinaryConv2d, nn.Conv3d: BinaryConv3d,
    nn.ConvTranspose2d: BinaryConvTranspose2d}


def form_of(layer: nn.Module) -> type[BinaryLayer]:
    """The binary class that takes the place of ``layer``."""
    own = {name: form for rules in RULE_SETS.values() for name, form in rules.forms.items()}
    base = base_of(layer)
    assert base is not None
    return own.get(type(layer).__name__, BINARY_FORMS[base])


def base_of(layer: nn.Module) -> type[nn.Module] | None:
    """The class of torch that has a binary form and that ``layer`` is of; ``None`` where there is none."""
    return next((base for base in BINARY_FORMS if isinstance(layer, base)), None)


@dataclass(frozen=True)
class RuleSet:
    """Which layers of a library's models must stay float, and which roles its layers have.

    The rules of a :class:`BNNConfig` go first. For the layers that these do not name, all rule sets are asked about the
    structure, then about the classes around the layer, then about its name. The first reason that is found is reported.

    Attributes:
        library: the name of the rule set.
        structure: functions of a :class:`Candidate` (the layer, the modules around it, the model), which return why it stays
            float, or ``None``.
        classes: ``{reason: class names}``; layers inside of such modules stay float. Patterns as in :mod:`fnmatch`.
        names: ``{reason: names}``; layers with such a part in their dotted name stay float.
        shortcuts: names of shortcuts: 1x1 convolutions with such a part in their dotted name stay float.
        channel_attention: class names of channel attention: its layers stay float, and so do its ReLUs.
        roles: ``{role: function of a Candidate}``, for ``BNNConfig(roles=...)``.
        weight_readers: class names of modules that read the weight of a layer inside of them without calling the layer.
        forms: ``{class name: binary class}`` for subclasses of torch's layers that do something of their own to the input or
            the weight, which the binary class does, too; it takes the arguments of the form of torch's layer. Attributes
            that it names in ``same_attributes``, and buffers of the same names, are those of the float layer.
        plain_modules: names of Python modules whose subclasses of ``nn.Conv2d`` and ``nn.Linear`` compute what those do.
        probe: says how a model of the library is called, for the data flow of a forward pass (:class:`Probe`); ``None`` for a
            model that it does not know.

    Raises:
        TypeError: for a string where a set of names is expected.
    """

    library: str
    structure: tuple[Rule, ...] = ()
    classes: dict[str, Collection[str]] = field(default_factory=dict)
    names: dict[str, Collection[str]] = field(default_factory=dict)
    shortcuts: Collection[str] = ()
    channel_attention: Collection[str] = ()
    roles: dict[str, Callable[[Candidate], bool]] = field(default_factory=dict)
    weight_readers: Collection[str] = ()
    forms: dict[str, type[BinaryLayer]] = field(default_factory=dict)
    plain_modules: Collection[str] = ()
    probe: Callable[[nn.Module], Probe | None] = lambda model: None

    def __post_init__(self):
        for names in (*self.classes.values(), *self.names.values(), self.shortcuts, self.channel_attention,
                      self.weight_readers, self.plain_modules):
            if isinstance(names, str):
                raise TypeError(f'rule set {self.library!r}: expected a set of names, but got the string {names!r}')


RULE_SETS: dict[str, RuleSet] = {}
UNTRACED = Trace()
# What a layer computes that must stay real, as :class:`LayerFlow` calls it.
USES = {'position': 'its output is positions or offsets', 'gate': 'its output is a gate of other features',
        'modulation': 'its output modulates other features'}


def register_rules(rules: RuleSet) -> None:
    """Add a rule set; adding the same one again changes nothing.

    Raises:
        ValueError: when there is another rule set of this name, or one that has a role of the same name.

    Example:
        >>> register_rules(RuleSet('depths', names={'predicts depths': {'depth'}}))
        >>> report = binarize_(nn.ModuleDict({'body': nn.Conv2d(8, 8, 3), 'depth': nn.Conv2d(8, 1, 3)}), 'xnor')
        >>> [(row.name, row.binary, row.reason) for row in report.rows]
        [('body', True, 'default'), ('depth', False, 'predicts depths')]
        >>> remove_rules('depths')
    """
    if RULE_SETS.get(rules.library, rules) is not rules:
        raise ValueError(f'there is a rule set {rules.library!r} already: remove_rules({rules.library!r}) first')
    taken = {role: other.library for other in RULE_SETS.values() if other is not rules for role in other.roles}
    for role in rules.roles:
        if role in taken:
            raise ValueError(f'the role {role!r} is one of the rule set {taken[role]!r} already')
    RULE_SETS[rules.library] = rules


def remove_rules(library: str) -> None:
    """Take a rule set away again.

    Raises:
        ValueError: where there is none of this name.

    Example:
        >>> register_rules(RuleSet('mine'))
        >>> remove_rules('mine')
        >>> 'mine' in list_rules()
        False
    """
    if library not in RULE_SETS:
        raise ValueError(unknown('rule set', library, RULE_SETS))
    del RULE_SETS[library]


def list_rules() -> list[str]:
    """The names of the rule sets, in the order in which they are asked.

    Example:
        >>> 'generic' in list_rules()
        True
    """
    return list(RULE_SETS)


def list_roles() -> list[str]:
    """The roles that a layer can have, over all rule sets."""
    return [role for rules in RULE_SETS.values() for role in rules.roles]


def known(attribute: str) -> frozenset[str]:
    """All names that the rule sets have under ``attribute``."""
    return frozenset().union(*(getattr(rules, attribute) for rules in RULE_SETS.values()))


def role_of(candidate: Candidate) -> str | None:
    """The first role that the layer has."""
    return next((role for rules in RULE_SETS.values() for role, fits in rules.roles.items() if fits(candidate)), None)


def probe_of(model: nn.Module) -> Probe | None:
    """How the first rule set that knows the model calls it; what fails to say so is called by nobody."""
    for rules in RULE_SETS.values():
        try:
            probe = rules.probe(model)
        except Exception as error:  # made-up inputs for a model that nobody has seen before
            return failed_probe(error)
        if probe is not None:
            return probe
    return None


def failed_probe(error: Exception) -> Probe:
    """A call that raises ``error``, so that the report has it."""
    def call(model: nn.Module):
        raise error
    return Probe([call], [Tensor()])


def traced_role(candidate: Candidate, trace: Trace, signs: bool) -> str | None:
    """Why the data flow of a forward pass leaves the layer float. ``signs``: it would take signs of its input."""
    layer = trace.layers.get(candidate.name)
    if layer is None:
        return None
    predicts = 'output' in layer.uses or ('raw output' in layer.uses and not layer.readers)
    if trace.predicts and predicts:
        return 'prediction: the outputs of the model, or its loss, read it (data flow)'
    for use, reason in USES.items():
        if use in layer.uses and (use == 'position' or not layer.readers):  # what layers read, too, is features
            return f'{reason} (data flow)'
    if layer.sources == {'position'} or (layer.vector and layer.sources and layer.sources <= {'condition', 'position'}):
        return 'computed from a timestep, a condition or a position alone (data flow)'
    if candidate.name in trace.modulating:
        return 'only gates or modulations are computed from it (data flow)'
    functions = [call for call in layer.relus if all(relu.endswith('()') for relu in call)] if signs else []
    if functions:
        sites = ', '.join(sorted(relu.removesuffix('()') for relu in functions[0]))
        why = f'{sites} calls a ReLU before it as a function' if sites else 'no input is negative'
        return f'its sign would always be +1: {why}'
    return None


def stays_float(candidate: Candidate) -> str | None:
    """Why the rule sets leave the layer float: structure first, then classes, then names."""
    sets, parts = RULE_SETS.values(), set(candidate.parts)
    reasons = chain(
        (rule(candidate) for rules in sets for rule in rules.structure),
        (reason for rules in sets for reason, classes in rules.classes.items() if candidate.inside(*classes)),
        (reason for rules in sets for reason, names in rules.names.items() if not parts.isdisjoint(names)),
    )
    return next((reason for reason in reasons if reason is not None), None)


def cannot_be_binary(candidate: Candidate, trace: Trace) -> str | None:
    """Why no rule can make the layer binary: a binary layer in its place would not compute what it computes, or never run."""
    layer, cls = candidate.module, type(candidate.module)
    base = base_of(layer)
    if base is None:
        return f'there is no binary {cls.__name__}'
    if cls.__name__ == 'NonDynamicallyQuantizableLinear':
        return 'nn.MultiheadAttention uses its weight without calling it'
    if 'weight' not in layer._parameters:
        return 'its weight is computed (spectral norm, weight norm or another parametrization)'
    readers = {type(parent).__name__ for parent in candidate.parents} & known('weight_readers')
    if candidate.name in trace.layers:
        readers |= trace.layers[candidate.name].weight_readers
    if readers:
        return f'{", ".join(sorted(readers))} uses its weight without calling it'
    if getattr(layer, 'padding_mode', 'zeros') != 'zeros':
        return f'padding_mode={layer.padding_mode!r}: only a constant can be padded after the sign'
    plain = cls.forward is base.forward and getattr(cls, '_conv_forward', None) is getattr(base, '_conv_forward', None)
    same = plain or cls.__module__ in known('plain_modules') or cls.__name__ in known('forms')
    return None if same else f'{cls.__name__} has a forward of its own'


def zero_weights(candidate: Candidate) -> str | None:
    """Why a layer of zeros stays float: with a scale of mean|w|, neither its output nor a gradient would ever be another."""
    weight = candidate.module.weight
    zero = isinstance(weight, Tensor) and not weight.is_meta and not weight.any()
    return 'all its weights are zero: initialise them first' if zero else None


def decide(candidate: Candidate, rules: dict[str, str], roles: list[str] | None = None,
           trace: Trace = UNTRACED, signs: bool = True) -> tuple[bool, str]:
    """Whether one layer becomes binary, and why. ``signs``: it would take signs of its input, and ReLUs are not kept.

    In this order: :func:`cannot_be_binary`, the user's rules, the data flow, the rule sets, the roles.
    """
    reason = cannot_be_binary(candidate, trace)
    if reason is not None:
        return False, reason
    for pattern, kind in rules.items():
        if fnmatchcase(candidate.name, pattern):
            zero = zero_weights(candidate) if kind == 'binary' else None
            return kind == 'binary' and not zero, zero or f'rule {pattern!r}'
    reason = traced_role(candidate, trace, signs) or stays_float(candidate) or zero_weights(candidate)
    if reason is not None:
        return False, reason
    if roles is not None:
        role = role_of(candidate)
        return role in roles, f'role {role}' if role else 'has none of the roles'
    return True, 'default'


def walk(model: nn.Module) -> Iterator[Candidate]:
    """All modules of ``model``, in the order of ``named_modules``; the model may be changed meanwhile."""
    inside: dict[str, tuple[nn.Module, ...]] = {}
    for name, module in list(model.named_modules()):
        parents = inside[name.rpartition('.')[0]] if name else ()
        inside[name] = (*parents, module)
        yield Candidate(name, module, parents)


def candidates(model: nn.Module) -> list[Candidate]:
    """All convolutions, linear and recurrent layers, in the order of ``named_modules``; not the real parts inside of binary
    layers."""
    binary = [module for module in model.modules() if isinstance(module, BinaryLayer)]
    parts = {part for layer in binary for part in layer.modules() if part is not layer}
    return [c for c in walk(model) if isinstance(c.module, LAYERS) and c.module not in parts]


def check_rules(rules: dict[str, str], names: list[str]) -> None:
    """Raise ``ValueError`` for a pattern that matches no layer, naming the nearest layer."""
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            hint = f'; the nearest name is {near[0]!r}' if near else ''
            raise ValueError(f'rules: the pattern {pattern!r} matches no convolution or linear layer{hint}')
