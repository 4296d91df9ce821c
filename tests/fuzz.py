"""Damaged and crafted files for the readers of packed files, published checkpoints and weights of diffusers.

    python tests/fuzz.py --count 10000

Each mutation is made from (seed, its number), so that one can be repeated alone with --first. A file has to be read, or
refused with a ValueError of one short line; anything else is a fault: another exception, a crash, more than --seconds or
--megabytes. What was read is run, so that its weights reach the engine; make fuzz does it under the sanitized engine, too.
"""

import argparse
import collections
import contextlib
import copy
import importlib
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from bnn_plugins import fuse_, load_packed_, pack_, quantize_rest_
from bnn_plugins.deploy import read_packed
from bnn_plugins.deploy.file import checksum, serialize
from bnn_plugins.integrations import stored_config
from bnn_plugins.layers import BinaryConv2d, BinaryLinear
from bnn_plugins.models.importing import published_state

LONGEST = 1000  # characters of a refusal
CONFIG = dict(default_scope='bnn_plugins', model=dict(type='bnn_plugins.BinaryClassifier', backbone=dict(type='BNNResNet')))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), BinaryConv2d(8, 12, 3, padding=1, method='reactnet', bias=False),
                         nn.BatchNorm2d(12), BinaryConv2d(12, 8, 3, groups=2, method=dict(type='dorefa', w_bits=2, a_bits=2)),
                         nn.Flatten(), BinaryLinear(128, 4, method='xnor'), nn.Linear(4, 4)).eval()


class Packed:
    """Reads a packed file, its config, and runs the model, as it is and fused."""

    def __init__(self, int8: bool):
        self.fresh, self.x = network(), torch.randn(2, 3, 8, 8)
        model = pack_(network())
        if int8:
            quantize_rest_(model, [self.x])
        self.data = serialize(model, CONFIG, {'dataset_meta': {'classes': ['a', 'b']}})

    def read(self, path: Path) -> None:
        file = read_packed(path)
        with contextlib.suppress(Refused):
            stored_config.stored_config(file)
        model = load_packed_(copy.deepcopy(self.fresh), file)
        with torch.inference_mode():
            model(self.x)
            fuse_(model)
            model(self.x)


class Folder:
    """Reads the weights of a folder of diffusers."""

    def __init__(self):
        import diffusers.quantizers.auto  # noqa: F401  which imports our quantizer
        self.check = importlib.import_module('bnn_plugins.integrations.diffusers.quantizer').check_packed_weights
        state = pack_(network()).state_dict()
        layers = json.dumps({name: local['signature'] for name, local in state._metadata.items() if 'signature' in local})
        entries = {'bnn_format': 'x', 'bnn_schema_version': '1', 'bnn_layout_version': '1', 'bnn_layers': layers}
        self.data = save(dict(state), entries | {'bnn_checksum': checksum(state, {'layers': layers})})

    def read(self, path: Path) -> None:
        self.check([path])


class Published:
    """Reads a checkpoint of torch.save."""

    def __init__(self):
        file = io.BytesIO()
        torch.save({'state_dict': {f'module.{key}': value for key, value in network().state_dict().items()}}, file)
        self.data = file.getvalue()

    def read(self, path: Path) -> None:
        published_state(path)


READERS = {'packed': lambda: Packed(False), 'int8': lambda: Packed(True), 'folder': Folder, 'published': Published}
Refused = ValueError


# --- mutations: (random numbers, bytes) -> bytes ----------------------------------------------------------------------------

def flip(r: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8, 64))):
        out[r.randrange(len(out) if r.random() < 0.5 else min(len(out), 4000))] ^= r.randrange(1, 256)
    return bytes(out)


def cut(r: random.Random, data: bytes) -> bytes:
    return data[:r.randrange(len(data))]


def splice(r: random.Random, data: bytes) -> bytes:
    start, length = r.randrange(len(data)), r.choice((0, 1, 8, 100))
    filling = r.choice((b'', b'\0' * r.randrange(1000), r.randbytes(r.randrange(64)), data[start:start + r.randrange(4000)]))
    return data[:start] + filling + data[start + length:]


def header_text(r: random.Random, data: bytes) -> bytes:
    """The JSON before the tensors: other numbers, other words, names twice, nested, large; its length may lie, too."""
    end = 8 + int.from_bytes(data[:8], 'little')
    text = data[8:end].decode('utf-8', 'replace')
    if r.random() < 0.3:
        first = text.index('{') + 1
        text = text[:first] + r.choice((
            '"0.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},', '"__metadata__":{"format":"pt"},',
            f'"a":{"[" * r.randrange(200_000)},', f'"{"x" * r.randrange(3_000_000)}":{{}},')) + text[first:]
    else:
        old, new = r.choice((('[', '[['), ('F32', r.choice(('F64', 'U8', 'BOOL', 'F8_E5M2', 'X'))), ('I32', 'F32'), ('0', '9'),
                             ('1', r.choice(('-1', '1e400', str(2 ** 64 - 1), '9' * 23, 'NaN', 'null'))),
                             ('"shape"', '"dtype"'), ('8', '0'), (',', ''), ('"', "'"), ('data_offsets', 'offsets')))
        parts = text.split(old)
        at = r.randrange(1, len(parts)) if len(parts) > 1 else 0
        text = old.join(parts[:at]) + new + old.join(parts[at:])
    content = text.encode('utf-8', 'replace')
    length = r.choice((len(content),) * 8 + (0, 1, len(content) * 2, 2 ** 40, 2 ** 63, 2 ** 64 - 1))
    return struct.pack('<Q', length) + content + data[end:]


def resealed(r: random.Random, data: bytes) -> bytes:
    """Tensors and entries that lie under a right checksum."""
    end = 8 + int.from_bytes(data[:8], 'little')
    tensors, entries = load(data), json.loads(data[8:end])['__metadata__']
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        if r.random() < 0.6 and tensors:
            change_tensor(r, tensors)
        else:
            change_entry(r, entries)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if 'bnn_checksum' in entries:
        entries['bnn_checksum'] = checksum(tensors, {'layers': entries['bnn_layers']} if 'bnn_layers' in entries else {})
    else:
        entries['checksum'] = checksum(tensors, entries)
    return save(tensors, entries)


def change_tensor(r: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    name = r.choice(sorted(tensors))
    old = tensors[name]
    size = old.numel()

    def noise(dtype: torch.dtype, shape: tuple) -> torch.Tensor:
        count = torch.Size(shape).numel()
        values = torch.frombuffer(bytearray(r.randbytes(max(1, count) * dtype.itemsize)), dtype=torch.uint8)
        return values.view(dtype)[:count].view(shape)

    dtype = r.choice((torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32,
                      torch.int64))
    shapes = ((), (0,), (1,), (size,), (size + 1,), (1, size), (*old.shape, 1), tuple(reversed(old.shape)), (2, *old.shape),
              tuple(max(0, n + r.choice((-1, 0, 1))) for n in old.shape), (0, *old.shape), (2 ** 20,))
    match r.randrange(8):
        case 0:
            tensors[name] = noise(old.dtype, tuple(old.shape))
        case 1:
            tensors[name] = noise(dtype, tuple(old.shape))
        case 2:
            tensors[name] = noise(old.dtype, r.choice(shapes))
        case 3 if old.is_floating_point():
            tensors[name] = torch.full_like(old, r.choice((float('nan'), float('inf'), -float('inf'), 0.0, 3e38, 1e-45)))
        case 4:
            tensors[r.choice((name + 'x', 'x' * r.choice((1, 1_000_000)), r.choice(sorted(tensors)), '', '.', 'a\n\0b'))] = old
        case 5:
            del tensors[name]
        case 6:
            tensors[name] = old.to(dtype)
        case _:
            tensors[name] = torch.full_like(old, r.choice((0, 1, -1, 127, -128)))


def change_entry(r: random.Random, entries: dict[str, str]) -> None:
    key = r.choice((*sorted(entries), 'twins', 'x' * 1000))
    value = entries.get(key, '')
    odd = ('', '{}', '[]', 'null', '1', 'NaN', '"a"', '{', '[' * 50_000, '{"a":' * 50_000, 'x' * 4_000_000, '9' * 6000,
           '\0', '²', '{"0.weight": "1.weight_bits"}', '{"a": "nothing"}', '{"": 1}', '{"1": [1, 2]}', '{"1": {"()": [[]]}}',
           f'{{"{"k" * 2_000_000}": "v"}}', f'{{"1": "{"int8 " * 100_000}"}}', '{"6": "int8 linear 4->4"}',
           '{"model": {"type": "os.system"}}', '{"model": {"type": {"type": 1}, "a": {"{}": [[1, 2]]}}}', '{"model": []}')
    match r.randrange(4):
        case 0:
            entries.pop(key, None)
        case 1:
            entries[key] = r.choice(odd)
        case 2 if value:
            at = r.randrange(len(value))
            entries[key] = value[:at] + r.choice(('', '"', '0', '9', '{', '\n', '1e999', 'é')) + value[at + 1:]
        case _:
            entries[key] = value.replace(r.choice(('8', '12', '3', 'conv', 'linear', 'xnor', '"')), r.choice(('9', '0', '')))


MUTATIONS = {'packed': (flip, cut, splice, header_text, resealed, resealed, resealed, resealed),
             'int8': (resealed, resealed, resealed, header_text, flip), 'folder': (flip, header_text, resealed, resealed),
             'published': (flip, flip, cut, splice)}


# --- running them ------------------------------------------------------------------------------------------------------------

class Hang(BaseException):
    pass


def expired(*_):
    raise Hang


def attempt(reader, path: Path, seconds: float) -> str:
    """``'read'``, ``'refused'``, or what is wrong."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reader.read(path)
        return 'read'
    except Refused as error:
        text = str(error)
        short = text and '\n' not in text and len(text) <= LONGEST
        return 'refused' if short else f'a refusal of {len(text)} characters: {text[:200]!r}'
    except Hang:
        return f'a hang: more than {seconds} seconds'
    except Exception as error:
        return f'{type(error).__name__}: {str(error)[:300]}'
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def work(args: argparse.Namespace) -> None:
    """The child: one line of JSON for each mutation, whose file lies in ``args.folder`` before it is read."""
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, expired)
    stored_config.known_names = lambda: {'BinaryClassifier', 'BNNResNet'}  # without importing all of mmdet
    readers = {name: READERS[name]() for name in args.readers}
    for reader in readers.values():
        path = args.folder / 'original'
        path.write_bytes(reader.data)
        if (result := attempt(reader, path, 120)) != 'read':
            raise RuntimeError(f'the file that is to be damaged is not read: {result}')
    if not os.environ.get('LD_PRELOAD'):  # a sanitizer reserves all of the memory there is
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + args.megabytes * 2 ** 20,) * 2)
    for number in range(args.first, args.first + args.count):
        r = random.Random(f'{args.seed} {number}')
        name = r.choice(args.readers)
        mutation = r.choice(MUTATIONS[name])
        path = args.folder / f'{name}-{number}.bin'
        path.write_bytes(mutation(r, readers[name].data))
        print(json.dumps([number, name, mutation.__name__]), flush=True)
        result = attempt(readers[name], path, args.seconds)
        if result in ('read', 'refused'):
            path.unlink()
        print(json.dumps([number, name, mutation.__name__, result]), flush=True)


def watch(args: argparse.Namespace) -> collections.Counter:
    """Start children until all mutations are done; a child that dies is a fault of the mutation that it was at."""
    results, end = collections.Counter(), args.first + args.count
    while args.first < end:
        flags = ['--seed', args.seed, '--first', args.first, '--count', end - args.first, '--seconds', args.seconds,
                 '--megabytes', args.megabytes, '--folder', args.folder, '--readers', *args.readers, '--child']
        child = subprocess.Popen([sys.executable, __file__, *map(str, flags)], stdout=subprocess.PIPE, text=True)
        at = None
        for line in child.stdout:
            if not line.startswith('['):  # what packages say when they are imported
                continue
            number, name, mutation, *result = json.loads(line)
            at = (number, name, mutation) if not result else None
            if result:
                args.first = number + 1
                results[result[0] if result[0] in ('read', 'refused') else 'fault'] += 1
                if result[0] not in ('read', 'refused'):
                    print(f'{number} {name} {mutation}: {result[0]}', flush=True)
        if child.wait():
            if at is None:
                raise RuntimeError(f'the child ended with {child.returncode} outside of any mutation')
            results['fault'] += 1
            args.first = at[0] + 1
            print(*at, f'CRASH, exit code {child.returncode}', flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=10_000, help='mutations; default %(default)s')
    parser.add_argument('--first', type=int, default=0, help='number of the first one; default %(default)s')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seconds', type=float, default=20, help='for one file, at most; default %(default)s')
    parser.add_argument('--megabytes', type=int, default=1024, help='that a process may take more; default %(default)s')
    parser.add_argument('--readers', nargs='+', choices=READERS, default=list(READERS))
    parser.add_argument('--folder', type=Path, help='where files of faults stay; default a new one')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder = args.folder or Path(tempfile.mkdtemp(prefix='fuzz-'))
    args.folder.mkdir(exist_ok=True, parents=True)
    if args.child:
        work(args)
        return 0
    results = watch(args)
    print(f'{results.total()} files: {results["read"]} read, {results["refused"]} refused, {results["fault"]} faults')
    return int(bool(results['fault']))


if __name__ == '__main__':
    sys.exit(main())
