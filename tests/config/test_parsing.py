"""Settings: what is accepted, what is refused, in which words."""

import dataclasses
import json

import pytest

from metricjax.config import choose_variant, default_config, terms
from metricjax.config.constraints import check_devices
from metricjax.config.parsing import from_config_dict, to_dict
from metricjax.errors import InputError, suggestion
from metricjax.objectives.registry import LOSSES


def config_with(**settings):
    """The defaults with a triplet loss and some settings, named `a__b` for a.b."""
    config = default_config()
    config.objective.terms = terms(triplet={"margin": 0.3})
    tree = config.to_dict()
    for name, value in settings.items():
        *groups, last = name.split("__")
        place = tree
        for group in groups:
            place = place[group]
        place[last] = value
    return tree


def refuse(function, *args):
    """The one sentence with which something is refused."""
    with pytest.raises(InputError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_round_trip_through_json():
    config = from_config_dict(
        config_with(
            steps=7,
            data__root="photos",
            data__threads=3,
            model__widths=(8, 16),
            optimizer__step_boundaries=(3, 5),
            optimizer__clip_norm=1,
        )
    )
    kept = json.loads(json.dumps(to_dict(config)))
    assert from_config_dict(kept) == dataclasses.replace(
        config, objective=from_config_dict(kept).objective
    )
    assert to_dict(from_config_dict(kept)) == kept
    assert kept["steps"] == 7
    assert kept["data"]["root"] == "photos"
    assert kept["model"]["widths"] == [8, 16]
    assert kept["objective"]["terms"] == {
        "triplet": {
            "weight": 1.0,
            "margin": 0.3,
            "mining": "hard",
            "squared": False,
            "soft": False,
        }
    }
    assert isinstance(config.optimizer.clip_norm, float)


def test_terms_with_words_and_tuples_survive_json():
    tree = config_with(
        steps=500,
        objective__memory__size=256,
        objective__terms=terms(
            contrastive={"reduction": "nonzero"},
            hierarchical_proxy={"clusters": (20, 5), "level_weights": [1, 0.2, 0.1]},
        ),
    )
    config = from_config_dict(tree)
    options = config.objective.terms["hierarchical_proxy"].options
    assert options["level_weights"] == (1.0, 0.2, 0.1)
    assert isinstance(options["level_weights"][0], float)
    kept = json.loads(json.dumps(to_dict(config)))
    assert kept["objective"]["terms"]["hierarchical_proxy"]["clusters"] == [20, 5]
    assert kept["objective"]["terms"]["contrastive"]["reduction"] == "nonzero"
    assert kept["objective"]["memory"]["size"] == 256
    assert from_config_dict(kept) == config


def test_every_loss_can_be_named_with_its_defaults():
    for name, loss in LOSSES.items():
        options = terms(**{name: {}})
        config = from_config_dict(config_with(objective__terms=options))
        assert config.objective.terms[name].options == dict(loss.options)


def test_the_defaults_list_every_setting():
    config = from_config_dict(config_with())

    def names(value):
        if not dataclasses.is_dataclass(value):
            return None
        return {
            f.name: names(getattr(value, f.name)) for f in dataclasses.fields(value)
        }

    def listed(tree, like):
        return {k: listed(tree[k], v) if v else None for k, v in like.items()}

    everything = names(config)
    assert listed(default_config().to_dict(), everything) == everything
    assert set(default_config()) == set(everything)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stesp": 5}, ["config.stesp", "did you mean 'steps'", "batch_size"]),
        ({"data__rot": "x"}, ["config.data.rot", "did you mean 'root'"]),
        ({"data__transform__colour": 1}, ["config.data.transform.colour", "channels"]),
        ({"steps": "many"}, ["config.steps is 'many'", "int"]),
        ({"steps": 10.0}, ["config.steps is 10.0", "int"]),
        ({"steps": True}, ["config.steps is True", "int"]),
        ({"data__closed_set": 1}, ["config.data.closed_set is 1", "bool"]),
        ({"data__holdout": "half"}, ["config.data.holdout is 'half'", "float"]),
        ({"data__name": 5}, ["config.data.name is 5", "str"]),
        ({"data__threads": "two"}, ["config.data.threads is 'two'", "int"]),
        ({"data": 5}, ["config.data is 5", "group"]),
        ({"model__widths": 8}, ["config.model.widths is 8", "tuple"]),
        ({"model__widths": (8, "x")}, ["config.model.widths[1] is 'x'", "int"]),
        ({"optimizer__learning_rate": float("nan")}, ["learning_rate", "finite"]),
        ({"optimizer__clip_norm": float("inf")}, ["clip_norm is inf", "finite"]),
        ({"steps": 0}, ["config.steps is 0", "1 or more"]),
        ({"eval_every": -5}, ["config.eval_every is -5", "1 or more"]),
        ({"seed": -1}, ["config.seed is -1", "0 or more"]),
        ({"host_timeout": 1.0}, ["config.host_timeout is 1.0", "5 seconds or more"]),
        ({"data__threads": -1}, ["config.data.threads is -1", "0 or more"]),
        ({"data__cache_gib": -1.0}, ["config.data.cache_gib is -1.0", "0 or more"]),
        ({"evaluation__bootstrap": 0}, ["config.evaluation.bootstrap", "1 or more"]),
        ({"evaluation__batch_size": 0}, ["config.evaluation.batch_size", "1 or more"]),
        ({"evaluation__recall_at": ()}, ["config.evaluation.recall_at", "1 or more"]),
        ({"evaluation__recall_at": (0, 1)}, ["recall_at is (0, 1)", "1 or more"]),
        ({"evaluation__recall_at": (2, 4)}, ["recall_at is (2, 4)", "1 one of them"]),
        (
            {"evaluation__clustering_restarts": -1},
            ["config.evaluation.clustering_restarts is -1", "0 or more"],
        ),
        ({"data__folds": 1}, ["config.data.folds is 1", "2 folds or more"]),
        ({"data__folds": 4, "data__fold": 4}, ["folds is 4", "fold 4", "from 0"]),
        ({"data__fold": 1}, ["config.data.fold is 1", "config.data.folds is 0"]),
        (
            {"data__folds": 4, "evaluation__select_on_test": True},
            ["config.evaluation.select_on_test", "data.folds=4", "one of the two"],
        ),
        (
            {"evaluation__select_by": "recall@3"},
            ["config.evaluation.select_by is 'recall@3'", "recall@1", "map@r"],
        ),
        ({"objective__terms": {}}, ["config.objective.terms", "at least one loss"]),
        (
            {"objective__terms": {"tripel": {}}},
            ["config.objective.terms", "'tripel'", "did you mean 'triplet'"],
        ),
        (
            {"objective__terms": {"triplet": {"margn": 1.0}}},
            ["config.objective.terms.triplet.margn", "did you mean 'margin'"],
        ),
        (
            {"objective__terms": {"triplet": {"margin": "wide"}}},
            ["config.objective.terms.triplet.margin is 'wide'", "float"],
        ),
        (
            {"objective__terms": {"triplet": {"weight": "much"}}},
            ["config.objective.terms.triplet.weight is 'much'", "float"],
        ),
        (
            {"objective__terms": {"triplet": {"weight": 0.0}}},
            ["objective.terms", "weight other than 0"],
        ),
        (
            {"objective__terms": {"triplet": {"mining": "hardest"}}},
            ["config.objective.terms.triplet.mining is 'hardest'", "'hard'", "all"],
        ),
        (
            {"objective__terms": {"triplet": {"mining": 1}}},
            ["config.objective.terms.triplet.mining is 1", "str"],
        ),
        (
            {"objective__terms": {"hierarchical_proxy": {"clusters": 5}}},
            ["config.objective.terms.hierarchical_proxy.clusters is 5", "tuple"],
        ),
        (
            {"objective__terms": {"hierarchical_proxy": {"clusters": (5.0,)}}},
            ["terms.hierarchical_proxy.clusters[0] is 5.0", "int"],
        ),
        (
            {"objective__terms": {"hierarchical_proxy": {"clusters": (1,)}}},
            ["hierarchical_proxy.clusters is (1,)", "2 or more"],
        ),
        (
            {"objective__terms": {"hierarchical_proxy": {"warmup": 1000}}},
            ["hierarchical_proxy.warmup is 1000", "1000 steps"],
        ),
        (
            {
                "objective__terms": {"ee_triplet": {}},
                "instances_per_class": 3,
                "batch_size": 126,
            },
            ["config.instances_per_class is 3", "ee_triplet", "even number"],
        ),
        (
            {"objective__terms": {"n_pair": {}}, "instances_per_class": 1},
            ["config.instances_per_class is 1", "n_pair", "2 or more"],
        ),
        (
            {"objective__memory__size": 100},
            ["config.objective.memory.size is 100", "128"],
        ),
        ({"objective__memory__size": -1}, ["objective.memory.size is -1", "0 or more"]),
        (
            {"objective__memory__size": 256, "objective__memory__start_step": 1000},
            ["config.objective.memory.start_step is 1000", "1000 steps"],
        ),
        (
            {"objective__memory__size": 256, "objective__terms": {"softmax": {}}},
            ["objective.memory.size is 256", "no loss", "triplet"],
        ),
        ({"sampler": "pair"}, ["config.sampler is 'pair'", "did you mean 'pairs'"]),
        ({"sampler": "images"}, ["'images'", "triplet", "loss to proxies"]),
        (
            {"categories_per_batch": 0},
            ["config.categories_per_batch is 0", "1 or more"],
        ),
        (
            {"sampler": "categories", "categories_per_batch": 3},
            ["categories_per_batch is 3", "32 classes", "1, 2, 4, 8, 16, 32."],
        ),
        *[
            (
                {"sampler": sampler, "objective__terms": {"ee_triplet": {}}},
                [f"config.sampler is '{sampler}'", "ee_triplet", "distinct"],
            )
            for sampler in ("pairs", "images")
        ],
        *[
            (
                {
                    "sampler": sampler,
                    "objective__terms": {"contrastive": {"among": "adjacent"}},
                },
                [
                    "config.objective.terms.contrastive.among is 'adjacent'",
                    f"config.sampler is '{sampler}'",
                ],
            )
            for sampler in ("classes", "distinct", "categories", "images")
        ],
    ],
)
def test_refused_in_one_sentence(settings, words):
    message = refuse(from_config_dict, config_with(**settings))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("batch_size", "instances", "nearest"),
    [(130, 4, 128), (127, 4, 128), (1, 4, 4), (100, 8, 96), (10, 3, 9)],
)
def test_a_batch_that_k_does_not_divide(batch_size, instances, nearest):
    settings = {"batch_size": batch_size, "instances_per_class": instances}
    message = refuse(from_config_dict, config_with(**settings))
    assert f"config.batch_size is {batch_size}" in message
    assert f"instances_per_class={instances}" in message
    assert message.endswith(f" {nearest}.")
    from_config_dict(config_with(**settings | {"batch_size": nearest}))


@pytest.mark.parametrize(
    ("batch_size", "instances", "devices", "nearest"),
    [(12, 4, 8, 16), (20, 4, 3, 24), (4, 4, 8, 8), (100, 5, 8, 80), (18, 2, 8, 16)],
)
def test_a_batch_that_the_devices_do_not_divide(
    batch_size, instances, devices, nearest
):
    settings = {"batch_size": batch_size, "instances_per_class": instances}
    settings["evaluation__batch_size"] = 8 * devices
    message = refuse(check_devices, from_config_dict(config_with(**settings)), devices)
    assert f"config.batch_size is {batch_size}" in message
    assert f"{devices} devices" in message
    assert message.endswith(f" {nearest}.")
    check_devices(
        from_config_dict(config_with(**settings | {"batch_size": nearest})), devices
    )


@pytest.mark.parametrize(
    ("micro", "devices", "nearest"), [(30, 1, 32), (0, 1, 1), (4, 8, 8), (100, 8, 128)]
)
def test_parts_that_are_not_equal_or_cannot_be_shared(micro, devices, nearest):
    settings = {"batch_size": 128, "micro_batch_size": micro}

    def check():
        check_devices(from_config_dict(config_with(**settings)), devices)

    message = refuse(check)
    assert f"config.micro_batch_size is {micro}" in message
    assert message.endswith(f" {nearest}.")
    settings["micro_batch_size"] = nearest
    check()


def test_how_many_turns_a_batch_takes():
    assert from_config_dict(config_with()).parts == 1
    settings = {"batch_size": 128, "micro_batch_size": 32}
    assert from_config_dict(config_with(**settings)).parts == 4


def test_an_evaluation_batch_that_the_devices_do_not_divide():
    config = from_config_dict(config_with(evaluation__batch_size=100))
    message = refuse(check_devices, config, 8)
    assert "config.evaluation.batch_size is 100" in message
    assert message.endswith(" 96.")
    check_devices(config, 4)


def test_terms_fill_in_what_is_not_named():
    assert terms(triplet={"margin": 0.5})["triplet"] == {
        "weight": 1.0,
        "margin": 0.5,
        "mining": "hard",
        "squared": False,
        "soft": False,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"objective__terms": {"softmax": {}}},
        {"objective__terms": {"proxy_anchor": {}}},
        {"objective__terms": {"triplet": {}}, "objective__memory__size": 256},
    ],
)
@pytest.mark.parametrize(
    "batches", [{"instances_per_class": 1}, {"sampler": "images", "batch_size": 127}]
)
def test_single_images_of_a_class_do_where_nothing_is_missing(settings, batches):
    from_config_dict(config_with(**settings, **batches))


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "distinct", "objective__terms": {"ee_triplet": {}}},
        {"sampler": "pairs"},
        {
            "sampler": "pairs",
            "objective__terms": {"contrastive": {"among": "adjacent"}},
        },
        {"sampler": "categories", "categories_per_batch": 32},
        # They have no K, so none need divide the batch.
        {"sampler": "pairs", "instances_per_class": 5},
        {
            "sampler": "images",
            "objective__terms": {"softmax": {}},
            "instances_per_class": 5,
        },
    ],
)
def test_samplers_that_give_a_loss_what_it_needs(settings):
    tree = to_dict(from_config_dict(config_with(**settings)))
    assert tree["sampler"] == settings["sampler"]
    assert to_dict(from_config_dict(tree)) == tree


@pytest.mark.parametrize(
    ("batch_size", "devices", "nearest"), [(30, 1, 32), (64, 3, 60), (36, 8, 32)]
)
def test_a_batch_of_pairs(batch_size, devices, nearest):
    settings = {"sampler": "pairs", "evaluation__batch_size": 24}

    def check(size):
        check_devices(
            from_config_dict(config_with(batch_size=size, **settings)), devices
        )

    message = refuse(check, batch_size)
    assert f"config.batch_size is {batch_size}" in message
    assert message.endswith(f" {nearest}.")
    check(nearest)


def test_variants():
    assert choose_variant("cgd", "cub", ("cub", "cars")) == "cub"
    message = refuse(choose_variant, "cgd", "cus", ("cub", "sop"))
    assert "'cgd'" in message and "'cus'" in message
    assert "did you mean 'cub'" in message and "cub, sop" in message


def test_suggestions_are_near_or_absent():
    assert suggestion("batchsize", ["batch_size", "steps"]) == (
        " (did you mean 'batch_size'?)"
    )
    assert suggestion("zzz", ["batch_size", "steps"]) == ""
