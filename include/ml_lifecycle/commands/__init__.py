"""What ``ml-lifecycle`` can do: a module a group of commands, each with its ``COMMANDS``."""
