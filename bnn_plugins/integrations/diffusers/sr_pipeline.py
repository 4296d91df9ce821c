"""Super-resolution by diffusion: the UNet sees the noisy picture and the enlarged small one."""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class SuperResolutionPipeline(DiffusionPipeline):
    """``pipe(condition)``: enlarged small pictures to sharp ones.

    Args:
        unet: 6 channels in (noisy, condition), 3 out.
        scheduler: any of diffusers.
        residual: whether the UNet diffuses the difference to the condition.
    """

    def __init__(self, unet, scheduler, residual: bool = True):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(residual=residual)

    @torch.no_grad()
    def __call__(self, condition: Tensor, num_inference_steps: int = 10, generator: torch.Generator | None = None,
                 output_type: str = 'pil', return_dict: bool = True):
        """Args:
            condition: float ``[N, 3, H, W]`` in [-1, 1], enlarged to the size that is wanted.
            output_type: ``'pil'``, ``'np'`` (``[N, H, W, 3]`` in [0, 1]) or ``'pt'`` (``[N, 3, H, W]`` in [0, 1]).

        Raises:
            ValueError: for another shape.
        """
        if condition.ndim != 4 or condition.shape[1] * 2 != self.unet.config.in_channels:
            raise ValueError(f'condition must be [N, {self.unet.config.in_channels // 2}, H, W], got {list(condition.shape)}')
        condition = condition.to(self._execution_device, self.unet.dtype)
        image = randn_tensor(condition.shape, generator=generator, device=condition.device, dtype=condition.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(torch.cat([image, condition], 1), t).sample
            image = self.scheduler.step(output, t, image, generator=generator).prev_sample
        image = ((image + condition if self.config.residual else image) / 2 + 0.5).clamp(0, 1)
        if output_type != 'pt':
            image = image.permute(0, 2, 3, 1).float().cpu().numpy()
            image = self.numpy_to_pil(image) if output_type == 'pil' else image
        return ImagePipelineOutput(images=image) if return_dict else (image,)
