"""BiDM's timestep-friendly cross-step connection: features of the previous, noisier step flow into this one."""

from functools import partial

import torch
from torch import Tensor, nn

MOST_BRANCHES = 4


class CrossTimestepConnection(nn.Module):
    r"""Mixes the output of each up block with that of the step before.

    .. math:: h_t \leftarrow (1 - \alpha_{b(t), i})\,h_t + \alpha_{b(t), i}\,\mathrm{stopgrad}(h_{t'})

    with a learned :math:`\alpha` per bucket of timesteps and block. Source: Zheng et al. 2024 (BiDM), arXiv 2412.05926,
    sec. 3.2. It gives the UNet a memory, so it is off until it is attached.

    - Sampling: call the UNet with falling timesteps, as pipelines do. The memory is dropped by itself where the timestep does
      not fall, or where batch, size, device or dtype change, and by :meth:`reset`. Calls with the same timestep in a row are
      the branches of one step (guidance without a common batch): each remembers its own.
    - Training: call the UNet at the noisier timestep ``t'`` under ``torch.no_grad()`` and then at ``t``.

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
        self.reset()
        unet.cross_timestep_connection = self
        unet.register_forward_pre_hook(self._begin, with_kwargs=True)
        for index, block in enumerate(unet.up_blocks):
            block.register_forward_hook(partial(self._mix, index))  # a partial, unlike a closure, is copied with the model

    def reset(self) -> None:
        """Forget the previous step."""
        self._memories: list[dict[int, Tensor]] = [{}]
        self._branch, self._timesteps = 0, None

    def _begin(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        sample = args[0] if args else kwargs['sample']
        timestep = args[1] if len(args) > 1 else kwargs['timestep']
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        previous = self._timesteps
        if previous is not None:
            comparable = previous.shape == timesteps.shape and previous.device == timesteps.device
            if comparable and bool((timesteps < previous).all()):
                self._branch = 0
            elif comparable and torch.equal(timesteps, previous) and self._branch + 1 < MOST_BRANCHES:
                self._branch += 1
                if self._branch == len(self._memories):
                    self._memories.append({})
            else:
                self.reset()
        self._timesteps = timesteps

    def _mix(self, index: int, block: nn.Module, args: tuple, out: Tensor) -> Tensor:
        memory = self._memories[self._branch]
        before = memory.get(index)
        if before is not None and before.shape == out.shape and before.dtype == out.dtype:
            bucket = (self._timesteps * self.buckets // self.num_train_timesteps).long().clamp(0, self.buckets - 1)
            alpha = self.alpha[bucket, index].to(out.dtype).view(-1, *[1] * (out.ndim - 1))
            out = (1 - alpha) * out + alpha * before
        memory[index] = out.detach()
        return out
