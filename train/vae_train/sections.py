"""Options of a command in sections: its help lists those together that belong together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vae_train.config import DATASETS


class InSections(click.Command):
    """A command whose help lists options by the section that `section` gave them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        titles: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record:
                titles.setdefault(_SECTIONS.get(parameter, "Options"), []).append(record)
        for title, records in titles.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Sections(InSections, click.Group):
    """A group of this kind."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where data stands in its place, say where they go."""
        name = args[0]
        if self.get_command(ctx, name) is None and (name in DATASETS or os.sep in name or Path(name).exists()):
            raise click.UsageError(f"'{name}' is no command, data is named as --dataset {name}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section, then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


_SECTIONS: dict[click.Parameter, str] = {}


def section(title: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options that the help lists together."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
            _SECTIONS[command.__click_params__[-1]] = title
        return command

    return decorate
