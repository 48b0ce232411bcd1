"""Do readers of files end in anything but their documented errors, whatever the file holds?

    python benchmarks/fuzz.py                  ten minutes a reader, one after the other
    python benchmarks/fuzz.py --reader npz     one of them
    python benchmarks/fuzz.py --quick          eight seconds a reader

Coverage-guided: atheris (libFuzzer) changes valid files at random, and keeps those that reach new
lines of the reader. A reader fails where it raises something else than an OnwardError, takes more
than three gigabytes, or ten seconds. Needs `pip install atheris`, and ends well without it.

    inputs    files tried, by reader
    crashes   readers that failed
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

# Before anything imports it that is not instrumented.
is_instrumented = atheris is not None and "--body" in sys.argv
with (
    atheris.instrument_imports(include=["onward", "tomllib", "numpy.lib"])
    if is_instrumented
    else contextlib.nullcontext()
):
    import onward as ow
    from onward import checkpoint
    from onward.config import RunConfig, read_run, read_settings
    from onward.costs import times
    from onward.data import cifar, idx
    from onward.errors import OnwardError
    from onward.plan.tasks import Product, ProductKind, Task, TaskKind
    from onward.runs import folders
    from onward.runtime.store import Store

import common  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

SECONDS = {"full": 600, "quick": 8, "smoke": 1}
MEMORY_MB = 3000

Reader = tuple[Callable[[Path], object], str, list[bytes]]
"""What reads a file, the name the file has, and valid contents to begin with."""


def readers() -> dict[str, Reader]:
    """Return all that is fuzzed, by name."""
    network = ow.mlp((4,), num_classes=3, widths=(5, 5))
    product = Product(ProductKind.WEIGHTS, 1, 0)
    layout = [torch.zeros(2, 3)]

    def written(write: Callable[[Path], object], name: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            return (Path(folder) / name).read_bytes()

    def keep(folder: Path) -> None:
        store = Store(folder, 0, "digest", every=1)
        store.keep(Task(TaskKind.TRAIN, 1, 0), {product: layout})
        store.close()

    def look(path: Path) -> None:
        store = Store(path.parent.parent, 0, "digest", every=1)
        store.look(lambda found: layout if found == product else None)
        store.close()

    def settings(path: Path) -> None:
        read_run(read_settings(path)).check()

    def evaluation(folder: Path) -> None:
        (folder / "result.json").write_text('{"accuracy": {"test": 0.5}}')

    pictures = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 9, 8, 7, 6])
    samples = BytesIO()
    np.savez(samples, x=np.zeros((4, 2)), y=np.arange(4), num_classes=4)
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
    state = "rank-0/weights-1-0.safetensors"
    return {
        "idx": (lambda path: idx.read_idx(path, dimensions=3), "idx", [pictures]),
        "npz": (
            lambda path: ow.load_data(str(path)),
            "own.npz",
            [samples.getvalue(), packed.getvalue()],
        ),
        "cifar": (cifar.read_batch, "data_batch_1.bin", [bytes(cifar.ROW_BYTES)]),
        "model": (
            checkpoint.load,
            "model.safetensors",
            [written(lambda folder: checkpoint.save(network, folder / "m"), "m")],
        ),
        "state": (look, state, [written(keep, state)]),
        "toml": (settings, "run.toml", [RunConfig().to_toml().encode()]),
        "result": (
            lambda path: folders.read_result(path.parent),
            "result.json",
            [written(evaluation, "result.json")],
        ),
        "costs": (times.read, "costs.json", [b'{"train": [1.0]}']),
    }


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Try one reader until the time is over; the process ends in here."""
    read, file, examples = readers()[name]
    corpus, path = folder / "corpus", folder / "tried" / file
    corpus.mkdir()
    path.parent.mkdir(parents=True)
    for number, example in enumerate(examples):
        (corpus / f"example-{number}").write_bytes(example)

    def one(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(OnwardError):
            read(path)

    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", "-timeout=10"]
    atheris.Setup([sys.argv[0], *limits, "-max_len=20000", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--reader", help="one reader alone")
    parser.add_argument("--body", help="for the process that does it")
    options = parser.parse_args()
    form = common.form_of(options)
    if atheris is None:
        common.skip("atheris is not installed: pip install atheris.")
    if options.body:
        name, folder = options.body.split("=", 1)
        return fuzz(name, SECONDS[form], Path(folder))
    inputs: dict[str, int] = {}
    crashes = []
    names = [options.reader] if options.reader else list(readers())
    for name in names if form != "smoke" else names[:1]:
        in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=in_memory) as folder:
            command = [sys.executable, __file__, "--body", f"{name}={folder}"]
            command += [] if form == "full" else [f"--{form}"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        tried = re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)
        inputs[name] = max(map(int, tried), default=0)
        if done.returncode:
            crashes.append(name)
            print(done.stderr[-6000:])
        print(f"{name}: {inputs[name]:,} inputs{', FAILED' * bool(done.returncode)}", flush=True)
        if form == "full":
            found = {"inputs": inputs[name], "seconds": SECONDS[form], "failed": name in crashes}
            common.record(options.out / f"fuzz-{name}.json", found)
    common.last_line({"inputs": inputs, "crashes": crashes}, form)
    return None


if __name__ == "__main__":
    main()
