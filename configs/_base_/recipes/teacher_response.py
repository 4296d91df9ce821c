# A trained float detector teaches what its head says. Needs float_twin = dict(config=..., checkpoint=...).
recipe_teacher_response = dict(default_hooks=dict(teacher=dict(
    type='bnn_plugins.TeacherHook', losses=dict(response=dict(type='bnn_plugins.ResponseLoss', weight=1.0)))))
