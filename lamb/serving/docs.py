"""The page `/docs`: the OpenAPI description of the interface as one HTML page that loads nothing else."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid #888; padding-top: 1rem; font-size: 1.1rem; }
code, pre { font-family: ui-monospace, monospace; background: #8882; padding: .1rem .3rem; overflow-x: auto; }
pre { padding: .6rem; } table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left;
vertical-align: top; } :root { color-scheme: light dark; }
"""


def page(description: Mapping[str, Any]) -> str:
    """An OpenAPI description, as from `FastAPI.openapi()`, in HTML."""
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(_body(description))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head>\n{body}'


def _body(description: Mapping[str, Any]) -> Iterator[str]:
    yield f"<body><h1>{escape(description['info']['title'])}</h1><p>{escape(description['info']['description'])}</p>"
    yield '<p>For programs: <a href="openapi.json">openapi.json</a></p>'
    for path, methods in description["paths"].items():
        for method, what in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            for part in what.get("description", "").split("\n\n"):
                example = part.startswith("    ")
                yield f"<pre>{escape(part)}</pre>" if example else f"<p>{escape(part)}</p>"
            yield _table("Field", _fields(what))
            answers = {code: answer["description"] for code, answer in what["responses"].items()}
            yield _table("Answer", [(code, "", text) for code, text in answers.items()])
    yield "</body></html>"


def _fields(what: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, default and description of each field of the form or, without a form, of the query."""
    form = what.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema", {})
    fields = form.get("properties") or {p["name"]: {**p["schema"], **p} for p in what.get("parameters", [])}
    return [
        (name, "" if field.get("default") is None else str(field["default"]), field.get("description", ""))
        for name, field in fields.items()
    ]


def _table(kind: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(default)}</td><td>{escape(text)}</td></tr>"
        for name, default, text in rows
    )
    default = "Default" if any(default for _, default, _ in rows) else ""
    return f"<table><tr><th>{kind}</th><th>{default}</th><th></th></tr>{lines}</table>"
