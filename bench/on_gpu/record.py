"""The record of what ran on a GPU, written anew after every result.

One JSON file per GPU holds the latest result of each stage and case, each with its date and commit, so that a run of
some stages leaves the results of the others.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from on_gpu import lines, version
from on_gpu.process import ROOT, TIMEOUT, Command, run_all

LOG = "make-gpu.log"
# Facts that a process may report about the machine.
MACHINE = ("gpu", "capability", "multiprocessors", "torch", "cuda", "driver", "python")
# Files change at most this often while tests report.
WRITE_EVERY_S = 1.0


class Record:
    """Results by stage and case, their files in `folders`, and a log in `logs`.

    A dry run keeps its results apart and starts from nothing.
    """

    def __init__(self, folders: Sequence[Path], logs: Sequence[Path], dry: bool = False) -> None:
        self.folders, self.logs, self.dry = folders, logs, dry
        self.data: dict[str, Any] = {"gpu": None, "stages": {}, "figures": [], "checks": [], "kernels": []}
        self.stamp = {"date": time.strftime("%Y-%m-%d %H:%M"), "commit": version.commit(ROOT)}
        self.stamp["sources"] = version.digest(ROOT)
        self.current: dict[str, Any] = {}
        self.ran: list[str] = []
        # The last count of errors of each tool of compute-sanitizer.
        self.summaries: dict[str, int] = {}
        self.lock, self.written = threading.RLock(), 0.0
        for folder in {*folders, *logs}:
            folder.mkdir(parents=True, exist_ok=True)
        for folder in logs:
            (folder / LOG).write_text("")

    # What comes in ------------------------------------------------------------------------------------------------

    def machine(self, facts: dict[str, Any]) -> None:
        """Takes the facts of the machine, and what an earlier run on it left."""
        with self.lock:
            first = self.data["gpu"] is None and facts.get("gpu") is not None
            self.data.update({key: facts[key] for key in MACHINE if facts.get(key) is not None})
            if first and not self.dry:
                for folder in self.folders:
                    path = folder / f"{self.stem()}.json"
                    if path.is_file():
                        merge(self.data, json.loads(path.read_text()))
                        break
            self.write()

    def line(self, name: str, text: str) -> None:
        """A line of a process: to the log, to the screen, and into the record if it is a result."""
        with self.lock:
            found = lines.parse(text)
            if found is not None:
                self.take(name, dict(found))
            elif (count := lines.summary(text)) is not None:
                self.summaries[name] = max(count, self.summaries.get(name, 0))
            # Hundreds of lines of tests that pass are for the log alone.
            self.log(
                f"[{name}] {text}", show=found is None or found["kind"] not in ("test", "call") or "error" in found
            )

    def take(self, name: str, found: dict[str, Any]) -> None:
        """One result of the process `name`."""
        kind = found.pop("kind")
        if kind == "machine":
            self.machine(found)
        elif kind in ("figure", "kernel", "check"):
            entries = self.data[{"figure": "figures", "kernel": "kernels", "check": "checks"}[kind]]
            key = _key(kind, found)
            entries[:] = [one for one in entries if _key(kind, one) != key] + [{**found, **self.stamp}]
            if found.get("error"):
                self.current.setdefault("errors", []).append(f"{' '.join(key)}: {found['error']}"[:300])
            self.write()
        elif kind in ("test", "call"):
            counts = self.current.setdefault("counts", {}).setdefault(name, {})
            counts[found["outcome"]] = counts.get(found["outcome"], 0) + 1
            if "error" in found:
                self.current.setdefault("errors", []).append(f"{found['name']}: {found['error']}"[:600])
                self.write()
            elif time.monotonic() - self.written > WRITE_EVERY_S:
                self.write()

    def log(self, text: str, show: bool = True) -> None:
        with self.lock:
            if show:
                print(text[:400], flush=True)
            for folder in self.logs:
                with (folder / LOG).open("a", errors="replace") as file:
                    file.write(text + "\n")

    # What is done -------------------------------------------------------------------------------------------------

    def stage(self, name: str, limit: float, job: Callable[[float], Any], optional: bool = False) -> str:
        """Runs ``job(limit)`` and records how it ended: done, failed, cut (out of time) or skipped."""
        begin = time.monotonic()
        self.current = {**self.stamp, "state": "running"}
        self.data["stages"][name] = self.current
        self.ran.append(name)
        self.log(f"== {name}, at most {limit:.0f} s")
        self.write()
        try:
            found = job(limit) or []
        except Exception as error:
            found = []
            self.current.setdefault("errors", []).append(f"{type(error).__name__}: {error}")
        with self.lock:
            self.current.update(
                {"state": _state(found, self.current), "seconds": round(time.monotonic() - begin, 1), "commands": found}
            )
            self.current |= {"optional": True} if optional else {}
            self.log(f"== {name}: {self.current['state']} after {self.current['seconds']} s")
            for one in found:
                if one.get("exit") or one.get("skipped"):
                    self.log(
                        f"   {one['name']}: {one.get('skipped') or 'exit ' + str(one['exit'])}: {one['command'][:150]}"
                    )
        self.write()
        return str(self.current["state"])

    def run(self, limit: float, *commands: Command) -> list[dict[str, Any]]:
        """Runs processes side by side within `limit` seconds."""
        return run_all(commands, limit, self.line)

    def left_out(self, name: str) -> None:
        """Notes a stage for which there is no time left; an earlier result of it stays."""
        self.log(f"== {name}: no time left")
        self.ran.append(name)
        self.data["stages"].setdefault(name, {**self.stamp, "state": "skipped"})
        self.write()

    def failed(self) -> list[str]:
        """Stages of this run that found a fault or came to no end."""
        found = {name: self.data["stages"][name] for name in self.ran}
        return [
            name
            for name, stage in found.items()
            if stage["state"] not in ("done", "skipped") and not stage.get("optional")
        ]

    # Where it is kept ---------------------------------------------------------------------------------------------

    def stem(self) -> str:
        return stem(self.data["gpu"])

    def write(self) -> None:
        """Writes the record to every folder, whole or not at all."""
        with self.lock:
            text = json.dumps(self.data, indent=1) + "\n"
            for folder in self.folders:
                temporary = folder / f".{self.stem()}.part"
                temporary.write_text(text)
                os.replace(temporary, folder / f"{self.stem()}.json")
            self.written = time.monotonic()


def stem(gpu: str | None) -> str:
    """Name of the file of a GPU."""
    return re.sub(r"\W+", "-", (gpu or "no gpu").lower()).strip("-")


def merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    """Adds the results of `other` that are newer than those of `into`, or are not there."""
    for name, stage in other.get("stages", {}).items():
        if name not in into["stages"] or into["stages"][name]["date"] < stage["date"]:
            into["stages"][name] = stage
    for kind, name in (("figure", "figures"), ("kernel", "kernels"), ("check", "checks")):
        known = {_key(kind, one): one for one in other.get(name, [])}
        for one in into[name]:
            if _key(kind, one) not in known or known[_key(kind, one)]["date"] <= one["date"]:
                known[_key(kind, one)] = one
        into[name] = list(known.values())
    for key in MACHINE:
        into.setdefault(key, other.get(key))


def name_commits(data: dict[str, Any], root: Path) -> None:
    """Fills in the commit of results whose sources are those of `root`, a checkout without changes."""
    commit, digest = version.commit(root), version.digest(root)
    if commit is None:
        return
    for one in [*data["stages"].values(), *data["figures"], *data["kernels"], *data["checks"]]:
        if one.get("commit") is None and one.get("sources") == digest:
            one["commit"] = commit


def _key(kind: str, found: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(found.get(name)) for name in (("case", "competitor") if kind == "figure" else ("name",)))


def _state(found: list[dict[str, Any]], stage: dict[str, Any]) -> str:
    exits = [one.get("exit") for one in found if one.get("exit")]
    if stage.get("errors") or any(code != TIMEOUT for code in exits):
        return "failed"
    if exits or any(one.get("skipped") == "no time left" for one in found):
        return "cut"
    return "done" if any("exit" in one for one in found) else "skipped"
