"""Questions of one batch do not know of each other."""

import numpy as np
import pytest
import served

from metricjax.data.collections import open_collection
from metricjax.inference.gallery_index import Index
from metricjax.serving.catalog import Catalog, Filter, Threshold
from metricjax.serving.refusals import Refused
from metricjax.serving.searching import Question, Searcher, warm


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    directory = served.make_gallery(tmp_path_factory.mktemp("gallery"))
    return Catalog(served.make_index(directory))


def pictures():
    colours = [colour for _, _, colour in served.KINDS]
    return [
        served.prepare(np.asarray(served.draw(colour, 3 + number)))
        for number, colour in enumerate(colours)
    ]


def questions():
    warm_ones = Filter(categories=frozenset([1]))
    nothing = Filter(classes=frozenset([0]), categories=frozenset([0]))
    return [
        Question(3, Filter(), picture=pictures()[0]),
        Question(7, warm_ones, picture=pictures()[3]),
        Question(5, Filter(), image=8),
        Question(1, warm_ones, image=0),
        Question(100, Filter(), picture=pictures()[2]),
        Question(4, nothing, picture=pictures()[1]),
        Question(4, Filter(classes=frozenset([1])), image=8),
    ]


def test_an_answer_is_the_same_in_any_company(catalog):
    search = Searcher(catalog, served.embed)
    alone = [search([question])[0] for question in questions()]
    for order in (range(7), [4, 0, 6, 2, 5, 1, 3]):
        together = search([questions()[place] for place in order])
        for place, answer in zip(order, together, strict=True):
            assert answer.images == alone[place].images
            # The products of a matrix are summed in another order than a vector's.
            assert answer.similarities == pytest.approx(
                alone[place].similarities, abs=1e-6
            )


def test_an_answer_is_what_was_asked_for(catalog):
    split = catalog.split
    found = Searcher(catalog, served.embed)(questions())
    lengths = [len(answer.images) for answer in found]
    # Of the nineteen images that can be read nine are warm; image 8 has four fellows.
    assert lengths == [3, 7, 5, 1, 19, 0, 4]
    for answer, question in zip(found, questions(), strict=True):
        assert list(answer.similarities) == sorted(answer.similarities, reverse=True)
        mask = catalog.mask(question.among)
        assert all(mask[image] and image != question.image for image in answer.images)
        assert served.BROKEN not in answer.images
    nearest = split.class_names[split.labels[found[0].images[0]]]
    assert nearest == "red"


def test_a_picture_without_a_direction_harms_nobody_else(catalog):
    def embed(batch):
        rows = served.embed(batch)
        rows[0], rows[-1] = np.nan, 0.0
        return rows

    asked = [Question(2, Filter(), picture=one) for one in pictures()[:3]]
    first, second, third = Searcher(catalog, embed)(asked)
    assert isinstance(first, Refused) and isinstance(third, Refused)
    assert first.status == 422 and "direction" in first.sentence
    assert second == Searcher(catalog, served.embed)(asked)[1]


@pytest.mark.parametrize("size, sizes", [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_every_size_is_compiled_before_it_is_needed(catalog, size, sizes):
    seen = []

    def embed(batch):
        seen.append(len(batch))
        return np.tile(np.float32([1, 0, 0]), (len(batch), 1))

    warm(Searcher(catalog, embed), (served.SIDE, served.SIDE, 3), size)
    assert seen == sizes


def test_samples_are_of_all_classes_first(catalog):
    drawn = catalog.samples(0, 4, Filter())
    assert sorted(catalog.split.labels[drawn]) == [0, 1, 2, 3]
    everything = catalog.samples(1, 100, Filter())
    assert sorted(everything) == sorted(np.flatnonzero(catalog.findable))
    assert catalog.samples(2, 4, Filter()) != drawn
    warm_ones = catalog.samples(0, 100, Filter(categories=frozenset([1])))
    assert len(warm_ones) == 9


def test_a_gallery_without_classes(tmp_path):
    (tmp_path / "one.png").write_bytes(served.encode(served.draw((1, 200, 3))))
    split = open_collection(tmp_path, channels=3)
    index = Index(split, np.float32([[1, 0, 0]]), np.ones(1, bool))
    catalog = Catalog(index)
    assert not catalog.has_classes
    assert catalog.entry(0)["class"] == "" and catalog.entry(0)["category"] is None


@pytest.mark.parametrize(
    "rates, chosen",
    [([0.1, 0.01, 0.001, 0.0001], 0.001), ([0.1, 0.01], 0.01), ([1e-5], 1e-5)],
)
def test_the_threshold_of_a_run(rates, chosen):
    found = [
        {"similarity": 1 - rate, "false_match_rate": rate, "test": {}} for rate in rates
    ]
    assert Threshold.of({"thresholds": found}) == Threshold(1 - chosen, chosen)


def test_a_run_without_a_threshold():
    assert Threshold.of({"recall@1": 0.5}) is None
    assert Threshold.of({"thresholds": []}) is None
