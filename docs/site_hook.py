"""What the site takes from outside docs/: pages of the repository, commands, a page a module, equations as MathML."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import confide

ROOT = Path(confide.__file__).parent
PACKAGES = ("privacy", "client", "server", "simulation")
# Pages that stand where the code is, and under which name the site shows them.
TAKEN_IN = {"protocol.md": "privacy/PROTOCOL.md", "threats.md": "privacy/THREATS.md", "changes.md": "CHANGELOG.md"}
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def public_modules(package: str) -> list[str]:
    """Return the dotted names of a package's modules that a reader may import, in order; none begins with `_`."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if not (path.parent / "__init__.py").exists():
            continue  # a script that another interpreter runs
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return sorted(found)


def summary(module: str) -> str:
    """Return the first sentence of a module's docstring; a module without one is an error of the build."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{module} does not say what it is")
    return " ".join(text.split("\n\n")[0].split())


def command_pages(command: click.Command, words: str = "confide") -> list[str]:
    """Return the lines that describe a command and all below it: what it does, its arguments and options."""
    context = click.Context(command, info_name=words)
    about = " ".join((command.help or "").split())
    lines = [f"{'#' * (len(words.split()) + 1)} {words}", "", about, ""]
    if not isinstance(command, click.Group):
        lines += ["```text", *(piece.strip() for piece in context.command.get_usage(context).splitlines()), "```", ""]
        told = [(given, told) for given, told in map(option, command.get_params(context)) if given]
        if told:
            lines += ["| option | what it says |", "|---|---|", *(f"| `{a}` | {b} |" for a, b in told), ""]
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        below = command.get_command(context, name)
        lines += command_pages(below, f"{words} {name}") if below is not None else []
    return lines


def option(parameter: click.Parameter) -> tuple[str, str]:
    """Return a parameter's name and help, both for a cell of a table; empty for what every command has."""
    if "--help" in parameter.opts or any("completion" in name for name in parameter.opts):
        return "", ""
    shown = [parameter.make_metavar(click.Context(click.Command("x")))] if isinstance(parameter, click.Argument) else []
    name = ", ".join(shown or [*parameter.opts, *parameter.secondary_opts])
    text = " ".join((getattr(parameter, "help", None) or "").split())
    default = parameter.default
    if isinstance(default, (str, int, float)) and not isinstance(default, bool) and default != "":
        text += f" Default: {default}."
    return name.replace("|", "\\|"), text.replace("|", "\\|").replace("<", "&lt;")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the modules to the navigation, by package."""
    pages: list[Any] = [{package: f"reference/{package}.md"} for package in PACKAGES]
    reference = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    reference += pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository, and for each package a list of its modules and a page for each."""
    for name, source in TAKEN_IN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    files.remove(files.src_uris["commands.md"])
    files.append(File.generated(config, "commands.md", content="\n".join([text, *command_pages(confide.confide)])))
    for package in PACKAGES:
        modules = public_modules(package)
        rows = [f"| [{name}]({name}.md) | {summary(name).replace('|', chr(92) + '|')} |" for name in modules]
        text = "\n".join([f"# {package}", "", "| module | what it is |", "|---|---|", *rows, ""])
        files.append(File.generated(config, f"reference/{package}.md", content=text))
        for name in modules:
            if name != package:
                files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Return the page with its equations as MathML, which browsers draw without a script."""

    def drawn(match: re.Match[str]) -> str:
        text = match[3].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()
        return convert(text, display="block" if match[2] == "[" else "inline")

    return EQUATION.sub(drawn, html)
