"""Questions as ids: JSON lines, prompts, tokenizers, order."""

import os

# transformers announces on import that torch is absent. Here it always may be: only its tokenizers are used.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
