"""What do slow links cost: local objectives beside a pipeline of backpropagation, and the forecast?

    sudo python benchmarks/links.py --data-dir DIR           to 98.5 %, half an hour
    sudo python benchmarks/links.py --data-dir DIR --quick   8 mini-batches, two minutes

Four ranks as in backprop_pipeline.py, with links without limit, of 1 Gbit/s and of 100 Mbit/s
(tbf): all-layers in chapters of an epoch, the stream, and backpropagation with the schedule 1F1B.
What the first two took is compared with a simulation: of the same tasks, as long as they took, and
of messages at the rate of the link less 4.3 % for the headers of its packets. The kernel at hand
had no netem, so a delay of 20 ms is simulated too, from the tasks measured at 1 Gbit/s.

All-layers does all epochs over each link. The other two, in which epochs follow each other, do so
without a limit, and otherwise two epochs, which say how long as many take as the goal needed.
Results that are there are not measured again, so that --goal asks them for another accuracy.

    seconds, megabytes   until the end of the epoch that reaches the accuracy, by link and way
    worst_error          largest difference of simulated and measured time over limited links
    delayed              simulated seconds at 1 Gbit/s with a delay of 20 ms over those without
"""

import json
from dataclasses import dataclass
from typing import Any

import backprop_pipeline
import common
import torch

from onward.placement import place
from onward.plan.chapters import ChapterPlan
from onward.plan.streams import StreamPlan
from onward.plan.tasks import Plan, Product, ProductKind, line
from onward.simulation import FREE, KnownCosts, Link, simulate
from onward.timeline import Span

LINKS = {"unlimited": None, "1gbit": 1e9, "100mbit": 1e8}
"""Bits a second of each rank's link, by name."""

EPOCHS = 8
FEW_EPOCHS = 2
GOAL = 0.985
WAYS = ("onward", "stream", "1f1b")
PAYLOAD = 1448 / 1514
"""Share of a packet on the link that is not headers."""

DELAY = 0.02


@dataclass(frozen=True)
class Sized(KnownCosts):
    """Seconds as measured, and the bytes of dense blocks that learn from a batch in bf16."""

    sizes: tuple[int, ...] = ()
    """Inputs of each block, and units of the last."""

    def num_bytes(self, plan: Plan, product: Product) -> int:
        inputs, units = self.sizes[product.block : product.block + 2]
        weights = 4 * units * (inputs + 1 + 10)
        match product.kind:
            case ProductKind.WEIGHTS:
                return weights
            case ProductKind.OPTIMIZER_STATE:
                return 2 * weights
            case ProductKind.ACTIVITIES:
                return 2 * units * plan.samples_of(product)
        return 0


def plan_of(way: str, work: dict[str, Any]) -> Plan:
    """Return the plan that `backprop_pipeline.local` follows."""
    kind = ChapterPlan if way == "onward" else StreamPlan
    ranks = backprop_pipeline.RANKS
    return kind(
        nodes=line(ranks),
        epochs=work["epochs"],
        chapters=max(work["epochs"], ranks) if way == "onward" else work["epochs"],
        batch_size=work["batch_size"],
        samples=(work["samples"],),
        hint_age=None,
        validate_every=1,
        has_validation=True,
    )


def simulated(way: str, work: dict[str, Any], timeline: list[Span], link: Link) -> float:
    """Return the seconds that the tasks of a run would take over a link."""
    plan = plan_of(way, work)
    name = "all-layers" if way == "onward" else "stream"
    ranks = backprop_pipeline.RANKS
    sizes = (64 if work["smoke"] else 784, *[work["width"]] * ranks)
    costs = Sized(KnownCosts.of(plan, timeline).measured, sizes)
    return simulate(plan, place(plan, name, ranks, [1] * ranks), costs, link).seconds


def until(found: dict[str, Any], number: int | None) -> dict[str, float | None]:
    """Return seconds and megabytes of so many epochs, as those that were done would go on."""
    epochs, names = found["epochs"], ("seconds", "megabytes")
    if number is None:
        return dict.fromkeys(names)
    if number <= len(epochs):
        return {name: round(epochs[number - 1][name], 1) for name in names}
    return {name: round(epochs[-1][name] * number / len(epochs), 1) for name in names}


def forecasts(
    way: str, work: dict[str, Any], timeline: list[Span], bits: float | None
) -> dict[str, float]:
    """Return how long a run took, how long it takes in a simulation, and with a delay."""
    link = FREE if bits is None else Link(PAYLOAD * bits / 8)
    return {
        "measured": max(span.end for span in timeline if span.what == "gather"),
        "simulated": simulated(way, work, timeline, link),
        "delayed": simulated(way, work, timeline, Link(link.bytes_per_second, DELAY)),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--goal", type=float, default=GOAL, help="accuracy on validation samples")
    options = parser.parse_args()
    form = common.form_of(options)
    torch.set_num_threads(1)
    work = backprop_pipeline.settings(form, options.data_dir, EPOCHS, options.goal)
    figures: dict[str, Any] = {"seconds": {}, "megabytes": {}, "delayed": {}}
    errors = []
    needed: dict[str, int | None] = {}
    links = {"100mbit": LINKS["100mbit"]} if form == "smoke" else LINKS
    for link, bits in links.items():
        for way in WAYS:
            is_whole = bits is None or way == "onward" or form != "full"
            own = {**work, "epochs": work["epochs"] if is_whole else FEW_EPOCHS}
            path = options.out / f"links-{link}-{way}.json"
            if form == "full" and path.exists():
                found = json.loads(path.read_text())
            else:
                rate = None if bits is None else f"{bits:.0f}bit"
                found = backprop_pipeline.run(way, own, rate)
                if form == "full":
                    common.record(path, {"link": link, "way": way, **found})
            if is_whole:
                good = [
                    n for n, e in enumerate(found["epochs"], 1) if e["accuracy"] >= options.goal
                ]
                needed[way] = good[0] if good else None
            number = needed[way] if form == "full" else len(found["epochs"])
            goal = until(found, number)
            for name, figure in goal.items():
                figures[name].setdefault(link, {})[way] = figure
            last = found["epochs"][-1]
            told = (
                f"{link:9} {way:6} {number} epochs, {goal['seconds']} s, {goal['megabytes']} MB; "
            )
            told += f"done in the end: {len(found['epochs'])} epochs, {last['seconds']:.1f} s, "
            told += f"{last['megabytes']:.1f} MB, {last['accuracy']:.4f}"
            timeline = [Span(*span) for span in found["timeline"]]
            if timeline:
                times = forecasts(way, own, timeline, bits)
                told += f"; all of it {times['measured']:.1f} s, simulated {times['simulated']:.1f}"
                if bits is not None:
                    errors.append(abs(times["simulated"] / times["measured"] - 1))
                if link == "1gbit":
                    figures["delayed"][way] = round(times["delayed"] / times["simulated"], 4)
            print(told, flush=True)
    figures["worst_error"] = round(max(errors), 4)
    common.last_line(figures, form)


if __name__ == "__main__":
    main()
