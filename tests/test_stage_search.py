"""Stages on unlike devices against brute force: every cut, every order of options."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import LayoutError
from parallel.planner.stage_chain import Chain
from parallel.planner.stage_order import least_bottleneck, least_latency, least_sum
from parallel.planner.stage_places import stage_places
from parallel.planner.stage_problem import (
    NoStaging,
    Option,
    Pool,
    StageProblem,
    StageRun,
    Staging,
    stage_bytes,
)
from parallel.planner.stage_search import StageSearch
from parallel.planner.stage_supply import place


def some_problem(seed: int) -> StageProblem:
    """Up to 6 items, 3 types, 5 devices; layers alike or not, memory tight or not, hops or none."""
    r = random.Random(seed)
    items, kinds = r.randint(1, 6), r.randint(1, 3)
    left, pools = 5, []
    for number in range(kinds):
        devices = r.randint(0 if number else 1, min(3, left))
        left -= devices
        split = r.randint(0, devices)
        nodes = (split, devices - split) if r.random() < 0.4 else (devices,)
        pools.append(Pool(f"type{number}", nodes, r.choice((1.0, 2.5, 0.7))))
    alike = r.random() < 0.4
    work = [1.0 if alike else r.uniform(0.2, 3) for _ in range(items)]
    size = [4 if alike else r.randint(1, 9) for _ in range(items)]
    ends = (r.uniform(0, 2), r.randint(0, 6), r.uniform(0, 2), r.randint(0, 6))
    tight = r.choice((6, 12, 25, 100))
    options = []
    for number in range(kinds):
        speed, room = r.uniform(0.5, 3), r.randint(tight // 2, tight)
        for tp in r.choice(((1,), (1, 2), (1, 2, 3), (2, 3), (1, 3))):
            rate = speed * tp ** r.choice((0.5, 0.9, 1.0))
            seconds = [w / rate for w in work]
            held = [-(-b // tp) for b in size]
            seconds[0] += ends[0] / rate
            seconds[-1] += ends[2] / rate
            held[0] += -(-ends[1] // tp)
            held[-1] += -(-ends[3] // tp)
            options.append(
                Option(
                    number,
                    tp,
                    tuple(seconds),
                    tuple(held),
                    room,
                    stage_seconds=r.choice((0.0, 0.1)),
                    stage_bytes=r.choice((0, 2)),
                    shared_bytes=r.choice((0, min(held[0], held[-1]) // 2)),
                )
            )
    hops: tuple[tuple[float, ...], ...] = ()
    if r.random() < 0.7:
        between = [[r.uniform(0, 0.4) for _ in range(kinds)] for _ in range(kinds)]
        hops = tuple(tuple(between[a.pool][b.pool] for b in options) for a in options)
    return StageProblem(tuple(pools), tuple(options), hops)


@cache
def placeable(nodes: tuple[int, ...], groups: tuple[int, ...]) -> bool:
    """Every group in every node."""
    if not groups:
        return True
    return any(
        node >= groups[0] and placeable((*nodes[:i], node - groups[0], *nodes[i + 1 :]), groups[1:])
        for i, node in enumerate(nodes)
    )


def legal(problem: StageProblem, options: tuple[int, ...]) -> bool:
    used = [problem.options[o] for o in options]
    return all(
        placeable(pool.nodes, tuple(sorted((o.tp for o in used if o.pool == n), reverse=True)))
        for n, pool in enumerate(problem.pools)
    )


def every_cut(problem: StageProblem, options: tuple[int, ...]) -> Iterator[Staging]:
    chain, count = Chain(problem), len(options)
    for inner in combinations(range(1, problem.items), count - 1):
        bounds = pairwise((0, *inner, problem.items))
        runs = [StageRun(a, b, o) for (a, b), o in zip(bounds, options, strict=True)]
        parts = [(problem.options[s.option], s.first, s.end) for s in runs]
        if all(stage_bytes(*p) <= p[0].budget_bytes for p in parts):
            times = [o.stage_seconds + sum(o.seconds[a:b]) for o, a, b in parts]
            hops = sum(problem.hop(a, b) for a, b in pairwise(options))
            found = chain.evaluate(runs)
            assert found.bottleneck_seconds == pytest.approx(max(times))
            assert found.total_seconds == pytest.approx(sum(times) + hops)
            yield found


def every_staging(problem: StageProblem) -> list[Staging]:
    numbers = range(len(problem.options))
    return [
        staging
        for count in range(1, min(problem.items, 5) + 1)
        for options in product(numbers, repeat=count)
        if legal(problem, options)
        for staging in every_cut(problem, options)
    ]


def check(problem: StageProblem, staging: Staging) -> None:
    """What the answer says is so."""
    assert staging.proven
    assert legal(problem, tuple(s.option for s in staging.stages))
    ends = [0] + [s.end for s in staging.stages]
    assert [s.first for s in staging.stages] == ends[:-1] and ends[-1] == problem.items
    for s in staging.stages:
        option = problem.options[s.option]
        assert s.end > s.first and stage_bytes(option, s.first, s.end) <= option.budget_bytes
    assert Chain(problem).evaluate(staging.stages) == staging
    devices = [
        (place.pool, place.node, place.first + i)
        for place, s in zip(stage_places(problem, staging), staging.stages, strict=True)
        for i in range(problem.options[s.option].tp)
    ]
    assert len(set(devices)) == len(devices) == staging.devices
    assert all(index < problem.pools[pool].nodes[node] for pool, node, index in devices)


def front_of(stagings: list[Staging]) -> list[tuple[float, float]]:
    """Pareto points of (bottleneck, total), least total first."""
    points: list[tuple[float, float]] = []
    for s in sorted(stagings, key=lambda s: (s.bottleneck_seconds, s.total_seconds)):
        if not points or s.total_seconds < points[-1][1] - 1e-8:
            points.append((s.bottleneck_seconds, s.total_seconds))
    return points[::-1]


@pytest.mark.parametrize("block", range(20))
def test_every_objective_against_brute_force(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        problem = some_problem(seed)
        found, search = every_staging(problem), StageSearch(problem)
        if not found:
            check_refusal(problem, search)
            continue
        answers: list[tuple[Staging, Callable[[Staging], float]]] = [
            (search.bottleneck(), lambda s: s.bottleneck_seconds),
            (search.latency(), lambda s: s.total_seconds),
            (search.throughput(2, 1e-9), lambda s: s.round_seconds(2)),
            (search.throughput(5, 1e-9), lambda s: s.round_seconds(5)),
            (search.fewest_devices(), lambda s: s.devices),
            (search.cheapest(), lambda s: s.price),
            (search.least_cost(1e-9), lambda s: s.price * s.bottleneck_seconds),
        ]
        for number, (answer, figure) in enumerate(answers):
            check(problem, answer)
            assert figure(answer) == pytest.approx(min(map(figure, found))), (seed, number)
        fewest = [s for s in found if s.devices == answers[4][0].devices]
        least = min(s.bottleneck_seconds for s in fewest)
        assert answers[4][0].bottleneck_seconds == pytest.approx(least), seed
        front = search.front()
        for point in front:
            check(problem, point)
        points = [(s.bottleneck_seconds, s.total_seconds) for s in front]
        assert points == [pytest.approx(p) for p in front_of(found)], seed


def check_refusal(problem: StageProblem, search: StageSearch) -> None:
    """True, and the bytes that it names are enough and not too many."""
    with pytest.raises(NoStaging) as caught:
        search.bottleneck()
    refusal = caught.value
    able = [o for number, o in enumerate(problem.options) if legal(problem, (number,))]
    alone = [
        all(stage_bytes(o, i, i + 1) > o.budget_bytes for o in able) for i in range(problem.items)
    ]
    kind = "devices" if not able else "item" if any(alone) else "memory"
    assert refusal.kind == kind
    for answer in (search.latency, search.fewest_devices, search.cheapest, search.front):
        with pytest.raises(NoStaging):
            answer()
    missing = refusal.missing_bytes
    if missing is None:
        assert kind == "devices"
        return
    assert StageSearch(larger(problem, missing)).missing_bytes() == 0
    assert every_staging(larger(problem, missing))
    assert not every_staging(larger(problem, missing - 1))


def larger(problem: StageProblem, more_bytes: int) -> StageProblem:
    options = tuple(replace(o, budget_bytes=o.budget_bytes + more_bytes) for o in problem.options)
    return replace(problem, options=options)


def test_the_cases_are_of_all_kinds() -> None:
    refused = Counter[str]()
    for seed in range(400):
        try:
            StageSearch(some_problem(seed)).bottleneck()
            refused["none"] += 1
        except NoStaging as refusal:
            refused[refusal.kind] += 1
    assert refused["none"] > 200 and min(refused[k] for k in ("item", "memory", "devices")) > 5


def test_a_limit_that_is_too_tight_is_named() -> None:
    search = StageSearch(some_problem(0))
    least = search.bottleneck().bottleneck_seconds
    assert search.latency(least).bottleneck_seconds == least
    for answer in (search.latency, search.fewest_devices, search.cheapest):
        with pytest.raises(NoStaging, match="slowest can take") as caught:
            answer(least * 0.999)
        assert caught.value.kind == "time" and caught.value.missing_bytes is None


@pytest.mark.parametrize("seed", range(0, 200, 2))
def test_a_given_order_against_brute_force(seed: int) -> None:
    problem, r = some_problem(seed), random.Random(seed)
    chain, numbers = Chain(problem), range(len(problem.options))
    for _ in range(5):
        options = tuple(r.choices(numbers, k=r.randint(1, problem.items)))
        found = list(every_cut(problem, options))
        best = least_bottleneck(chain, options)
        assert (best is None) is (not found)
        if best is None:
            assert least_sum(chain, chain.reach(), options) is None
            continue
        least = min(s.bottleneck_seconds for s in found)
        assert chain.evaluate(best).bottleneck_seconds == least
        quick = least_latency(chain, options)
        assert quick is not None
        answer, total = chain.evaluate(quick), min(s.total_seconds for s in found)
        assert answer.total_seconds == pytest.approx(total)
        even = min(s.bottleneck_seconds for s in found if s.total_seconds <= total * (1 + 1e-8))
        assert answer.bottleneck_seconds == pytest.approx(even)
        for limit in (least, *(s.bottleneck_seconds for s in found[:4])):
            runs = least_sum(chain, chain.reach(limit), options)
            assert runs is not None
            answer = chain.evaluate(runs)
            assert answer.bottleneck_seconds <= limit
            within = [s.total_seconds for s in found if s.bottleneck_seconds <= limit]
            assert answer.total_seconds == pytest.approx(min(within))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    st.lists(st.integers(1, 9), max_size=6),
)
def test_groups_find_room_if_they_can(nodes: tuple[int, ...], sizes: list[int]) -> None:
    shares = place(nodes, tuple(Counter(sizes).items()))
    assert (shares is not None) is placeable(nodes, tuple(sorted(sizes, reverse=True)))
    if shares is not None:
        used = [sum(size * count for size, count in share.items()) for share in shares]
        assert all(u <= n for u, n in zip(used, nodes, strict=True))
        total = sum((Counter(share) for share in shares), Counter[int]())
        assert +total == Counter(sizes)


def alike(items: int, pools: dict[float, int], tps: Sequence[int] = (1,)) -> StageProblem:
    """Items of one second at speed 1, a byte each; pools of whole nodes by their speed."""
    options = tuple(
        Option(number, tp, (1 / (speed * tp),) * items, (1,) * items, items)
        for number, speed in enumerate(pools)
        for tp in tps
    )
    return StageProblem(
        tuple(Pool(f"x{s}", (8,) * (count // 8)) for s, count in pools.items()), options
    )


@pytest.mark.parametrize(
    ("problem", "seconds"),
    [
        (alike(126, {1.0: 64}), 2.0),
        (alike(126, {1.0: 40}), 4.0),
        # 16 of speed 3 and 24 of speed 1: at 2 seconds they hold 16·6 + 24·2 = 144, at less than
        # that 16·5 + 24·1 = 104.
        (alike(126, {3.0: 16, 1.0: 24}), 2.0),
        # Whole nodes hold 12 items in 12/8 s, and 10 of them 120; single devices one each.
        (alike(128, {1.0: 88}, (1, 8)), 1.5),
        # In 1/8 s the 64 whole nodes hold 32·1 + 16·2 + 16·4 items.
        (alike(128, {1.0: 256, 2.0: 128, 4.0: 128}, (1, 2, 4, 8)), 0.125),
    ],
)
def test_closed_forms(problem: StageProblem, seconds: float) -> None:
    assert StageSearch(problem).bottleneck().bottleneck_seconds == pytest.approx(seconds)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_more_devices_are_never_worse(seed: int, pool: int) -> None:
    problem = some_problem(seed)
    pools = list(problem.pools)
    number = pool % len(pools)
    pools[number] = replace(pools[number], nodes=(*pools[number].nodes, 2))
    try:
        before = StageSearch(problem)
        slowest, total = before.bottleneck(), before.latency()
    except NoStaging:
        return
    after = StageSearch(replace(problem, pools=tuple(pools)))
    assert after.bottleneck().bottleneck_seconds <= slowest.bottleneck_seconds * (1 + 1e-9)
    assert after.latency().total_seconds <= total.total_seconds * (1 + 1e-9)
    assert after.fewest_devices().devices <= before.fewest_devices().devices


def test_a_short_front_is_part_of_the_whole() -> None:
    problem = alike(12, {1.0: 8})
    # A stage more takes longer in all.
    options = (replace(problem.options[0], stage_seconds=0.1),)
    search = StageSearch(replace(problem, options=options))
    whole, part = search.front(), search.front(most=3)
    assert 1 < len(part) <= 3 < len(whole)
    points = [(s.bottleneck_seconds, s.total_seconds) for s in whole]
    assert all((s.bottleneck_seconds, s.total_seconds) in points for s in part)
    assert part[0].total_seconds == whole[0].total_seconds
    assert part[-1].bottleneck_seconds == pytest.approx(whole[-1].bottleneck_seconds)


ITEM = Option(0, 1, (1.0, 1.0), (1, 1), 4)
BOX = Pool("box", (2,))


@pytest.mark.parametrize(
    ("pools", "options", "hops", "words"),
    [
        ((BOX,), (), (), "at least one option"),
        ((BOX,), (replace(ITEM, seconds=(1.0,)),), (), "seconds and bytes of every item"),
        ((BOX,), (replace(ITEM, pool=1),), (), "pool 1 doesn't exist"),
        ((BOX,), (replace(ITEM, tp=0),), (), "tp=0"),
        ((BOX,), (replace(ITEM, item_bytes=(1, -1)),), (), "can't be negative"),
        ((BOX,), (replace(ITEM, shared_bytes=2),), (), "part of each"),
        ((BOX,), (ITEM,), ((0.0,), (0.0,)), "a row and a column"),
    ],
)
def test_malformed_problems(
    pools: tuple[Pool, ...],
    options: tuple[Option, ...],
    hops: tuple[tuple[float, ...], ...],
    words: str,
) -> None:
    with pytest.raises(LayoutError, match=words):
        StageProblem(pools, options, hops)
    with pytest.raises(LayoutError, match="devices by node"):
        Pool("none", ())
