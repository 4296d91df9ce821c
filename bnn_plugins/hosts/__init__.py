"""The doors: what another framework needs so that a config of its own reaches bnn_plugins. Nothing below imports a host."""
