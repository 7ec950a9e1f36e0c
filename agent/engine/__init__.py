"""The engines: MLX in this process, each behind the ``Engine`` of ``engine.engine``.

``text.TextEngine`` batches conversations; ``job`` holds what goes in and comes out, ``mlx`` is its seam to mlx-lm.
``serial.SerialEngine`` makes everything else, one job after the other; ``media`` holds what goes in and comes out, and
``embeddings``, ``speech`` and ``images`` are its seams. ``choice`` finds the engine for a folder.
"""

from __future__ import annotations

import os

# The libraries below mlx-lm read these when they are imported. Weights come from folders that the owner names, so
# nothing may reach for a network, and none of them may print what it works on.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
