from __future__ import annotations

import pytest

from domain.catalog import TINY_MODEL_ID, Catalog
from domain.kinds import TEXT
from domain.pricing import BUILT_IN_PRICES, quote_for


@pytest.fixture
def production() -> Catalog:
    return Catalog.built_in(development=False)


@pytest.fixture
def development() -> Catalog:
    return Catalog.built_in(development=True)


@pytest.mark.parametrize("model_id", sorted(BUILT_IN_PRICES))
def test_every_model_with_a_price_is_offered(production: Catalog, model_id: str) -> None:
    model = production.get(model_id)
    assert model is not None
    assert (model.id, model.size_gb > 0) == (model_id, True)


def test_every_entry_bounds_its_requests(development: Catalog) -> None:
    for model_id in [*BUILT_IN_PRICES, TINY_MODEL_ID]:
        model = development.get(model_id)
        assert model is not None
        if model.kind != TEXT:
            assert quote_for(model.id, model.kind).output_price == 0
            continue
        assert 0 < model.output_max <= model.context_length
        assert model.template_tokens > 0
        assert model.message_tokens > 0


def test_the_toy_and_the_open_door_are_for_development_only(production: Catalog, development: Catalog) -> None:
    assert production.get(TINY_MODEL_ID) is None
    assert not production.open_to_unlisted
    assert development.get(TINY_MODEL_ID) is not None
    assert development.open_to_unlisted


def test_an_unknown_model_is_no_entry(development: Catalog) -> None:
    assert development.get("acme/unheard-of") is None


@pytest.mark.parametrize(("context_length", "bound"), [(0, 8_192), (2_048, 2_048)])
def test_a_model_that_only_machines_describe_is_bounded_by_its_context(
    development: Catalog, context_length: int, bound: int
) -> None:
    model = development.unlisted("acme/unheard-of", context_length)
    assert (model.id, model.context_length, model.output_max) == ("acme/unheard-of", bound, bound)
