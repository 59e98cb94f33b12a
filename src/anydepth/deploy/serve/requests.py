"""Checked contents of a request: the bytes of a picture, a depth or a budget, and a threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Final

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from anydepth.budget import BudgetError
from anydepth.deploy.runtime.detector import DeployedDetector
from anydepth.deploy.serve.multipart import FormError, is_form, read_form
from anydepth.depth import DepthError
from anydepth.pictures.reading import ImageError, open_picture
from anydepth.utils.arguments import check_share
from anydepth.utils.messages import short_repr

# Statuses of HTTP that say what is wrong with a request.
BAD_REQUEST: Final = 400
TOO_LARGE: Final = 413
NOT_AN_IMAGE: Final = 415
NOT_ALLOWED: Final = 422

FIELDS: Final = ("image", "depth", "threshold")
_MAX_TEXT: Final = 200
_HOW: Final = (
    "send the content of an image file as the body of the request or as the field `image` of a form, e.g. "
    "`curl -F image=@photo.jpg`"
)


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        upload_bytes: Largest body of a request.
        pixels: Most pixels of a picture, which expand from a far smaller file.
        waiting: Requests that are answered or wait at once; further ones are refused.
    """

    upload_bytes: int = 16 * 2**20
    pixels: int = 40_000_000
    waiting: int = 64


@dataclass(frozen=True)
class Job:
    """A checked request.

    Attributes:
        data: Content of an image file.
        depth: Text of an exported depth.
        threshold: Lowest score of detections, in [0, 1].
    """

    data: bytes
    depth: str
    threshold: float


class JobReader:
    """Reads requests.

    Args:
        detector: Detector whose depths may be asked for; none of them is opened.
        limits: Limits of size.
    """

    def __init__(self, detector: DeployedDetector, limits: Limits) -> None:
        self.limits = limits
        self._detector = detector
        # A budget is looked up in measurements; clients ask for the same few.
        self._resolve = lru_cache(maxsize=256)(self._find_depth)

    async def read(self, request: Request) -> Job:
        """Return what a request asks for.

        Raises:
            HTTPException: Status 400, 413, 415 or 422, and what came and what is allowed.
        """
        fields = {name: value.encode() for name, value in _query(request).items()}
        body = await _read_body(request, self.limits.upload_bytes)
        content_type = request.headers.get("content-type", "")
        try:
            sent = read_form(content_type, body) if is_form(content_type) else {"image": body}
        except FormError as error:
            raise HTTPException(BAD_REQUEST, f"{error}; {_HOW}") from None
        twice = sorted(set(fields) & set(sent))
        if twice:
            raise HTTPException(BAD_REQUEST, f"got {twice[0]!r} in the address and in the form; give it once")
        return await self._check({**fields, **sent})

    async def _check(self, fields: Mapping[str, bytes]) -> Job:
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise HTTPException(
                NOT_ALLOWED, f"got the field {short_repr(unknown[0])}, expected {', '.join(FIELDS)}"
            )
        depth = self._resolve(_text(fields, "depth", "full"))
        threshold = _threshold(_text(fields, "threshold", "0.5"))
        data = fields.get("image", b"")
        if not data:
            raise HTTPException(BAD_REQUEST, f"got no image; {_HOW}")
        # Decoders of headers are quick, but others wait for this thread.
        await run_in_threadpool(self._check_header, data)
        return Job(data, depth, threshold)

    def _check_header(self, data: bytes) -> None:
        """Refuse what is no image or has too many pixels, before it is decoded or waits for a worker."""
        try:
            with open_picture(BytesIO(data)) as picture:
                width, height = picture.size
        except ImageError as error:
            raise HTTPException(TOO_LARGE, str(error)) from None
        # Decoders raise exceptions of any kind on malformed bytes.
        except Exception:
            raise HTTPException(
                NOT_AN_IMAGE,
                f"got {len(data):,} bytes that are not an image (JPEG, PNG, WebP, TIFF, ...). Paths and "
                f"addresses are not opened; {_HOW}",
            ) from None
        if width * height > self.limits.pixels:
            raise HTTPException(
                TOO_LARGE,
                f"got an image of {width:,} x {height:,} pixels, expected at most {self.limits.pixels:,}; "
                "shrink or tile it",
            )

    def _find_depth(self, text: str) -> str:
        try:
            return str(self._detector.resolve(text).config)
        except BudgetError as error:
            # Where the bundle lies is nobody's business.
            message = str(error).replace(str(self._detector.bundle.folder), "BUNDLE")
            raise HTTPException(NOT_ALLOWED, message) from None
        except DepthError:
            raise HTTPException(
                NOT_ALLOWED,
                f"got depth={short_repr(text)}, expected one of {', '.join(self._detector.depths)}, or a "
                "budget such as <=8ms, <=40gflops or >=95%ap",
            ) from None


async def read_job(request: Request) -> Job:
    """Read a request with the reader of its server; FastAPI calls it, see :class:`JobReader`."""
    reader: JobReader = request.app.state.reader
    return await reader.read(request)


def _query(request: Request) -> dict[str, str]:
    items = request.query_params.multi_items()
    found = dict(items)
    if len(found) < len(items):
        raise HTTPException(BAD_REQUEST, "got a field twice in the address; give it once")
    if "image" in found:
        raise HTTPException(BAD_REQUEST, f"got an image in the address; {_HOW}")
    return found


async def _read_body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    # Refused before it is sent, where its length is known.
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise HTTPException(TOO_LARGE, _size_message(f"{int(announced[:20]):,} bytes", limit))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(TOO_LARGE, _size_message("more", limit))
    return bytes(body)


def _size_message(size: str, limit: int) -> str:
    return f"got {size}, expected at most {limit:,} bytes; shrink the image or store it as JPEG"


def _text(fields: Mapping[str, bytes], name: str, default: str) -> str:
    text = fields.get(name, default.encode()).decode("utf-8", "replace").strip()
    if len(text) > _MAX_TEXT:
        raise HTTPException(
            NOT_ALLOWED, f"got {name} of {len(text):,} characters, expected at most {_MAX_TEXT}"
        )
    return text or default


def _threshold(text: str) -> float:
    try:
        return check_share("threshold", float(text))
    except ValueError:
        raise HTTPException(
            NOT_ALLOWED, f"got threshold={short_repr(text)}, expected a number from 0 to 1"
        ) from None
