# IDa-Det's teacher: the proposals in which both networks differ most. Needs float_twin = dict(config=..., checkpoint=...).
recipe_teacher_ida = dict(default_hooks=dict(teacher=dict(
    type='bnn_plugins.TeacherHook', losses=dict(ida=dict(type='bnn_plugins.InstanceEntropyLoss', weight=0.4)))))
