# A trained float detector teaches the maps of its neck. Needs float_twin = dict(config=..., checkpoint=...).
recipe_teacher_features = dict(default_hooks=dict(teacher=dict(
    type='bnn_plugins.TeacherHook', losses=dict(features=dict(type='bnn_plugins.FeatureLoss', weight=0.2)))))
