"""Recipe presets: sparse YAML files, read by `rl4rec_cli.layering`."""
