"""What requests to the service hold, within its limits: observations in a body, a form or JSON; latents; numbers."""

import base64
import binascii
import csv
import gzip
import io
import json
import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.array_files import header, reading
from vae_runtime.draws import Floats
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import IMAGE, VECTOR
from vae_runtime.serve_limits import Limits
from vae_runtime.sources import FORMATS
from vae_runtime.vae import VAE

if TYPE_CHECKING:
    from flask import Request

_DATA = re.compile(r"data:image/[\w.+-]+;base64,")
_PACKED = (b"\x1f\x8b", b"PK\x03\x04")  # gzip and .npz
_SEND = "send a file, curl --data-binary @FILE or curl -F file=@FILE, or JSON"


@dataclass
class Sent:
    """Observations x [n, *shape] with a name each, and what is to be said of how they were read."""

    names: list[str] = field(default_factory=list)
    parts: list[NDArray[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def x(self) -> NDArray[Any]:
        """All of them."""
        return np.concatenate(self.parts)


def most(vae: VAE, limits: Limits) -> int:
    """How many observations a request or an answer may have."""
    return max(1, min(limits.observations, limits.values // vae.observation.size))


def observations(vae: VAE, request: "Request", limits: Limits) -> Sent:
    """The observations that a request holds: of all files of a form, of JSON, or of a body that is a file.

    JSON is a list of them, or an object with one as `observations`: of images, data URLs or arrays [C, H, W]; of rows,
    objects by column, or numbers in order; of series, arrays [C, T]. Raises InputError where there are none, or more
    than the limits let in.
    """
    if request.mimetype == "multipart/form-data":
        files = [(file.filename or "file", file.read()) for _, file in request.files.items(multi=True)]
        if not files:
            raise InputError(f"no {vae.observation.noun}s", "a form without a file", "send some: curl -F file=@FILE")
        return _of_files(vae, files, limits)
    body = request.get_data()
    if not body.strip():
        raise InputError(f"no {vae.observation.noun}s", "the request is empty", _SEND)
    if body.lstrip()[:1] in (b"[", b"{"):
        found = document(body, limits)
        return _of_json(vae, found.get("observations") if isinstance(found, dict) else found, limits)
    return _of_files(vae, [("request", body)], limits)


def latents(vae: VAE, request: "Request", limits: Limits) -> Floats:
    """The latents of a request's JSON, {"z": [[...], ...]}, flat or in their shape: float32 [n, *latent_shape]."""
    found = document(request.get_data(), limits)
    z = _numbers(found.get("z") if isinstance(found, dict) else None, "z")
    if z.ndim < 2 or z[0].size != vae.latent_dim:
        todo = f'send {{"z": [[...]]}}, a list of {vae.latent_dim} numbers for each'
        raise InputError(f"latents of shape {list(z.shape)}", "z", todo)
    _refuse_many(vae, len(z), limits)
    return z.astype(np.float32).reshape(len(z), *vae.latent_shape)


def document(body: bytes, limits: Limits) -> Any:
    """The body as JSON. Raises InputError where it is none, or too long: Python's objects take many times its bytes."""
    if len(body) > limits.json:
        raise InputError("JSON too long", f"{len(body):,} bytes", f"send at most {limits.json:,}, or a file")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"JSON not understood ({str(error)[:80]})", "request", "send a JSON object or list") from None


def integer(request: "Request", name: str, default: int, least: int = 0, most: int = 2**64 - 1) -> int:
    """An integer from the request's query. Raises ArgumentError where it is none, or out of range."""
    text = request.args.get(name, str(default))
    if not (text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
        raise ArgumentError(f"{name} out of range", text[:20], f"give an integer from {least} to {most:,}")
    return int(text)


def refuse_unknown(request: "Request", known: Iterable[str]) -> None:
    """Raise ArgumentError where a request's query has another parameter, which would do nothing."""
    for name in request.args:
        if name not in known:
            raise ArgumentError("no such parameter", name[:20], f"give {' or '.join(known) or 'none'}")


def _of_files(vae: VAE, files: Iterable[tuple[str, bytes]], limits: Limits) -> Sent:
    sent, count, pixels = Sent(), 0, 0
    for name, content in files:
        try:
            content = _unpacked(content, limits)
            _refuse_short(content)
            pixels += _pixels(content) if vae.observation.kind == IMAGE else 0
            if pixels > limits.pixels:
                raise InputError("pictures too large", name, f"send {limits.pixels:,} pixels at most")
            found = vae.read([content])
            count += len(found)
            _refuse_many(vae, count, limits)
            sent.parts += found.batches(limits.observations)
        except InputError as error:  # which calls bytes so
            raise InputError(error.what, _named(error.which, name), error.todo) from None
        sent.names += [_named(each, name) for each in found.names()]
        said = [*found.notes, *(f"bytes fitted {change}" for change in found.fitted.values())]
        sent.notes += [_named(each, name) for each in said]
    return sent


def _named(text: str, name: str) -> str:
    """What is said of a file that was read as bytes, by the name that the client gave it."""
    return re.sub(r"^bytes\b", lambda _: name, text)


def _of_json(vae: VAE, values: Any, limits: Limits) -> Sent:
    noun = vae.observation.noun
    if not (isinstance(values, list) and values):
        raise InputError(f"no {noun}s", "JSON", f'send a list of {noun}s, or {{"observations": [...]}}')
    _refuse_many(vae, len(values), limits)
    if vae.observation.kind == IMAGE and all(isinstance(value, str) for value in values):
        return _of_files(vae, [(f"{noun} {i}", _of_data_url(value, i)) for i, value in enumerate(values)], limits)
    if vae.observation.kind == VECTOR and all(isinstance(value, dict) for value in values):
        return _of_files(vae, [(noun, _table(values))], limits)
    x = _numbers(values, f"{noun}s")
    if x.shape[1:] != vae.observation.shape:
        todo = f"this model takes {vae.observation.batch_shape}"
        raise InputError(f"{noun}s of shape {list(x.shape)}", "JSON", todo)
    return Sent([f"{noun} {i}" for i in range(len(x))], [x])


def _of_data_url(text: str, number: int) -> bytes:
    try:
        head = _DATA.match(text)
        return base64.b64decode(text[head.end() :] if head else text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("not a data URL", f"image {number}", "send data:image/png;base64,...") from None


def _table(rows: list[dict[str, Any]]) -> bytes:
    """Rows by column as CSV, which knows the columns by name, and those that are made of text."""
    written = io.StringIO()
    columns = csv.DictWriter(written, list(rows[0]), extrasaction="ignore")
    columns.writeheader()
    columns.writerows(rows)
    try:
        return written.getvalue().encode()
    except UnicodeEncodeError:  # JSON can write half a character
        raise InputError("text that is no Unicode", "row", "send whole characters, no lone surrogates") from None


def _numbers(values: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):  # text, lists of unequal lengths, integers beyond all floats
        raise InputError("not an array of numbers", name, "send lists of numbers, all of one length") from None


def _refuse_many(vae: VAE, count: int, limits: Limits) -> None:
    if count > (at_most := most(vae, limits)):
        noun = vae.observation.noun
        raise InputError(f"too many {noun}s", f"{count:,}", f"send at most {at_most} at a time")


def _refuse_short(content: bytes) -> None:
    """Raise InputError where an array's header claims more than was sent, which would take memory before it is read."""
    with reading("bytes", "save it again, with numpy.save"):
        array = header(io.BytesIO(content))
        if array is not None and math.prod(array.shape) * array.dtype.itemsize > len(content):
            raise ValueError(f"it ends before its {array.shape[0]} rows do")


def _pixels(content: bytes) -> int:
    """How many pixels a picture says that it has, before any of them is decoded; 0 of what is no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # what is damaged is refused when it is read, in words
        return 0


def _unpacked(content: bytes, limits: Limits) -> bytes:
    """The content of a gzipped file or of an .npz, no larger than the limits; anything else as it is."""
    if not content.startswith(_PACKED):
        return content
    with reading("bytes", "pack it again, or send it as it is"), _inside(content) as stream:
        inside = stream.read(limits.unpacked + 1)
    if len(inside) > limits.unpacked:
        raise InputError("file too large once unpacked", "bytes", f"send at most {limits.unpacked:,} bytes")
    if inside.startswith(_PACKED):
        raise InputError("file is packed twice", "bytes", "send it unpacked")
    return inside


def _inside(content: bytes) -> IO[bytes]:
    if content.startswith(_PACKED[0]):
        return cast(IO[bytes], gzip.GzipFile(fileobj=io.BytesIO(content)))
    archive = zipfile.ZipFile(io.BytesIO(content))
    held = archive.namelist()
    if "x.npy" not in held and len(held) != 1:
        raise ValueError(f"it holds {', '.join(held)[:60] or 'nothing'}, and no x")
    return archive.open("x.npy" if "x.npy" in held else held[0])
