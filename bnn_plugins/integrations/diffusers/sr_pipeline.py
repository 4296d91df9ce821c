"""Super-resolution by diffusion: the UNet sees the noisy picture and the enlarged small one."""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor


class SuperResolutionPipeline(DiffusionPipeline):
    """``pipe(condition)``: small pictures to sharp large ones.

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
    def __call__(self, condition: Tensor | Image.Image | list[Image.Image], num_inference_steps: int = 10,
                 generator: torch.Generator | None = None, output_type: str = 'pil', return_dict: bool = True,
                 factor: int = 4):
        """Args:
            condition: pictures of one size; or float ``[N, 3, H, W]`` in [-1, 1], enlarged to the size that is wanted.
            output_type: ``'pil'``, ``'np'`` (``[N, H, W, 3]`` in [0, 1]) or ``'pt'`` (``[N, 3, H, W]`` in [0, 1]).
            factor: by which pictures are enlarged.

        Raises:
            ValueError: for another shape.
        """
        if not isinstance(condition, Tensor):
            condition = enlarged(condition if isinstance(condition, list) else [condition], factor)
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


def enlarged(pictures: list[Image.Image], factor: int) -> Tensor:
    """The condition for small pictures: bicubic, as those of training are."""
    large = [picture.convert('RGB').resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
             for picture in pictures]
    return VaeImageProcessor(do_resize=False).preprocess(large)
