"""How bench/peers.py talks to the process of one peer: it sends a line before each iteration; the peer answers with the
seconds and the most memory held so far. Only the standard library: this file runs in the environment of every peer."""

import json
import resource
import sys
import time

# The model shapes of bench/work.py by name, for environments that cannot import it.
SHAPES = {
    "W135": {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "mlp": 1536},
    "W10": {"vocab": 4096, "width": 256, "layers": 6, "heads": 8, "kv_heads": 8, "head_dim": 32, "mlp": 768},
}
OUT = sys.stdout
sys.stdout = sys.stderr  # whatever libraries print must not mix with the answers


class Iteration:
    """`start` waits for the line that allows the next iteration, `end` answers it."""

    def start(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.began = time.perf_counter()

    def end(self, **more: float) -> None:
        seconds = time.perf_counter() - self.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "peak_gib": peak, **more}), file=OUT, flush=True)
