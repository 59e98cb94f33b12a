"""Self-contained HTML file of a report: no server, no network, no other file.

Text is part of the HTML, escaped by jinja2; data of charts is JSON, from which scripts create text only. A
content security policy with the hashes of the page's own scripts blocks all other scripts and all requests,
whatever names a run's files contain.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from anydepth.report.comparison import Comparison, Report
from anydepth.report.page.curves import compatibility, curves
from anydepth.report.page.depths import budget_hint, budget_table, class_table
from anydepth.report.page.pictures import Pictures, detections
from anydepth.report.page.tables import Table, config_table, provenance, runs_table, settings_table
from anydepth.report.page.training import gradients, training

PALETTES: Mapping[str, tuple[str, ...]] = {
    "light": (
        "#0b63b0",
        "#d1560a",
        "#00876c",
        "#8968f4",
        "#480a55",
        "#549ac9",
        "#913814",
        "#1a1199",
        "#70355e",
        "#3b2b0d",
    ),
    "dark": (
        "#5aa9f2",
        "#ff8a3d",
        "#3fd0a6",
        "#8b6bf7",
        "#c0e8fd",
        "#d1f339",
        "#b46817",
        "#4e72ac",
        "#689693",
        "#96f0aa",
    ),
}
"""Colours of settings on the two backgrounds; further settings reuse them with other dashes."""

BACKGROUNDS: Mapping[str, str] = {"light": "#ffffff", "dark": "#192027"}
"""Backgrounds of charts, equal to those in ``page.css``."""

SCRIPTS = ("base.js", "curves.js", "training.js", "heat.js", "viewer.js", "tables.js", "main.js")

VERDICT_MARKS: Mapping[str, str] = {
    "supported": "✔",
    "contradicted": "✖",
    "undecided": "?",
    "not tested": "○",
}
"""Marks of verdicts, so that they do not differ in colour alone."""


@dataclass(frozen=True)
class _Section:
    """One comparison for the template.

    ``parts`` holds the titles of the sections that have content, in their order. Claims come first if the
    runs decide one (``decided``); otherwise, e.g. for a single run, what was measured does.
    """

    number: int
    comparison: Comparison
    decided: bool
    parts: Mapping[str, str]
    budget_table: Table | None
    budget_hint: str
    class_table: Table | None
    settings_table: Table
    runs_table: Table
    config_table: Table | None
    facts: Sequence[tuple[str, str]]


def render_page(report: Report) -> str:
    """Return the page of a report as the text of one HTML file."""
    pictures = Pictures()
    documents = [_document(comparison, pictures) for comparison in report.comparisons]
    sections = [
        _section(number, comparison, document)
        for number, (comparison, document) in enumerate(zip(report.comparisons, documents, strict=True))
    ]
    data = {"comparisons": documents, "images": pictures.images, "palettes": PALETTES}
    scripts = [_script(_plotly()), _script(_own_scripts())]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            sections=sections,
            run_count=sum(len(setting.runs) for one in report.comparisons for setting in one.settings),
            notes=[*report.notes, *dict.fromkeys(pictures.unreadable)],
            css=Markup(_asset("page.css")),
            data=Markup(safe_json(data)),
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts),
        )
    )


def safe_json(data: object) -> str:
    r"""Return JSON that is safe inside a ``script`` element: it cannot end the element or start another.

    Example:
        >>> safe_json({"name": "</script>"})
        '{"name":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _document(comparison: Comparison, pictures: Pictures) -> dict[str, Any]:
    return {
        **curves(comparison),
        "training": training(comparison),
        "gradients": gradients(comparison),
        "compatibility": compatibility(comparison),
        "gallery": detections(comparison, pictures),
    }


def _section(number: int, comparison: Comparison, document: Mapping[str, Any]) -> _Section:
    decided = any(finding.verdict in ("supported", "contradicted") for finding in comparison.findings)
    budgets, classes = budget_table(comparison), class_table(comparison)
    claims = {"claims": ("Claims", bool(comparison.findings))}
    gallery = {"detections": ("Detections", document["gallery"] is not None)}
    titles = {
        **(claims if decided else {}),
        "curves": ("Depth curves", True),
        **({} if decided else gallery),
        "budget": ("Which depth fits", budgets is not None),
        "table": ("Settings", True),
        "classes": ("Classes", classes is not None),
        "config": ("Configurations", True),
        "training": ("Training", document["training"] is not None),
        "gradients": ("Gradients", document["gradients"] is not None),
        "compatibility": ("Compatibility", document["compatibility"] is not None),
        **(gallery if decided else claims),
        "runs": ("Runs", True),
    }
    return _Section(
        number=number,
        comparison=comparison,
        decided=decided,
        budget_table=budgets,
        budget_hint=budget_hint(comparison),
        class_table=classes,
        parts={name: title for name, (title, has_content) in titles.items() if has_content},
        settings_table=settings_table(comparison),
        runs_table=runs_table(comparison),
        config_table=config_table(comparison),
        facts=_facts(comparison),
    )


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    runs = [run for setting in comparison.settings for run in setting.runs]
    images = dict.fromkeys(str(run.curve.images) for run in runs)
    sizes = dict.fromkeys("{}x{}".format(*run.curve.input_size) for run in runs)
    seeds = {run.seed for run in runs if run.seed is not None}
    return [
        ("detectors", ", ".join(dict.fromkeys(run.curve.detector for run in runs))),
        ("settings", str(len(comparison.settings))),
        ("runs", str(len(runs))),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, sorted(seeds)))})" if seeds else "unknown"),
        ("images", ", ".join(images)),
        ("input", ", ".join(sizes)),
        ("scored boxes", "; ".join(dict.fromkeys(run.curve.boxes_text for run in runs))),
    ]


def _script(text: str) -> str:
    """Return the text of a script element.

    Raises:
        ValueError: The script would end its own element.
    """
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("got a script that would end its own element; escape </script and <!-- in it")
    return f"\n{text}\n"


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    rules = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:"
    return f"{rules}; style-src 'unsafe-inline'; script-src {allowed}"


def _own_scripts() -> str:
    body = "\n".join(_asset(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();'


@cache
def _plotly() -> str:
    """Return plotly.js as shipped by the installed package, with its licence in the header."""
    # Importing plotly takes longer than the rest of the page.
    from plotly.offline import get_plotlyjs

    # HTML parsers normalise line ends; the hash must match what the browser sees.
    return str(get_plotlyjs()).replace("\r\n", "\n")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("anydepth.report.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["provenance"] = provenance
    environment.globals["verdict_marks"] = VERDICT_MARKS
    return environment


def _asset(name: str) -> str:
    return (files("anydepth.report.page") / "assets" / name).read_text(encoding="utf-8")
