"""What is installed, what is missing, and what this machine can do."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from understudy import extras, threads
from understudy.cli._arguments import AS_JSON
from understudy.cli._console import done, note, say, say_json, size, table
from understudy.errors import DataError
from understudy.extras import Requirement

app = typer.Typer(rich_markup_mode=None)

INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI (int8)", "avx512_bf16": "AVX-512 BF16",
                "amx_bf16": "AMX (bf16)", "amx_int8": "AMX (int8)", "asimd": "NEON", "sve": "SVE", "bf16": "Arm BF16"}
"""Flags in /proc/cpuinfo that decide how fast a model runs, and their names."""

DEVELOPERS = "dev"
"""The extra with linters and test tools: nobody else misses them."""
ALONE = "executorch"
"""The extra that `all` leaves out, as it brings much else: only who asks for it by name gets it."""


@app.command()
def doctor(
    folder: Path = typer.Option(Path("."), "--folder", help="Where runs would lie: its disk is looked at."),
    as_json: bool = AS_JSON,
) -> None:
    """What is installed, what is missing, and what this machine can do. Exit 3 where something that every run needs is missing."""
    facts = examine(folder)
    if as_json:
        say_json(facts)
    else:
        _print(facts)
    if any(package["missing"] and not package["extra"] for package in facts["packages"]):
        raise typer.Exit(DataError.exit_code)


def examine(folder: Path) -> dict[str, Any]:
    """All of it as JSON values; bytes, cores."""
    packages = requirements(one for one in extras.declared() if one.extra != DEVELOPERS)
    settings = threads.settled()
    flags = cpu_flags(_read("/proc/cpuinfo"))
    return {
        "understudy": metadata.version("understudy"),
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation(), "executable": sys.executable},
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(_read("/proc/cpuinfo")) or platform.processor() or platform.machine(), "cores": os.cpu_count(),
                "usable_cores": settings.cores, "busy_cores": round(settings.busy, 2),
                "instructions": [name for flag, name in INSTRUCTIONS.items() if flag in flags], "bfloat16": bfloat16(flags)},
        "settings": settings.to_dict(),
        "accelerator": accelerator(),
        "memory": memory(),
        "disk": {"folder": str(folder.resolve()), "free": shutil.disk_usage(folder).free},
        "packages": packages,
        "fix": fix(packages),
        "caution": caution(packages),
    }


def requirements(required: Iterable[Requirement]) -> list[dict[str, Any]]:
    """Each declared dependency: {"name", "needs", "found", "extra", "missing"}; `extra` is the optional part that wants it, or ""."""
    found = []
    for one in required:
        try:
            have = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            have = ""
        found.append({"name": one.name, "needs": one.needs, "found": have, "extra": one.extra,
                      "missing": not have or not _enough(have, one.needs)})
    return found


def fix(packages: Iterable[dict[str, Any]]) -> str:
    """The one command that installs all that is missing of what belongs to everybody's installation; "" where nothing is."""
    missing = [package for package in packages if package["missing"] and package.get("extra") != ALONE]
    if not missing:
        return ""
    return f"{sys.executable} -m pip install " + " ".join(f"\"{package['name']}{package['needs']}\"" for package in missing)


def caution(packages: Iterable[dict[str, Any]]) -> str:
    """What to know before that command is run: which build of torch pip takes; "" where there is nothing."""
    torch = sys.platform == "linux" and any(package["name"] == "torch" and package["missing"] for package in packages)
    said = "on Linux without a GPU install PyTorch's own CPU build of torch first, else pip may bring gigabytes of CUDA: README, Install"
    return said if torch else ""


def cpu_model(cpuinfo: str) -> str:
    """The processor in the maker's words."""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else ""


def cpu_flags(cpuinfo: str) -> set[str]:
    """What the processor says that it can do (x86: flags, Arm: Features)."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return set(match[1].split()) if match else set()


def bfloat16(flags: set[str]) -> str:
    """How fast bfloat16 is here; a run tries it itself (`training.precision: auto`)."""
    if "amx_bf16" in flags:
        return "fast (AMX): worth it for all but tiny models"
    if flags & {"avx512_bf16", "bf16"}:
        return "in hardware: worth it for larger models"
    return "emulated: float32 is mostly faster" if flags else "not known"


def accelerator() -> str:
    """What is there besides the CPU, and whether the installed torch can use it; torch is not imported."""
    try:
        build = metadata.version("torch").partition("+")[2]
    except metadata.PackageNotFoundError:
        build = "none"
    if sys.platform == "darwin":
        return "Apple GPU (mps)" if platform.machine() == "arm64" else "none"
    if not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return "none"
    return "NVIDIA GPU (cuda)" if build not in ("cpu", "none") else "NVIDIA GPU, but the installed torch is a CPU build"


def memory() -> dict[str, int | None]:
    """Bytes in all and free for a new process; None where the system doesn't say."""
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    return {"total": int(kilobytes["MemTotal"]) * 1024 if "MemTotal" in kilobytes else None,
            "available": int(kilobytes["MemAvailable"]) * 1024 if "MemAvailable" in kilobytes else None}


def _print(facts: dict[str, Any]) -> None:
    cpu, settings, ram = facts["cpu"], facts["settings"], facts["memory"]
    say(f"understudy {facts['understudy']}, {facts['python']['implementation']} {facts['python']['version']}, {facts['platform']}")
    say(f"cpu: {cpu['model']}, {cpu['cores']} cores, {cpu['usable_cores']:g} usable, "
        f"{cpu['busy_cores']:g} other threads that want to compute")
    say(f"     {', '.join(cpu['instructions']) or 'no instruction set that matters is reported'}; bfloat16 {cpu['bfloat16']}")
    say(f"     a run here would take {settings['threads']} thread(s) ({settings['because']}), wait policy {settings['wait_policy']}, "
        f"heap {settings['heap']}")
    say(f"accelerator: {facts['accelerator']}")
    say(f"memory: {_size(ram['available'])} free of {_size(ram['total'])}")
    say(f"disk: {size(facts['disk']['free'])} free in {facts['disk']['folder']}")
    say()
    table(["package", "needs", "found", ""],
          [[package["name"], package["needs"], package["found"] or "-",
            ("MISSING" if package["missing"] else "") + (f" (optional: {package['extra']})" if package["extra"] else "")]
           for package in facts["packages"]])
    if facts["fix"]:
        if facts["caution"]:
            note(facts["caution"])
        note(f"to install what is missing: {facts['fix']}")
    done(None, "understudy run digits")


def _enough(found: str, needs: str) -> bool:
    """Whether a version satisfies a lower bound, which is the only kind that this project declares."""
    match = re.match(r">=\s*([0-9.]+)", needs)
    return match is None or _release(found) >= _release(match[1])


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    parts = [int(part) for part in match[0].split(".")] if match else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _size(number: int | None) -> str:
    return "?" if number is None else size(number)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
