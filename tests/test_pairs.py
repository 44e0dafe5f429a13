"""Pair rules: each with a small table whose answer can be counted by hand, and one published answer."""

import json

import numpy as np
import pandas as pd
import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ogive as og
from ogive.errors import PairError, ParameterError


def table(*dates: str, **columns) -> pd.DataFrame:
    """Scenes a, b, c ... on these dates, on one orbit unless said otherwise."""
    scenes = {"id": list("abcdefgh"[: len(dates)]), "datetime": pd.to_datetime(list(dates)), "relative_orbit": "R022"}
    return pd.DataFrame(scenes | columns)


def names(pairs: pd.DataFrame) -> list[str]:
    return [a + b for a, b in zip(pairs["id1"], pairs["id2"], strict=True)]


FOUR = ("2021-07-01", "2021-07-11", "2021-07-16", "2022-07-06")


@pytest.mark.parametrize(
    ("rules", "columns", "expected"),
    [
        ({}, {}, ["ab", "ac", "bc"]),
        ({"days": (10, 10)}, {}, ["ab"]),
        ({"days": (330, 400)}, {}, ["ad", "bd", "cd"]),
        ({"days": ((5, 5), (370, 370))}, {}, ["ad", "bc"]),
        ({"days": (0, 9999)}, {}, ["ab", "ac", "ad", "bc", "bd", "cd"]),
        ({}, {"relative_orbit": ["R022", "R065", "R022", "R022"]}, ["ac"]),
        ({"same_orbit": False}, {"relative_orbit": ["R022", "R065", "R022", "R022"]}, ["ab", "ac", "bc"]),
        # An orbit that nobody states is not the same orbit as another one that nobody states.
        ({}, {"relative_orbit": ["R022", "R022", "", ""]}, ["ab"]),
        ({}, {"sensor": ["landsat", "sentinel-2", "sentinel-2", "landsat"]}, ["bc"]),
        ({"same_sensor": False}, {"sensor": ["landsat", "sentinel-2", "sentinel-2", "landsat"]}, ["ab", "ac", "bc"]),
        ({"max_cloud": 20}, {"cloud_cover": [5.0, 20.0, 20.5, 0.0]}, ["ab"]),
        # A scene that does not state its cloud is kept.
        ({"max_cloud": 20}, {"cloud_cover": [5.0, 50.0, np.nan, 0.0]}, ["ac"]),
        ({"max_cloud_land": 20}, {"cloud_cover": 99.0, "cloud_cover_land": [5.0, 50.0, 7.0, 0.0]}, ["ac"]),
        ({"exclude_platforms": ("LANDSAT-7",)}, {"platform": ["landsat-7", "landsat-8", "landsat-9", "x"]}, ["bc"]),
        ({"season": (7, 7), "days": (0, 999)}, {}, ["ab", "ac", "ad", "bc", "bd", "cd"]),
        ({"years_apart": 1, "days": (0, 999)}, {}, ["ad", "bd", "cd"]),
        ({"years_apart": 0, "days": (0, 999)}, {}, ["ab", "ac", "bc"]),
        ({"reference": "b", "days": (0, 999)}, {}, ["ab", "bc", "bd"]),
        ({"max_per_scene": 1}, {}, ["bc"]),
        ({"max_per_scene": 1, "days": (0, 999)}, {}, ["ad", "bc"]),
        ({"max_per_scene": 2}, {}, ["ab", "ac", "bc"]),
        # The sun 90 degrees high is in one direction, whatever the azimuth.
        (
            {"max_sun_difference": 1},
            {"sun_azimuth": [0, 90, 180, 0], "sun_elevation": [90.0, 90.0, 30.0, 90.0]},
            ["ab"],
        ),
    ],
)  # fmt: skip
def test_each_rule(rules, columns, expected) -> None:
    assert names(og.make_pairs(table(*FOUR, **columns), **rules)) == expected


def test_season_may_run_over_the_new_year() -> None:
    scenes = table("2021-10-31", "2021-11-01", "2022-01-15", "2022-02-28", "2022-03-01")
    assert names(og.make_pairs(scenes, season=(11, 2), days=(0, 999))) == ["bc", "bd", "cd"]


def test_annual_pairs_join_every_summer_with_the_next() -> None:
    scenes = table("2020-05-31", "2020-06-01", "2020-10-31", "2021-07-15", "2021-12-01", "2022-08-01", "2024-07-01")
    pairs = og.make_pairs(scenes, season=(6, 10), years_apart=1, days=(0, 9999))
    assert names(pairs) == ["bd", "cd", "df"]


def test_the_table_of_pairs_is_exact() -> None:
    scenes = table("2021-07-01T10:30:00", "2021-07-11T22:30:00", sun_azimuth=[150.0, 150.0], sun_elevation=[50.0, 47.0])
    pairs = og.make_pairs(scenes.assign(sensor="sentinel-2"), og.PairRules(days=(5, 30)))
    assert pairs.drop(columns=["sun_difference"]).to_dict("records") == [
        {
            "pair_id": 0, "i1": 0, "i2": 1,
            "t1": pd.Timestamp("2021-07-01T10:30"), "t2": pd.Timestamp("2021-07-11T22:30"), "date_dt": 10.5,
            "same_orbit": True, "id1": "a", "id2": "b", "sensor": "sentinel-2",
        }
    ]  # fmt: skip
    assert pairs["sun_difference"][0] == pytest.approx(3, abs=1e-6)
    assert pairs["pair_id"].dtype == pairs["i1"].dtype == np.int64
    assert pairs.attrs["rules"]["days"] == (5, 30)


def test_ranges_have_half_a_day_of_grace_and_no_more() -> None:
    scenes = table("2021-07-01T10:00:00", "2021-07-11T22:00:00", "2021-07-22T10:00:01")
    assert names(og.make_pairs(scenes, days=(10, 10))) == ["ab"]


def test_a_cube_its_items_and_their_table_give_the_same_pairs(moving) -> None:
    cube, reader = moving(dates=("2021-07-21", "2021-07-01", "2021-07-11"))
    pairs = og.make_pairs(cube)
    assert pairs["i1"].tolist() == [0, 0, 1]
    assert reader.count == 0
    scenes = pd.DataFrame({"id": cube["scene_id"].values, "datetime": cube["time"].values, "relative_orbit": "R022"})
    assert names(og.make_pairs(scenes)) == names(pairs)
    np.testing.assert_array_equal(cube["time"].values[pairs["i2"]], pairs["t2"])


@given(st.permutations(range(7)), st.sampled_from([None, 1, 2]))
def test_the_order_of_the_input_does_not_show(order, limit) -> None:
    # Two scenes at one instant, as two tiles of one overpass are.
    scenes = table("2021-07-01", "2021-07-01", "2021-07-06", "2021-07-11", "2021-07-11", "2021-07-16", "2021-08-30")
    expected = og.make_pairs(scenes, max_per_scene=limit)
    shuffled = scenes.iloc[list(order)].reset_index(drop=True)
    pairs = og.make_pairs(shuffled, max_per_scene=limit)
    assert len(pairs) > 2
    columns = ["pair_id", "id1", "id2", "t1", "t2", "date_dt"]
    pd.testing.assert_frame_equal(pairs[columns], expected[columns])
    assert shuffled["id"].to_numpy()[pairs["i1"]].tolist() == pairs["id1"].tolist()
    assert shuffled["id"].to_numpy()[pairs["i2"]].tolist() == pairs["id2"].tolist()


def test_an_empty_answer_says_which_rule_removed_how_many() -> None:
    scenes = table(*FOUR, relative_orbit=["R022", "R065", "R108", "R008"], cloud_cover=[0, 90, 0, 0])
    with pytest.raises(PairError) as caught:
        og.make_pairs(scenes, days=(5, 30), max_cloud=50)
    message = str(caught.value)
    assert "no pair of scenes follows the rules" in message
    assert "4 scenes, 1 dropped by cloud, platform or season" in message
    assert "of 3 pairs 2 by days, 3 by same_orbit removed" in message
    assert "Fix: widen days, or allow other orbits" in message
    with pytest.raises(PairError, match=r"at least two are needed for a pair \(found 1\)"):
        og.make_pairs(scenes.iloc[:1])
    with pytest.raises(PairError, match="6 by reference"):
        og.make_pairs(table(*FOUR), reference="nobody")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"days": (30, 5)}, r"days: needs 0 <= shortest <= longest \(found \(30, 5\)\)"),
        ({"days": ((5, 30), (-1, 3))}, r"days: needs 0 <= shortest <= longest \(found \(-1, 3\)\)"),
        ({"season": (0, 5)}, "season: must be two months"),
        ({"max_per_scene": 0}, r"max_per_scene: must be at least 1 \(found 0\)"),
        ({"cloud": 5}, "pair rules: are days, same_orbit, .*found 'cloud'"),
    ],
)
def test_a_wrong_rule_is_named(rules, message) -> None:
    with pytest.raises(ParameterError, match=message):
        og.make_pairs(table(*FOUR), **rules)


@pytest.mark.real
def test_the_published_pairs_of_a_landsat_scene_are_found_exactly(data) -> None:
    folder = data / "stac" / "itslive_monitoring_landsat_138041"
    features = json.loads((folder / "landsat_scene1_return_itemcollection.json").read_text())["features"]
    items = [pystac.Item.from_dict(feature) for feature in features]
    published = pd.read_parquet(folder / "landsat_scene1_pairs.parquet")
    (reference,) = published["reference"].unique()
    if reference not in {item.id for item in items}:
        # The search was for partners of the scene, and left the scene itself out.
        scene = items[0].clone()
        scene.id = reference
        scene.datetime = published["reference_acquisition"].iloc[0].to_pydatetime()
        scene.properties |= {"platform": "LANDSAT_8", "landsat:cloud_cover_land": 0.0}
        items.append(scene)
    rules = {"exclude_platforms": ("landsat-7",), "max_cloud_land": 60, "days": (0, 9999)}
    pairs = og.make_pairs(items, reference=reference, **rules)
    assert len(pairs) == len(published) == 46
    assert (pairs["id2"] == reference).all()
    assert set(pairs["id1"]) == set(published["secondary"])
    without = og.make_pairs(items, reference=reference, days=(0, 9999))
    assert len(without) > 46
