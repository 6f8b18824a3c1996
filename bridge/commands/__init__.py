"""The subcommands of ``bridge``, one module each; see :mod:`bridge.cli` for what such a module has."""
