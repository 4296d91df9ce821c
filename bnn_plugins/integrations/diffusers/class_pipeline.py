"""Pictures of given classes, by diffusion."""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn


class ClassConditionalPipeline(DiffusionPipeline):
    """``pipe(class_labels)``: one picture of each class that is asked for. diffusers has such a pipeline for DiT alone.

    Args:
        unet: a ``UNet2DModel`` with ``num_class_embeds``, float or binary.
        scheduler: any of diffusers.
    """

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, class_labels: Tensor, num_inference_steps: int = 50,
                 generator: torch.Generator | list[torch.Generator] | None = None, output_type: str = 'pil',
                 return_dict: bool = True):
        """Args:
            class_labels: int64 ``[N]``, each in ``[0, num_class_embeds)``.
            output_type: ``'pil'``, ``'np'`` (``[N, H, W, C]`` in [0, 1]) or ``'pt'`` (``[N, C, H, W]`` in [0, 1]).

        Raises:
            ValueError: for a class that the UNet does not have.
        """
        config = self.unet.config
        check_labels(class_labels, config.num_class_embeds)
        labels = class_labels.to(self._execution_device)
        size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        image = randn_tensor((len(labels), config.in_channels, *size), generator=generator, device=labels.device,
                             dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(image, t, class_labels=labels).sample
            image = self.scheduler.step(output, t, image, generator=generator).prev_sample
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != 'pt':
            image = image.permute(0, 2, 3, 1).float().cpu().numpy()
            image = self.numpy_to_pil(image) if output_type == 'pil' else image
        return ImagePipelineOutput(images=image) if return_dict else (image,)


def check_labels(labels: Tensor, classes: int | None) -> None:
    """Raises ``ValueError`` where labels are none of the UNet's classes, or it has none."""
    if not classes:
        raise ValueError('the UNet has no classes: give its config num_class_embeds')
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f'the UNet has the classes 0 to {classes - 1}, but got {int(labels.min())} to {int(labels.max())}')


def classes_of(unet: nn.Module) -> int | None:
    """How many classes a UNet is told; ``None`` where it is not told any."""
    return getattr(unet, 'config', {}).get('num_class_embeds')


def classes_for(unet: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a UNet takes beside image and timestep."""
    return dict(class_labels=batch['label']) if classes_of(unet) else {}
