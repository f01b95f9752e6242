"""Reference pages, dependencies and links say what is so."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import TypeVar, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import errors
from gateway.admission import Shed
from gateway.api.application import InternalError
from gateway.attempt import CLIENT_GONE, HEDGE_LOST
from gateway.budgets.refusals import BudgetReserved
from gateway.ledger.record import WORKER_LOST
from gateway.pipeline import SHED
from gateway.protocols.base import StreamError
from gateway.protocols.complaint_codes import CODES
from gateway.shadow import WORKER_STOPPED
from gateway.telemetry import ControlMetrics, Metrics
from gateway.types import Shift, Usage
from local_engine.config import EngineConfig
from local_engine.metrics import Timings, exposition
from local_engine.request import Stats
from tests.docs.blocks import ROOT
from tests.gateway_fixtures import configuration_of, endpoints

Error = TypeVar("Error", errors.GatewayError, errors.UpstreamError)
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(DOCS.rglob("*.md"))


def table(page: Path, heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without the head; backticks are left out."""
    text = page.read_text()
    lines = text[text.index(f"{heading}\n") :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def test_command_line_page_is_up_to_date() -> None:
    generated = load(DOCS / "generate_cli.py").generate()
    hint = "run `.venv/bin/python docs/generate_cli.py > docs/reference/cli.md`"
    assert (DOCS / "reference" / "cli.md").read_text() == generated, hint


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metrics_page_has_every_metric_with_its_type_and_labels() -> None:
    metrics = Metrics()
    metrics.request_started()
    metrics.request_finished("chat", 200)
    metrics.refused(404, "model_not_found")
    endpoint = configuration_of(endpoints(9)).endpoints["a"]
    metrics.attempt(endpoint, "chat", "m", "ok", Usage(input_tokens=1), 0.5, 0.5, True)
    metrics.overhead("chat", 0.001)
    metrics.queued(0.1)
    metrics.unpriced("local", "m")
    metrics.configuration("v")
    metrics.hedge("cheap", "won")
    metrics.shed("server")
    metrics.shadow("local", "sent")
    metrics.continuation("local", "served")
    metrics.usage_doubted("local")
    metrics.prompt("cheap", "kept")
    metrics.states = lambda: {"local": "closed"}
    control = ControlMetrics()
    control.access_refused("invalid_api_key")
    control.exported("traces", "ok")
    control.shifted([Shift("escape", "a", "b", share=0.5)])
    control.budgets({"team:payments": 0.5})
    control.budget_alert("team:payments")
    found = {}
    for text in (metrics.exposition(), control.exposition()):
        for family in text_string_to_metric_families(text.decode()):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            if not name.endswith("_created"):
                found[name] = (family.type, labels)
    rows = table(DOCS / "reference" / "metrics.md", "# Metrics")
    written = {name: (kind, set(labels.split(", ")) - {""}) for name, kind, labels, _ in rows}
    assert written == found
    assert len(rows) == len(written)
    operations = (DOCS / "guides" / "operations.md").read_text()
    assert [name for name in found if name not in operations] == []


def test_metrics_page_has_every_metric_of_the_engine() -> None:
    families = text_string_to_metric_families(exposition(Stats(), Timings(), EngineConfig()))
    found = {f"{one.name}_total" if one.type == "counter" else one.name: one.type for one in families}
    rows = table(DOCS / "reference" / "metrics.md", "## The local engine")
    assert {name: kind for name, kind, _ in rows} == found and len(rows) == len(found)


def test_error_classes_have_their_status_and_type() -> None:
    found = {one.__name__: (str(one.status), one.type) for one in errors.GatewayError.__subclasses__()}
    found["CallersMistake"] = ("4xx", found["CallersMistake"][1])  # as the provider says
    assert InternalError.__name__ in found
    rows = table(DOCS / "reference" / "errors.md", "## Classes")
    assert {name: (status, kind) for name, status, kind, _ in rows} == found


def test_error_codes_are_those_that_the_source_gives() -> None:
    found = {f"timeout_{phase}": {"504"} for phase in get_args(errors.Phase)}
    for code, one in codes():
        found.setdefault(code, set()).add("500" if one is errors.GatewayError else str(one.status))
    rows = table(DOCS / "reference" / "errors.md", "## Codes")
    assert {code: {status} for code, status, _ in rows} == found


def test_codes_of_refusals_are_all_there() -> None:
    rows = table(DOCS / "reference" / "errors.md", "## Codes of what a provider refuses")
    assert {code for code, _ in rows} == CODES


def codes() -> Iterator[tuple[str, type[errors.GatewayError]]]:
    """Each constant `code=` of an error that the source makes, with its class."""
    classes = {one.__name__: one for one in (errors.GatewayError, *subclasses(errors.GatewayError))}
    assert {Shed.__name__, BudgetReserved.__name__} <= classes.keys()
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        yield ast.literal_eval(keyword.value), classes[node.func.id]
            elif isinstance(node, ast.ClassDef) and node.name in classes:  # one that gives its own code
                for call in ast.walk(node):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                        for keyword in call.keywords:
                            if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                                yield ast.literal_eval(keyword.value), classes[node.name]


def test_error_types_of_the_ledger_are_all_there() -> None:
    found = {one.kind for one in subclasses(errors.UpstreamError) if "kind" in vars(one)}
    assert StreamError.kind in found
    found |= {f"timeout_{phase}" for phase in get_args(errors.Phase)}
    found |= {WORKER_LOST, errors.UpstreamStatus(599, [], b"").kind.replace("599", "NNN")}
    found |= {CLIENT_GONE, HEDGE_LOST, SHED, WORKER_STOPPED}
    for name in ("attempt.py", "pipeline.py", "shadow.py"):
        for node in ast.walk(ast.parse((ROOT / "gateway" / name).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("settle"):
                given = [*node.args[2:], *(keyword.value for keyword in node.keywords if keyword.arg == "error_type")]
                found |= {ast.literal_eval(one) for one in given if isinstance(one, ast.Constant)}
    rows = table(DOCS / "reference" / "errors.md", "## What the ledger says")
    assert {kind for kind, *_ in rows} == found


def subclasses(one: type[Error]) -> Iterator[type[Error]]:
    for sub in one.__subclasses__():
        yield sub
        yield from subclasses(sub)


def wanted() -> dict[str, dict[str, str]]:
    """Requirements of `pyproject.toml` by heading of the page: package -> version."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {
        "Core": content["project"]["dependencies"],
        **{name.capitalize(): given for name, given in content["project"]["optional-dependencies"].items()},
        "Build": content["build-system"]["requires"],
    }
    return {name: dict(re.split(r"(?===)", given, maxsplit=1) for given in group) for name, group in groups.items()}


def test_dependencies_are_those_of_the_project() -> None:
    page = DOCS / "dependencies.md"
    written = {name: {row[0]: row[1] for row in table(page, f"## {name}")} for name in wanted()}
    assert written == wanted()
    assert all(len(row[3]) > 10 for name in written for row in table(page, f"## {name}")), "each has its reason"


def test_licences_are_those_that_the_packages_declare() -> None:
    for heading in ("Core", "Engine", "Test"):
        for package, _, licence, _ in table(DOCS / "dependencies.md", f"## {heading}"):
            found = metadata(package.partition("[")[0])
            classifiers = [line for line in found.get_all("Classifier", []) if line.startswith("License")]
            stated = [found["License-Expression"] or "", (found["License"] or "")[:200], *classifiers]
            family = re.split(r"[- ]", licence)[0]
            assert any(family in text for text in stated), f"{package}: {stated}"
            if found["License-Expression"] and " " not in found["License-Expression"]:
                assert licence == found["License-Expression"], package


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of the headings, as they are made where Markdown is shown: lower case, no punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## The tree") :].split("```")[1]
    folder, named = "", set()
    for line in tree.splitlines()[1:]:
        name = line.split()[0]
        if line.startswith(" "):
            named.add(folder + name)
        else:
            folder = name
            named.add(name)
    assert [name for name in named if not (ROOT / name).exists()] == []
    rooms = {f"gateway/{path.name}{'/' * path.is_dir()}" for path in (ROOT / "gateway").iterdir()}
    assert rooms - named <= {"gateway/__init__.py", "gateway/__pycache__/"}


EXAMPLES = re.compile(r"NAME|000N|policies/(two-backends|helper)\.yaml")
"""Names of files that a reader makes."""
BASES = (ROOT, ROOT / "gateway", ROOT / "local_engine")


def test_files_that_documents_name_are_there() -> None:
    """In backticks with a folder: `gateway/errors.py`, `routing/plan.py`."""
    missing = []
    for page in [*PAGES[:3], DOCS / "architecture.md", *sorted((DOCS / "decisions").glob("*.md"))]:
        for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|yaml))[:`]", page.read_text()):
            if not EXAMPLES.search(name) and not any((base / name).exists() for base in BASES):
                missing.append(f"{page.name}: {name}")
    assert missing == []


@pytest.mark.parametrize("page", sorted((DOCS / "decisions").glob("*.md")), ids=lambda page: page.stem)
def test_decision_is_short_and_whole(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.name[:4]}: ")
    assert len(text.splitlines()) <= 40
    assert [part for part in ("Status", "Context", "Decision", "Consequences") if f"**{part}" not in text] == []


def test_commands_of_make_are_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"(?:^|`|\n)make ([a-z]+)", page.read_text())}
    assert {"up", "test", "check"} <= named
    assert named <= targets
