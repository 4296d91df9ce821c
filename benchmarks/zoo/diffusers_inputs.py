"""Classes of diffusers whose inputs cannot be guessed, or whose defaults do not shrink: a config and inputs for each."""

from collections.abc import Callable

import torch

from .diffusers_sounds import SOUNDS
from .diffusers_videos import VIDEOS
from .draws import BATCH, ones, real, steps, whole

# Class -> its config, and a function that draws its inputs.
CASES: dict[str, tuple[dict, Callable[[], dict]]] = {
    **VIDEOS, **SOUNDS,
    'PriorTransformer': (
        dict(num_attention_heads=2, attention_head_dim=4, num_layers=2, embedding_dim=8, num_embeddings=7,
             additional_embeddings=4),
        lambda: dict(hidden_states=real(8), timestep=steps(), proj_embedding=real(8), encoder_hidden_states=real(7, 8))),
    'TransformerTemporalModel': (
        dict(num_attention_heads=2, attention_head_dim=16, in_channels=32, norm_num_groups=8),
        lambda: dict(hidden_states=torch.randn(6, 32, 8, 8), num_frames=3)),
    'Lumina2Transformer2DModel': (
        dict(sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, multiple_of=2,
             num_attention_heads=3, num_kv_heads=1, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=32),
        lambda: dict(hidden_states=real(4, 16, 16), timestep=steps(), encoder_hidden_states=real(7, 32),
                     encoder_attention_mask=ones(7).bool())),
    'HiDreamImageTransformer2DModel': (
        dict(patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
             num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64, axes_dims_rope=(4, 2, 2),
             max_resolution=(32, 32), llama_layers=(0, 1), num_routed_experts=4, num_activated_experts=2),
        lambda: dict(hidden_states=real(4, 32, 32), timesteps=steps(), encoder_hidden_states_t5=real(8, 32),
                     encoder_hidden_states_llama3=torch.randn(2, BATCH, 8, 16), pooled_embeds=real(64))),
    'UNet1DModel': (
        dict(block_out_channels=(8, 8, 16, 16), in_channels=14, out_channels=14, time_embedding_type='positional',
             use_timestep_embedding=True, out_block_type='OutConv1DBlock', mid_block_type='MidResTemporalBlock1D',
             down_block_types=('DownResnetBlock1D',) * 4, up_block_types=('UpResnetBlock1D',) * 3, flip_sin_to_cos=True,
             freq_shift=1.0, act_fn='swish'),
        lambda: dict(sample=real(14, 16), timestep=steps())),
    'AutoencoderKLMochi': (
        dict(in_channels=15, out_channels=3, latent_channels=4, encoder_block_out_channels=(32, 32, 32, 32),
             decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1)),
        lambda: dict(sample=torch.randn(1, 3, 7, 16, 16))),
    'AutoencoderKLHunyuanVideo15': (
        dict(latent_channels=4, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1, spatial_compression_ratio=16,
             temporal_compression_ratio=4, downsample_match_channel=False, upsample_match_channel=False),
        lambda: dict(sample=torch.randn(1, 3, 9, 16, 16))),
    'AutoencoderKLHunyuanImage': (
        dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
             spatial_compression_ratio=2, sample_size=16, downsample_match_channel=False, upsample_match_channel=False),
        lambda: dict(sample=real(3, 16, 16))),
    'AutoencoderOobleck': (
        dict(encoder_hidden_size=12, decoder_channels=12, decoder_input_channels=6, audio_channels=2,
             downsampling_ratios=[2, 4], channel_multiples=[1, 2]),
        lambda: dict(sample=real(2, 64))),
    'StableAudioDiTModel': (
        dict(sample_size=4, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
             num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=4, time_proj_dim=8,
             global_states_input_dim=8, cross_attention_input_dim=4),
        lambda: dict(hidden_states=real(4, 8), timestep=steps(), encoder_hidden_states=real(5, 4),
                     global_hidden_states=real(1, 8))),
    'T5FilmDecoder': (
        dict(input_dims=8, targets_length=8, max_decoder_noise_time=2000.0, d_model=16, num_layers=1, num_heads=2, d_kv=8,
             d_ff=32),
        lambda: dict(encodings_and_masks=[(real(8, 16), ones(8))], decoder_input_tokens=real(8, 8),
                     decoder_noise_time=torch.tensor([0.3, 0.6]))),
    'UVit2DModel': (
        dict(hidden_size=32, cond_embed_dim=32, micro_cond_encode_dim=2, micro_cond_embed_dim=10, encoder_hidden_size=32,
             vocab_size=32, codebook_size=32, in_channels=32, block_out_channels=32, num_res_blocks=1, downsample=True,
             upsample=True, block_num_heads=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32),
        lambda: dict(input_ids=whole(4, 4, most=32), encoder_hidden_states=real(2, 32), pooled_text_emb=real(32),
                     micro_conds=real(5))),
    'StableCascadeUNet': (
        dict(in_channels=16, out_channels=16, timestep_ratio_embedding_dim=16, patch_size=1, conditioning_dim=32,
             block_out_channels=(32, 32), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
             up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1),
             block_types_per_layer=(('SDCascadeResBlock', 'SDCascadeTimestepBlock', 'SDCascadeAttnBlock'),) * 2,
             clip_text_in_channels=8, clip_text_pooled_in_channels=8, clip_image_in_channels=8, clip_seq=4, kernel_size=3,
             switch_level=(False,), dropout=(0.0, 0.0)),
        lambda: dict(sample=real(16, 8, 8), timestep_ratio=torch.tensor([0.3, 0.6]), clip_text_pooled=real(1, 8),
                     clip_text=real(7, 8), clip_img=real(1, 8))),
    'LuminaNextDiT2DModel': (
        dict(sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3,
             num_kv_heads=1, multiple_of=16, cross_attention_dim=32, learn_sigma=False),
        lambda: dict(hidden_states=real(4, 16, 16), timestep=steps(), encoder_hidden_states=real(7, 32), encoder_mask=ones(7),
                     image_rotary_emb=torch.randn(384, 384, 4), cross_attention_kwargs={})),
    'UNetControlNetXSModel': (
        dict(sample_size=16, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
             up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), block_out_channels=(32, 64), cross_attention_dim=8,
             num_attention_heads=2, norm_num_groups=4, ctrl_block_out_channels=(8, 16), ctrl_num_attention_heads=4,
             ctrl_max_norm_num_groups=2, ctrl_conditioning_embedding_out_channels=(2, 2)),
        lambda: dict(sample=real(4, 16, 16), timestep=steps(), encoder_hidden_states=real(4, 8),
                     controlnet_cond=real(3, 32, 32))),
    'ConsisIDTransformer3DModel': (
        dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8,
             num_layers=1, sample_width=8, sample_height=8, sample_frames=8, max_text_seq_length=8, cross_attn_interval=1,
             is_train_face=True, cross_attn_dim_head=1, cross_attn_num_heads=1, LFE_id_dim=2, LFE_vit_dim=2, LFE_depth=5,
             LFE_num_heads=8, LFE_num_id_token=1, LFE_num_querie=1, LFE_output_dim=10, LFE_ff_mult=1, LFE_num_scale=1),
        lambda: dict(hidden_states=real(1, 4, 8, 8), timestep=steps(), encoder_hidden_states=real(8, 8),
                     id_vit_hidden=[real(2, 2)], id_cond=real(2))),
    'WanVACETransformer3DModel': (
        dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
             freq_dim=64, ffn_dim=32, num_layers=2, rope_max_seq_len=32, vace_layers=[0], vace_in_channels=12),
        lambda: dict(hidden_states=real(4, 2, 16, 16), timestep=steps(), encoder_hidden_states=real(7, 32),
                     control_hidden_states=real(12, 2, 16, 16))),
    'UNetMotionModel': (
        dict(block_out_channels=(16, 32), down_block_types=('CrossAttnDownBlockMotion', 'DownBlockMotion'), layers_per_block=1,
             up_block_types=('UpBlockMotion', 'CrossAttnUpBlockMotion'), cross_attention_dim=16, norm_num_groups=4,
             num_attention_heads=2, motion_num_attention_heads=2),
        lambda: dict(sample=real(4, 3, 16, 16), timestep=steps(), encoder_hidden_states=torch.randn(3 * BATCH, 5, 16))),
    'SparseControlNetModel': (
        dict(block_out_channels=(16, 32), down_block_types=('CrossAttnDownBlockMotion', 'DownBlockMotion'), layers_per_block=1,
             cross_attention_dim=16, norm_num_groups=4, num_attention_heads=2, motion_num_attention_heads=2),
        lambda: dict(sample=real(4, 3, 16, 16), timestep=steps(), encoder_hidden_states=torch.randn(3 * BATCH, 5, 16),
                     controlnet_cond=real(4, 3, 16, 16), conditioning_mask=ones(1, 3, 16, 16))),
    'Kandinsky3UNet': (
        dict(block_out_channels=(16, 32, 64, 128), layers_per_block=1, groups=4, attention_head_dim=8, cross_attention_dim=16,
             encoder_hid_dim=16, time_embedding_dim=32),
        lambda: dict(sample=real(4, 16, 16), timestep=steps(), encoder_hidden_states=real(5, 16),
                     encoder_attention_mask=ones(5))),
    'OmniGenTransformer2DModel': (
        dict(hidden_size=16, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32, num_layers=2, pad_token_id=0,
             vocab_size=100, time_step_dim=4, rope_scaling=dict(long_factor=[1, 2], short_factor=[1, 2])),
        lambda: dict(hidden_states=real(4, 8, 8), timestep=steps(), input_ids=whole(24), attention_mask=ones(41, 41),
                     input_img_latents=[torch.randn(1, 4, 8, 8)], input_image_sizes={0: [[0, 16]]},
                     position_ids=torch.arange(41).expand(BATCH, -1))),
    'BriaFiboTransformer2DModel': (
        dict(patch_size=1, in_channels=48, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
             joint_attention_dim=64, text_encoder_dim=32, pooled_projection_dim=None, axes_dims_rope=[0, 4, 4]),
        lambda: dict(hidden_states=real(16, 48), timestep=steps(), encoder_hidden_states=real(7, 64),
                     img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(7, 3), text_encoder_layers=[real(7, 32), real(7, 32)])),
    'ErnieImageTransformer2DModel': (
        dict(hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=64, in_channels=16, out_channels=16,
             patch_size=1, text_in_dim=16, rope_axes_dim=(8, 4, 4)),
        lambda: dict(hidden_states=real(16, 8, 8), timestep=steps(), text_bth=real(7, 16), text_lens=torch.tensor([7, 5]))),
    'GlmImageTransformer2DModel': (
        dict(patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
             text_embed_dim=32, time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=64),
        lambda: dict(hidden_states=real(4, 8, 8), timestep=steps(), encoder_hidden_states=real(7, 32),
                     prior_token_id=whole(16, most=64), prior_token_drop=torch.zeros(BATCH, 16, dtype=torch.bool),
                     target_size=8 * ones(2), crop_coords=0 * ones(2))),
    'Ideogram4Transformer2DModel': (
        dict(in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, intermediate_size=32, adaln_dim=16,
             llm_features_dim=24, mrope_section=(2, 1, 1)),
        lambda: dict(hidden_states=real(8, 16), timestep=steps() / 1000, encoder_hidden_states=real(8, 24),
                     position_ids=whole(8, 3), segment_ids=torch.ones(BATCH, 8, dtype=torch.long),
                     indicator=torch.tensor([[3, 3, 3, 3, 2, 2, 2, 2]]).expand(BATCH, -1))),
    'Krea2Transformer2DModel': (
        dict(in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
             text_num_key_value_heads=1, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
             axes_dims_rope=(4, 2, 2)),
        lambda: dict(hidden_states=real(4, 16), timestep=steps() / 1000, encoder_hidden_states=real(4, 3, 16),
                     position_ids=torch.rand(8, 3))),
    'QwenImage21Transformer2DModel': (
        dict(in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=16,
             axes_dims_rope=(4, 6, 6)),
        lambda: dict(hidden_states=real(16, 16), timestep=steps(), encoder_hidden_states=real(7, 16),
                     img_shapes=[[(1, 4, 4)]] * BATCH, img_mask=torch.tensor([[False] * 7 + [True] * 4]),
                     encoder_hidden_states_mask=ones(7).bool())),
    'HunyuanDiT2DControlNetModel': (
        dict(sample_size=16, patch_size=2, in_channels=4, num_attention_heads=3, attention_head_dim=8, hidden_size=24,
             transformer_num_layers=4, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4, text_len=4,
             text_len_t5=4, conditioning_channels=4),
        lambda: dict(hidden_states=real(4, 16, 16), timestep=steps(), controlnet_cond=real(4, 16, 16),
                     encoder_hidden_states=real(4, 8), text_embedding_mask=ones(4), encoder_hidden_states_t5=real(4, 8),
                     text_embedding_mask_t5=ones(4), image_meta_size=ones(6), style=whole(most=1),
                     image_rotary_emb=(torch.randn(64, 8), torch.randn(64, 8)))),
    'ControlNetUnionModel': (
        dict(block_out_channels=(32, 64), layers_per_block=1, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
             cross_attention_dim=32, norm_num_groups=8, attention_head_dim=4, conditioning_embedding_out_channels=(16, 32),
             num_control_type=6, num_trans_channel=32, num_trans_head=4, num_proj_channel=32,
             addition_embed_type='text_time', addition_time_embed_dim=8,
             projection_class_embeddings_input_dim=80),
        lambda: dict(sample=real(4, 16, 16), timestep=steps(), encoder_hidden_states=real(7, 32),
                     controlnet_cond=[real(3, 32, 32)], control_type=torch.eye(6)[:BATCH], control_type_idx=[0],
                     conditioning_scale=1.0, added_cond_kwargs=dict(text_embeds=real(32), time_ids=ones(6)))),
}

CONTAINER = 'it only holds other models, which have rows of their own'
PART = 'no model with inputs: its layers run inside of'
FLEX = 'GPU only: it calls FlexAttention, which has no gradients on a CPU'
# Why a class does not run in float here.
CANNOT = {
    'FluxMultiControlNetModel': CONTAINER, 'HunyuanDiT2DMultiControlNetModel': CONTAINER,
    'QwenImageMultiControlNetModel': CONTAINER, 'SD3MultiControlNetModel': CONTAINER,
    'MotionAdapter': f'{PART} UNetMotionModel', 'ControlNetXSAdapter': f'{PART} UNetControlNetXSModel',
    'ZImageControlNetModel': f'{PART} ZImageTransformer2DModel',
    'AnyFlowFARTransformer3DModel': FLEX, 'Kandinsky6SRTransformer3DModel': FLEX, 'LTX2VideoDiffusionDecoderModel': FLEX,
    'AutoencoderRAE': 'it needs the package transformers', 'CosmosControlNetModel': 'it needs the package torchvision',
    'AutoencoderKLAllegro': 'it encodes tiles only, which are switched on by hand and are larger than a small test',
}
