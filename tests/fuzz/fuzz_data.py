"""Mutated data files read the whole way to examples: `python tests/fuzz/fuzz_data.py --seconds 60`.

Each case is made from its seed alone: a valid file, bytes of it flipped, cut, doubled or mixed with odd pieces. It may
be read or refused with errors that name a place in it; any other exception, a crash, more than 5 seconds or more than
500 MB is a failure, which `--seed` repeats. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow
import pyarrow.parquet

from tests.data.read.reading_checks import read_whole

MAX_SECONDS = 5
MAX_BYTES = 500 << 20
ADDRESS_SPACE_BYTES = 8 << 30
"""A case that asks for more gets a MemoryError, so that the machine stays usable."""

ODD_PIECES = [
    *(bytes([byte]) for byte in b"\x00\x0b\x1a \"'{}[]:,;\\\r\n\t\x7f\x80\xc3\xff"),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x1f\x8b",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x99\x82",
        b"\xe2\x80\xa8",
        b"\r\n",
        b"\n\n",
    ),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"0x1F", b"-", b"01", b'""', b"[]", b"{}", b"//", b"None"),
    *(b"\\u0000", b"\\ud83d", b"\\ude42", b"\\u12", b"\\x41", b'\\"', b'"a": 1, ', b'"messages": null, ', b"[[", b"]]"),
    *(b"9" * 5000, b"[" * 300, b'{"a":' * 300, b"[" * 50_000, b'"' * 9, b"x" * 100_000, b"\n" * 1000, b"," * 1000),
]

HI, HELLO = {"role": "user", "content": "Wie geht's? “é” 🙂"}, {"role": "assistant", "content": "Hello\n\n```a```"}
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Bonn", "days": [1, 2.5]}'}}
TOOL_TURNS = [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "train": True}]
ROWS = {
    "messages": [{"messages": [HI, HELLO]}, {"messages": [*TOOL_TURNS, HELLO], "tools": [{"name": "f"}]}],
    "alpaca": [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi", "output": "Hello"}],
    "sharegpt": [{"conversations": TURNS}, {"conversations": TURNS * 3, "system": "Be kind."}],
    "prompt_completion": [{"prompt": "a", "completion": " b"}, {"prompt": [HI], "completion": [HELLO]}],
    "text": [{"text": "Once upon a time"}, {"text": "The end", "id": 3}],
}


def parquet(rows: list, **options: str) -> bytes:
    """Bytes of a Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def arrow(rows: list) -> bytes:
    """Bytes of an Arrow file as `datasets` writes it."""
    table = pyarrow.Table.from_pylist(rows)
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


def valid_files() -> list[tuple[str, bytes]]:
    """Suffix and content of files of every kind and format."""
    files = []
    for rows in ROWS.values():
        rows = rows * 4
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        files += [(".jsonl", lines), (".jsonl", b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n")), (".json", lines)]
        files += [(".json", json.dumps(rows).encode()), (".json", json.dumps(rows, indent=1).encode())]
    files += [
        (".csv", b"text,id\n" + b'"a, ""b""\nc",1\nd,2\n' * 5),
        (".csv", b"\xef\xbb\xbfprompt,completion\r\na,b\r\n"),
    ]
    uniform = [ROWS["alpaca"] * 3, ROWS["sharegpt"] * 3, ROWS["text"] * 3, ROWS["messages"][:1] * 9]
    for rows in uniform:
        files += [(".parquet", parquet(rows)), (".parquet", parquet(rows, compression="none")), (".arrow", arrow(rows))]
    return files


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with one to four changes."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(changed))
        end = min(len(changed), start + chance.choice([0, 1, 2, 8, 100, 1000]))
        match chance.randrange(7):
            case 0 if changed:
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case 1:
                changed[start:start] = chance.choice(ODD_PIECES)
            case 2:
                changed[start:end] = chance.choice(ODD_PIECES)
            case 3:
                del changed[start:end]
            case 4:
                changed[start:start] = changed[start:end] * chance.choice([1, 2, 50])
            case 5:
                del changed[start:]
            case 6:
                changed[start:end] = chance.randbytes(chance.randint(0, 20))
    return bytes(changed)


def case(seed: int, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Suffix and content of the case with this seed."""
    chance = random.Random(seed)
    suffix, content = chance.choice(files)
    if suffix in (".jsonl", ".json", ".csv") and chance.random() < 0.25:
        if chance.random() < 0.5:
            return f"{suffix}.gz", gzip.compress(mutated(content, chance), 1)
        return f"{suffix}.gz", mutated(gzip.compress(content, 1), chance)
    return suffix, mutated(content, chance)


def run_case(seed: int, files: list[tuple[str, bytes]], folder: Path) -> bool:
    """Whether the case's file was read without any fault.

    Raises:
        Exception: whatever reading raises that is no DataError, or a limit that was passed.
    """
    suffix, content = case(seed, files)
    path = folder / f"case{suffix}"
    path.write_bytes(content)
    before_bytes, start = peak_bytes(), time.monotonic()
    _, problems = read_whole(path)
    seconds, taken_bytes = time.monotonic() - start, peak_bytes() - before_bytes
    assert seconds <= MAX_SECONDS, f"{seconds:.1f} s"
    assert taken_bytes <= MAX_BYTES, f"{taken_bytes:,} bytes"
    return not problems


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(first_seed: int, folder: Path, pipe) -> None:
    """Run cases one after the other and report each: its seed when it starts, then what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    files = valid_files()
    seed = first_seed
    while True:
        try:
            outcome = run_case(seed, files, folder)
        except Exception:  # noqa: BLE001 - finding these is what this program is for
            outcome = traceback.format_exc(limit=-4)
        pipe.send((seed, outcome))
        seed += 1


def fuzz(seconds: float, first_seed: int, folder: Path) -> int:
    """Run cases for so long; the exit code."""
    end = time.monotonic() + seconds
    num_cases = num_read = 0
    seed = first_seed
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=work, args=(seed, folder, sender), daemon=True)
    worker.start()
    sender.close()
    failure = ""
    while not failure and time.monotonic() < end:
        try:
            if not receiver.poll(2 * MAX_SECONDS + 10 * (num_cases == 0)):
                failure = f"still not done after {2 * MAX_SECONDS} s"
                break
            seed, outcome = receiver.recv()
        except EOFError:
            worker.join()
            failure = f"the process died with exit code {worker.exitcode}"
            break
        num_cases += 1
        num_read += outcome is True
        failure = outcome if isinstance(outcome, str) else ""
        seed += not failure
    worker.kill()
    print(f"{num_cases:,} cases from seed {first_seed}, {num_read:,} of them read without a fault")
    if failure:
        print(f"seed {seed} failed: {failure}\nrepeat it: python tests/fuzz/fuzz_data.py --seed {seed}")
    return int(bool(failure))


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first-seed", type=int, default=0, help="of the cases, which count up from here")
    parser.add_argument("--seed", type=int, help="run this one case and keep its file")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-data-"))
    if arguments.seed is None:
        return fuzz(arguments.seconds, arguments.first_seed, folder)
    print(f"the case lies in {folder}")
    print("read without a fault" if run_case(arguments.seed, valid_files(), folder) else "refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
