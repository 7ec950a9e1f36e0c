"""The text engine: MLX in this process, batched, behind a typed job interface.

``text.TextEngine`` is the face; ``job`` holds what goes in and comes out; ``mlx`` is the only module that touches
mlx-lm.
"""

from __future__ import annotations

import os

# The libraries below mlx-lm read these when they are imported. Weights come from folders that the owner names, so
# nothing may reach for a network, and none of them may print what it works on.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
