"""Speed, measured. Each module is one command: ``python -m benchmarks.<name> [--json]``."""
