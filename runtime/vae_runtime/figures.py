"""A mean and its standard error, for people."""


def plus_minus(mean: float, error: float | None, style: str = ".2f", sign: str = "+-") -> str:
    """`mean +- error`, or the mean alone where its error is not known, as of one image."""
    return f"{mean:{style}}" if error is None else f"{mean:{style}} {sign} {error:{style}}"
