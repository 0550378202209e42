"""How bench/peers.py talks to the process of one peer: it waits for a line before each iteration and answers with its
seconds and the most memory held so far. Standard library alone: it runs in every peer's environment."""

import json
import resource
import sys
import time

# The workload's model shapes by name, for environments that cannot import ours.
SHAPES = {
    "W135": {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp": 1536},
    "W10": {"vocab": 4096, "width": 256, "layers": 6, "heads": 8, "kv_heads": 8, "head_dim": 32, "mlp": 768},
}
OUT = sys.stdout
sys.stdout = sys.stderr  # what libraries print is not an answer


class Turns:
    """`start` waits for leave to go on, `end` answers."""

    def start(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.began = time.perf_counter()

    def end(self, **more: float) -> None:
        seconds = time.perf_counter() - self.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_gib": peak, **more}), file=OUT, flush=True)
