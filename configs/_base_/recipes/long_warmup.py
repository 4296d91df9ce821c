# Five epochs of warm-up instead of 100 iterations.
recipe_long_warmup = dict(param_scheduler={'0': dict(by_epoch=True, end=5, convert_to_iter_based=True)})
