"""Classes of diffusers for sounds: a small config, and inputs, for each."""

from collections.abc import Callable

import torch

from .draws import BATCH, ones, real, whole

SOUNDS: dict[str, tuple[dict, Callable[[], dict]]] = {
    'AceStepTransformer1DModel': (
        dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, sliding_window=16),
        lambda: dict(hidden_states=real(8, 8), timestep=torch.rand(BATCH), timestep_r=torch.rand(BATCH),
                     encoder_hidden_states=real(7, 32), context_latents=real(8, 16))),
    'AutoencoderKLKVAEAudio': (
        dict(encoder_dim=4, encoder_rates=[2, 2], latent_dim=32, codebook_dim=8, decoder_dim=32, decoder_rates=[2, 2],
             attn_num_heads=2), lambda: dict(sample=real(1, 64))),
    'AutoencoderKLMiniMaxH3Audio': (
        dict(encoder_dim=4, encoder_rates=(2, 2), latent_dim=32, latent_channels=8, num_attention_heads=2, decoder_dim=16,
             decoder_rates=(2, 2), decoder_kernel_sizes=(4, 4), resblock_kernel_sizes=(3, 7),
             resblock_dilation_sizes=((1, 3), (1, 3)), latents_mean=[0.0] * 8, latents_std=[1.0] * 8),
        lambda: dict(sample=real(1, 32))),
    'AutoencoderSAME': (
        dict(patch_size=4, encoder_channels=16, encoder_c_mults=[1, 2], encoder_strides=[2, 2],
             encoder_transformer_depths=[1, 1], latent_dim=8, dim_heads=8, ff_mult=2, use_differential_attention=False),
        lambda: dict(sample=real(2, 128))),
    'Cosmos3AVAEAudioTokenizer': (
        dict(sampling_rate=16, hop_size=4, enc_dim=4, enc_num_blocks=1, enc_n_fft=8, enc_hop_length=2, enc_latent_dim=8,
             enc_c_mults=(1,), enc_strides=(2,), vocoder_input_dim=4, dec_dim=4, dec_c_mults=(1, 2), dec_strides=(2, 2),
             input_channels=1, dec_out_channels=2),
        lambda: dict(sample=real(2, 16))),
    'LongCatAudioDiTTransformer': (
        dict(dit_dim=64, dit_depth=2, dit_heads=4, dit_text_dim=32, latent_dim=8, text_conv=False),
        lambda: dict(hidden_states=real(16, 8), timestep=torch.rand(BATCH), encoder_hidden_states=real(7, 32),
                     encoder_attention_mask=ones(7).bool(), attention_mask=ones(16).bool())),
    'MiniMaxMusic3Transformer1DModel': (
        dict(in_channels=8, condition_dim=16, num_layers=2, num_attention_heads=2, attention_head_dim=8, ff_inner_dim=32,
             rotary_dim=4, fourier_embedding_dim=8),
        lambda: dict(hidden_states=real(8, 24), timestep=torch.rand(BATCH), encoder_hidden_states=real(24, 16))),
    'StableAudio3DiTModel': (
        dict(io_channels=8, embed_dim=32, depth=2, num_heads=4, cond_token_dim=16, global_cond_dim=12, local_add_cond_dim=5,
             timestep_features_dim=16, ff_mult=2, num_memory_tokens=3, use_differential_attention=False),
        lambda: dict(hidden_states=real(8, 16), timestep=torch.rand(BATCH), encoder_hidden_states=real(4, 16),
                     global_hidden_states=real(12))),
    'AnimaTextConditioner': (
        dict(source_dim=32, target_dim=32, model_dim=32, num_layers=2, num_attention_heads=2, target_vocab_size=64,
             min_sequence_length=8),
        lambda: dict(source_hidden_states=real(7, 32), target_input_ids=whole(7, most=64))),
    'MMAudioVAE': (
        dict(mel_bins=16, latent_channels=8, hidden_channels=32, channel_multipliers=(1, 2), layers_per_block=1),
        lambda: dict(sample=real(8192))),
    'MMAudioVocoder': (
        dict(num_mels=16, upsample_initial_channel=32, upsample_rates=(2, 2), upsample_kernel_sizes=(4, 4),
             resblock_kernel_sizes=(3, 7), resblock_dilation_sizes=((1, 3, 5), (1, 3, 5))),
        lambda: dict(mel=real(16, 16))),
    'MiniMaxMusic3ConditionEncoder': (
        dict(condition_hidden_dim=32, num_condition_layers=2, out_dim=16), lambda: dict(hidden_states=real(8, 64))),
    'MiniMaxMusic3RVQDepthDecoder': (
        dict(hidden_size=32, num_layers=2, num_attention_heads=2, intermediate_size=64, audio_vocab_size=16, num_codebooks=4),
        lambda: dict(inputs_embeds=real(4, 32))),
    'MiniMaxMusic3Vocoder': (
        dict(latent_channels=8, decoder_input_dim=32, decoder_hidden_dim=32, upsampling_ratios=(2, 2)),
        lambda: dict(latents=real(8, 16))),
}
