"""What the processor is, as the operating system tells: whether the kernels can run on it, and whose objects do."""

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# What the kernels are written for, by machine: without one of these they would end the process at their first
# instruction, so it is asked before an object is loaded.
NEEDED = {
    "x86_64": ("avx2", "fma", "f16c"),
    "aarch64": ("asimd", "asimddp"),
}


@dataclass(frozen=True, slots=True)
class Processor:
    machine: str  # x86_64, aarch64
    model: str
    flags: frozenset[str]

    @property
    def lacks(self) -> str | None:
        """What the kernels need and it has not; None: nothing."""
        if self.machine not in NEEDED:
            return f"a processor of a known kind ({', '.join(NEEDED)}), this is `{self.machine}`"
        missing = [flag for flag in NEEDED[self.machine] if flag not in self.flags]
        return f"`{'`, `'.join(missing)}`" if missing else None

    @property
    def identity(self) -> str:
        """Equal where an object built on one runs on the other."""
        return " ".join((self.machine, self.model, *sorted(self.flags)))


def read_processor(cpuinfo: Path = CPUINFO, machine: str | None = None) -> Processor:
    """The first processor of the list; where there is none to read, one without any flag.

    Source: `proc(5)`; the names of the flags are the kernel's (x86: `flags`, ARM: `Features`).
    """
    machine = machine or {"amd64": "x86_64", "arm64": "aarch64"}.get(name := platform.machine().lower(), name)
    try:
        first = cpuinfo.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        first = ""
    fields: dict[str, str] = {}
    for line in first.splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    model = fields.get("model name") or " ".join(fields.get(f"CPU {name}", "") for name in ("implementer", "part"))
    flags = fields.get("flags") or fields.get("Features") or ""
    return Processor(machine, model.strip(), frozenset(flags.split()))
