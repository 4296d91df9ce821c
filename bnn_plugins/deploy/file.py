"""The packed file: safetensors with a schema version, the layout version, a checksum and the config. No code, no pickle."""

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bnn_kernels import LAYOUT_VERSION

from .pack import PACKED, packed_forms, replace_
from .packed import PackedModule
from .plain_data import from_json, from_python, to_json
from .rest_layers import rest_forms

FORMAT = 'bnn_plugins.packed'
SCHEMA_VERSION = 1
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}  # of which a model may have another than the file
DAMAGE = (SafetensorError, KeyError, ValueError)  # of UTF-8 and JSON, too


@dataclass(frozen=True)
class PackedFile:
    """The checked content of a packed file.

    Attributes:
        tensors: the state dict.
        layers: ``{layer name: signature}`` of the packed layers.
        versions: ``{module name: version of its state}`` where torch has another than 1.
        config: of plain values, what the model was built from; empty where the file has none that is data.
        meta: what else the writer stored (class names, ...).
        path: where it was read, for messages.
    """

    tensors: dict[str, Tensor]
    layers: dict[str, str]
    versions: dict[str, int]
    config: dict
    meta: dict
    path: str

    def renamed(self, rename: Callable[[str], str]) -> 'PackedFile':
        """The same content under other names of tensors and modules."""
        return replace(self, **{field: {rename(name): value for name, value in getattr(self, field).items()}
                                for field in ('tensors', 'layers', 'versions')})


def save_packed(model: nn.Module, path: str | Path, config: dict | None = None, meta: dict | None = None) -> Path:
    """Write a packed model.

    Args:
        model: after :func:`pack_`.
        config: what the model was built from, so that the file alone is enough to build it again: plain values in nested
            dicts, lists and tuples, such as ``Config.to_dict()`` of mmengine.
        meta: JSON-serialisable extras.

    Raises:
        ValueError: when the model is not packed, or a value of the config is not plain.

    Example:
        >>> path = save_packed(pack_(nn.Sequential(BinaryLinear(64, 10, method='xnor'))), 'model.safetensors')
        >>> path.name
        'model.safetensors'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    part.write_bytes(serialize(model, config, meta))
    part.replace(path)  # a process that has mapped the old file keeps it
    return path


def serialize(model: nn.Module, config: dict | None = None, meta: dict | None = None) -> bytes:
    """The bytes of a packed file; see :func:`save_packed`."""
    layers = {name: module.signature() for name, module in model.named_modules() if isinstance(module, PackedModule)}
    if not layers:
        raise ValueError(f'this {type(model).__name__} has no packed layer: call pack_ first')
    state_dict = model.state_dict()
    twins = same_tensors(state_dict)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items() if name not in twins}
    versions = {name: local['version'] for name, local in state_dict._metadata.items() if local.get('version', 1) != 1}
    metadata = {'format': FORMAT, 'schema_version': str(SCHEMA_VERSION), 'layout_version': str(LAYOUT_VERSION),
                'layers': json.dumps(layers), 'versions': json.dumps(versions), 'config': to_json(config or {}),
                'meta': json.dumps(meta or {}), **({'twins': json.dumps(twins)} if twins else {})}
    return sealed(tensors, metadata)


def sealed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return in_order(save(tensors, metadata | {'checksum': checksum(tensors, metadata)}))


def in_order(data: bytes) -> bytes:
    """A safetensors file with the keys of its metadata sorted: safetensors itself writes them in any order."""
    end = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:end])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, 'little') + text + data[end:]


def same_tensors(state_dict: dict[str, Tensor]) -> dict[str, str]:
    """``{second name: first name}`` of tensors that have several, as those of a layer that the levels of a head share."""
    names, twins = {}, {}
    for name, tensor in state_dict.items():
        if tensor.numel():
            first = names.setdefault((tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
            if first != name:
                twins[name] = first
    return twins


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors and over the other metadata."""
    digest = hashlib.sha256()
    for key in sorted(set(metadata) - {'checksum'}):
        digest.update(f'{key}={metadata[key]}\0'.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\0'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b'')
    return digest.hexdigest()


def read_packed(path: str | Path) -> PackedFile:
    """Read and check a packed file. Nothing in it is executed.

    A config that earlier versions wrote as Python text is left out with a warning, see :func:`convert_packed`.

    Raises:
        FileNotFoundError: when there is none. ValueError: when it is cut short, altered, no packed file, or newer.
    """
    tensors, metadata = read_checked(path)
    try:
        layers, versions, meta, twins = (parsed(metadata, *entry) for entry in
                                         (('layers', str), ('versions', int), ('meta', object), ('twins', str, '{}')))
        tensors |= {name: tensors[first] for name, first in twins.items()}
        config = metadata['config'] and config_in(path, metadata)
    except DAMAGE as error:
        raise damaged(path, error) from None
    return PackedFile(tensors, layers, versions, config or {}, meta, str(path))


def read_checked(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a packed file that is whole and of this version."""
    if not is_packed_file(path):
        raise ValueError(f'{path} is a safetensors file, but not a packed model of bnn_plugins: write one with bnn pack')
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata = file.metadata()
            check_versions(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise damaged(path, error) from None
    if checksum(tensors, metadata) != metadata.get('checksum'):
        raise ValueError(f'{path} was altered after it was written (its checksum does not fit): copy or pack it again')
    return tensors, metadata


def damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f'{path} is cut short or damaged ({shortened(error)}): copy or pack it again')


def shortened(text: object) -> str:
    """One line of at most 200 characters: names in a file may be as long as the file."""
    line = ' '.join(str(text).split())
    return line if len(line) <= 200 else f'{line[:200]} ...'


def parsed(metadata: dict[str, str], key: str, kind: type, default: str | None = None) -> dict:
    """An entry of the metadata: a dict in JSON whose values are of one kind."""
    content = from_json(metadata[key] if default is None else metadata.get(key, default))
    if not isinstance(content, dict) or not all(isinstance(value, kind) for value in content.values()):
        raise ValueError(f'the entry {key!r} of its metadata is of another kind')
    return content


def config_in(path: str | Path, metadata: dict[str, str]) -> dict:
    try:
        return parsed(metadata, 'config', object)
    except ValueError:
        warnings.warn(f'the config in {path} is not data and was not read: pass the config yourself, or convert the file with '
                      'bnn convert', stacklevel=4)
        return {}


def convert_packed(path: str | Path, out: str | Path, show: Callable[[str], object] = print) -> Path:
    """Write a packed file again whose config is the Python text of an earlier version, with the config as data.

    Args:
        show: is called with the text before anything else is done with it. It is parsed, and not executed.

    Raises:
        ValueError: when the file is damaged, or its config has more than plain values.
    """
    tensors, metadata = read_checked(path)
    text = metadata.get('config', '')
    show(text)
    try:
        config = parsed(metadata, 'config', object)
    except DAMAGE:
        config = from_python(text)
    Path(out).write_bytes(sealed(tensors, metadata | {'config': to_json(config)}))
    return Path(out)


def is_packed_file(path: str | Path) -> bool:
    """Whether a safetensors file says that it is a packed model.

    Raises:
        FileNotFoundError: when there is none. ValueError: when it is no safetensors file, or cut short.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'the packed file {str(path)!r} does not exist')
    try:
        with safe_open(str(path), framework='pt') as file:
            return (file.metadata() or {}).get('format') == FORMAT
    except (SafetensorError, ValueError) as error:
        raise damaged(path, error) from None


def check_versions(path: str | Path, metadata: dict[str, str]) -> None:
    """Raise ``ValueError`` for a file of another version."""
    for what, known in (('schema_version', SCHEMA_VERSION), ('layout_version', LAYOUT_VERSION)):
        found = metadata.get(what, '')
        if found != str(known):
            newer = found.isdecimal() and int(found) > known
            advice = 'update bnn_plugins' if newer else 'pack the checkpoint again'
            raise ValueError(f'{path} has {what} {shortened(found) or "none"}, this version of bnn_plugins reads {known}: '
                             f'{advice}')


def load_packed_(model: nn.Module, file: str | Path | PackedFile) -> nn.Module:
    """Load a packed file into a model built from the same config, latent or packed, in place; returns it in evaluation mode.

    Latent layers are replaced as :func:`pack_` does, which is all the same for a model that is a binary layer itself.

    Args:
        file: a path, or what :func:`read_packed` gave.

    Raises:
        ValueError: when the file is damaged (see :func:`read_packed`) or for another config. When its packed layers are others
            than the model's, the model is as before.

    Example:
        >>> trained = pack_(nn.Sequential(BinaryLinear(64, 10, method='xnor')))
        >>> model = load_packed_(nn.Sequential(BinaryLinear(64, 10, method='xnor')), save_packed(trained, 'model.safetensors'))
        >>> x = torch.randn(2, 64)
        >>> torch.equal(model(x), trained(x))
        True
    """
    file = file if isinstance(file, PackedFile) else read_packed(file)
    model = prepare_(model, file.layers, file.path)
    here = model.state_dict()
    state_dict = OrderedDict((name, in_place_of(value, here.get(name))) for name, value in file.tensors.items())
    # Also for modules that the file does not have: mmdet's heads rename keys where they find no version.
    state_dict._metadata = {name: {'version': file.versions.get(name, 1)}
                            for name, _ in model.named_modules(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        if name in file.tensors and {tensor.dtype, (found := file.tensors[name].dtype)} - FLOATS and found != tensor.dtype:
            raise ValueError(f'{file.path} is for another config: {name!r} is {tensor.dtype} in the model, but {found} in the '
                             'file')
    try:
        missing, unexpected = model.load_state_dict(state_dict, strict=False, assign=True)
    except RuntimeError as error:  # float parts of other shapes
        raise ValueError(f'{file.path} is for another config: {shortened(str(error).partition(":")[2])}') from None
    loaded = {id(file.tensors[name]) for name in here if name in file.tensors}
    unexpected = [name for name in unexpected if id(file.tensors[name]) not in loaded]  # not a second name of a tensor
    if missing or unexpected:
        raise ValueError(f'{file.path} is for another config: ' + '; '.join(
            f'{len(names)} tensors {what}, such as {shortened(names[0])!r}' for what, names in
            (('missing in the file', missing), ('unknown to the model', unexpected)) if names))
    return model


def in_place_of(value: Tensor, before: Tensor | None) -> Tensor:
    """What a model on another device, of another dtype or in another memory format takes of a file; else the tensor itself,
    which lies in the file and is in memory once for all processes of a machine."""
    if before is None or before.shape != value.shape or before.is_meta:
        return value
    if (before.device, before.dtype, before.stride()) == (value.device, value.dtype, value.stride()):
        return value
    return torch.empty_like(before).copy_(value)


def prepare_(model: nn.Module, layers: dict[str, str], path: str | Path) -> nn.Module:
    """Replace latent layers by packed ones, whose values do not matter yet; returns the model (see :func:`pack_`).

    Args:
        layers: ``{name: signature}`` of the packed layers in the file at ``path``.

    Raises:
        ValueError: when the model has others; it is then as before.
    """
    packed = packed_forms(model) | rest_forms(model, layers)
    found = {name: packed.get(module, module).signature() for name, module in model.named_modules()
             if isinstance(packed.get(module, module), PackedModule)}
    for name in sorted(found.keys() | layers.keys()):
        if found.get(name) != layers.get(name):
            raise ValueError(f'{path} is for another config: the layer {shortened(name)!r} is "'
                             f'{found.get(name, "not binary")}" in the model, but "'
                             f'{shortened(layers.get(name, "not binary"))}" in the file')
    for note in PACKED if packed else ():
        note(model)
    return replace_(model, packed)
