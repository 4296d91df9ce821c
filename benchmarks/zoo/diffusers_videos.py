"""Classes of diffusers for videos: a small config, and inputs, for each."""

from collections.abc import Callable

import torch

from .draws import BATCH, ones, real, steps

TIMES = {f'indices_latents{which}': torch.arange(frames, dtype=torch.float32)
         for which, frames in (('', 3), ('_clean', 2), ('_history_2x', 2), ('_history_4x', 8))}
WAN = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
           freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32)

VIDEOS: dict[str, tuple[dict, Callable[[], dict]]] = {
    'AnyFlowTransformer3DModel': (
        WAN, lambda: dict(hidden_states=real(2, 4, 8, 8), timestep=500 * ones(2), r_timestep=250 * ones(2),
                          encoder_hidden_states=real(7, 16))),
    'AutoencoderKLKVAEVideo': (
        dict(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, temporal_compress_times=2),
        lambda: dict(sample=real(3, 3, 16, 16))),
    'AutoencoderKLLTX2Video': (
        dict(latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(16, 32, 64),
             layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4, patch_size=1, decoder_causal=False,
             decoder_spatial_padding_mode='zeros'),
        lambda: dict(sample=real(3, 9, 16, 16))),
    'AutoencoderKLMiniMaxH3': (
        dict(latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, spatial_downsample_factors=(2, 2),
             temporal_downsample_factors=(2, 2), norm_num_groups=8, decoder_num_layers=2, decoder_num_attention_heads=2,
             decoder_attention_head_dim=8, decoder_num_register_tokens=2, decoder_ffn_mult=2, latents_mean=(0.0,) * 4,
             latents_std=(1.0,) * 4),
        lambda: dict(sample=real(3, 22, 8, 8))),
    'AutoencoderKLQwenImage': (
        dict(base_dim=12, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1), lambda: dict(sample=real(3, 1, 16, 16))),
    'AutoencoderKLQwenImage21': (
        dict(base_dim=12, decoder_base_dim=12, z_dim=64, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, in_channels=3,
             out_channels=3), lambda: dict(sample=real(3, 1, 32, 32))),
    'AutoencoderVidTok': (
        dict(ch=32, ch_mult=[1, 2, 2, 2], z_channels=4, num_res_blocks=1), lambda: dict(sample=real(3, 9, 16, 16))),
    'CosmosTransformer3DModel': (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2,
             text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2), rope_scale=(2.0, 1.0, 1.0),
             concat_padding_mask=False),
        lambda: dict(hidden_states=real(4, 1, 16, 16), timestep=steps(), encoder_hidden_states=real(7, 16), fps=30)),
    'EasyAnimateTransformer3DModel': (
        dict(attention_head_dim=16, num_attention_heads=2, in_channels=4, mmdit_layers=2, num_layers=2, out_channels=4,
             patch_size=2, text_embed_dim=16, time_embed_dim=8),
        lambda: dict(hidden_states=real(4, 2, 16, 16), timestep=steps(), encoder_hidden_states=real(7, 16))),
    'HunyuanVideo15Transformer3DModel': (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
             mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12,
             rope_axes_dim=(2, 2, 4), target_size=16, task_type='t2v'),
        lambda: dict(hidden_states=real(4, 1, 8, 8), timestep=steps(), encoder_hidden_states=real(6, 16),
                     encoder_hidden_states_2=real(4, 8), encoder_attention_mask=ones(6), encoder_attention_mask_2=ones(4),
                     image_embeds=real(3, 12))),
    'HunyuanVideoFramepackTransformer3DModel': (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
             num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
             pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), has_image_proj=True, image_proj_dim=16,
             has_clean_x_embedder=True),
        lambda: dict(hidden_states=real(4, 3, 4, 4), timestep=steps(), encoder_hidden_states=real(7, 16),
                     pooled_projections=real(8), encoder_attention_mask=ones(7), guidance=steps(), image_embeds=real(5, 16),
                     latents_clean=real(4, 2, 4, 4), latents_history_2x=real(4, 2, 4, 4),
                     latents_history_4x=real(4, 8, 4, 4), **TIMES)),
    'JoyImageEditPlusTransformer3DModel': (
        dict(patch_size=[1, 2, 2], in_channels=16, hidden_size=32, num_attention_heads=2, text_dim=16, num_layers=2,
             rope_dim_list=[4, 6, 6], theta=256),
        lambda: dict(hidden_states=real(2, 16, 1, 2, 2), timestep=steps(), encoder_hidden_states=real(7, 16),
                     shape_list=[[(1, 1, 1), (1, 1, 1)]] * BATCH)),
    'LTX2VideoTransformer3DModel': (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
             audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
             audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False),
        lambda: dict(hidden_states=real(32, 4), audio_hidden_states=real(9, 4), encoder_hidden_states=real(7, 16),
                     audio_encoder_hidden_states=real(7, 16), timestep=steps(), encoder_attention_mask=ones(7).bool(),
                     num_frames=2, height=4, width=4, audio_num_frames=9, fps=25.0)),
    'MiniMaxH3Transformer3DModel': (
        dict(num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=2, num_refiner_layers=2, ffn_dim=32,
             in_channels=4, audio_in_channels=6, patch_size=(1, 2, 2), text_dim=8, freq_dim=8, time_embed_hidden_dim=24,
             time_embed_dim=16, rope_freq_dim=2),
        lambda: dict(hidden_states=real(8, 16), audio_hidden_states=real(6, 6), encoder_hidden_states=real(4, 8),
                     timestep=torch.tensor([0.7, 0.3]), timestep_indices=torch.tensor([0] * 10 + [1] * 8),
                     token_tags=torch.tensor([0] * 4 + [2] * 6 + [1] * 8), position_ids=torch.rand(18, 3),
                     text_indices=torch.arange(4), audio_indices=torch.arange(4, 10), video_indices=torch.arange(10, 18))),
    'WanAnimateTransformer3DModel': (
        {**WAN, 'in_channels': 12, 'latent_channels': 4, 'image_dim': 16, 'motion_encoder_size': 16, 'motion_style_dim': 8,
         'motion_encoder_channel_sizes': {'4': 16, '8': 16, '16': 16}, 'motion_dim': 4, 'motion_encoder_dim': 16,
         'face_encoder_hidden_dim': 16, 'face_encoder_num_heads': 2, 'inject_face_latents_blocks': 2},
        lambda: dict(hidden_states=real(12, 21, 8, 8), timestep=steps(), encoder_hidden_states=real(7, 16),
                     encoder_hidden_states_image=real(7, 16), pose_hidden_states=real(4, 20, 8, 8),
                     face_pixel_values=real(3, 77, 16, 16))),
    'Kandinsky6Transformer3DModel': (
        dict(in_visual_dim=4, out_visual_dim=4, model_dim=32, ff_dim=64, in_text_dim=16, in_text_dim2=12, time_dim=32,
             num_text_blocks=1, num_visual_blocks=2, axes_dims=(8, 4, 4), in_audio_dim=4, out_audio_dim=4),
        lambda: dict(hidden_states=real(2, 8, 8, 9)[:1], encoder_hidden_states=real(7, 16)[:1],
                     pooled_projections=real(12)[:1], timestep=steps()[:1])),
    'Kandinsky6SRLatentUpscalerBank': (
        dict(in_channels=4, stage_channels=(32, 16, 8), num_pre_blocks=1, num_mid_blocks=1, num_post_blocks=1,
             num_x2_adapter_blocks=1),
        lambda: dict(latents=real(4, 2, 8, 8), scale=2)),
    'Cosmos3OmniTransformer': (
        dict(head_dim=6, hidden_act='relu2', hidden_size=12, intermediate_size=24, latent_channel=2, latent_patch_size=1,
             num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=2, qk_norm_for_text=False,
             rope_axes_dim=[1, 1, 1], vocab_size=32),
        lambda: dict(input_ids=torch.tensor([1, 2]), text_indexes=torch.tensor([0, 1]), und_len=2, sequence_length=3,
                     position_ids=torch.tensor([[0, 1, 2]] * 3), vision_tokens=[torch.randn(1, 2, 1, 1, 1)],
                     vision_token_shapes=[(1, 1, 1)], vision_sequence_indexes=torch.tensor([2]),
                     vision_mse_loss_indexes=torch.tensor([2]), vision_timesteps=torch.ones(1),
                     vision_noisy_frame_indexes=[torch.tensor([0])])),
    'SanaWMTransformer3DModel': (
        dict(in_channels=4, num_layers=2, hidden_size=32, num_attention_heads=2, linear_head_dim=16, caption_channels=16,
             chunk_plucker_post_attn_blocks=1, mixed_precision='no', softmax_every_n=2),
        lambda: dict(hidden_states=real(4, 2, 4, 4), timestep=500 * ones(1, 2), encoder_hidden_states=real(7, 16),
                     mask=ones(7), data_info={})),
}
