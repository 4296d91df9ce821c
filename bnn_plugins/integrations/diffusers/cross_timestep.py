"""BiDM's timestep-friendly cross-step connection: features of the previous, noisier step flow into this one."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

MOST_BRANCHES = 4


class CrossTimestepConnection(nn.Module):
    r"""Mixes the output of each up block with that of the step before.

    .. math:: h_t \leftarrow (1 - \alpha_{b(t), i})\,h_t + \alpha_{b(t), i}\,\mathrm{stopgrad}(h_{t'})

    with a learned :math:`\alpha` per bucket of timesteps and block. Source: Zheng et al. 2024 (BiDM), arXiv 2412.05926,
    sec. 3.2. It gives the UNet a memory, so it is off until it is attached.

    - Sampling: call the UNet with falling timesteps, as pipelines do. The memory is dropped by itself where no timestep of the
      batch falls, or where batch, size, device or dtype change, and by :meth:`reset`. Calls with the same timestep in a row
      are the branches of one step (guidance without a common batch): each remembers its own.
    - Training: in :meth:`training_step`, call the UNet at the noisier timestep ``t'`` under ``torch.no_grad()`` and then at
      ``t``.

    An image whose timestep did not fall (the noisiest one has no step before it) keeps its features, whatever the others of
    its batch do; :math:`\alpha` then has a gradient of zero, so that it takes part in every step on every process.

    Args:
        unet: with ``up_blocks`` (``UNet2DModel``, ``BinaryUNet2DModel``, ``UNet2DConditionModel``).
        buckets: number of buckets of timesteps.
        num_train_timesteps: of the noise scheduler.
        initial: value of every :math:`\alpha`.

    The module is stored in the UNet as ``cross_timestep_connection``, so that its parameter is trained and saved with it.

    Raises:
        ValueError: when the UNet has one already.
    """

    def __init__(self, unet: nn.Module, buckets: int = 100, num_train_timesteps: int = 1000, initial: float = 0.0):
        super().__init__()
        if hasattr(unet, 'cross_timestep_connection'):
            raise ValueError('this UNet has a cross-timestep connection already')
        self.buckets, self.num_train_timesteps = buckets, num_train_timesteps
        self.alpha = nn.Parameter(torch.full((buckets, len(unet.up_blocks)), float(initial)))
        self._pair = False
        self.reset()
        unet.cross_timestep_connection = self
        unet.register_forward_pre_hook(self._begin, with_kwargs=True)
        for index, block in enumerate(unet.up_blocks):
            block.register_forward_hook(partial(self._mix, index))  # a partial, unlike a closure, is copied with the model

    def reset(self) -> None:
        """Forget the previous step."""
        self._memories: list[dict[int, Tensor]] = [{}]
        self._branch, self._timesteps, self._falls = 0, None, None

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """Two calls of one training step: the step before, then the step. The host does not wait for the timesteps."""
        self.reset()
        self._pair = True
        try:
            yield
        finally:
            self._pair = False
            self.reset()

    def _begin(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        sample = args[0] if args else kwargs['sample']
        timestep = args[1] if len(args) > 1 else kwargs['timestep']
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        previous = self._timesteps
        if previous is not None and (previous.shape != timesteps.shape or previous.device != timesteps.device):
            self.reset()
        elif previous is not None:
            falls = timesteps < previous
            if self._pair or bool(falls.any()):
                self._branch, self._falls = 0, falls
            elif torch.equal(timesteps, previous) and self._branch + 1 < MOST_BRANCHES:
                self._branch += 1
                if self._branch == len(self._memories):
                    self._memories.append({})
            else:
                self.reset()
        self._timesteps = timesteps

    def _mix(self, index: int, block: nn.Module, args: tuple, out: Tensor) -> Tensor:
        memory = self._memories[self._branch]
        before = memory.get(index)
        known = before is not None and self._falls is not None and before.shape == out.shape and before.dtype == out.dtype
        if known or torch.is_grad_enabled():
            bucket = (self._timesteps * self.buckets // self.num_train_timesteps).long().clamp(0, self.buckets - 1)
            alpha = (self.alpha[bucket, index] * (self._falls if known else 0)).to(out.dtype).view(-1, *[1] * (out.ndim - 1))
            out = (1 - alpha) * out + alpha * (before if known else out.detach())
        memory[index] = out.detach()
        return out
