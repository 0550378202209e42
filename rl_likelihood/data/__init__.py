"""Questions as ids: JSON lines, prompts, tokenizers, order."""

import os

# Without torch, transformers prints a warning on import. Only its tokenizers are used, so torch is not needed.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
