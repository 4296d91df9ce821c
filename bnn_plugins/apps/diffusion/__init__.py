"""Training, sampling and measuring diffusion models. Needs diffusers."""
