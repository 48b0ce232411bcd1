"""Pictures of plans in a terminal: who does what, and when."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from onward.cli.planner import Choice, alone
from onward.costs.budget import Held, told_size
from onward.placement import Placement, messages
from onward.plan.tasks import Plan, Product, Task, TaskKind
from onward.simulation import Simulation

STYLES = ("cyan", "magenta", "green", "yellow", "blue", "red")
"""Colours of chapters (of mini-batches, in a stream plan), in turn."""

MOST_CHOICES = 8
"""Ways to run that a table shows."""


def plan_table(plan: Plan, placement: Placement, memory: Sequence[int]) -> Table:
    """Return a table of each rank: how many tasks of each kind, messages sent, bytes held."""
    ranks = "1 rank" if placement.num_ranks == 1 else f"{placement.num_ranks} ranks"
    table = Table(title=f"{placement.name}: {ranks}")
    for name in ("rank", "blocks", "train", "pass", "score", "validate", "messages", "to ranks"):
        table.add_column(name, justify="right")
    table.add_column("holds, MB", justify="right")
    tasks: dict[int, list[Task]] = {rank: [] for rank in range(placement.num_ranks)}
    sent: dict[int, list[int]] = {rank: [] for rank in range(placement.num_ranks)}
    for task in plan.tasks():
        for rank in placement.ranks(task):
            tasks[rank].append(task)
        for message in messages(plan, placement, task):
            sent[message.source].append(message.dest)
    for rank, own in tasks.items():
        count = {kind: sum(task.kind is kind for task in own) for kind in TaskKind}
        blocks = sorted({task.block for task in own if task.kind is TaskKind.TRAIN})
        table.add_row(
            str(rank),
            ", ".join("head" if b in plan.heads else str(b) for b in blocks),
            *(
                str(count[k])
                for k in (TaskKind.TRAIN, TaskKind.PASS, TaskKind.SCORE, TaskKind.VALIDATE)
            ),
            str(len(sent[rank])),
            ", ".join(map(str, sorted(set(sent[rank])))) or "-",
            f"{memory[rank] / 1e6:,.0f}",
        )
    return table


WAYS = {
    "memory": "held in memory",
    "file": "held in a file",
    "again": "computed again when they are read",
    None: "no room for them",
}
"""How outputs of frozen blocks are held, in words."""


def passed_on(held: Sequence[Held]) -> list[str]:
    """Say how large the outputs of frozen blocks are, and where they are held, alike ranks at once.

    Example:
        >>> passed_on([Held(2_500_000_000, 0, ("memory",), 3_000_000_000)] * 2)
        ['Outputs of frozen blocks, about 2.5 GB on each of the ranks 0, 1: held in memory.']
    """
    ranks: dict[tuple[str, str], list[str]] = {}
    for rank, each in enumerate(held):
        # The first blocks, and those of a stream, read no others' outputs of a chapter.
        if each.bytes:
            alike = told_size(each.bytes), WAYS[each.way]
            ranks.setdefault(alike, []).append(str(rank))
    return [
        f"Outputs of frozen blocks, about {size} on "
        f"{'each of the ranks' if len(own) > 1 else 'rank'} {', '.join(own)}: {way}."
        for (size, way), own in ranks.items()
    ]


def staircase(plan: Plan, placement: Placement, *, clocks: int, width: int) -> Text:
    """Draw the first tasks of each rank, a line a rank, a column a tick of the clock.

    Every task takes one tick and messages none, so the drawing shows what waits for what, not
    how long it takes.

    Example:
        >>> from onward.placement import place
        >>> from onward.plan.chapters import ChapterPlan
        >>> from onward.plan.tasks import line
        >>> plan = ChapterPlan(
        ...     nodes=line(2), epochs=3, chapters=3, batch_size=1, samples=(1,),
        ...     hint_age=None, validate_every=None, has_validation=False,
        ... )
        >>> print(staircase(plan, place(plan, "all-layers", 2, [1, 1]), clocks=9, width=80))
        rank 0  0T0 1T0 0T2 1T2  G
        rank 1      0T1 1T1
    """
    ranks = clock_times(plan, placement, clocks)
    cell = max((len(_name(plan, task)) for row in ranks for task in row if task), default=3) + 1
    shown = min(clocks, (width - 8) // cell)
    drawing = Text()
    for rank, row in enumerate(ranks):
        line = Text(f"rank {rank}".ljust(8))
        for task in row[:shown]:
            style = STYLES[task.time % len(STYLES)] if task else ""
            line.append((_name(plan, task) if task else "").center(cell - 1) + " ", style=style)
        line.rstrip()
        drawing.append_text(line)
        if rank < len(ranks) - 1:
            drawing.append("\n")
    return drawing


def clock_times(plan: Plan, placement: Placement, clocks: int) -> list[list[Task | None]]:
    """Return what each rank does at each tick, where each task takes one and messages none."""
    ranks: list[list[Task | None]] = [[] for _ in range(placement.num_ranks)]
    ready: dict[Product, int] = {}
    for task in plan.tasks():
        if min(map(len, ranks)) >= clocks:
            break
        team = [ranks[rank] for rank in placement.ranks(task)]
        start = max([*map(len, team), *(ready[product] for product in plan.needs(task))])
        for row in team if start < clocks else ():
            row.extend([None] * (start - len(row)) + [task])
        for product in plan.makes(task):
            ready[product] = start + 1
    return ranks


def forecast_table(simulation: Simulation) -> Table:
    """Return a table of what each rank would do all the time."""
    table = Table(title=f"The run would take about {duration(simulation.seconds)}")
    for name in ("rank", "works, s", "waits, s", "is done, s", "sends, MB"):
        table.add_column(name, justify="right")
    for rank, busy in enumerate(simulation.busy):
        table.add_row(
            str(rank),
            f"{busy:.1f}",
            f"{simulation.waiting[rank]:.1f}",
            f"{simulation.seconds - busy - simulation.waiting[rank]:.1f}",
            f"{simulation.bytes_sent(rank) / 1e6:.1f}",
        )
    return table


def choices_table(plan: Plan, placement: Placement, found: Sequence[Choice]) -> Table:
    """Return a table of the ways to run, the fastest first, and the one asked for in any case."""
    table = Table(title="Ways to run it, the fastest first", box=None, padding=(0, 1, 0, 0))
    table.add_column("placement, ranks", no_wrap=True)
    for name in ("chapters", "slices", "time", "speed-up", "sent, MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    one_rank = alone(plan, found)
    for number, choice in enumerate(found):
        is_asked = (choice.plan, choice.placement) == (plan, placement)
        if number >= MOST_CHOICES and not is_asked and choice is not one_rank:
            continue
        simulation, ranks = choice.simulation, choice.placement.num_ranks
        table.add_row(
            f"{choice.placement.name} on {ranks}",
            f"{choice.plan.chapters:,}",
            slices(choice.plan),
            duration(simulation.seconds),
            f"{one_rank.simulation.seconds / simulation.seconds:.2f}",
            f"{sum(simulation.bytes_by_link.values()) / 1e6:,.0f}",
            "asked for" if is_asked else "the same" if choice.plan == plan else "others",
        )
    return table


def advice(plan: Plan, found: Sequence[Choice]) -> str:
    """Say which of the ways to run is the fastest."""
    best = found[0]
    if best.placement.num_ranks == 1:
        return "One rank is the fastest: messages would take longer than the work they spare."
    ratio = alone(plan, found).simulation.seconds / best.simulation.seconds
    text = (
        f"The fastest is {best.placement.name}: {duration(best.simulation.seconds)}, {ratio:.2f} "
        f"times as fast as one rank."
    )
    changes = []
    if best.plan.chapters != plan.chapters:
        changes.append(f"--chapters {best.plan.chapters}")
    if slices(best.plan) != slices(plan):
        changes.append(f"--slices {best.plan.slices} --cut {best.plan.cut}")
    teams = set(best.placement.teams)
    if teams != {1} and len(teams) == 1:
        changes.append(f"--replicas {teams.pop()}")
    if changes:
        text += f" It needs {' '.join(changes)}"
        text += " (changes the weights)." if best.plan != plan else "."
    return text


def slices(plan: Plan) -> str:
    """Return how a plan cuts its mini-batches, in short."""
    return "1" if plan.slices == 1 else f"{plan.slices} {plan.cut}"


def duration(seconds: float) -> str:
    """Return a time as people say it.

    Example:
        >>> duration(4.25), duration(250.0), duration(9000.0)
        ('4.2 s', '4 min 10 s', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def legend(plan: Plan) -> str:
    """Say how to read a drawing."""
    time = plan.time_word
    head = "HT7 is the head. " if plan.heads else ""
    return (
        f"2T7 is block 2, train, {time} 7. {head}P pass with the neutral label, S score for hints, "
        f"V validate, G gather."
    )


def _name(plan: Plan, task: Task) -> str:
    if task.kind is TaskKind.GATHER:
        return "G"
    if task.kind in (TaskKind.SCORE, TaskKind.VALIDATE):
        return f"{task.kind}{task.time}"
    return f"H{task.kind}{task.time}" if task.block in plan.heads else str(task)
