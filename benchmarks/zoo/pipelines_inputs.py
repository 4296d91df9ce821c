"""Small random components, and what a call takes, for pipelines of diffusers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import diffusers as d
import torch
from PIL import Image
from torch import Tensor, nn

SIDE, TEXT = 16, 32


@dataclass
class Pipeline:
    """One pipeline.

    Attributes:
        components: makes its parts, with random weights; ``None`` for text encoders and what else is not needed.
        call: what it is called with, besides the generator and the number of steps.
    """

    components: Callable[[], dict]
    call: Callable[[], dict] = dict
    taken: dict = field(default_factory=lambda: {'num_inference_steps': 2})

    def inputs(self) -> dict:
        return {'generator': torch.Generator().manual_seed(0), **self.taken, **self.call()}


def real(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(side: int = SIDE) -> Image.Image:
    return Image.fromarray((real(side, side, 3).sigmoid() * 255).byte().numpy())


def mask(side: int = SIDE) -> Image.Image:
    return Image.fromarray((255 * (torch.arange(side) > side // 2).expand(side, side)).byte().numpy())


def plain_unet(**changes) -> nn.Module:
    return d.UNet2DModel(**{**dict(sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
                                   down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
                                   up_block_types=('AttnUpBlock2D', 'UpBlock2D')), **changes})


def text_unet(**changes) -> nn.Module:
    return d.UNet2DConditionModel(**{**dict(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=TEXT, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D')), **changes})


XL = dict(addition_embed_type='text_time', addition_time_embed_dim=8, use_linear_projection=True,
          projection_class_embeddings_input_dim=6 * 8 + TEXT, transformer_layers_per_block=(1, 1))


def vae(channels: int = 4, **changes) -> nn.Module:
    return d.AutoencoderKL(**{**dict(
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=SIDE,
        down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2), **changes})


def ddim() -> object:
    return d.DDIMScheduler(beta_schedule='scaled_linear', clip_sample=False, set_alpha_to_one=False)


def flow() -> object:
    return d.FlowMatchEulerDiscreteScheduler()


CROSS_FIRST = dict(down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
                   up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))


def adapter() -> nn.Module:
    return d.T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2)


NO_TEXT = dict(text_encoder=None, tokenizer=None)
NO_TEXT_2 = dict(NO_TEXT, text_encoder_2=None, tokenizer_2=None)
NO_TEXT_3 = dict(NO_TEXT_2, text_encoder_3=None, tokenizer_3=None)
UNSAFE = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def controlnet(**changes) -> nn.Module:
    """Past its first state, in which it controls nothing."""
    model = d.ControlNetModel(**{**dict(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=TEXT,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), conditioning_embedding_out_channels=(8, 16)), **changes})
    for parameter in [*model.controlnet_down_blocks.parameters(), *model.controlnet_mid_block.parameters()]:
        nn.init.normal_(parameter)
    return model


def sd(unet: Callable = text_unet, **more) -> dict:
    made = dict(unet=unet(), vae=vae(), scheduler=ddim(), **NO_TEXT, **UNSAFE)
    return {**made, **{name: part() if callable(part) else part for name, part in more.items()}}


def sd_call(**more) -> dict:
    return dict(prompt_embeds=real(1, 7, TEXT), negative_prompt_embeds=real(1, 7, TEXT, seed=2), output_type='np',
                **{name: part() if callable(part) else part for name, part in more.items()})


def xl(**more) -> dict:
    made = dict(unet=text_unet(**XL), vae=vae(), scheduler=d.EulerDiscreteScheduler(), **NO_TEXT_2)
    return {**made, **{name: part() if callable(part) else part for name, part in more.items()}}


def xl_call(**more) -> dict:
    return dict(sd_call(**more), pooled_prompt_embeds=real(1, TEXT), negative_pooled_prompt_embeds=real(1, TEXT, seed=2))


SIZE = dict(height=SIDE, width=SIDE)
SD, XL_PARTS = partial(sd), partial(xl)
ON_PICTURE = dict(image=picture, strength=1.0)
HOLE = dict(ON_PICTURE, mask_image=mask, **SIZE)
CONTROLLED = dict(image=picture, **SIZE)
CONTROLLED_AGAIN = dict(image=picture, control_image=picture, strength=1.0)

PIPELINES: dict[str, Pipeline] = {
    'DDPMPipeline': Pipeline(lambda: dict(unet=plain_unet(), scheduler=d.DDPMScheduler()), lambda: dict(output_type='np')),
    'DDIMPipeline': Pipeline(lambda: dict(unet=plain_unet(), scheduler=d.DDIMScheduler()), lambda: dict(output_type='np')),
    'ConsistencyModelPipeline': Pipeline(
        lambda: dict(unet=plain_unet(), scheduler=d.CMStochasticIterativeScheduler()), lambda: dict(output_type='np')),
    'DiTPipeline': Pipeline(lambda: dict(
        transformer=d.DiTTransformer2DModel(sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, in_channels=4,
                                            num_attention_heads=2, out_channels=8, num_embeds_ada_norm=1000),
        vae=vae(), scheduler=d.DDIMScheduler()), lambda: dict(class_labels=[1], output_type='np')),
    'PNDMPipeline': Pipeline(
        lambda: dict(unet=plain_unet(), scheduler=d.PNDMScheduler()), lambda: dict(output_type='np'),
        dict(num_inference_steps=8)),
    'KarrasVePipeline': Pipeline(
        lambda: dict(unet=plain_unet(), scheduler=d.KarrasVeScheduler()), lambda: dict(output_type='np')),
    'ScoreSdeVePipeline': Pipeline(
        lambda: dict(unet=plain_unet(), scheduler=d.ScoreSdeVeScheduler()), lambda: dict(output_type='np')),
    'LDMPipeline': Pipeline(lambda: dict(
        unet=plain_unet(sample_size=8), scheduler=d.DDIMScheduler(),
        vqvae=d.VQModel(block_out_channels=(8, 16), down_block_types=('DownEncoderBlock2D',) * 2, latent_channels=3,
                        norm_num_groups=4, up_block_types=('UpDecoderBlock2D',) * 2)), lambda: dict(output_type='np')),
    'RePaintPipeline': Pipeline(
        lambda: dict(unet=plain_unet(sample_size=32), scheduler=d.RePaintScheduler()),
        lambda: dict(image=picture(32), mask_image=mask(32), jump_length=1, jump_n_sample=1, output_type='np')),
    # UNets that read a text.
    'StableDiffusionPipeline': Pipeline(SD, partial(sd_call, **SIZE)),
    'StableDiffusionImg2ImgPipeline': Pipeline(SD, partial(sd_call, **ON_PICTURE)),
    'StableDiffusionInpaintPipeline': Pipeline(SD, partial(sd_call, **HOLE)),
    'StableDiffusionInstructPix2PixPipeline': Pipeline(
        partial(sd, partial(text_unet, in_channels=8), image_encoder=None), partial(sd_call, image=picture)),
    'StableDiffusionControlNetPipeline': Pipeline(partial(sd, controlnet=controlnet), partial(sd_call, **CONTROLLED)),
    'StableDiffusionControlNetImg2ImgPipeline': Pipeline(
        partial(sd, controlnet=controlnet), partial(sd_call, **CONTROLLED_AGAIN)),
    'StableDiffusionControlNetInpaintPipeline': Pipeline(
        partial(sd, controlnet=controlnet), partial(sd_call, **CONTROLLED_AGAIN, mask_image=mask, **SIZE)),
    'StableDiffusionAdapterPipeline': Pipeline(
        partial(sd, partial(text_unet, **CROSS_FIRST), adapter=adapter),
        partial(sd_call, image=picture, **SIZE)),
    'LatentConsistencyModelPipeline': Pipeline(
        partial(sd, partial(text_unet, time_cond_proj_dim=TEXT), scheduler=d.LCMScheduler),
        lambda: dict(prompt_embeds=real(1, 7, TEXT), output_type='np', **SIZE)),
    'LatentConsistencyModelImg2ImgPipeline': Pipeline(
        partial(sd, partial(text_unet, time_cond_proj_dim=TEXT), scheduler=d.LCMScheduler),
        lambda: dict(prompt_embeds=real(1, 7, TEXT), output_type='np', image=picture(), strength=1.0)),
    'StableDiffusionPAGPipeline': Pipeline(partial(sd, image_encoder=None), partial(sd_call, **SIZE)),
    'StableDiffusionPAGImg2ImgPipeline': Pipeline(partial(sd, image_encoder=None), partial(sd_call, **ON_PICTURE)),
    'StableDiffusionPAGInpaintPipeline': Pipeline(partial(sd, image_encoder=None), partial(sd_call, **HOLE)),
    'StableDiffusionPanoramaPipeline': Pipeline(SD, partial(sd_call, height=SIDE, width=SIDE)),
    'StableDiffusionSAGPipeline': Pipeline(SD, partial(sd_call, **SIZE)),
    'StableDiffusionXLPipeline': Pipeline(XL_PARTS, partial(xl_call, **SIZE)),
    'StableDiffusionXLImg2ImgPipeline': Pipeline(XL_PARTS, partial(xl_call, **ON_PICTURE)),
    'StableDiffusionXLInpaintPipeline': Pipeline(XL_PARTS, partial(xl_call, **HOLE)),
    'StableDiffusionXLInstructPix2PixPipeline': Pipeline(
        partial(xl, unet=partial(text_unet, in_channels=8, **XL)), partial(xl_call, image=picture, **SIZE)),
    'StableDiffusionXLControlNetPipeline': Pipeline(
        partial(xl, controlnet=partial(controlnet, **XL)), partial(xl_call, **CONTROLLED)),
    'StableDiffusionXLControlNetImg2ImgPipeline': Pipeline(
        partial(xl, controlnet=partial(controlnet, **XL)), partial(xl_call, **CONTROLLED_AGAIN, **SIZE)),
    'StableDiffusionXLAdapterPipeline': Pipeline(
        partial(xl, unet=partial(text_unet, **XL, **CROSS_FIRST), adapter=adapter),
        partial(xl_call, image=picture, **SIZE)),
    'StableDiffusionXLPAGPipeline': Pipeline(XL_PARTS, partial(xl_call, **SIZE)),
    'StableDiffusionXLPAGImg2ImgPipeline': Pipeline(XL_PARTS, partial(xl_call, **ON_PICTURE)),
    'StableDiffusionXLPAGInpaintPipeline': Pipeline(XL_PARTS, partial(xl_call, **HOLE)),
    'TextToVideoSDPipeline': Pipeline(lambda: dict(
        unet=d.UNet3DConditionModel(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                                    sample_size=8, cross_attention_dim=TEXT,
                                    down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
                                    up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D')),
        vae=vae(), scheduler=ddim(), **NO_TEXT), partial(sd_call, num_frames=2, **SIZE)),
    # Transformers.
    'StableDiffusion3Pipeline': Pipeline(lambda: sd3(), partial(xl_call, **SIZE)),
    'StableDiffusion3Img2ImgPipeline': Pipeline(lambda: sd3(), partial(xl_call, **ON_PICTURE, **SIZE)),
    'StableDiffusion3InpaintPipeline': Pipeline(lambda: sd3(16), partial(xl_call, **HOLE)),
    'StableDiffusion3PAGPipeline': Pipeline(lambda: sd3(), partial(xl_call, **SIZE)),
    'FluxPipeline': Pipeline(lambda: flux(), lambda: flux_call(**SIZE)),
    'FluxImg2ImgPipeline': Pipeline(lambda: flux(), lambda: flux_call(image=picture(), strength=1.0, **SIZE)),
    'FluxInpaintPipeline': Pipeline(
        lambda: flux(), lambda: flux_call(image=picture(), mask_image=mask(), strength=1.0, **SIZE)),
    'FluxControlPipeline': Pipeline(lambda: flux(8), lambda: flux_call(control_image=picture(), **SIZE)),
    'AuraFlowPipeline': Pipeline(lambda: dict(
        transformer=d.AuraFlowTransformer2DModel(sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
                                                 num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
                                                 caption_projection_dim=32, joint_attention_dim=TEXT, out_channels=4,
                                                 pos_embed_max_size=256),
        vae=vae(), scheduler=flow(), **NO_TEXT),
        lambda: dict(sd_call(**SIZE), prompt_attention_mask=torch.ones(1, 7),
                     negative_prompt_attention_mask=torch.ones(1, 7))),
    'CogView4Pipeline': Pipeline(lambda: dict(
        transformer=d.CogView4Transformer2DModel(patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4,
                                                 num_attention_heads=4, out_channels=4, text_embed_dim=TEXT, time_embed_dim=8,
                                                 condition_dim=4),
        vae=vae(), scheduler=flow(), **NO_TEXT), partial(sd_call, **SIZE)),
    'ChromaPipeline': Pipeline(lambda: dict(
        transformer=d.ChromaTransformer2DModel(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
                                               attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT,
                                               axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
                                               approximator_num_channels=16),
        vae=vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1), scheduler=flow(), **NO_TEXT,
        image_encoder=None, feature_extractor=None),
        lambda: dict(sd_call(**SIZE), prompt_attention_mask=torch.ones(1, 7),
                     negative_prompt_attention_mask=torch.ones(1, 7))),
    'HunyuanDiTPipeline': Pipeline(lambda: dict(
        transformer=d.HunyuanDiT2DModel(sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
                                        num_attention_heads=3, cross_attention_dim=TEXT, cross_attention_dim_t5=TEXT,
                                        pooled_projection_dim=4, hidden_size=24, text_len=7, text_len_t5=7),
        vae=vae(), scheduler=d.DDPMScheduler(), **NO_TEXT_2, **UNSAFE), lambda: hunyuan_call()),
    'CogVideoXPipeline': Pipeline(lambda: dict(
        transformer=d.CogVideoXTransformer3DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
                                                  time_embed_dim=2, text_embed_dim=TEXT, num_layers=2, sample_width=2,
                                                  sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=7),
        vae=d.AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
                                     temporal_compression_ratio=4,
                                     down_block_types=('CogVideoXDownBlock3D',) * 4,
                                     up_block_types=('CogVideoXUpBlock3D',) * 4),
        scheduler=d.CogVideoXDDIMScheduler(), **NO_TEXT), partial(sd_call, num_frames=8, **SIZE)),
    'LTXPipeline': Pipeline(lambda: dict(
        transformer=d.LTXVideoTransformer3DModel(in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
                                                 cross_attention_dim=32, num_layers=1, caption_channels=TEXT),
        vae=d.AutoencoderKLLTXVideo(latent_channels=8, block_out_channels=(8, 8, 8, 8),
                                    decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5,
                                    decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False),
                                    decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1,
                                    decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4,
                                    upsample_factor=(1,) * 4, timestep_conditioning=False),
        scheduler=flow(), **NO_TEXT),
        lambda: dict(sd_call(height=32, width=32, num_frames=9), prompt_attention_mask=torch.ones(1, 7),
                     negative_prompt_attention_mask=torch.ones(1, 7))),
}


def sd3(channels: int = 4) -> dict:
    transformer = d.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=channels, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=TEXT, caption_projection_dim=32, pooled_projection_dim=TEXT, out_channels=channels)
    return dict(transformer=transformer, vae=vae(channels, shift_factor=0.06), scheduler=flow(), **NO_TEXT_3)


def flux(channels: int = 4) -> dict:
    transformer = d.FluxTransformer2DModel(patch_size=1, in_channels=channels, out_channels=4, num_layers=1,
                                           num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                                           joint_attention_dim=TEXT, pooled_projection_dim=TEXT, axes_dims_rope=(4, 4, 8))
    return dict(transformer=transformer, scheduler=flow(), **NO_TEXT_2,
                vae=vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06))


def flux_call(**more) -> dict:
    return dict(prompt_embeds=real(1, 7, TEXT), pooled_prompt_embeds=real(1, TEXT), output_type='np', **more)


def hunyuan_call() -> dict:
    masks = {f'{which}prompt_attention_mask{number}': torch.ones(1, 7) for which in ('', 'negative_') for number in ('', '_2')}
    return dict(sd_call(**SIZE), prompt_embeds_2=real(1, 7, TEXT), negative_prompt_embeds_2=real(1, 7, TEXT, seed=2), **masks,
                use_resolution_binning=False)
