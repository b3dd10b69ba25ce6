"""Whatever is sent as a picture gets an answer or a sentence, and so does the next."""

import numpy as np
import pytest
import served
from odd_pictures import BOMB, JPEG, RED, jpeg_of, png
from PIL import ExifTags, Image
from starlette.testclient import TestClient

from metricjax.serving import uploads
from metricjax.serving.application import application
from metricjax.serving.guard import LOOPBACK

LIMITS = uploads.Limits(picture=200_000, held=600_000, seconds=2.0)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return served.make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def client(gallery):
    service = served.make_service(gallery, limits=LIMITS)
    app = application(service, LOOPBACK)
    with TestClient(app, base_url="http://localhost") as client:
        client.service = service
        yield client


def send(client, content, kind="application/octet-stream", **options):
    headers = {} if kind is None else {"Content-Type": kind}
    return client.post("/search?top=3", content=content, headers=headers, **options)


def found(response):
    assert response.status_code == 200, response.text
    return [one["class"] for one in response.json()["neighbours"]]


def with_many_scans() -> bytes:
    place = JPEG.index(b"\xff\xda")
    return JPEG[:place] + JPEG[place:-2] * 100 + JPEG[-2:]


ODD = {
    "an ordinary JPEG": JPEG,
    "a progressive JPEG": served.encode(RED, "JPEG", progressive=True),
    "CMYK": served.encode(RED.convert("CMYK"), "JPEG"),
    "a palette": served.encode(RED.convert("P", palette=Image.Palette.ADAPTIVE)),
    "transparent": served.encode(RED.convert("RGBA")),
    "WebP": served.encode(RED, "WEBP"),
    "GIF": served.encode(RED, "GIF"),
    "BMP": served.encode(RED, "BMP"),
    "TIFF": served.encode(RED, "TIFF"),
    "one pixel": served.encode(RED.resize((1, 1))),
    "a strip": served.encode(RED.resize((20_000, 1))),
}
BAD = {
    "nothing": (b"", 400, "No picture came"),
    "text": (b"<script>alert(1)</script>" * 9, 415, "This is not a picture"),
    "noise": (np.random.default_rng(0).bytes(5000), 415, "This is not a picture"),
    "a PostScript file": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        415,
        "This is not a picture",
    ),
    "the head of a JPEG": (JPEG[:30], 415, "This is not a picture"),
    "most of a JPEG": (JPEG[:-80], 422, "The picture is damaged"),
    "half of a PNG": (served.encode(RED)[:900], 422, "The picture is damaged"),
    "a bomb": (BOMB, 413, "far too many pixels"),
    "a large PNG": (
        png(4_000, 4_200),
        413,
        "The picture has 4000 x 4200 pixels, more than 16 million",
    ),
    "a large JPEG": (
        jpeg_of(7_100, 7_100),
        413,
        "The picture has 7100 x 7100 pixels, more than 50 million",
    ),
    "a vast JPEG": (jpeg_of(60_000, 60_000), 413, "far too many pixels"),
    "a hundred scans": (with_many_scans(), 413, "more than 64 scans"),
    "too many bytes": (JPEG + bytes(LIMITS.picture), 413, "larger than 0.191 MiB"),
}


@pytest.mark.parametrize("name", ODD)
def test_pictures_of_every_kind(name, client):
    assert found(send(client, ODD[name])) == ["red"] * 3


def test_turned_pictures_are_put_upright(gallery):
    tall = Image.new("RGB", (8, 32), "white")
    tall.paste((0, 0, 200), (0, 0, 8, 8))  # Blue on top.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = served.encode(tall.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    decode = uploads.Decoder(lambda image: image, 3)
    np.testing.assert_array_equal(decode(lying), np.asarray(tall))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_gets_a_sentence(name, client):
    content, status, sentence = BAD[name]
    response = send(client, content)
    assert (response.status_code, response.headers["content-type"]) == (
        status,
        "application/json",
    )
    assert sentence in response.json()["error"]
    assert found(send(client, JPEG)) == ["red"] * 3


@pytest.mark.parametrize("name", BAD)
def test_the_same_in_a_form(name, client):
    content, status, _ = BAD[name]
    files = {"image": ("../../etc/passwd", content, "image/png")}
    response = client.post("/search", files=files)
    assert response.status_code == status
    assert client.service.receiver._held == 0


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/anything", "application/octet-stream", None, ""]
)
def test_what_a_picture_may_be_called(kind, client):
    assert found(send(client, JPEG, kind)) == ["red"] * 3


@pytest.mark.parametrize(
    "kind", ["text/html", "application/json", "application/x-www-form-urlencoded"]
)
def test_other_types_are_refused(kind, client):
    response = send(client, JPEG, kind)
    assert response.status_code == 415
    assert kind in response.json()["error"]


def test_a_form(client):
    files = {"image": ("é \n.jpg", JPEG, "image/jpeg")}
    fields = {"top": "2", "category": "cold <b>"}
    response = client.post("/search?top=9", files=files, data=fields)
    assert len(found(response)) == 2
    assert {one["category"] for one in response.json()["neighbours"]} == {"cold <b>"}


@pytest.mark.parametrize(
    "content, boundary",
    [
        (b"nonsense", "; boundary=x"),
        (b"nonsense", ""),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", "; boundary=x"),
        (b"--x--\r\n", "; boundary=x"),
        (b"--" + b"y" * 70_000, "; boundary=" + "y" * 70_000),
    ],
)
def test_forms_that_are_none(content, boundary, client):
    response = send(client, content, f"multipart/form-data{boundary}")
    assert response.status_code == 400 and response.json()["error"]
    assert found(send(client, JPEG)) == ["red"] * 3


def test_two_files_in_a_form(client):
    files = [("image", ("a.jpg", JPEG)), ("image", ("b.jpg", JPEG))]
    response = client.post("/search", files=files)
    assert response.status_code == 400 and "one file" in response.json()["error"]


def test_a_large_field_of_a_form(client):
    response = client.post(
        "/search", files={"image": ("a", JPEG)}, data={"class": "x" * 70_000}
    )
    assert response.status_code in (400, 413)


def test_a_body_of_unknown_length_is_counted(client):
    parts = (bytes(50_000) for _ in range(40))
    response = send(client, parts)
    assert response.status_code == 413
    assert client.service.receiver._held == 0
    response = send(client, iter([JPEG[:300], JPEG[300:]]))
    assert found(response) == ["red"] * 3


def test_all_that_is_held_is_bounded(client):
    receiver = client.service.receiver
    receiver.take(LIMITS.held - 100)
    response = send(client, JPEG)
    receiver._held = 0
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert found(send(client, JPEG)) == ["red"] * 3
