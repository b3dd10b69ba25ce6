"""The routes: what they answer, to whom, and with which headers."""

import re

import pytest
import served
from starlette.testclient import TestClient

from metricjax.serving.application import application
from metricjax.serving.guard import LOOPBACK

BLUE = served.encode(served.draw(served.KINDS[3][2]))
SCRIPT = served.KINDS[1][0]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return served.make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    (directory / "explorer.html").write_text("<p>explored")
    (directory / "model.safetensors").write_text("secret")
    return {"explorer.html": directory / "explorer.html"}


@pytest.fixture(scope="module")
def client(gallery, pages):
    service = served.make_service(gallery, pages=pages)
    app = application(service, LOOPBACK)
    with TestClient(app, base_url="http://localhost:8000") as client:
        yield client


def classes(response):
    assert response.status_code == 200, response.text
    return [one["class"] for one in response.json()["neighbours"]]


def test_the_page_may_run_what_stands_in_it_and_nothing_else(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert "20 images of" not in response.text  # One of them cannot be found.
    assert "19 images of 4 classes" in response.text
    assert '<a href="/explorer.html">Explorer</a>' in response.text
    assert "cold &lt;b&gt;" in response.text and "cold <b>" not in response.text
    loaded = re.findall(r'(?:src|href)="(?!#|data:|/explorer)([^"]*)"', response.text)
    assert not loaded and "http:" not in response.text.replace("http://www.w3.org", "")


def test_a_picture_to_its_neighbours(client):
    response = client.post("/search?top=4", content=BLUE)
    answer = response.json()
    assert classes(response) == ["blue"] * 4
    assert answer["query"] is None and answer["searched"] == 19
    first = answer["neighbours"][0]
    assert first == {
        "image": first["image"],
        "path": f"3-{first['image'] % served.IMAGES} é.png",
        "class": "blue",
        "category": "cold <b>",
        "thumbnail": f"/images/{first['image']}",
        "explorer": f"/explorer.html#image={first['image']}",
        "similarity": first["similarity"],
        "same": True,
    }
    assert answer["threshold"] == {"similarity": 0.98, "false_match_rate": 0.001}
    similarities = [one["similarity"] for one in answer["neighbours"]]
    assert similarities == sorted(similarities, reverse=True)
    assert all(
        one["same"] == (one["similarity"] >= 0.98) for one in answer["neighbours"]
    )


def test_an_image_of_the_gallery_to_its_neighbours(client):
    response = client.get("/search?image=15&top=19")
    found = [one["image"] for one in response.json()["neighbours"]]
    assert sorted([*found, 15, served.BROKEN]) == list(range(20))
    assert classes(response)[:4] == ["blue"] * 4
    assert response.json()["query"]["class"] == "blue"


@pytest.mark.parametrize(
    "filters, searched, found",
    [
        ({"category": "warm"}, 9, {"red", SCRIPT}),
        ({"class": SCRIPT}, 5, {SCRIPT}),
        ({"class": ["red", "blue"]}, 9, {"red", "blue"}),
        ({"class": ["red", "blue"], "category": "warm"}, 4, {"red"}),
        ({"class": "red", "category": "cold <b>"}, 0, set()),
        ({"class": "", "category": ""}, 19, {name for name, _, _ in served.KINDS}),
    ],
)
def test_filters(filters, searched, found, client):
    for response in (
        client.post("/search", params={"top": 100, **filters}, content=BLUE),
        client.get("/search", params={"top": 100, "image": 0, **filters}),
    ):
        assert response.json()["searched"] == searched
        assert set(classes(response)) == found


@pytest.mark.parametrize(
    "path, status, sentence",
    [
        ("/search?image=20", 404, "There is no image 20: the gallery has those from 0"),
        ("/search?image=2", 404, "could not be read"),
        ("/search?image=-1", 400, "must be a whole number"),
        ("/search?image=1e3", 400, "must be a whole number"),
        ("/search?image=%F0%9D%9F%99", 400, "must be a whole number"),
        ("/search?image=99999999999999999999", 400, "must be a whole number"),
        ("/search", 400, "must be a whole number"),
        ("/search?image=0&top=0", 400, "must be 1 to 100"),
        ("/search?image=0&top=101", 400, "must be 1 to 100"),
        ("/search?image=0&class=bleu", 400, "'bleu' (did you mean 'blue'?)"),
        ("/search?image=0&category=%00", 400, "of the category"),
        ("/samples?seed=x", 400, "must be a whole number"),
        ("/images/0/..", 404, "There is nothing at"),
        ("/images/..%2F..%2Fmodel.safetensors", 404, "There is nothing at"),
        ("/images/%2e%2e", 400, "must be a whole number"),
        ("/images/0-0%20%C3%A9.png", 400, "must be a whole number"),
        ("/images/2", 404, "could not be read"),
        ("/model.safetensors", 404, "There is nothing at"),
        ("/report.html", 404, "There is nothing at"),
        ("/%2e%2e/model.safetensors", 404, "There is nothing at"),
        ("//etc/passwd", 404, "There is nothing at"),
    ],
)
def test_what_is_not_there(path, status, sentence, client):
    response = client.get(path)
    assert response.status_code == status
    assert sentence in response.json()["error"]


def test_methods(client):
    assert client.delete("/search").status_code == 405
    assert client.post("/images/0").status_code == 405
    assert "does not take PUT" in client.put("/").json()["error"]


def test_images_are_served_by_number_small_and_for_this_start_only(client, gallery):
    first = client.get("/images/0")
    assert first.headers["content-type"].startswith("image/")
    tag = first.headers["etag"]
    again = client.get("/images/0", headers={"If-None-Match": tag})
    assert again.status_code == 304 and not again.content
    with TestClient(
        application(served.make_service(gallery), LOOPBACK), base_url="http://localhost"
    ) as other:
        assert other.get("/images/0", headers={"If-None-Match": tag}).content


def test_pages_of_the_run(client, pages):
    response = client.get("/explorer.html")
    assert response.text == "<p>explored"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    content = pages["explorer.html"].read_text()
    pages["explorer.html"].unlink()
    response = client.get("/explorer.html")
    pages["explorer.html"].write_text(content)
    assert response.status_code == 404 and "any more" in response.json()["error"]


def test_classes_by_what_is_typed(client):
    assert client.get("/classes?like=RE").json() == {"classes": ["red"]}
    containing = client.get("/classes?like=u").json()["classes"]
    assert sorted(containing) == sorted([SCRIPT, served.KINDS[2][0], "blue"])
    assert client.get("/classes?like=b").json()["classes"][0] == "blue"
    assert len(client.get("/classes?like=").json()["classes"]) == 4


def test_samples(client):
    drawn = client.get("/samples?seed=3").json()["images"]
    assert len(drawn) == 19 and "similarity" not in drawn[0]
    filtered = client.get("/samples", params={"class": SCRIPT}).json()["images"]
    assert {one["class"] for one in filtered} == {SCRIPT} and len(filtered) == 5


def test_health(client):
    before = client.get("/healthz").json()
    client.post("/search", content=BLUE)
    after = client.get("/healthz").json()
    assert before["status"] == "ok" and before["images"] == 19
    assert after["answered"] == before["answered"] + 1 and after["waiting"] == 0


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.0.0.1:81", "[::1]:9", "LOCALHOST:8000"]
)
def test_names_of_this_machine(host, client):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "a:b:c"]
)
def test_other_names_are_refused(host, client):
    response = client.post("/search", content=BLUE, headers={"Host": host})
    assert response.status_code == 403
    assert "does not answer to the name" in response.json()["error"]


def test_by_any_name_where_it_is_served_to_others(gallery):
    with TestClient(application(served.make_service(gallery), None)) as client:
        response = client.get("/healthz", headers={"Host": "a.example"})
        assert response.status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost"])
def test_pages_of_other_sites_may_not_search(origin, client):
    response = client.post("/search", content=BLUE, headers={"Origin": origin})
    assert response.status_code == 403
    assert "other sites" in response.json()["error"]


def test_its_own_page_may(client):
    origin = {"Origin": "http://localhost:8000"}
    assert classes(client.post("/search", content=BLUE, headers=origin))


@pytest.mark.parametrize("path", ["/", "/healthz", "/images/1", "/nothing"])
def test_headers(path, client):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_a_fault_is_told_without_its_details(gallery):
    def fails(answer):
        def wrapped(questions):
            raise RuntimeError("secret")

        return wrapped

    service = served.make_service(gallery, around=fails)
    app = application(service, LOOPBACK)
    with TestClient(
        app, base_url="http://localhost", raise_server_exceptions=False
    ) as client:
        response = client.post("/search", content=BLUE)
        assert response.status_code == 500
        assert response.json() == {"error": "The server has failed; its log says how."}
        assert client.get("/healthz").json()["waiting"] == 0
