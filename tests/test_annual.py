"""Annual means, trend and season: against exact truth, and against dense implementations from the equations."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import median_filter

from ogive import flags
from ogive.errors import ParameterError
from ogive.invert import AdaptiveOptions, Observations, invert
from ogive.invert._shared import signs
from ogive.invert.annual import VARIABLES, AnnualOptions, decimal_year, default_screening
from ogive.invert.annual import annual as estimate
from ogive.testing.velocity_cubes import velocity_cube

ITSLIVE = AnnualOptions(robust=False)
cubes = cache(velocity_cube)


def annual(observations, edges, options):
    """With the screening that belongs to the options."""
    return estimate(observations, edges, options, default_screening(options))


def day(date):
    return float(np.datetime64(date, "D").astype(int))


def calendar(first, last):
    return np.array([[day(f"{y}-01-01"), day(f"{y + 1}-01-01")] for y in range(first, last + 1)])


def network(rng, pairs, start="2016-11-20", stop="2020-03-05", shortest=8.0):
    t1 = rng.uniform(day(start), day(stop) - 2 * shortest, pairs)
    t2 = np.minimum(t1 + rng.uniform(shortest, 380, pairs), day(stop))
    t1[0], t2[1] = day(start), day(stop)
    return t1, t2


def season(t):
    """Displacement [m] of a velocity that is a sinusoid [meter/year] about a mean, at decimal years."""
    return 120 * t - 30 * np.cos(2 * np.pi * t) / (2 * np.pi)


def whole_years(name, **options):
    """Series over all years of a cube, the true means and the annual harmonic of the true speed over its span."""
    cube, truth = cubes(name)
    t1, t2 = cube["acquisition_date_img1"].values, cube["acquisition_date_img2"].values
    days = np.arange(t1.min().astype("M8[D]"), t2.max().astype("M8[D]")).astype("M8[ns]")
    speed = np.hypot(*truth.velocity(days, days + np.timedelta64(1, "D")))
    t = decimal_year((days - np.datetime64("1970-01-01", "ns")) / np.timedelta64(1, "D") + 0.5)
    model = np.stack([np.sin(2 * np.pi * t), np.cos(2 * np.pi * t), np.ones_like(t), t - t.mean()], 1)
    amplitude = np.hypot(*np.linalg.lstsq(model, speed.reshape(len(t), -1))[0][:2]).reshape(speed.shape[1:])
    series = invert(cube, method="annual", options=AnnualOptions(**options))
    bounds = series["time_bnds"].values
    return series, truth.velocity(bounds[:, 0], bounds[:, 1]), amplitude


def misfit(series, truth):
    dx, dy = series["vx"].values - truth[0], series["vy"].values - truth[1]
    speed = np.hypot(*truth)
    bias = float((series["v"].values - speed).mean() / speed.mean())
    inside = np.abs(np.stack([dx, dy])) < 1.96 * series["vx_error"].values
    # per component, as the figures of the field are given
    return float(np.sqrt(np.mean(dx**2 + dy**2) / 2)), bias, float(inside.mean())


@pytest.mark.parametrize("name", ["500", "slow", "fast", "surge", "noseas", "out25"])
def test_better_than_the_composite_and_calibrated(name):
    series, truth, amplitude = whole_years(name)
    other, _, _ = whole_years(name, robust=False)
    rmse, bias, coverage = misfit(series, truth)
    rmse_other, bias_other, _ = misfit(other, truth)
    assert abs(bias) < 0.01
    assert rmse < (0.5 if name in ("slow", "noseas") else 0.1 * rmse_other)
    assert name in ("surge", "noseas") or bias_other < -0.02
    assert 0.85 <= coverage <= 1.0
    error, error_other = (np.sqrt(np.mean((s["v_amp"].values - amplitude) ** 2)) for s in (series, other))
    assert error < 0.7 * error_other
    inside = np.abs(series["v_amp"].values - amplitude) < 1.96 * series["v_amp_error"].values
    assert inside.mean() > 0.85


def test_phase_trend_and_velocity_at_the_intercept():
    series, _, _ = whole_years("2000", intercept="2019-07-02")
    _, truth = cubes("2000")
    trend = -0.02 * truth.speed * 365 / 365.25
    difference = (series["dv_dt"].values - trend) / truth.speed
    assert np.abs(difference).max() < 0.01
    middle = np.array(["2019-01-01"], "M8[ns]"), np.array(["2020-01-01"], "M8[ns]")
    vx, vy = truth.velocity(*middle)
    assert np.abs(series["v0"].values / np.hypot(vx, vy)[0] - 1).max() < 0.01
    np.testing.assert_allclose(series["v0"], np.hypot(series["vx0"], series["vy0"]), rtol=1e-5)
    # sinusoid 1/4 of the mean speed, largest at 0.55 + 0.05 g; pulses at 0.42 whose annual harmonic is 0.129
    phase = 2 * np.pi * (truth.phase + 0.25)
    total = 0.25 * np.exp(1j * phase) + 0.1294 * np.exp(2j * np.pi * 0.42)
    # the truth counts years of 365.25 days from 2017-01-01: up to a day from the calendar
    np.testing.assert_allclose(series["v_phase"], 365.25 * np.angle(total) / (2 * np.pi) % 365.25, atol=2.5)


def test_consistent_network_is_exact():
    rng = np.random.default_rng(3)
    t1, t2 = network(rng, 300)
    y1, y2 = decimal_year(t1), decimal_year(t2)
    years = (t2 - t1) / 365
    v = ((season(y2) - season(y1)) / years)[:, None]
    e = np.full((300, 1), 3.0)
    out = annual(Observations(t1, t2, v, -0.5 * v, e, e), calendar(2017, 2019), AnnualOptions())
    np.testing.assert_allclose(out["vx"][:, 0], 120, rtol=1e-5)
    np.testing.assert_allclose(out["vy"][:, 0], -60, rtol=1e-5)
    to_year = 365 / 365.25
    # What the walk takes of the sinusoid is cut by chords of half a month.
    np.testing.assert_allclose(out["vx_amp"], 30 * to_year, rtol=5e-4)
    np.testing.assert_allclose(out["vy_amp"], 15 * to_year, rtol=5e-4)
    np.testing.assert_allclose(out["v_amp"], 30 * to_year * np.sqrt(1.25), rtol=5e-4)
    np.testing.assert_allclose(out["vx_phase"], 0.25 * 365.25, atol=0.1)
    np.testing.assert_allclose(out["vy_phase"], 0.75 * 365.25, atol=0.1)
    np.testing.assert_allclose(out["dvx_dt"], 0, atol=1e-3)
    assert not out["flag"].any()


def dense_composite(o, options, years, keep=None):
    """Steps 2 to 6 of the ITS_LIVE composite for the first pixel, with dense matrices, from the equations."""
    dt, offset = o.t2 - o.t1, 5.0
    v = np.stack([o.vx[:, 0], o.vy[:, 0]]).astype(float)
    e = np.stack([o.ex[:, 0], o.ey[:, 0]]) + offset
    valid = np.isfinite(v).all(0)
    keep = valid.copy() if keep is None else valid & keep
    y1, y2 = decimal_year(o.t1), decimal_year(o.t2)
    span, middle = y2 - y1, 0.5 * (y1 + y2)
    edges = np.array([0, 16, 32, 64, 128, 256, np.inf])
    longest = next(limit for limit in edges[1:] if (keep & (dt <= limit)).sum() >= 50 or limit == np.inf)
    v0 = np.median(v[:, keep & (dt <= longest)], axis=1)
    limits = []
    if np.hypot(*v0) > 50:
        along = v0 @ v / np.hypot(*v0)
        for g in np.unique(o.group[keep]):
            bins = [along[keep & (o.group == g) & (dt >= a) & (dt < b)] for a, b in pairwise(edges)]
            held = [b for b in bins if b.size]
            lower = [a for a, b in zip(edges[:-1], bins) if b.size]
            m = np.array([np.median(b) for b in held])
            h = np.array([0.67 * 1.4826 * np.median(np.abs(b - np.median(b))) for b in held])
            large = np.flatnonzero([b.size >= 49 for b in held])
            r = large[0] if large.size else np.flatnonzero(m + h != 0)[0]
            different = (m - h > m[r] + h[r]) | (m + h < m[r] - h[r])
            limits.append(np.min(np.array(lower)[different], initial=np.inf))
            keep = keep & ~((o.group == g) & (dt > limits[-1]))
    keep = keep & (np.hypot(*np.where(valid, v, 0)) <= 20000)
    overlap = np.clip(np.minimum(y2[:, None], years + 1) - np.maximum(y1[:, None], years), 0, None)
    turn = 2 * np.pi
    waves = np.stack([np.cos(turn * y1) - np.cos(turn * y2), np.sin(turn * y2) - np.sin(turn * y1)], 1) / turn
    in_climatology = (middle >= options.climatology[0]) & (middle < options.climatology[1] + 1)
    out = {"dt_max": max(limits, default=np.inf)}
    counts, used = [], []

    def fit(rows, c):
        has = overlap[rows].sum(0) > 0
        a = np.concatenate([waves[rows], overlap[rows][:, has]], 1)
        w = 1 / (e[c, rows] * span[rows])
        p = np.linalg.lstsq(w[:, None] * a, w * v[c, rows] * span[rows])[0]
        return p, has, w, v[c, rows] * span[rows] - a @ p

    for c, name in enumerate(("vx", "vy")):
        rows = np.flatnonzero(keep)
        rows = rows[np.argsort(middle[rows], kind="stable")]
        away = np.abs(v[c, rows] - median_filter(v[c, rows], 15))
        rows = rows[~(away > 2 * 6 * 1.4826 * np.median(away))]
        p, has, _, _ = fit(rows, c)
        mean, error = np.full(len(years), np.nan), np.full(len(years), np.nan)
        mean[has] = p[2:]
        error[has] = 1 / np.sqrt((overlap[rows][:, has] / e[c, rows, None] ** 2).sum(0))
        counts.append((overlap[rows] > 0).sum(0))
        out[name], out[name + "_error"] = mean, error
        zero = decimal_year(np.array([day(options.intercept)]))
        x = decimal_year(np.array([day(f"{y}{options.intercept[4:]}") for y in years])) - zero
        line = has & (years >= options.climatology[0]) & (years <= options.climatology[1])
        w = 1 / error[line]
        design = np.stack([np.ones(line.sum()), x[line]], 1)
        if (x[line] < 0).any() and (x[line] >= 0).any():
            start, trend = np.linalg.lstsq(w[:, None] * design, w * mean[line])[0]
        else:
            start, trend = np.average(mean[line], weights=w**2), np.nan
        out[name + "0"], out[f"d{name}_dt"] = start, trend
        out[name + "0_error"] = np.sqrt((error[line] ** 2).sum()) / (line.sum() - 1)
        rows = rows[in_climatology[rows]]
        used.append(len(rows))
        p, has, w, r = fit(rows, c)
        out[name + "_amp"] = np.hypot(p[0], p[1])
        out[name + "_phase"] = 365.25 * ((0.25 - np.arctan2(p[1], p[0]) / turn) % 1)
        spread = []
        for k in np.flatnonzero(has):
            i = overlap[rows, k] > 0
            about = r[i] - np.average(r[i], weights=w[i])
            spread.append(np.sqrt(np.average(about**2, weights=w[i])) / np.average(span[rows][i], weights=w[i]))
        out[name + "_amp_error"] = np.sqrt(np.sum(np.square(spread))) / (has.sum() - 1)
    out["v"] = np.hypot(out["vx"], out["vy"])
    out["v_error"] = np.hypot(out["vx_error"] * out["vx"], out["vy_error"] * out["vy"]) / out["v"]
    out["count"] = np.ceil((counts[0] + counts[1]) / 2)
    out["v0"] = np.hypot(out["vx0"], out["vy0"])
    ux, uy = out["vx0"] / out["v0"], out["vy0"] / out["v0"]
    out["dv_dt"] = out["dvx_dt"] * ux + out["dvy_dt"] * uy
    for name in ("0_error", "_amp_error"):
        out["v" + name] = abs(ux) * out["vx" + name] + abs(uy) * out["vy" + name]
    wave = sum(
        out[n + "_amp"] * u * np.exp(1j * turn * out[n + "_phase"] / 365.25) for n, u in (("vx", ux), ("vy", uy))
    )
    out["v_amp"], out["v_phase"] = np.abs(wave), np.angle(wave) / turn % 1 * 365.25
    out["count0"] = np.ceil(np.mean(used))
    out["outlier_percent"] = 100 * (1 - out["count0"] / (valid & in_climatology).sum())
    return out


def scattered(rng, pairs, speed, slow_from=np.inf, wild=True):
    """Two groups of satellites; one in seven pairs is wild, some are missing; beyond `slow_from` days, decorrelated."""
    t1, t2 = network(rng, pairs, shortest=33.0)
    t1[: pairs // 2] = rng.uniform(day("2017-01-01"), day("2020-01-01"), pairs // 2)
    t2[: pairs // 2] = t1[: pairs // 2] + rng.uniform(33, 60, pairs // 2)
    y1, y2 = decimal_year(t1), decimal_year(t2)
    v = speed * (season(y2) - season(y1)) / (y2 - y1) / 120
    v = np.where(t2 - t1 > slow_from, 0.1 * v, v)
    v = np.stack([0.8 * v, -0.6 * v]) + rng.normal(0, 12, (2, pairs))
    if wild:
        v[:, ::7] = rng.uniform(-3 * speed, 3 * speed, v[:, ::7].shape)
        v[:, 5] = 30000.0
    v[:, ::31] = np.nan
    e = rng.uniform(3, 15, (2, pairs, 1))
    group = (rng.random(pairs) < 0.6).astype(np.int64)
    return Observations(t1, t2, v[0][:, None], v[1][:, None], e[0], e[1], group=group, groups=("L8_L9", "S1A_S1B"))


@pytest.mark.parametrize(
    ("speed", "slow_from", "intercept"),
    [
        (300.0, np.inf, "2018-07-02"),
        (300.0, 64.0, "2018-01-01"),
        (40.0, 64.0, "2018-01-01"),
        (300.0, 64.0, "2014-05-01"),
    ],
)
def test_composite_follows_the_equations(speed, slow_from, intercept):
    o = scattered(np.random.default_rng(7), 420, speed, slow_from)
    options = AnnualOptions(robust=False, climatology=(2017, 2018), intercept=intercept)
    years = np.arange(2016, 2021)
    out, dense = annual(o, calendar(2016, 2020), options), dense_composite(o, options, years)
    assert set(out) == set(VARIABLES)
    assert np.isfinite(dense["dt_max"]) == (speed > 50 and slow_from < np.inf)
    for name, expected in dense.items():
        found = out[name][..., 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=name)
    assert np.isnan(out["dv_dt"]).all() == (intercept[:4] == "2014")
    assert (out["flag"][:, 0] == np.where(np.isfinite(dense["v"]), 0, flags.GAP)).all()


def test_composite_without_slower_satellites_and_without_sentinel_inland():
    rng = np.random.default_rng(11)
    o = scattered(rng, 700, 300.0, wild=False)
    slow = np.where(o.group == 0, 0.7, 1.0)[:, None]
    fields = {"group": o.group, "groups": ("L8_L9", "S2A_S2B")}
    judged = Observations(o.t1, o.t2, o.vx * slow, o.vy * slow, o.ex, o.ey, **fields)
    options = AnnualOptions(robust=False, climatology=(2017, 2019))
    years = np.arange(2016, 2021)
    expected = dense_composite(judged, options, years, keep=judged.group == 1)
    np.testing.assert_allclose(annual(judged, calendar(2016, 2020), options)["vx"][:, 0], expected["vx"], rtol=1e-6)
    inland = AnnualOptions(robust=False, climatology=(2017, 2019), inland=True)
    both = dense_composite(judged, options, years)
    np.testing.assert_allclose(annual(judged, calendar(2016, 2020), inland)["vx"][:, 0], both["vx"], rtol=1e-6)
    # Sentinel-2 with a season of its own making, three times as large
    y1, y2 = decimal_year(o.t1), decimal_year(o.t2)
    extra = ((np.cos(2 * np.pi * y1) - np.cos(2 * np.pi * y2)) / (2 * np.pi) / (y2 - y1))[:, None] * (o.group == 1)[
        :, None
    ]
    odd = Observations(o.t1, o.t2, o.vx + 600 * extra, o.vy - 450 * extra, o.ex, o.ey, **fields)
    without = dense_composite(odd, options, years, keep=odd.group == 0)
    out = annual(odd, calendar(2016, 2020), inland)
    assert dense_composite(odd, options, years)["v_amp"] > 2 * without["v_amp"]
    for name in ("vx", "v_amp", "count"):
        np.testing.assert_allclose(out[name][..., 0], without[name], rtol=1e-6)


def dense_robust(o):
    """The robust estimator for the first pixel, with dense matrices, from the equations.

    Returns the joint solution, a function for the covariance of functionals of it, the weights, the rows of pairs.
    """
    options, steps, julian, turn = AdaptiveOptions(), 24, 365.25, 2 * np.pi
    y1, y2 = decimal_year(o.t1), decimal_year(o.t2)
    first = int(y1.min())
    n = steps * (int(np.ceil(y2.max())) - first)

    def rows(a, b):
        hats = [np.clip(1 - np.abs((t[:, None] - first) * steps - np.arange(n + 1)), 0, None)[:, 1:] for t in (a, b)]
        waves = [np.stack([np.sin(turn * t), -np.cos(turn * t)], 1) / turn * julian for t in (a, b)]
        return np.concatenate([hats[1] - hats[0], waves[1] - waves[0]], 1)

    years = (o.t2 - o.t1) / 365
    v = np.stack([o.vx[:, 0], o.vy[:, 0]], 1)
    middle = np.median(v, axis=0)
    y = (v - middle) * years[:, None]
    sigma = np.sqrt((o.ex[:, 0] ** 2 + o.ey[:, 0] ** 2) / 2) * years
    both = rows(y1, y2)
    walk = both[:, :n]
    second = np.diff(np.eye(n + 1), 2, axis=0)[:, 1:]
    pace = max(np.hypot(*middle), 20) / 365

    def strength(kappa, s):
        return s**2 / ((kappa * pace) ** 2 * (julian / steps) ** 3 / 30)

    def solve(w, ell, x):
        h = x.T @ (w[:, None] * x)
        h[:n, :n] += ell * second.T @ second
        p = np.linalg.solve(h, x.T @ (w[:, None] * y))
        return h, p, np.hypot(*(y - x @ p).T) / sigma

    def evidence(w, ell, s, x):
        h, p, rho = solve(w, ell, x)
        q = (w * (rho * sigma) ** 2).sum() + ell * ((second @ p[:n]) ** 2).sum()
        return -q / (2 * s**2) - (np.linalg.slogdet(h)[1] - (n - 1) * np.log(ell))

    rho = np.hypot(*y.T) / sigma
    s = np.median(rho) / 1.1774
    omega = 1 / np.maximum(1, rho / (1.5 * s))
    kappa, ell = options.start_kappa, strength(options.start_kappa, 1.0)
    for turn_ in range(10):
        _, _, rho = solve(omega / sigma**2, ell, walk)
        s = np.median(rho) / 1.1774
        z = rho / s
        new = 1 / np.maximum(1, z / 1.5) if turn_ < 2 else np.where(z < 5, (1 - (z / 5) ** 2) ** 2, 0)
        change, omega = np.abs(new - omega).mean(), new
        if turn_ == 3:
            found = [evidence(omega / sigma**2, strength(k, s), s, walk) for k in options.kappas]
            kappa = options.kappas[int(np.argmax(found))]
        ell = strength(kappa, s if turn_ >= 3 else min(1.0, s))
        if turn_ >= 5 and change < options.tolerance:
            break
    w, kept = omega / sigma**2, omega > 0
    h, p, rho = solve(w, ell, walk)

    # Shared errors: images ascending in time, pairs ordered by their images.
    times, numbers = np.unique(np.concatenate([o.t1, o.t2]), return_inverse=True)
    one, two = numbers[: len(y1)], numbers[len(y1) :]
    rank = np.empty(len(y1), int)
    rank[np.lexsort([two, one])] = np.arange(len(y1))
    role = np.zeros((len(y1), len(times)))
    role[np.arange(len(y1)), one], role[np.arange(len(y1)), two] = -1, 1
    total = np.abs(role).T @ w
    ok = total > 0
    typical = np.divide(np.abs(role).T @ omega, total, out=np.zeros(len(times)), where=ok)
    hat = walk @ np.linalg.solve(h, walk.T * w)

    def excess(values):
        c = w[:, None] * values
        products = (role.T @ c) ** 2 - np.abs(role).T @ c**2
        return (products[ok] / (typical * (total + 2 / np.where(ok, typical, 1)) ** 2)[ok, None]).sum(0)

    noise = np.stack([signs(len(y1), k) for k in (0, 1)], 1)[rank] / np.sqrt(np.where(kept, w, np.inf))[:, None]
    image = role @ (np.stack([signs(len(times), k) for k in (2, 3)], 1) * np.sqrt(typical)[:, None])
    s = np.median(rho[kept]) / 1.1774
    bias = (excess(noise - hat @ noise) - excess(noise)).sum()
    part = (excess(y - walk @ p).sum() - s**2 * bias) / excess(image - hat @ image).sum()
    part = min(max(part, 0), 0.48 * s**2)
    freedom = 0.5 * (w[:, None] * noise * (hat @ noise)).sum()
    s *= np.sqrt(kept.sum() / max(kept.sum() - freedom, 0.5 * kept.sum()))
    spread = role @ np.diag(part * typical) @ role.T
    limit = np.minimum(np.diag(spread), 0.96 * s**2 / np.where(kept, w, np.inf))
    spread[np.diag_indices(len(y1))] -= limit
    spread = w[:, None] * np.where(np.outer(kept, kept), spread, 0) * w

    stiffer = [k for k in options.kappas if k <= kappa]
    joint = [evidence(w, strength(k, s), s, both) for k in stiffer]
    matrix, x, _ = solve(w, strength(stiffer[int(np.argmax(joint))], s), both)

    def covariance(g):
        u = np.linalg.solve(matrix, g.T)
        return s**2 * g @ u + (both @ u).T @ spread @ (both @ u)

    return x, covariance, omega, rows, middle, part / s**2


@pytest.mark.parametrize("seed", [0, 1])
def test_robust_agrees_with_a_dense_implementation(seed):
    o = images_shared(scattered(np.random.default_rng(seed), 200, 150.0), np.random.default_rng(seed))
    _, once = np.unique([o.t1, o.t2], axis=1, return_index=True)  # pairs of the same images are merged
    o = Observations(*(f[once] for f in (o.t1, o.t2, o.vx, o.vy, o.ex, o.ey)))
    out = estimate(o, calendar(2016, 2020), AnnualOptions(intercept="2018-07-02"), None)
    x, covariance, omega, rows, middle, part = dense_robust(o)
    assert part > 0.05
    years = np.arange(2017, 2020)
    g = rows(years + 0.0, years + 1.0)
    means = g @ x + middle
    assert out["flag"][:, 0].tolist() == [flags.GAP, 0, 0, 0, flags.GAP]
    np.testing.assert_allclose(out["vx"][1:4, 0], means[:, 0], rtol=1e-6)
    np.testing.assert_allclose(out["vy"][1:4, 0], means[:, 1], rtol=1e-6)
    np.testing.assert_allclose(out["vx_error"][1:4, 0], np.sqrt(np.diag(covariance(g))), rtol=1e-5)
    assert out["n_rejected"][0] == (omega == 0).sum() > 10
    line = np.stack([np.ones(3), years + 0.5 - decimal_year(np.array([day("2018-07-02")]))], 1)
    precision = np.linalg.inv(covariance(g))
    spread = np.linalg.inv(line.T @ precision @ line)
    fit = spread @ line.T @ precision @ means
    np.testing.assert_allclose([out["vx0"][0], out["vy0"][0]], fit[0], rtol=1e-5)
    np.testing.assert_allclose([out["dvx_dt"][0], out["dvy_dt"][0]], fit[1], rtol=1e-3, atol=1e-4)
    off = means - line @ fit
    lack = max(1.0, np.trace(off.T @ precision @ off) / 2)
    np.testing.assert_allclose(out["vx0_error"][0], np.sqrt(spread[0, 0] * lack), rtol=1e-4)
    # The annual harmonic of the modelled velocity, from its means over many short steps.
    t = np.linspace(decimal_year(o.t1).min(), decimal_year(o.t2).max(), 20001)
    turns, step = 2 * np.pi * (t[1:] - np.diff(t) / 2), np.diff(t)[0]
    wave = np.stack([np.cos(turns), np.sin(turns), np.ones(20000), t[1:] - t.mean()], 1)
    read = np.linalg.pinv(wave)[:2] @ rows(t[:-1], t[1:]) / step * 365 / 365.25
    cosine, sine = read @ x[:, 0]
    np.testing.assert_allclose(out["vx_amp"][0], np.hypot(sine, cosine), rtol=2e-3)
    np.testing.assert_allclose(out["vx_phase"][0], np.arctan2(sine, cosine) / 2 / np.pi % 1 * 365.25, atol=0.2)
    gradient = np.array([cosine, sine]) / np.hypot(sine, cosine)
    error = np.sqrt(gradient @ covariance(read) @ gradient)
    np.testing.assert_allclose(out["vx_amp_error"][0], error, rtol=2e-3)


def images_shared(o, rng):
    """Valid pairs only, on dates that many of them share, with an error for each date."""
    good = np.isfinite(o.vx[:, 0])
    t1, t2 = np.floor(o.t1[good] / 12) * 12, np.floor(o.t2[good] / 12) * 12 + 1
    days, number = np.unique(np.concatenate([t1, t2]), return_inverse=True)
    shift = rng.normal(0, 2.0, (2, len(days)))[:, number].reshape(2, 2, -1)
    v = np.stack([o.vx[good, 0], o.vy[good, 0]]) + (shift[:, 1] - shift[:, 0]) * 365 / (t2 - t1)
    return Observations(t1, t2, v[0][:, None], v[1][:, None], o.ex[good], o.ey[good])


def test_ten_pairs_give_a_year_and_fewer_nothing():
    rng = np.random.default_rng(5)
    t1, t2 = network(rng, 10, "2018-11-01", "2020-03-01")
    v, e = rng.normal(100, 2, (10, 2)), np.full((10, 1), 3.0)
    v[0, 1] = np.nan
    out = annual(Observations(t1, t2, v, v.copy(), e, e), calendar(2018, 2020), AnnualOptions())
    assert out["flag"].tolist() == [
        [flags.GAP, flags.TOO_FEW_PAIRS],
        [0, flags.TOO_FEW_PAIRS],
        [flags.GAP, flags.TOO_FEW_PAIRS],
    ]
    assert abs(out["vx"][1, 0] - 100) < 4 * out["vx_error"][1, 0] < 40
    assert np.isfinite(out["vx"]).sum() == 1
    assert np.isnan(out["dv_dt"]).all()
    assert out["n_pairs"].tolist() == [10, 9]
    composite = annual(Observations(t1, t2, v, v.copy(), e, e), calendar(2018, 2020), ITSLIVE)
    assert (composite["flag"] == flags.TOO_FEW_PAIRS).all()


def test_years_beyond_the_data_or_with_few_months_are_gaps():
    cube, truth = cubes("500")
    cube = cube.isel(y=[5], x=[5])
    series = invert(cube, method="annual", start="2016-01-01", end="2021-01-01")
    assert series["flag"][:, 0, 0].values.tolist() == [flags.GAP, flags.GAP, 0, flags.GAP, flags.GAP]
    assert np.isfinite(series["vx"][:, 0, 0].values).tolist() == [False, False, True, False, False]
    partial = invert(cube, method="annual", start="2016-01-01", end="2021-01-01", options=AnnualOptions(partial=True))
    bounds = partial["time_bnds"].values[1:4]
    vx = truth.velocity(bounds[:, 0], bounds[:, 1])[0][:, 5, 5]
    assert (np.abs(partial["vx"][1:4, 0, 0] - vx) < 3 * partial["vx_error"][1:4, 0, 0]).all()
    t1, t2 = cube["acquisition_date_img1"], cube["acquisition_date_img2"]
    hole = (t2 > np.datetime64("2018-03-15")) & (t1 < np.datetime64("2018-10-15"))
    holed = cube.isel(mid_date=~hole.values)
    assert int(invert(holed, method="annual")["flag"][0, 0, 0]) == flags.GAP
    bridged = invert(holed, method="annual", options=AnnualOptions(min_months=4))
    whole = series["vx_error"][2, 0, 0]
    assert bridged["vx_error"][0, 0, 0] > 2 * whole


def test_composite_gives_partial_years_and_a_pixel_does_not_depend_on_its_neighbours():
    cube, _ = cubes("500")
    cube = cube.isel(y=slice(0, 2), x=slice(0, 3))
    for options in (AnnualOptions(), ITSLIVE):
        whole = invert(cube, method="annual", start="2017-01-01", end="2020-01-01", options=options)
        lazy = invert(
            cube.chunk(mid_date=99, y=1, x=2), method="annual", start="2017-01-01", end="2020-01-01", options=options
        )
        xr.testing.assert_identical(whole, lazy.compute())
        assert np.isfinite(whole["v"]).all() == (not options.robust)
        assert np.isfinite(whole["v_amp"]).all()


@pytest.mark.parametrize("every", ["30D", "YE", "2YS", ["2018-01-01", "2018-12-31"]])
def test_windows_must_be_calendar_years(every):
    cube, _ = cubes("2000")
    with pytest.raises(ParameterError, match="calendar years"):
        invert(cube.isel(y=[0], x=[0]), method="annual", every=every)


@pytest.mark.parametrize(
    "bad",
    [
        {"min_pairs": 0},
        {"min_months": 13},
        {"error_offset": -1.0},
        {"climatology": (2019, 2018)},
        {"intercept": "2020-02-29"},
        {"intercept": "soon"},
    ],
)
def test_options_are_checked(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        AnnualOptions(**bad)
