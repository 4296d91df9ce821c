# Start from a trained float detector of the same architecture: its weights become latents. Needs, in the config,
# float_twin = dict(config=..., checkpoint=...).
recipe_float_start = dict(default_hooks=dict(float_start=dict(type='bnn_plugins.FloatStartHook')))
