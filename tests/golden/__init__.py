"""The arrays of ``tests/golden/*.npz``, and the comparison of a module with them."""

import copy
from pathlib import Path

import numpy as np
import torch

from bnn_plugins import pack_

FOLDER = Path(__file__).parent


class Golden:
    """The arrays of a file as float64 tensors, by kind and name."""

    def __init__(self, name: str):
        with np.load(FOLDER / f'{name}.npz') as file:
            self.arrays = {key: torch.from_numpy(file[key].astype(np.float64)) for key in file}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def number(self, name: str) -> int:
        return int(self[f'setting.{name}'])

    def named(self, kind: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(kind): value for key, value in self.arrays.items() if key.startswith(kind)}

    @torch.no_grad()
    def fill(self, parameters: dict[str, torch.nn.Parameter], factors: dict[str, float] | None = None) -> None:
        """Give ``parameters``, which are all that there are, their numbers."""
        assert parameters.keys() == self.named('param.').keys()
        for name, parameter in parameters.items():
            parameter.copy_(self['param.' + name].view(parameter.shape) * (factors or {}).get(name, 1.0))

    def check(self, module, parameters, factors=None, run=None, packed=False, differs=(), rounded=(), buffers=None) -> None:
        """Outputs in both modes, all gradients but those in ``differs``, and the outputs of the packed module in float32.

        ``factors``: what the official numbers are multiplied by. ``rounded``: the release computed these gradients in float32.
        ``buffers``: names to ``(module, attribute)``; filled before, and compared after the step in training.
        """
        run, module = run or (lambda module, *inputs: module(*inputs)), module.double()
        self.fill(parameters, factors)
        for name, (owner, attribute) in (buffers or {}).items():
            getattr(owner, attribute).copy_(self['buffer.' + name])
        inputs = [x.clone().requires_grad_() for x in self.named('input.').values()]
        with torch.no_grad():
            torch.testing.assert_close(run(module.eval(), *inputs), self['eval.out'], rtol=1e-9, atol=1e-9)
            if packed:
                out = run(pack_(copy.deepcopy(module).float()), *(x.float() for x in inputs))
                torch.testing.assert_close(out.double(), self['eval.out'], rtol=2e-6, atol=2e-6)
        out = run(module.train(), *inputs)
        torch.testing.assert_close(out, self['train.out'], rtol=1e-9, atol=1e-9)
        out.backward(self['upstream'])
        found = dict(zip(self.named('input.'), (x.grad for x in inputs), strict=True))
        found |= {name: p.grad * (factors or {}).get(name, 1.0) for name, p in parameters.items()}
        for name, (owner, attribute) in (buffers or {}).items():
            after = self.arrays.get('train.after.' + name, self['buffer.' + name])
            torch.testing.assert_close(getattr(owner, attribute), after, rtol=1e-9, atol=1e-9)
        expected = self.named('train.grad.')
        assert found.keys() == expected.keys()
        for name in found.keys() - set(differs):
            atol = 2e-7 * expected[name].abs().max().item() if name in rounded else 1e-9
            torch.testing.assert_close(found[name].view(expected[name].shape), expected[name], rtol=1e-7, atol=atol,
                                       msg=lambda text, name=name: f'gradient of {name}: {text}')
