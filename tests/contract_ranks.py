"""The body of a rank that trains every case of the contract under every plan that it allows.

It writes the digests of the weights.
"""

import faulthandler
import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist
from contract_cases import CASES, PLACEMENTS, RUNS, train

from onward.transport import messages as transports

NUM_RANKS = 2

LIMIT_SECONDS = 120
"""After this a rank prints where it hangs, and ends."""


def main(folder):
    """Train all cases on the ranks that this process is one of."""
    rank, digests = int(os.environ["RANK"]), {}
    for number, (name, kind) in enumerate(RUNS):
        # A try of its own, which the transport keeps apart from the others.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        start = time.monotonic()
        try:
            _, result = train(CASES[name], kind=kind, placement=PLACEMENTS[kind])
            found = result.facts["weights_sha256"] if result else None
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        digests[f"{name}, {kind}"] = found
        print(f"rank {rank}: {name}, {kind}: {time.monotonic() - start:.2f} s", flush=True)
        (folder / f"rank{rank}.json").write_text(json.dumps(digests))
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    main(Path(sys.argv[1]))
    # At once: threads that wait for a rank that has failed would keep this one.
    transports.exit_process(0)
