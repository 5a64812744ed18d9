"""`lamb bulk`: captions of ten to ten million recordings, on all cores or on a cluster, resumable after any kill.

The files in the output folder are:

    plan.json, inputs.jsonl     what is captioned, and how; written by the first run and read by all later ones
    captions/000012.jsonl       the captions of inputs 12 * N to 13 * N - 1, in order (or .parquet)
    captions/000012-1.jsonl     captions of its failures that a first run with `retry_failed` added; -2 of a second
    reports/000012.json         counts and failures of that shard
    failures.jsonl              all failures; like summary.json (the counts) made from the reports when a run ends

Every input is captioned exactly once. Workers only turn inputs into rows, and this process alone writes. The report of
a shard is written first; then its captions get their name by a rename. This single step completes the shard, which is
not touched again. Whatever a kill leaves half done has no name yet and is done again. [O]

With Ray, workers are plain actors. Ray Data is not used: it cuts and repeats blocks as it chooses, but a shard must
come back as that shard, and it must be known on which inputs a worker died. Both kinds share the loop below. [O]
"""

import io
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..audio.files import replacing, write
from ..errors import LambError, optional
from ..inference.captions import json_line
from .listing import BulkError, Input, moved, write_list
from .workers import Answer, Settings, Worker, WorkerError, crew

SHARD_SIZE = 1000  # most inputs; a kill costs each worker at most the work on one shard
CRASH = "the decoder crashed on it, or used too much memory; convert it, for instance with: ffmpeg -i FILE sound.wav"
STEP = 128  # most inputs that a worker is given at once: several share a shard, and progress is seen within it
PIECES = 8  # into which the inputs are cut on which a worker died
NAMES = re.compile(r"([0-9]{6,})(?:-([0-9]+))?\.(?:jsonl|parquet)")  # of files of captions: number and round
STILLBORN = 3  # most workers that may die in succession before they have loaded their model

Row = dict[str, Any]


@dataclass
class Tally:
    """Progress: of all inputs of the folder, and of this run alone."""

    total: int
    done: int = 0  # captioned, also in earlier runs
    failed: int = 0
    damaged: int = 0  # captioned except for a part that cannot be decoded
    audio: float = 0.0  # seconds of sound captioned
    fresh: int = 0  # inputs finished by this run
    fresh_audio: float = 0.0
    held: int = 0  # inputs that are done in shards which are not
    began: float = field(default_factory=time.monotonic)

    def add(self, report: dict[str, Any], sign: int = 1) -> None:
        """Add the counts of a shard, or subtract them with `sign` -1."""
        self.done += sign * report["captioned"]
        self.failed += sign * len(report["failures"])
        self.damaged += sign * report["damaged"]
        self.audio += sign * report["seconds"]

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        seconds = time.monotonic() - self.began
        return {
            "inputs": self.total,
            "captioned": self.done,
            "damaged": self.damaged,
            "failed": self.failed,
            "left": self.total - self.done - self.failed,
            "hours": round(self.audio / 3600, 4),
            "this_run": {
                "seconds": round(seconds, 1),
                "inputs": self.fresh,
                "inputs_per_second": round((self.fresh + self.held) / seconds, 2),
                "hours_per_hour": round(self.fresh_audio / seconds, 1),
            },
        }


@dataclass
class _Shard:
    number: int
    round: int  # 0, and one more for each retry
    inputs: list[tuple[int, Input]]  # with their positions in the list
    rows: dict[int, Row] = field(default_factory=dict)


@dataclass
class _Piece:
    """Inputs of a shard for one call of a worker: STEP of them, or fewer after a worker died."""

    shard: _Shard
    inputs: list[tuple[int, Input]]
    tries: int = 0


def bulk(
    source: str,
    out: str | Path,
    settings: Settings,
    *,
    workers: int | None = None,
    ray: str | None = None,
    shard_size: int | None = None,
    format: str = "jsonl",
    retry_failed: bool = False,
    as_listed: bool = False,
    watch: Callable[[Tally], None] = lambda tally: None,
) -> dict[str, Any]:
    """Caption `source` (a folder, manifest or address) into the folder `out`, or what is left, and return the summary.

    Args:
        workers: number of processes, or of actors with `ray`; None: one for each GPU or core.
        ray: address of a cluster, or "local".
        shard_size: inputs in a shard; None: `SHARD_SIZE`, or fewer if only a few workers would get any.
        format: "jsonl" or "parquet" (needs the extra `cluster`).
        retry_failed: whether the failures of finished shards are tried again as well.
        as_listed: whether the list of the first run is used without a check for changes.
        watch: called whenever a worker has done what it was given.

    Raises BulkError or ManifestError if the request cannot be right, PackageError for a missing package, WorkerError if
    no worker can start.
    """
    out = Path(out)
    if format == "parquet":
        _pyarrow()
    with _locked(out), crew(settings, workers, ray) as (hire, count):
        plan = _plan(source, out, settings, shard_size, format, count, as_listed)
        first = plan["input"]  # what the folder was called then
        rounds = _rounds(out)
        tally = Tally(plan["inputs"])
        for number in rounds:
            tally.add(_report(out, number, rounds))
        watch(tally)

        def answered(piece: _Piece, done: int) -> None:
            tally.held += done
            if len(piece.shard.rows) == len(piece.shard.inputs):
                tally.held -= len(piece.shard.rows)
                _commit(out, piece.shard, rounds, plan["format"], tally)
            watch(tally)

        def here(item: Input) -> Input:
            """The input, and where it is if the folder is called something else now."""
            if source == first or not os.path.isdir(source):
                return item
            return replace(item, path=next(moved([item.file], first, source)))

        try:
            _drive(_todo(out, plan["shard_size"], rounds, retry_failed, here), hire, count, answered)
        finally:
            _conclude(out, rounds, tally)
    return tally.summary()


# ---- the loop -----------------------------------------------------------------------------------------------------


def _drive(
    todo: Iterator[_Shard], hire: Callable[[int], Worker], count: int, answered: Callable[[_Piece, int], None]
) -> None:
    """Let `count` workers caption all shards; `answered` is told each piece, and how many of its inputs are done.

    Memory holds only the shards in work.
    """
    again: deque[_Piece] = deque()  # pieces that are next: of a shard that was begun, or to try again
    free: list[tuple[int, Worker | None]] = [(number, None) for number in reversed(range(count))]  # None: to be hired
    busy: dict[Future[Answer], tuple[int, Worker, _Piece]] = {}
    stillborn = 0

    def next_piece() -> _Piece | None:
        if not again and (shard := next(todo, None)):
            again.extend(_Piece(shard, shard.inputs[k : k + STEP]) for k in range(0, len(shard.inputs), STEP))
        return again.popleft() if again else None

    try:
        while True:
            while len(busy) < count and (piece := next_piece()):
                number, idle = free.pop()
                worker = idle or hire(number)
                busy[_submit(worker, piece)] = number, worker, piece
            if not busy:
                return
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                number, worker, piece = busy[future]
                died = future.exception() is not None
                if died and worker.ready.exception() is not None:  # before it had its model: not because of the inputs
                    stillborn += 1
                    if stillborn > STILLBORN:
                        raise WorkerError("workers die while they load the model; take fewer (--workers), for memory")
                    piece.tries -= 1
                elif problem := worker.ready.result():
                    raise WorkerError(problem)
                else:
                    stillborn = 0
                del busy[future]  # not before: after an error, those in it are stopped
                if died:
                    worker.stop()
                    free.insert(0, (number, None))  # the idle ones come first
                else:
                    free.append((number, worker))
                problem = CRASH if died else future.result().problem
                before = len(piece.shard.rows)
                if problem:
                    again.extendleft(reversed(_again(piece, problem)))
                else:
                    _fill(piece, future.result().rows)
                answered(piece, len(piece.shard.rows) - before)
    finally:
        for worker in filter(None, [*(idle for _, idle in free), *(worker for _, worker, _ in busy.values())]):
            worker.stop()


def _submit(worker: Worker, piece: _Piece) -> "Future[Answer]":
    try:
        return worker.submit([item for _, item in piece.inputs])
    except Exception as error:  # it died while it was idle
        piece.tries -= 1
        future: Future[Answer] = Future()
        future.set_exception(error)
        return future


def _fill(piece: _Piece, rows: list[Row]) -> None:
    for (index, _), row in zip(piece.inputs, rows, strict=True):
        piece.shard.rows[index] = row


def _again(piece: _Piece, problem: str) -> list[_Piece]:
    """What to try after a failure of `piece`: the same once more, then parts of it; a single input is given up."""
    piece.tries += 1
    if piece.tries < 2:
        return [piece]
    if len(piece.inputs) == 1:
        _, item = piece.inputs[0]
        _fill(piece, [{**({"id": item.id} if item.id else {}), "file": item.file, "error": problem}])
        return []
    size = -(-len(piece.inputs) // PIECES)
    parts = [piece.inputs[k : k + size] for k in range(0, len(piece.inputs), size)]
    return [_Piece(piece.shard, part, tries=int(size > 1)) for part in parts]


def _todo(
    out: Path, size: int, rounds: dict[int, int], retry_failed: bool, here: Callable[[Input], Input]
) -> Iterator[_Shard]:
    """The shards that are not finished and, with `retry_failed`, the failures of those that are."""
    with (out / "inputs.jsonl").open(encoding="ascii") as lines:
        number = 0
        while held := list(islice(lines, size)):
            if number not in rounds:
                inputs = [(number * size + k, here(Input.from_json(line))) for k, line in enumerate(held)]
                yield _Shard(number, 0, inputs)
            elif retry_failed and (failures := _report(out, number, rounds)["failures"]):
                places = [failure["index"] for failure in failures]
                inputs = [(k, here(Input.from_json(held[k - number * size]))) for k in places]
                yield _Shard(number, rounds[number] + 1, inputs)
            number += 1


# ---- the folder ---------------------------------------------------------------------------------------------------


def _plan(
    source: str, out: Path, settings: Settings, size: int | None, format: str, workers: int, as_listed: bool
) -> dict[str, Any]:
    """The plan of the first run, with which the arguments of later runs must agree, or a new one."""
    path, listing = out / "plan.json", out / "inputs.jsonl"
    place = source if "://" in source else os.path.realpath(source)
    chosen = {**asdict(settings), "format": str(format)}
    for name in ("device", "threads", "batch_size", "limits"):  # these change no caption
        del chosen[name]
    if not path.exists():
        count, digest = write_list(source, listing)
        size = size or max(1, min(SHARD_SIZE, -(-count // (4 * workers))))
        plan = {"inputs": count, "sha256": digest, "shard_size": size, "input": source, "place": place, **chosen}
        write(path, json.dumps(plan, indent=2) + "\n", durable=True)
        return plan
    plan = json.loads(path.read_text(encoding="utf-8"))
    named = plan["input"] if plan.get("place") == place else source  # whatever it is called from here
    wanted = {**chosen, "input": named, "shard_size": size or plan["shard_size"]}
    for name, value in wanted.items():
        if plan[name] != value:
            raise BulkError(
                f"{out}: was begun with {name} {plan[name]!r}, not {value!r}; go on with that, or choose another --out"
            )
    if not as_listed:
        now = out / ".inputs.jsonl"
        count, digest = write_list(source, now, called=plan["input"])
        now.unlink()
        if digest != plan["sha256"]:
            raise BulkError(
                f"{source}: what it lists has changed since {out} was begun ({plan['inputs']} inputs then, {count} "
                "now); add --as-listed to finish those of then, or choose another --out for those of now"
            )
    return plan


def _rounds(out: Path) -> dict[int, int]:
    """The finished shards, each with its last round."""
    (out / "captions").mkdir(exist_ok=True)
    (out / "reports").mkdir(exist_ok=True)
    for part in out.rglob(".*.part"):  # left by a kill
        part.unlink()
    rounds: dict[int, int] = {}
    for entry in os.scandir(out / "captions"):
        if named := NAMES.fullmatch(entry.name):  # other programs leave files in folders, such as .DS_Store
            number, last = int(named[1]), int(named[2] or 0)
            rounds[number] = max(rounds.get(number, 0), last)
    return rounds


def _name(number: int, round: int) -> str:
    return f"{number:06d}-{round}" if round else f"{number:06d}"


def _report(out: Path, number: int, rounds: dict[int, int]) -> dict[str, Any]:
    path = out / "reports" / f"{_name(number, rounds[number])}.json"
    # reports of older versions do not count damage
    return {"damaged": 0, **json.loads(path.read_text(encoding="utf-8"))}


def _commit(out: Path, shard: _Shard, rounds: dict[int, int], format: str, tally: Tally) -> None:
    """Finish a complete shard: write its report, then its captions."""
    rows = [shard.rows[index] for index, _ in shard.inputs]
    good = [row for row in rows if "error" not in row]
    failures = [{"index": index, **shard.rows[index]} for index, _ in shard.inputs if "error" in shard.rows[index]]
    seconds = sum(row["duration"] for row in good)
    damaged = sum("damage" in row for row in good)
    report = {"captioned": len(good), "damaged": damaged, "seconds": seconds, "failures": failures}
    before = _report(out, shard.number, rounds) if shard.round else None
    if before:
        for name in ("captioned", "damaged", "seconds"):
            report[name] += before[name]
        tally.add(before, -1)
    if good or not before:  # a retry without any success leaves everything as it was
        name = _name(shard.number, shard.round)
        write(out / "reports" / f"{name}.json", json.dumps(report) + "\n", durable=True)
        content = _parquet(good) if format == "parquet" else "".join(json_line(row) for row in good)
        write(out / "captions" / f"{name}.{format}", content, durable=True)
        rounds[shard.number] = shard.round
    tally.add(report)
    tally.fresh += len(rows)
    tally.fresh_audio += seconds


def _conclude(out: Path, rounds: dict[int, int], tally: Tally) -> None:
    """Write failures.jsonl and summary.json."""
    with replacing(out / "failures.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for number in sorted(rounds):
            file.writelines(json_line(row) for row in _report(out, number, rounds)["failures"])
    write(out / "summary.json", json.dumps(tally.summary(), indent=2) + "\n", durable=True)


def _parquet(rows: list[Row]) -> bytes:
    """The rows as a Parquet file, a column for each field of `Caption.to_dict`. Bytes of a name that are not UTF-8 are
    written out as \\udcXX."""
    pa, parquet = _pyarrow()
    text, number = pa.string(), pa.float64()
    sound = pa.struct({"text": text, "labels": pa.list_(text), "confidence": number})
    segment = pa.struct({"start": number, "end": number, "caption": text, "confidence": number})
    heard = {"sound": text, "count": pa.int64(), "seconds": number, "times": pa.list_(pa.list_(number))}
    columns = {
        **{"id": text, "file": text, "duration": number, "caption": text, "score": number, "confidence": number},
        **{"captions": pa.list_(text), "scores": pa.list_(number), "sounds": pa.list_(sound)},
        **{"segments": pa.list_(segment), "digest": pa.list_(pa.struct(heard)), "damage": pa.list_(text)},
    }
    rows = [{**row, "file": row["file"].encode("utf-8", "backslashreplace").decode()} for row in rows]
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), file)
    return file.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    needed = "--format parquet needs pyarrow"
    return optional("pyarrow", needed, "cluster"), optional("pyarrow.parquet", needed, "cluster")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lock the folder, so that one run at a time fills it; a run that is refused leaves no new folder.

    The lock ends with the process.
    """
    new = next((folder for folder in [*reversed(out.parents), out] if not folder.exists()), None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock").acquire(blocking=False)
    except Timeout:
        raise BulkError(f"{out}: another run is filling it; wait for it, or choose another --out") from None
    except OSError as error:
        raise BulkError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from None
    with lock:
        try:
            yield
        except LambError:
            if new and not any(out.glob("captions/*")):
                shutil.rmtree(new)
            raise
